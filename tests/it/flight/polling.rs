//! Clients that ask how far a query is before they fetch it.

use arrow_flight::FlightDescriptor;
use arrow_flight::sql::{CommandGetCatalogs, CommandStatementQuery, ProstMessageExt};
use prost::Message;
use refrain::flight::{Limits, ServerConfig, Times};
use refrain::serving::mock::{Gate, MockBackend};

use super::harness::{Server, fetch, held, message};
use crate::support::text_rows;

fn query(sql: &str) -> FlightDescriptor {
    let command = CommandStatementQuery { query: sql.to_owned(), transaction_id: None };
    FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
}

#[tokio::test]
async fn progress_is_told_until_the_result_is_there() {
    let gate = Gate::new();
    let times = Times { poll: std::time::Duration::from_millis(1), ..Times::default() };
    let server = Server::with(ServerConfig { times, ..ServerConfig::default() }, held(&gate)).await;
    let mut client = server.client().await;
    let sql = "select ai_complete('p', value) from generate_series(1, 10)";
    let first = client.inner_mut().poll_flight_info(query(sql)).await.unwrap().into_inner();
    assert!(first.info.unwrap().endpoint.is_empty());
    server.oracle.0.wait_for_calls(10).await;
    let mut descriptor = first.flight_descriptor.unwrap();
    let second = client.inner_mut().poll_flight_info(descriptor).await.unwrap().into_inner();
    assert!(second.progress.is_none_or(|progress| progress < 1.0));
    descriptor = second.flight_descriptor.unwrap();
    gate.open();
    let last = loop {
        let poll = client.inner_mut().poll_flight_info(descriptor.clone()).await.unwrap().into_inner();
        match poll.flight_descriptor {
            Some(again) => descriptor = again,
            None => break poll,
        }
    };
    assert_eq!(last.progress, Some(1.0));
    let batches = fetch(&mut client, &last.info.unwrap()).await.unwrap();
    assert_eq!(batches.iter().flat_map(text_rows).collect::<Vec<_>>(), ["late"; 10]);
    assert_eq!(server.oracle.calls(), 10, "the query ran once");
}

#[tokio::test]
async fn metadata_is_there_at_once_and_errors_are_told() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let catalogs = FlightDescriptor::new_cmd(CommandGetCatalogs {}.as_any().encode_to_vec());
    let poll = client.inner_mut().poll_flight_info(catalogs).await.unwrap().into_inner();
    assert!(poll.flight_descriptor.is_none());
    let error = client.inner_mut().poll_flight_info(query("select nonsense")).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    let poll = client.inner_mut().poll_flight_info(query("set refrain.seed = 1")).await.unwrap().into_inner();
    assert!(poll.flight_descriptor.is_none());
}

#[tokio::test]
async fn a_result_that_fills_its_room_is_to_be_fetched() {
    let limits = Limits { polled_bytes: 1, ..Limits::default() };
    let server = Server::with(ServerConfig { limits, ..ServerConfig::default() }, MockBackend::new(1)).await;
    let mut client = server.client().await;
    let sql = "select * from generate_series(1, 100000)";
    let mut poll = client.inner_mut().poll_flight_info(query(sql)).await.map_err(message).unwrap().into_inner();
    while let Some(descriptor) = poll.flight_descriptor {
        poll = client.inner_mut().poll_flight_info(descriptor).await.unwrap().into_inner();
    }
    let batches = fetch(&mut client, &poll.info.unwrap()).await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 100_000);
}
