//! A session on a server: how it is reached, who the user is, and the calls that all else is made of.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::{Action, FlightInfo, HandshakeRequest, Ticket};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use datafusion::arrow::array::RecordBatch;
use futures::{TryStreamExt, stream};
use prost::bytes::Bytes;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::address::Address;
use super::listings::Names;
use super::login::Login;
use crate::cli::error::{Failure, Outcome};
use crate::flight::shell::{GREET, Greeting};

/// How long a server may take to answer at all.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// How often an idle connection is tried, so that the end of the server is noticed and nothing between the two forgets it.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Bytes of one result, and of all, that may be under way before they are read.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

pub(super) type Client = FlightSqlServiceClient<Channel>;

/// What encryption is proved by.
pub(crate) struct Certificates {
    /// Root of the server's certificate in PEM; by default one of those that the system trusts.
    pub(crate) root: Option<Vec<u8>>,
    /// What the client shows to servers that demand it.
    pub(crate) identity: Option<Identity>,
}

/// A session on a server.
pub(crate) struct Remote {
    pub(super) address: Address,
    pub(super) greeting: Greeting,
    client: Client,
    /// The number of the last statement that has been accounted for.
    pub(super) accounted: Arc<AtomicU64>,
    /// Functions, settings and models, as of the last statement that may have changed them.
    pub(super) names: Mutex<Option<Names>>,
}

impl Remote {
    /// Connects to a server.
    pub(crate) async fn open(address: Address, login: Login, certificates: Certificates) -> Outcome<Self> {
        let channel = channel(&address, certificates).await?;
        let service = FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let mut client = Client::new_from_inner(service);
        match login {
            Login::Nobody => {}
            Login::Token(token) => client.set_token(token),
            Login::Password { user, password } => {
                let token = log_in(&mut client, &user, &password).await?;
                client.set_token(token);
            }
        }
        let greeting = match act(&client, GREET, Bytes::new()).await {
            Ok(body) => read(&body)?,
            Err(status) if status.code() == Code::Unimplemented => {
                return Err(Failure::usage(format!("{address} is a server, but not one of refrain")));
            }
            Err(status) => return Err(status.into()),
        };
        Ok(Remote { address, greeting, client, accounted: Arc::default(), names: Mutex::default() })
    }

    /// Returns a client of the session; calls of one do not wait for those of another.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs a statement and returns its rows.
    pub(super) async fn rows(&self, sql: impl Into<String>) -> Outcome<Vec<RecordBatch>> {
        let mut client = self.client();
        let info = client.execute(sql.into(), None).await?;
        fetch(&mut client, &info).await
    }

    /// Asks for an action of our own.
    pub(super) async fn act(&self, name: &str, body: impl Into<Bytes>) -> Outcome<Bytes> {
        Ok(act(&self.client, name, body.into()).await?)
    }
}

/// Fetches all rows of a result.
pub(super) async fn fetch(client: &mut Client, info: &FlightInfo) -> Outcome<Vec<RecordBatch>> {
    Ok(client.do_get(ticket(info)?).await?.try_collect().await?)
}

/// Returns the ticket of a result.
pub(super) fn ticket(info: &FlightInfo) -> Outcome<Ticket> {
    let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.clone());
    ticket.ok_or_else(|| Status::internal("the server gives no ticket for the result").into())
}

/// Asks for an action, and returns the body of its answer.
pub(super) async fn act(client: &Client, name: &str, body: Bytes) -> Result<Bytes, Status> {
    let mut answers = client.clone().do_action(Action { r#type: name.to_owned(), body }).await.map_err(Status::from)?;
    Ok(answers.message().await?.map(|answer| answer.body).unwrap_or_default())
}

/// Reads an answer in JSON.
pub(super) fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Outcome<T> {
    serde_json::from_slice(body)
        .map_err(|error| Status::internal(format!("cannot read the server's answer: {error}")).into())
}

async fn channel(address: &Address, certificates: Certificates) -> Outcome<Channel> {
    let cannot = |error: tonic::transport::Error| Failure::unreachable(&address.to_string(), &error);
    let mut endpoint = Endpoint::new(address.uri())
        .map_err(cannot)?
        .connect_timeout(CONNECT_PATIENCE)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    if address.has_tls {
        let mut tls = match certificates.root {
            Some(root) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some(identity) = certificates.identity {
            tls = tls.identity(identity);
        }
        endpoint = endpoint.tls_config(tls).map_err(cannot)?;
    }
    endpoint.connect().await.map_err(cannot)
}

/// Shows user and password, and returns the token of the session that the server opens.
async fn log_in(client: &mut Client, user: &str, password: &str) -> Outcome<String> {
    let mut request = Request::new(stream::iter([HandshakeRequest::default()]));
    let credentials = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
    let header = credentials.parse().map_err(|_| Failure::usage("user and password cannot be sent as a header"))?;
    request.metadata_mut().insert("authorization", header);
    let response = client.inner_mut().handshake(request).await?;
    let token = response.metadata().get("authorization").and_then(|header| header.to_str().ok());
    let token = token.and_then(|header| header.strip_prefix("Bearer "));
    token.map(str::to_owned).ok_or_else(|| Status::internal("the server gives no token of a session").into())
}

impl Failure {
    fn unreachable(address: &str, error: &dyn std::error::Error) -> Self {
        let mut message = format!("cannot connect to {address}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            message += &format!(": {cause}");
            source = cause.source();
        }
        Failure::Server { message, exit_code: 1 }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let exit_code = match status.code() {
            Code::ResourceExhausted => 3,
            Code::Aborted => 4,
            Code::Cancelled => 130,
            _ => 1,
        };
        let message = match status.message() {
            "" => format!("the server says: {}", status.code()),
            message => message.to_owned(),
        };
        Failure::Server { message, exit_code }
    }
}

impl From<FlightError> for Failure {
    fn from(error: FlightError) -> Self {
        match error {
            FlightError::Arrow(error) => error.into(),
            error => Status::from(error).into(),
        }
    }
}
