//! Each client has settings and temporary tables of its own; tables and models are everybody's.

use std::collections::HashMap;
use std::time::Duration;

use arrow_flight::Action;
use futures::TryStreamExt;
use prost::Message;

use refrain::flight::{Limits, ServerConfig, Times};
use refrain::serving::mock::MockBackend;

use super::harness::{Client, Server, fetch, message, rows};

async fn act(client: &mut Client, kind: &str, body: Vec<u8>) -> Vec<u8> {
    let stream = client.inner_mut().do_action(Action::new(kind, body)).await.unwrap().into_inner();
    stream.try_collect::<Vec<_>>().await.unwrap().pop().unwrap().body.to_vec()
}

/// The messages of session options, written out: what a client in another language sends.
#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(map = "string, message", tag = "1")]
    options: HashMap<String, Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(sfixed64, optional, tag = "3")]
    int64: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Errors {
    #[prost(map = "string, message", tag = "1")]
    errors: HashMap<String, ErrorValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorValue {
    #[prost(int32, tag = "1")]
    value: i32,
}

#[tokio::test]
async fn settings_and_temporary_tables_are_a_sessions_own() {
    let server = Server::start().await;
    let (mut one, mut other) = (server.client().await, server.client().await);
    for sql in ["set refrain.seed = 5", "create temporary table t as select 1 as a", "create table shared as select 2 as a"]
    {
        one.execute_update(sql.to_owned(), None).await.unwrap();
    }
    assert_eq!(rows(&mut one, "select * from t").await.unwrap(), ["1"]);
    assert_eq!(rows(&mut one, "show refrain.seed").await.unwrap(), ["refrain.seed|5"]);
    assert_eq!(rows(&mut other, "select * from shared").await.unwrap(), ["2"]);
    assert_eq!(rows(&mut other, "show refrain.seed").await.unwrap(), ["refrain.seed|0"]);
    assert!(message(rows(&mut other, "select * from t").await.unwrap_err()).contains("t"));
    other.execute_update("create table t as select 3 as a".to_owned(), None).await.unwrap();
    assert_eq!(rows(&mut one, "select * from t").await.unwrap(), ["1"], "a temporary table stands before a shared one");
    one.execute_update("drop table t".to_owned(), None).await.unwrap();
    assert_eq!(rows(&mut one, "select * from t").await.unwrap(), ["3"]);
}

#[tokio::test]
async fn options_of_the_session_are_its_settings() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let text = |text: &str| Value { text: Some(text.to_owned()), int64: None };
    let options = [
        ("refrain.temperature", text("0.5")),
        ("refrain.seed", Value { text: None, int64: Some(9) }),
        ("schema", text("refrain")),
        ("catalog", text("nowhere")),
        ("refrain.priority", text("never")),
        ("no.such.option", text("1")),
    ];
    let options = options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let errors = act(&mut client, "SetSessionOptions", Options { options }.encode_to_vec()).await;
    let errors: HashMap<String, i32> =
        Errors::decode(&*errors).unwrap().errors.into_iter().map(|(name, error)| (name, error.value)).collect();
    let expected = [("catalog", 2), ("no.such.option", 1), ("refrain.priority", 2)];
    assert_eq!(errors, expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    assert_eq!(rows(&mut client, "show refrain.seed").await.unwrap(), ["refrain.seed|9"]);
    assert_eq!(rows(&mut client, "select count(*) from ai_models").await.unwrap(), ["2"], "in the schema that was set");

    let set = act(&mut client, "GetSessionOptions", vec![]).await;
    let set = Options::decode(&*set).unwrap().options;
    assert_eq!(set["refrain.temperature"].text.as_deref(), Some("0.5"));
    assert_eq!(set["catalog"].text.as_deref(), Some("datafusion"));
    let unset = [("refrain.seed", Value::default())].map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
    act(&mut client, "SetSessionOptions", Options { options: unset }.encode_to_vec()).await;
    assert_eq!(rows(&mut client, "show refrain.seed").await.unwrap(), ["refrain.seed|0"]);
}

#[tokio::test]
async fn a_session_can_be_closed_and_its_tickets_are_void() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.execute_update("set refrain.seed = 5".to_owned(), None).await.unwrap();
    let info = client.execute("select 1".to_owned(), None).await.unwrap();
    let status = act(&mut client, "CloseSession", vec![]).await;
    assert_eq!(ErrorValue::decode(&*status).unwrap().value, 1);
    assert!(fetch(&mut client, &info).await.is_err());
    assert_eq!(
        rows(&mut client, "show refrain.seed").await.unwrap(),
        ["refrain.seed|0"],
        "a new session on this connection"
    );
}

#[tokio::test]
async fn the_cookie_brings_a_session_to_another_connection() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.execute_update("set refrain.seed = 5".to_owned(), None).await.unwrap();
    let request = tonic::Request::new(arrow_flight::Empty {});
    let response = client.inner_mut().list_actions(request).await.unwrap();
    let cookie = response.metadata().get("set-cookie").unwrap().to_str().unwrap().to_owned();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let mut other = server.client().await;
    other.set_header("cookie", cookie);
    assert_eq!(rows(&mut other, "show refrain.seed").await.unwrap(), ["refrain.seed|5"]);
    drop(client);
    assert_eq!(rows(&mut other, "show refrain.seed").await.unwrap(), ["refrain.seed|5"]);
}

#[tokio::test]
async fn tickets_are_a_sessions_own() {
    let server = Server::start().await;
    let (mut one, mut other) = (server.client().await, server.client().await);
    let info = one.execute("select 1".to_owned(), None).await.unwrap();
    assert!(message(fetch(&mut other, &info).await.unwrap_err()).contains("no such ticket"));
    assert!(fetch(&mut one, &info).await.is_ok());
}

#[tokio::test]
async fn a_session_ends_with_its_connection() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut other = server.client().await;
    {
        let mut client = client;
        client.execute_update("create temporary table t as select 1".to_owned(), None).await.unwrap();
        rows(&mut other, "select 1").await.unwrap();
        assert!(server.page("/metrics").await.1.contains("refrain_sessions 2\n"));
    }
    // The server hears of the end of a connection a moment later.
    while !server.page("/metrics").await.1.contains("refrain_sessions 1\n") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_session_that_nobody_uses_ends() {
    let times = Times { session: Duration::from_millis(50), ..Times::default() };
    let server = Server::with(ServerConfig { times, ..ServerConfig::default() }, MockBackend::new(1)).await;
    let mut client = server.client().await;
    client.execute_update("create temporary table t as select 1".to_owned(), None).await.unwrap();
    while !server.page("/metrics").await.1.contains("refrain_sessions 0\n") {
        tokio::task::yield_now().await;
    }
    assert!(rows(&mut client, "select * from t").await.is_err(), "the connection has a new session");
}

#[tokio::test]
async fn a_ticket_that_nobody_fetches_is_void() {
    let times = Times { ticket: Duration::from_millis(50), ..Times::default() };
    let limits = Limits { handles: 1, ..Limits::default() };
    let server = Server::with(ServerConfig { times, limits, ..ServerConfig::default() }, MockBackend::new(1)).await;
    let mut client = server.client().await;
    let first = client.execute("select 1".to_owned(), None).await.unwrap();
    // There is room for one ticket, so that the second is given once the first is void.
    while client.execute("select 2".to_owned(), None).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(message(fetch(&mut client, &first).await.unwrap_err()).contains("no such ticket"));
}
