//! Requests that no client sends on purpose: they are refused, and the server lives.

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{
    ActionBeginTransactionRequest, Any, CommandStatementQuery, CommandStatementSubstraitPlan, CommandStatementUpdate,
    ProstMessageExt, TicketStatementQuery,
};
use arrow_flight::{Action, FlightData, FlightDescriptor, Ticket};
use futures::stream;
use prost::Message;
use refrain::flight::{Limits, ServerConfig};
use refrain::serving::mock::MockBackend;
use tonic::Code;

use super::harness::{Server, rows};

#[tokio::test]
async fn nonsense_is_refused_by_each_call() {
    let server = Server::start().await;
    let mut client = FlightServiceClient::new(server.channel().await);
    let unknown = Any { type_url: "type.googleapis.com/nothing".to_owned(), value: Default::default() }.encode_to_vec();
    let broken = Any { type_url: CommandStatementQuery::type_url().to_owned(), value: vec![0xff; 9].into() }.encode_to_vec();
    let cases = [
        (b"\xff\xff nonsense".to_vec(), Code::InvalidArgument),
        (vec![], Code::Unimplemented),
        (unknown, Code::Unimplemented),
        (broken, Code::InvalidArgument),
        (CommandStatementSubstraitPlan::default().as_any().encode_to_vec(), Code::Unimplemented),
    ];
    for (bytes, code) in cases {
        let descriptor = FlightDescriptor::new_cmd(bytes.clone());
        assert_eq!(client.get_flight_info(descriptor.clone()).await.unwrap_err().code(), code);
        assert_eq!(client.poll_flight_info(descriptor.clone()).await.unwrap_err().code(), code);
        assert_eq!(client.get_schema(descriptor.clone()).await.unwrap_err().code(), code);
        assert_eq!(client.do_get(Ticket::new(bytes)).await.err().unwrap().code(), code);
        let data = FlightData::new().with_descriptor(descriptor);
        assert_eq!(client.do_put(stream::iter([data])).await.err().unwrap().code(), code);
    }
    for data in [vec![], vec![FlightData::new()]] {
        assert_eq!(client.do_put(stream::iter(data)).await.err().unwrap().code(), Code::InvalidArgument);
    }
    let forged = TicketStatementQuery { statement_handle: vec![7; 16].into() }.as_any().encode_to_vec();
    assert_eq!(client.do_get(Ticket::new(forged)).await.err().unwrap().code(), Code::NotFound);
    let transaction = Action::new("BeginTransaction", ActionBeginTransactionRequest {}.as_any().encode_to_vec());
    for (action, code) in [
        (transaction, Code::Unimplemented),
        (Action::new("Nonsense", vec![]), Code::Unimplemented),
        (Action::new("CreatePreparedStatement", vec![1, 2, 3]), Code::InvalidArgument),
        (Action::new("CancelFlightInfo", vec![0xff]), Code::InvalidArgument),
        (Action::new("SetSessionOptions", vec![0xff]), Code::InvalidArgument),
    ] {
        assert_eq!(client.do_action(action).await.err().unwrap().code(), code);
    }
    let update = CommandStatementUpdate { query: "select 1".to_owned(), transaction_id: Some(vec![1].into()) };
    let data = FlightData::new().with_descriptor(FlightDescriptor::new_cmd(update.as_any().encode_to_vec()));
    assert_eq!(client.do_put(stream::iter([data])).await.err().unwrap().code(), Code::Unimplemented);
    assert_eq!(client.do_exchange(stream::iter([])).await.err().unwrap().code(), Code::Unimplemented);
    assert_eq!(rows(&mut server.client().await, "select 1").await.unwrap(), ["1"]);
}

#[tokio::test]
async fn messages_are_as_large_as_the_server_allows() {
    let limits = Limits { message_bytes: 10_000, ..Limits::default() };
    let server = Server::with(ServerConfig { limits, ..ServerConfig::default() }, MockBackend::new(1)).await;
    let mut client = FlightServiceClient::new(server.channel().await);
    let long = CommandStatementQuery { query: format!("select '{}'", "x".repeat(20_000)), transaction_id: None };
    let descriptor = FlightDescriptor::new_cmd(long.as_any().encode_to_vec());
    assert_eq!(client.get_flight_info(descriptor).await.unwrap_err().code(), Code::OutOfRange);
}
