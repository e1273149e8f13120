//! A client that goes away, in whatever way, stops its model calls.

use std::time::Duration;

use arrow_flight::sql::{ActionCancelQueryRequest, CommandStatementQuery, ProstMessageExt};
use arrow_flight::{Action, CancelFlightInfoRequest, FlightDescriptor, FlightInfo};
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use refrain::flight::{Limits, ServerConfig, Times};
use refrain::serving::mock::Gate;
use tonic::{Code, Request};

use super::harness::{Client, Server, held, message, rows, ticket};

const QUERY: &str = "select ai_complete('p', value) from generate_series(1, 100)";

/// Starts the query and waits until the model is asked.
async fn started(server: &Server, client: &mut Client) -> (FlightInfo, arrow_flight::decode::FlightRecordBatchStream) {
    let info = client.execute(QUERY.to_owned(), None).await.unwrap();
    let stream = client.do_get(ticket(&info)).await.unwrap();
    server.oracle.0.wait_for_calls(100).await;
    assert_eq!(server.oracle.0.in_flight(), 100);
    (info, stream)
}

/// Waits until the model is asked nothing any more; then nothing more is asked.
async fn idle(server: &Server) {
    server.oracle.0.wait_until_idle().await;
    assert_eq!((server.oracle.0.in_flight(), server.oracle.calls()), (0, 100));
}

#[tokio::test]
async fn dropping_the_response_cancels() {
    let server = Server::held(&Gate::new()).await;
    let mut client = server.client().await;
    let (_, stream) = started(&server, &mut client).await;
    drop(stream);
    idle(&server).await;
    assert_eq!(rows(&mut client, "select 1").await.unwrap(), ["1"]);
    let state = rows(&mut client, "select state from ai_queries() where sql like 'select ai_complete%'").await.unwrap();
    assert_eq!(state, ["cancelled"]);
}

#[tokio::test]
async fn dropping_the_connection_cancels() {
    let server = Server::held(&Gate::new()).await;
    let mut client = server.client().await;
    let (_, stream) = started(&server, &mut client).await;
    drop((client, stream));
    idle(&server).await;
}

#[tokio::test]
async fn cancelling_by_description_tells_the_reader() {
    for is_old in [false, true] {
        let server = Server::held(&Gate::new()).await;
        let mut client = server.client().await;
        let (info, mut stream) = started(&server, &mut client).await;
        let action = match is_old {
            false => Action::new("CancelFlightInfo", CancelFlightInfoRequest::new(info.clone()).encode_to_vec()),
            true => {
                let request = ActionCancelQueryRequest { info: info.encode_to_vec().into() };
                Action::new("CancelQuery", request.as_any().encode_to_vec())
            }
        };
        let answers = client.inner_mut().do_action(action.clone()).await.unwrap().into_inner();
        assert_eq!(answers.try_collect::<Vec<_>>().await.unwrap().len(), 1);
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(message(&error).contains("cancelled"), "{error}");
        idle(&server).await;
        let gone = client.inner_mut().do_action(action).await.err().unwrap();
        assert_eq!(gone.code(), tonic::Code::NotFound);
    }
}

#[tokio::test]
async fn queries_can_be_killed_from_another_session_of_the_user() {
    let server = Server::held(&Gate::new()).await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    let (_, mut stream) = started(&server, &mut client).await;
    let id = rows(&mut other, "select query_id from ai_queries() where sql like 'select ai_complete%'").await.unwrap();
    other.execute(format!("kill query {}", id[0]), None).await.unwrap();
    assert!(stream.next().await.unwrap().is_err());
    idle(&server).await;
}

#[tokio::test]
async fn closing_the_session_cancels() {
    let server = Server::held(&Gate::new()).await;
    let mut client = server.client().await;
    let (_, mut stream) = started(&server, &mut client).await;
    client.inner_mut().do_action(Action::new("CloseSession", vec![])).await.unwrap();
    assert!(stream.next().await.unwrap().is_err());
    idle(&server).await;
}

/// A request that its client gives up after three seconds.
fn hasty<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(3));
    request
}

#[tokio::test]
async fn a_result_whose_deadline_has_passed_is_cancelled() {
    let server = Server::held(&Gate::new()).await;
    let mut client = server.client().await;
    let info = client.execute(QUERY.to_owned(), None).await.unwrap();
    let rows = client.inner_mut().do_get(hasty(ticket(&info))).await.unwrap().into_inner();
    let error = rows.try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    idle(&server).await;
}

