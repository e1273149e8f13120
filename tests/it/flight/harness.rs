//! A server over a scripted model, and clients of it.

use std::net::SocketAddr;

use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::{FlightInfo, Ticket};
use datafusion::arrow::array::RecordBatch;
use futures::TryStreamExt;
use refrain::Refrain;
use refrain::flight::{ServerConfig, run};
use refrain::serving::mock::{Gate, MockBackend, MockReply};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::support::{Oracle, session_with, text_rows};

/// A client that speaks Flight SQL.
pub(crate) type Client = FlightSqlServiceClient<Channel>;

/// A server that runs.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) monitor: SocketAddr,
    pub(crate) oracle: Oracle,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<refrain::Result<()>>,
}

impl Server {
    /// Starts a server with the usual model of tests.
    pub(crate) async fn start() -> Self {
        Self::with(ServerConfig::default(), MockBackend::new(1)).await
    }

    /// Starts a server whose model answers nothing before the gate opens.
    pub(crate) async fn held(gate: &Gate) -> Self {
        Self::with(ServerConfig::default(), held(gate)).await
    }

    pub(crate) async fn with(config: ServerConfig, mock: MockBackend) -> Self {
        let (db, oracle) = session_with(&[], mock).await;
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let monitor = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, monitor_address) = (socket.local_addr().unwrap(), monitor.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let running = tokio::spawn(run(socket, Some(monitor), db, config, shutdown));
        Server { address, monitor: monitor_address, oracle, stop: Some(stop), running }
    }

    /// Connects a client: a connection of its own, and so a session of its own.
    pub(crate) async fn client(&self) -> Client {
        connect(self.address).await
    }

    pub(crate) async fn channel(&self) -> Channel {
        channel(self.address).await
    }

    /// Tells the server to stop.
    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits until the server has stopped.
    pub(crate) async fn stopped(&mut self) -> refrain::Result<()> {
        (&mut self.running).await.unwrap()
    }

    /// Fetches a page of the monitor: status and body.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = TcpStream::connect(self.monitor).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: refrain\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

/// Serves a session as long as the test runs, and returns the address.
pub(crate) async fn serve(db: Refrain) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(run(socket, None, db, ServerConfig::default(), std::future::pending()));
    address
}

/// Connects a client: a connection of its own, and so a session of its own.
pub(crate) async fn connect(address: SocketAddr) -> Client {
    FlightSqlServiceClient::new(channel(address).await)
}

async fn channel(address: SocketAddr) -> Channel {
    Endpoint::new(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// A model that answers nothing before the gate opens.
pub(crate) fn held(gate: &Gate) -> MockBackend {
    let gate = gate.clone();
    MockBackend::new(1).answer(move |_| Some(MockReply::text("late").after(&gate)))
}

/// Returns the only ticket of a result.
pub(crate) fn ticket(info: &FlightInfo) -> Ticket {
    let [endpoint] = info.endpoint.as_slice() else { panic!("one endpoint") };
    endpoint.ticket.clone().unwrap()
}

/// Fetches a result.
pub(crate) async fn fetch(client: &mut Client, info: &FlightInfo) -> Result<Vec<RecordBatch>, FlightError> {
    let stream = client.do_get(ticket(info)).await?;
    stream.try_collect().await
}

/// Runs a query and returns its rows as text.
pub(crate) async fn rows(client: &mut Client, sql: &str) -> Result<Vec<String>, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    let schema = info.clone().try_decode_schema()?;
    let batches = fetch(client, &info).await?;
    for batch in &batches {
        assert_eq!(batch.schema().fields(), schema.fields(), "the schema that was planned is the one that comes");
    }
    Ok(batches.iter().flat_map(text_rows).collect())
}

/// Returns what the server has said of an error.
pub(crate) fn message(error: impl std::fmt::Display) -> String {
    error.to_string()
}
