//! What a session changes takes effect in order, whether or not the client fetches what it was given a ticket for.

use std::time::Duration;

use arrow_flight::sql::client::FlightSqlServiceClient;
use refrain::flight::{Limits, ServerConfig, Times};
use refrain::serving::mock::{Gate, MockBackend};

use super::harness::{Client, Server, held, message, rows};

/// A server that gives a ticket for a change at once, while it runs.
async fn impatient(mock: MockBackend, turn: Duration) -> Server {
    let times = Times { update: Duration::ZERO, turn, ..Times::default() };
    Server::with(ServerConfig { times, ..ServerConfig::default() }, mock).await
}

const HOUR: Duration = Duration::from_secs(3600);

/// Two clients of one session: it is that of their connection.
async fn two_of_one_session(server: &Server) -> (Client, Client) {
    let channel = server.channel().await;
    (FlightSqlServiceClient::new(channel.clone()), FlightSqlServiceClient::new(channel))
}

/// Begins a table of ten answers, and fetches nothing.
async fn begin_table(server: &Server, client: &mut Client) {
    let sql = "create table t as select ai_complete('p', value) as a from generate_series(1, 10)";
    client.execute(sql.to_owned(), None).await.unwrap();
    server.oracle.0.wait_for_calls(10).await;
}

#[tokio::test]
async fn a_query_sees_the_table_whose_making_was_never_fetched() {
    let server = impatient(MockBackend::new(1), HOUR).await;
    let mut client = server.client().await;
    for sql in [
        "create table t as select value as a from generate_series(1, 3000000)",
        "insert into t select value from generate_series(1, 1000000)",
        "create table u as select a from t where a <= 1000000",
        "drop table t",
    ] {
        client.execute(sql.to_owned(), None).await.unwrap();
    }
    assert_eq!(rows(&mut client, "select count(*) from u").await.unwrap(), ["2000000"]);
    assert!(message(rows(&mut client, "select * from t").await.unwrap_err()).contains("not found"));
}

#[tokio::test]
async fn the_next_statement_waits_and_metadata_does_not() {
    let gate = Gate::new();
    let server = impatient(held(&gate), HOUR).await;
    let (mut client, mut same) = two_of_one_session(&server).await;
    begin_table(&server, &mut client).await;
    let mut next = Box::pin(rows(&mut client, "select count(*) from t"));
    assert!(futures::future::poll_immediate(&mut next).await.is_none());
    same.get_catalogs().await.unwrap();
    let mut other = server.client().await;
    assert_eq!(rows(&mut other, "select 1").await.unwrap(), ["1"], "other sessions wait for nothing");
    assert!(futures::future::poll_immediate(&mut next).await.is_none());
    gate.open();
    assert_eq!(next.await.unwrap(), ["10"]);
}

#[tokio::test]
async fn a_prepared_query_sees_what_was_changed_before_it_runs() {
    let gate = Gate::new();
    let server = impatient(held(&gate), HOUR).await;
    let mut client = server.client().await;
    client.execute_update("create table t (a text)".to_owned(), None).await.unwrap();
    let mut prepared = client.prepare("select count(*) from t".to_owned(), None).await.unwrap();
    let sql = "insert into t select ai_complete('p', value) from generate_series(1, 10)";
    client.execute(sql.to_owned(), None).await.unwrap();
    server.oracle.0.wait_for_calls(10).await;
    let mut executed = Box::pin(prepared.execute());
    assert!(futures::future::poll_immediate(&mut executed).await.is_none());
    gate.open();
    let info = executed.await.unwrap();
    let batches = super::harness::fetch(&mut client, &info).await.unwrap();
    assert_eq!(batches.iter().flat_map(crate::support::text_rows).collect::<Vec<_>>(), ["10"]);
}

#[tokio::test]
async fn a_change_can_be_killed_by_its_own_session() {
    let server = impatient(held(&Gate::new()), HOUR).await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    begin_table(&server, &mut client).await;
    let id = rows(&mut other, "select query_id from ai_queries() where sql like 'create table%'").await.unwrap();
    client.execute(format!("kill query {}", id[0]), None).await.unwrap();
    server.oracle.0.wait_until_idle().await;
    assert!(message(rows(&mut client, "select * from t").await.unwrap_err()).contains("not found"));
}

#[tokio::test]
async fn who_waits_may_go_and_waits_no_longer_than_the_server_lets_it() {
    let gate = Gate::new();
    let server = impatient(held(&gate), Duration::from_millis(1)).await;
    let (mut client, mut same) = two_of_one_session(&server).await;
    begin_table(&server, &mut client).await;
    let refused = rows(&mut client, "select count(*) from t").await.unwrap_err();
    assert!(message(refused).contains("KILL QUERY"));
    let refused = client.execute_update("set refrain.seed = 1".to_owned(), None).await.unwrap_err();
    assert!(message(refused).contains("another session"));
    drop(client);
    gate.open();
    while rows(&mut same, "select count(*) from t").await.ok() != Some(vec!["10".to_owned()]) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_session_that_fetches_nothing_ends_when_nobody_uses_it() {
    let times = Times { update: Duration::ZERO, session: Duration::from_millis(50), ..Times::default() };
    let server = Server::with(ServerConfig { times, ..ServerConfig::default() }, MockBackend::new(1)).await;
    let mut client = server.client().await;
    client.execute("create table t as select value from generate_series(1, 100000)".to_owned(), None).await.unwrap();
    while !server.page("/metrics").await.1.contains("refrain_sessions 0\n") {
        tokio::task::yield_now().await;
    }
    assert_eq!(rows(&mut client, "select count(*) from t").await.unwrap(), ["100000"]);
}

#[tokio::test]
async fn what_was_changed_and_never_fetched_takes_no_room() {
    let limits = Limits { handles: 2, ..Limits::default() };
    let server = Server::with(ServerConfig { limits, ..ServerConfig::default() }, MockBackend::new(1)).await;
    let mut client = server.client().await;
    for seed in 0..5 {
        client.execute(format!("set refrain.seed = {seed}"), None).await.unwrap();
    }
    assert_eq!(rows(&mut client, "show refrain.seed").await.unwrap(), ["refrain.seed|4"]);
}