#[tokio::test]
async fn a_change_whose_deadline_has_passed_is_cancelled() {
    let times = Times { update: Duration::from_secs(3600), ..Times::default() };
    let server = Server::with(ServerConfig { times, ..ServerConfig::default() }, held(&Gate::new())).await;
    let mut client = server.client().await;
    let command = CommandStatementQuery { query: format!("create table t as {QUERY}"), transaction_id: None };
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    client.inner_mut().get_flight_info(hasty(descriptor)).await.unwrap_err();
    idle(&server).await;
    assert!(message(rows(&mut client, "select * from t").await.unwrap_err()).contains("not found"));
}

#[tokio::test]
async fn an_update_that_nobody_waits_for_any_more_is_cancelled() {
    let server = Server::held(&Gate::new()).await;
    let mut client = server.client().await;
    let sql = format!("create table t as {QUERY}");
    tokio::select! {
        _ = client.execute_update(sql, None) => panic!("it cannot end"),
        () = server.oracle.0.wait_for_calls(100) => {}
    }
    idle(&server).await;
}

#[tokio::test]
async fn a_long_update_goes_on_after_its_ticket_and_ends_with_its_session() {
    let gate = Gate::new();
    let times = Times { update: std::time::Duration::ZERO, ..Times::default() };
    let server = Server::with(ServerConfig { times, ..ServerConfig::default() }, held(&gate)).await;
    let mut client = server.client().await;
    let info = client.execute(format!("create table t as {QUERY}"), None).await.unwrap();
    server.oracle.0.wait_for_calls(100).await;
    let fetching = super::harness::fetch(&mut client, &info);
    gate.open();
    assert!(fetching.await.unwrap().is_empty());
    assert_eq!(rows(&mut client, "select count(*) from t").await.unwrap(), ["100"]);

    let server = Server::with(
        ServerConfig { times: Times { update: std::time::Duration::ZERO, ..Times::default() }, ..ServerConfig::default() },
        held(&Gate::new()),
    )
    .await;
    let mut client = server.client().await;
    client.execute(format!("create table t as {QUERY}"), None).await.unwrap();
    server.oracle.0.wait_for_calls(100).await;
    drop(client);
    idle(&server).await;
}

#[tokio::test]
async fn a_client_that_waits_for_its_turn_may_go() {
    let gate = Gate::new();
    let limits = Limits { running_queries: 1.try_into().unwrap(), ..Limits::default() };
    let server = Server::with(ServerConfig { limits, ..ServerConfig::default() }, held(&gate)).await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    let (_, stream) = started(&server, &mut client).await;
    let info = other.execute("select ai_complete('q', 'other')".to_owned(), None).await.unwrap();
    let waiting = other.do_get(ticket(&info)).await.unwrap();
    while !server.page("/metrics").await.1.contains("refrain_queries_waiting 1\n") {
        tokio::task::yield_now().await;
    }
    // Settings and metadata take no turns.
    assert_eq!(client.execute_update("set refrain.seed = 1".to_owned(), None).await.unwrap(), 0);
    client.get_catalogs().await.unwrap();
    drop(waiting);
    drop(stream);
    idle(&server).await;
    gate.open();
    assert_eq!(rows(&mut client, "select ai_complete('p', 'x')").await.unwrap(), ["late"]);
}

#[tokio::test]
async fn a_result_that_nobody_reads_is_cancelled() {
    let times = Times { unread: std::time::Duration::from_millis(1), ..Times::default() };
    let server = Server::with(ServerConfig { times, ..ServerConfig::default() }, held(&Gate::new())).await;
    let mut client = server.client().await;
    let sql = "select value, repeat('x', 10000) as t from generate_series(1, 100000)";
    let info = client.execute(sql.to_owned(), None).await.unwrap();
    let stream = client.do_get(ticket(&info)).await.unwrap();
    while !server.page("/metrics").await.1.contains("refrain_queries_total{state=\"cancelled\"} 1\n") {
        tokio::task::yield_now().await;
    }
    let error = stream.try_collect::<Vec<_>>().await.unwrap_err();
    assert!(message(&error).contains("nobody has read"), "{error}");
}
