//! Many clients at once, some of which go away in the middle: no wrong answer, nothing stuck, nothing left.

use futures::StreamExt;
use futures::future::join_all;
use refrain::flight::ServerConfig;
use refrain::serving::mock::{Gate, MockBackend, MockReply};

use super::harness::{Server, rows, ticket};

const CLIENTS: u64 = 200;
const ROUNDS: u64 = 4;

/// Marsaglia's xorshift.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Asks in some order; returns early where the client goes away.
async fn visit(server: &Server, number: u64) {
    let mut seed = number * 0x9e37_79b9 + 1;
    let mut client = server.client().await;
    for round in 0..ROUNDS {
        match next(&mut seed) % 5 {
            0 => {
                let n = next(&mut seed) % 10_000 + 1;
                let sum = rows(&mut client, &format!("select sum(value) from generate_series(1, {n})")).await.unwrap();
                assert_eq!(sum, [(n * (n + 1) / 2).to_string()], "client {number}, round {round}");
            }
            1 => {
                let sql = format!("select ai_complete('p', 'client {number} ' || value) from generate_series(1, 5)");
                let mut answers = rows(&mut client, &sql).await.unwrap();
                answers.sort();
                let expected: Vec<_> = (1..=5).map(|value| format!("p(client {number} {value})")).collect();
                assert_eq!(answers, expected, "client {number}, round {round}");
            }
            2 => {
                let table = format!("create or replace temporary table mine as select {number} as a");
                client.execute_update(table, None).await.unwrap();
                assert_eq!(rows(&mut client, "select a from mine").await.unwrap(), [number.to_string()]);
            }
            3 => {
                let answers = rows(&mut client, "select ai_filter('shared', 'a shared question')").await.unwrap();
                assert_eq!(answers, ["true"], "client {number}, round {round}");
            }
            _ => {
                // It would never be answered.
                let sql = format!("select ai_complete('p', 'hold {number} ' || value) from generate_series(1, 20)");
                let info = client.execute(sql, None).await.unwrap();
                let mut stream = client.do_get(ticket(&info)).await.unwrap();
                let is_patient = next(&mut seed).is_multiple_of(2);
                let polled = futures::future::poll_immediate(stream.next()).await;
                assert!(polled.is_none(), "client {number}, round {round}");
                if !is_patient {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_that_come_and_go() {
    let never = Gate::new();
    let mock = MockBackend::new(1)
        .without_history()
        .answer(move |prompt| prompt.contains("hold").then(|| MockReply::text("never").after(&never)));
    let server = Server::with(ServerConfig::default(), mock).await;
    join_all((0..CLIENTS).map(|number| visit(&server, number))).await;
    server.oracle.0.wait_until_idle().await;
    let is_clean = |metrics: &str| {
        let gauges = ["refrain_sessions 0\n", "refrain_queries_running 0\n", "refrain_queries_waiting 0\n"];
        gauges.iter().all(|gauge| metrics.contains(gauge))
    };
    while !is_clean(&server.page("/metrics").await.1) {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.oracle.0.in_flight(), 0);
    assert_eq!(rows(&mut server.client().await, "select 1").await.unwrap(), ["1"]);
}
