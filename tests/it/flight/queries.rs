//! Statements: planned in GetFlightInfo, run in DoGet; those that change something run at once.

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt};
use arrow_flight::{FlightDescriptor, FlightInfo};
use futures::TryStreamExt;
use prost::Message;
use refrain::flight::{Limits, ServerConfig};
use refrain::serving::mock::{Gate, MockBackend};

use super::harness::{Server, fetch, message, rows, ticket};

#[tokio::test]
async fn queries_are_planned_first_and_run_when_fetched() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info =
        client.execute("select ai_complete('p', value) as a from generate_series(1, 3)".to_owned(), None).await.unwrap();
    assert_eq!(server.oracle.calls(), 0, "planning asks nothing");
    assert_eq!(info.clone().try_decode_schema().unwrap().field(0).name(), "a");
    let batches = fetch(&mut client, &info).await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 3);
    assert_eq!(server.oracle.calls(), 3);
    let again = fetch(&mut client, &info).await.unwrap_err();
    assert!(message(&again).contains("ticket"), "{again}");
    assert_eq!(server.oracle.calls(), 3, "a ticket is fetched once");
}

#[tokio::test]
async fn the_schema_comes_before_any_answer() {
    let gate = Gate::new();
    let server = Server::held(&gate).await;
    let mut client = server.client().await;
    let info = client.execute("select ai_complete('p', 'x')".to_owned(), None).await.unwrap();
    let mut data = client.inner_mut().do_get(ticket(&info)).await.unwrap().into_inner();
    let schema = data.message().await.unwrap().unwrap();
    assert!(!schema.data_header.is_empty() && schema.data_body.is_empty());
    gate.open();
    assert!(!data.message().await.unwrap().unwrap().data_body.is_empty());
}

#[tokio::test]
async fn what_changes_something_runs_without_being_fetched() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for sql in [
        "create table t as select 1 as a union all select 2",
        "insert into t values (3)",
        "set refrain.max_tokens = 7",
        "create temporary table mine as select 1 as b",
        "call ai_cache_clear()",
    ] {
        client.execute(sql.to_owned(), None).await.unwrap();
    }
    assert_eq!(rows(&mut client, "select count(*) from t").await.unwrap(), ["3"]);
    assert_eq!(rows(&mut client, "show refrain.max_tokens").await.unwrap(), ["refrain.max_tokens|7"]);
    assert_eq!(rows(&mut client, "select * from mine").await.unwrap(), ["1"]);
    // Fetching what has run gives what there is to tell, and runs nothing again.
    assert_eq!(rows(&mut client, "insert into t values (4), (5)").await.unwrap(), ["2"]);
    assert_eq!(rows(&mut client, "drop table t").await.unwrap(), Vec::<String>::new());
    assert!(message(rows(&mut client, "select * from t").await.unwrap_err()).contains("t"));
}

#[tokio::test]
async fn updates_return_the_number_of_rows() {
    let server = Server::start().await;
    let mut client = server.client().await;
    assert_eq!(client.execute_update("create table t (a int)".to_owned(), None).await.unwrap(), 0);
    assert_eq!(client.execute_update("insert into t values (1), (2)".to_owned(), None).await.unwrap(), 2);
    assert_eq!(client.execute_update("set refrain.seed = 3".to_owned(), None).await.unwrap(), 0);
    let error = client.execute_update("select ai_complete('p', 'x')".to_owned(), None).await.unwrap_err();
    assert!(message(error).contains("returns rows"));
    assert_eq!(server.oracle.calls(), 0);
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let error = client.execute("select nonsense".to_owned(), None).await.unwrap_err();
    assert!(message(error).contains("nonsense"));
    let error = client.execute("select 1; select 2".to_owned(), None).await.unwrap_err();
    assert!(message(error).contains("after the statement"));
    let error = rows(&mut client, "select ai_complete('p', 'FAIL', on_error => 'fail')").await.unwrap_err();
    assert!(message(&error).contains("FAIL") || message(&error).contains("nonsense"), "{error}");
    assert_eq!(rows(&mut client, "select 1").await.unwrap(), ["1"], "the session lives");
}

#[tokio::test]
async fn lost_rows_are_told_with_the_last_batch() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let sql = "select ai_complete('p', v) from (values ('a'), ('FAIL')) as t(v)";
    let info = client.execute(sql.to_owned(), None).await.unwrap();
    let data: Vec<_> = client.inner_mut().do_get(ticket(&info)).await.unwrap().into_inner().try_collect().await.unwrap();
    let last = String::from_utf8(data.last().unwrap().app_metadata.to_vec()).unwrap();
    assert_eq!(last, "1 rows failed: 1 schema");
    assert_eq!(fetch_rows(data).await, 2, "what carries the text is a batch of no rows");
}

async fn fetch_rows(data: Vec<arrow_flight::FlightData>) -> usize {
    let data = futures::stream::iter(data.into_iter().map(Ok));
    let rows = arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(data);
    rows.try_collect::<Vec<_>>().await.unwrap().iter().map(|batch| batch.num_rows()).sum()
}

#[tokio::test]
async fn results_are_as_long_as_the_server_allows() {
    let limits = Limits { rows: Some(10), ..Limits::default() };
    let server = Server::with(ServerConfig { limits, ..ServerConfig::default() }, MockBackend::new(1)).await;
    let mut client = server.client().await;
    assert_eq!(rows(&mut client, "select * from generate_series(1, 10)").await.unwrap().len(), 10);
    let error = rows(&mut client, "select * from generate_series(1, 11)").await.unwrap_err();
    assert!(message(error).contains("more than 10 rows"));
}

#[tokio::test]
async fn sessions_have_as_many_tokens_as_the_server_allows() {
    let limits = Limits { session_tokens: Some(30), ..Limits::default() };
    let server = Server::with(ServerConfig { limits, ..ServerConfig::default() }, MockBackend::new(1)).await;
    let mut client = server.client().await;
    rows(&mut client, "select ai_complete('a rather long instruction', 'with text')").await.unwrap();
    let error = rows(&mut client, "select ai_complete('another', 'text')").await.unwrap_err();
    assert!(message(error).contains("tokens of the 30"));
    let mut other = server.client().await;
    rows(&mut other, "select 1").await.unwrap();
}

#[tokio::test]
async fn get_schema_plans_and_asks_nothing() {
    let server = Server::start().await;
    let mut client = FlightServiceClient::new(server.channel().await);
    let command = CommandStatementQuery { query: "select ai_score('p', 'x') as s".to_owned(), transaction_id: None };
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let schema = client.get_schema(descriptor).await.unwrap().into_inner();
    let info = FlightInfo { schema: schema.schema, ..FlightInfo::default() };
    assert_eq!(info.try_decode_schema().unwrap().field(0).name(), "s");
    assert_eq!(server.oracle.calls(), 0);
}

#[tokio::test]
async fn large_results_come_in_messages_that_every_client_takes() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let sql = "select value, repeat('x', 1000) as t from generate_series(1, 20000)";
    let info = client.execute(sql.to_owned(), None).await.unwrap();
    let batches = fetch(&mut client, &info).await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 20_000);
}
