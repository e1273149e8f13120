//! Tables that clients send.

use std::sync::Arc;

use arrow_flight::sql::{CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption};
use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use futures::stream;
use refrain::flight::{Limits, ServerConfig};
use refrain::serving::mock::MockBackend;

use super::harness::{Client, Server, message, rows};

async fn ingest(
    client: &mut Client,
    exists: TableExistsOption,
    batch: RecordBatch,
    change: impl FnOnce(&mut CommandStatementIngest),
) -> Result<i64, String> {
    let mut command = CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Create.into(),
            if_exists: exists.into(),
        }),
        table: "t".to_owned(),
        ..Default::default()
    };
    change(&mut command);
    client.execute_ingest(command, stream::iter([Ok(batch)])).await.map_err(message)
}

fn numbers(name: &str, numbers: &[i32]) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int32Array::from(numbers.to_vec()));
    RecordBatch::try_from_iter([(name, column)]).unwrap()
}

#[tokio::test]
async fn tables_are_made_filled_and_replaced() {
    let server = Server::start().await;
    let mut client = server.client().await;
    assert_eq!(ingest(&mut client, TableExistsOption::Fail, numbers("a", &[1, 2]), |_| {}).await, Ok(2));
    assert_eq!(rows(&mut client, "select sum(a) from t").await.unwrap(), ["3"]);
    let error = ingest(&mut client, TableExistsOption::Fail, numbers("a", &[1]), |_| {}).await.unwrap_err();
    assert!(error.contains("already exists"), "{error}");
    assert_eq!(ingest(&mut client, TableExistsOption::Append, numbers("a", &[3]), |_| {}).await, Ok(1));
    assert_eq!(rows(&mut client, "select sum(a) from t").await.unwrap(), ["6"]);
    let error = ingest(&mut client, TableExistsOption::Append, numbers("b", &[3]), |_| {}).await.unwrap_err();
    assert!(error.contains("no column"), "{error}");
    assert_eq!(ingest(&mut client, TableExistsOption::Replace, numbers("b", &[9]), |_| {}).await, Ok(1));
    assert_eq!(rows(&mut client, "select * from t").await.unwrap(), ["9"]);
    let mut other = server.client().await;
    assert_eq!(rows(&mut other, "select * from t").await.unwrap(), ["9"], "the table is everybody's");
}

#[tokio::test]
async fn what_was_sent_can_be_asked_about() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let text: ArrayRef = Arc::new(StringArray::from(vec!["good", "bad"]));
    let batch = RecordBatch::try_from_iter([("body", text)]).unwrap();
    ingest(&mut client, TableExistsOption::Fail, batch, |command| command.table = "Mails".to_owned()).await.unwrap();
    let found = rows(&mut client, "select body from \"Mails\" where ai_filter('good', body)").await.unwrap();
    assert_eq!(found, ["good"]);
}

#[tokio::test]
async fn temporary_tables_are_the_clients_own() {
    let server = Server::start().await;
    let mut client = server.client().await;
    ingest(&mut client, TableExistsOption::Fail, numbers("a", &[1]), |command| command.temporary = true).await.unwrap();
    assert_eq!(rows(&mut client, "select * from t").await.unwrap(), ["1"]);
    assert!(rows(&mut server.client().await, "select * from t").await.is_err());
    let wrong = ingest(&mut client, TableExistsOption::Fail, numbers("a", &[1]), |command| {
        command.temporary = true;
        command.schema = Some("public".to_owned());
    });
    assert!(wrong.await.unwrap_err().contains("lie in schema temp"));
}

#[tokio::test]
async fn tables_are_as_large_as_the_server_allows() {
    let limits = Limits { ingest_bytes: 1000, ..Limits::default() };
    let server = Server::with(ServerConfig { limits, ..ServerConfig::default() }, MockBackend::new(1)).await;
    let mut client = server.client().await;
    let error = ingest(&mut client, TableExistsOption::Fail, numbers("a", &[7; 1000]), |_| {}).await.unwrap_err();
    assert!(error.contains("more than 1000 bytes"), "{error}");
    assert!(rows(&mut client, "select * from t").await.is_err(), "no half table");
}
