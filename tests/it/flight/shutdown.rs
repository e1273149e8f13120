//! A server that stops lets queries finish, and tells those that watch it.

use refrain::flight::{ServerConfig, Times};
use refrain::serving::mock::Gate;

use super::harness::{Server, held, message, rows, ticket};
use futures::TryStreamExt;

#[tokio::test]
async fn running_queries_finish_and_new_ones_are_refused() {
    let gate = Gate::new();
    let mut server = Server::held(&gate).await;
    let mut client = server.client().await;
    assert_eq!(server.page("/readyz").await, (200, "ready\n".to_owned()));
    let info = client.execute("select ai_complete('p', 'x')".to_owned(), None).await.unwrap();
    let stream = client.do_get(ticket(&info)).await.unwrap();
    server.oracle.0.wait_for_calls(1).await;
    server.stop();
    while server.page("/readyz").await.0 != 503 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.page("/healthz").await, (200, "ok\n".to_owned()));
    let error = client.execute("select 1".to_owned(), None).await.unwrap_err();
    assert!(message(error).contains("the server stops"));
    gate.open();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().len(), 1);
    drop(client);
    server.stopped().await.unwrap();
}

#[tokio::test]
async fn queries_that_take_too_long_are_cancelled() {
    let times = Times { drain: std::time::Duration::from_millis(1), ..Times::default() };
    let mut server = Server::with(ServerConfig { times, ..ServerConfig::default() }, held(&Gate::new())).await;
    let mut client = server.client().await;
    let info = client.execute("select ai_complete('p', 'x')".to_owned(), None).await.unwrap();
    let stream = client.do_get(ticket(&info)).await.unwrap();
    server.oracle.0.wait_for_calls(1).await;
    server.stop();
    assert!(stream.try_collect::<Vec<_>>().await.is_err());
    server.oracle.0.wait_until_idle().await;
    server.stopped().await.unwrap();
}

#[tokio::test]
async fn counters_are_those_of_the_queries() {
    let server = Server::start().await;
    let mut client = server.client().await;
    rows(&mut client, "select ai_complete('p', value) from generate_series(1, 3)").await.unwrap();
    let metrics = server.page("/metrics").await.1;
    for line in [
        "refrain_queries_total{state=\"finished\"} 1",
        "refrain_rows_total 3",
        "refrain_calls_total 3",
        "refrain_query_seconds_count 1",
        "refrain_sessions 1",
        "refrain_draining 0",
    ] {
        assert!(metrics.contains(&format!("{line}\n")), "{line} in {metrics}");
    }
    assert_eq!(server.page("/nothing").await.0, 404);
}
