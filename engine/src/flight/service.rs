//! The RPCs of Flight, each handed on to what it is about.
//!
//! arrow-flight has a trait for servers of Flight SQL, which answers `PollFlightInfo` and `GetSchema` with an error whatever the
//! server does; so the plain service is implemented here.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::metadata::{SqlInfoData, XdbcTypeInfoData};
use arrow_flight::sql::{Any, Command, DoPutPreparedStatementResult, DoPutUpdateResult};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, Result as ActionResult, SchemaAsIpc, SchemaResult, Ticket,
};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::ipc::writer::IpcWriteOptions;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

use super::actions::action_types;
use super::admission::Admission;
use super::auth::{Authenticator, Credentials};
use super::config::ServerConfig;
use super::connection::ConnectionInfo;
use super::deadline::until_deadline;
use super::ingest::{ingest, receive};
use super::metrics::Metrics;
use super::sessions::{COOKIE, Session, Sessions};
use super::statements::{Prepared, encoded, flight_info, info_with, result_schema};
use super::status::{malformed, sql};
use super::traces::{Parent, Trace};
use super::{catalog, sql_info, type_info};
use crate::{Query, Refrain, Result as EngineResult};

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) config: ServerConfig,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) admission: Arc<Admission>,
    pub(super) metrics: Metrics,
    authenticator: Authenticator,
    is_draining: AtomicBool,
    sql_info: SqlInfoData,
    type_info: XdbcTypeInfoData,
}

impl Shared {
    /// Prepares to serve sessions beside `base`.
    pub(super) fn new(base: Refrain, config: ServerConfig) -> EngineResult<Self> {
        let failed = |error: &dyn std::fmt::Display| datafusion::common::internal_datafusion_err!("{error}");
        Ok(Shared {
            sql_info: sql_info::sql_info(base.context()).map_err(|error| failed(&error))?,
            type_info: type_info::type_info().map_err(|error| failed(&error))?,
            sessions: Arc::new(Sessions::new(base, config.limits.clone())),
            admission: Arc::new(Admission::new(&config.limits)),
            metrics: Metrics::new().map_err(|error| failed(&error))?,
            authenticator: Authenticator::new(config.auth.clone())?,
            is_draining: AtomicBool::new(false),
            config,
        })
    }

    /// Takes no statements from now on.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Whether the server takes no statements any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    pub(super) fn refuse_while_draining(&self) -> Result<(), Status> {
        match self.is_draining() {
            true => Err(Status::unavailable("the server stops and takes no more statements; connect to another")),
            false => Ok(()),
        }
    }

    /// Returns the session of a request.
    async fn session<T>(&self, request: &Request<T>) -> Result<Found, Status> {
        let credentials = Credentials::of(request.metadata())?;
        if let Credentials::Bearer(secret) = &credentials
            && let Some(session) = self.sessions.find(secret)
        {
            return Ok(Found { session, is_new: false });
        }
        let user = self.authenticator.user(&credentials).await.inspect_err(|_| self.metrics.login_refused())?;
        if let Some(session) = self.sessions.by_cookie(request.metadata(), &user) {
            return Ok(Found { session, is_new: false });
        }
        let connection = ConnectionInfo::of(request.extensions());
        let connection = connection.ok_or_else(|| Status::internal("a request without a connection"))?;
        Ok(Found { session: self.sessions.of_connection(connection.id, &user)?, is_new: true })
    }

    /// Opens a session for whoever has these credentials.
    pub(crate) async fn log_in(&self, credentials: &Credentials) -> Result<Arc<Session>, Status> {
        let user = self.authenticator.user(credentials).await.inspect_err(|_| self.metrics.login_refused())?;
        self.sessions.log_in(&user)
    }

    async fn metadata(&self, session: &Session, command: Command) -> Result<Option<RecordBatch>, Status> {
        let db = &session.db;
        Ok(Some(match command {
            Command::CommandGetCatalogs(command) => catalog::catalogs(db, command)?,
            Command::CommandGetDbSchemas(command) => catalog::schemas(db, command)?,
            Command::CommandGetTables(command) => catalog::tables(db, command).await?,
            Command::CommandGetTableTypes(_) => catalog::table_types()?,
            Command::CommandGetPrimaryKeys(_) => RecordBatch::new_empty(catalog::primary_keys_schema()),
            Command::CommandGetExportedKeys(_)
            | Command::CommandGetImportedKeys(_)
            | Command::CommandGetCrossReference(_) => RecordBatch::new_empty(catalog::foreign_keys_schema()),
            Command::CommandGetSqlInfo(command) => command.into_builder(&self.sql_info).build()?,
            Command::CommandGetXdbcTypeInfo(command) => command.into_builder(&self.type_info).build()?,
            _ => return Ok(None),
        }))
    }

    fn metadata_schema(&self, command: &Command) -> Option<SchemaRef> {
        Some(match command.clone() {
            Command::CommandGetCatalogs(command) => command.into_builder().schema(),
            Command::CommandGetDbSchemas(command) => command.into_builder().schema(),
            Command::CommandGetTables(command) => command.into_builder().schema(),
            Command::CommandGetTableTypes(_) => catalog::table_types_schema(),
            Command::CommandGetPrimaryKeys(_) => catalog::primary_keys_schema(),
            Command::CommandGetExportedKeys(_)
            | Command::CommandGetImportedKeys(_)
            | Command::CommandGetCrossReference(_) => catalog::foreign_keys_schema(),
            Command::CommandGetSqlInfo(_) => self.sql_info.schema(),
            Command::CommandGetXdbcTypeInfo(_) => self.type_info.schema(),
            _ => return None,
        })
    }

    async fn info(
        self: &Arc<Self>,
        session: &Arc<Session>,
        descriptor: &FlightDescriptor,
        parent: Parent,
    ) -> Result<FlightInfo, Status> {
        let command = command(&descriptor.cmd)?;
        if let Some(schema) = self.metadata_schema(&command) {
            // The command is its own ticket: asking again costs nothing and changes nothing.
            let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(descriptor.cmd.clone()));
            return info_with(&schema, endpoint, descriptor);
        }
        let (queries, trace) = match command {
            Command::CommandStatementQuery(command) => {
                refuse_transaction(command.transaction_id.as_deref())?;
                self.plan_traced(session, &command.query, parent).await?
            }
            Command::CommandPreparedStatementQuery(command) => {
                self.prepared(session, &command.prepared_statement_handle, parent)?
            }
            other => return Err(unknown(&other)),
        };
        let (handle, statement) = self.offer(session, queries, trace).await?;
        flight_info(&statement, &handle, descriptor)
    }

    /// Begins the span of a statement of the page.
    pub(crate) fn trace(&self, session: &Session, text: &str) -> Trace {
        Trace::begin(self.config.traces.as_ref(), session, text, Parent::None)
    }

    /// Plans a statement, and begins its span.
    async fn plan_traced(&self, session: &Session, text: &str, parent: Parent) -> Result<(Vec<Query>, Trace), Status> {
        let trace = Trace::begin(self.config.traces.as_ref(), session, text, parent);
        let query = trace.part("plan", self.plan(session, text)).await?;
        Ok((vec![query], trace))
    }

    /// Returns a prepared statement with its values, and begins its span.
    fn prepared(&self, session: &Session, handle: &[u8], parent: Parent) -> Result<(Vec<Query>, Trace), Status> {
        let queries = session.prepared.get(handle)?.queries()?;
        let text = queries.first().map(Query::text).unwrap_or_default();
        let trace = Trace::begin(self.config.traces.as_ref(), session, text, parent);
        Ok((queries, trace))
    }

    async fn poll_info(
        self: &Arc<Self>,
        session: &Arc<Session>,
        descriptor: &FlightDescriptor,
        parent: Parent,
    ) -> Result<PollInfo, Status> {
        if let Command::TicketStatementQuery(ticket) = command(&descriptor.cmd)? {
            return self.poll(session, ticket.statement_handle.to_vec(), descriptor).await;
        }
        let info = self.info(session, descriptor, parent).await?;
        let ticket = info.endpoint.first().and_then(|endpoint| endpoint.ticket.as_ref());
        match ticket.map(|ticket| command(&ticket.ticket)).transpose()? {
            Some(Command::TicketStatementQuery(ticket)) => {
                self.poll(session, ticket.statement_handle.to_vec(), descriptor).await
            }
            _ => Ok(PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() }),
        }
    }

    async fn schema(&self, session: &Session, descriptor: &FlightDescriptor) -> Result<SchemaRef, Status> {
        let command = command(&descriptor.cmd)?;
        if let Some(schema) = self.metadata_schema(&command) {
            return Ok(schema);
        }
        match command {
            Command::CommandStatementQuery(command) => Ok(result_schema(&self.plan(session, &command.query).await?)),
            Command::CommandPreparedStatementQuery(command) => {
                Ok(session.prepared.get(&command.prepared_statement_handle)?.schema())
            }
            other => Err(unknown(&other)),
        }
    }

    async fn get(self: &Arc<Self>, session: &Arc<Session>, ticket: &Ticket) -> Result<DataStream, Status> {
        match command(&ticket.ticket)? {
            Command::TicketStatementQuery(ticket) => self.fetch(session, &ticket.statement_handle),
            other => {
                let refused = unknown(&other);
                let batch = self.metadata(session, other).await?.ok_or(refused)?;
                Ok(encoded(batch.schema(), stream::iter([Ok(batch)])))
            }
        }
    }

    async fn put(
        self: &Arc<Self>,
        session: &Arc<Session>,
        mut data: Streaming<FlightData>,
        parent: Parent,
    ) -> Result<PutResult, Status> {
        let first = data.message().await?.ok_or_else(|| malformed("the stream", "it is empty"))?;
        let descriptor = first.flight_descriptor.clone();
        let descriptor = descriptor.ok_or_else(|| malformed("the stream", "its first message has no descriptor"))?;
        // Values that were bound before stay, where an execution brings none.
        let brings_values = !first.data_header.is_empty();
        let rows = stream::iter([Ok(first)]).chain(data);
        let limits = &self.config.limits;
        let count = match command(&descriptor.cmd)? {
            Command::CommandStatementUpdate(command) => {
                refuse_transaction(command.transaction_id.as_deref())?;
                let (queries, trace) = self.plan_traced(session, &command.query, parent).await?;
                self.update(session, queries, trace).await?
            }
            Command::CommandPreparedStatementUpdate(command) => {
                let prepared = session.prepared.get(&command.prepared_statement_handle)?;
                if brings_values {
                    bind(&prepared, rows, limits.ingest_bytes).await?;
                }
                let (queries, trace) = self.prepared(session, &command.prepared_statement_handle, parent)?;
                self.update(session, queries, trace).await?
            }
            Command::CommandPreparedStatementQuery(command) => {
                let prepared = session.prepared.get(&command.prepared_statement_handle)?;
                bind(&prepared, rows, limits.ingest_bytes).await?;
                let handle = Some(command.prepared_statement_handle);
                let result = DoPutPreparedStatementResult { prepared_statement_handle: handle };
                return Ok(PutResult { app_metadata: result.encode_to_vec().into() });
            }
            Command::CommandStatementIngest(command) => {
                self.refuse_while_draining()?;
                ingest(session, command, rows, &self.config).await?
            }
            other => return Err(unknown(&other)),
        };
        Ok(PutResult { app_metadata: DoPutUpdateResult { record_count: count }.encode_to_vec().into() })
    }

    async fn handshake(&self, metadata: &MetadataMap) -> Result<Response<HandshakeStream>, Status> {
        let session = self.log_in(&Credentials::of(metadata)?).await?;
        let payload = session.secret().as_bytes().to_vec().into();
        let answer = HandshakeResponse { protocol_version: 0, payload };
        let mut response = Response::new(boxed(stream::iter([Ok(answer)])));
        response.metadata_mut().insert("authorization", header(&format!("Bearer {}", session.secret()))?);
        Ok(response)
    }
}

async fn bind(
    prepared: &Prepared,
    rows: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
    bytes_max: usize,
) -> Result<(), Status> {
    prepared.bind(&receive(rows, bytes_max).await?.batches)
}

fn refuse_transaction(transaction: Option<&[u8]>) -> Result<(), Status> {
    match transaction {
        Some(id) if !id.is_empty() => Err(Status::unimplemented("there are no transactions")),
        _ => Ok(()),
    }
}

/// Reads a command of Flight SQL.
pub(super) fn command(bytes: &[u8]) -> Result<Command, Status> {
    let any = Any::decode(bytes).map_err(|error| malformed("the command", error))?;
    Command::try_from(any).map_err(|error| malformed("the command", error))
}

fn unknown(command: &Command) -> Status {
    Status::unimplemented(format!("there is no answer to {:?} here", command.type_url()))
}

fn header(text: &str) -> Result<MetadataValue<tonic::metadata::Ascii>, Status> {
    text.parse().map_err(|_| Status::internal("a header that is none"))
}

/// The session of a request, and whether its client should be told of it.
struct Found {
    session: Arc<Session>,
    is_new: bool,
}

impl Found {
    /// Makes a response, which tells the client the cookie of its session if it has shown none.
    fn respond<T>(&self, answer: T) -> Result<Response<T>, Status> {
        let mut response = Response::new(answer);
        if self.is_new {
            let cookie = header(&format!("{COOKIE}={}; HttpOnly", self.session.secret()))?;
            response.metadata_mut().insert("set-cookie", cookie);
        }
        Ok(response)
    }
}

type BoxedStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type DataStream = BoxedStream<FlightData>;
type HandshakeStream = BoxedStream<HandshakeResponse>;

fn boxed<T>(stream: impl Stream<Item = Result<T, Status>> + Send + 'static) -> BoxedStream<T> {
    Box::pin(stream)
}

/// The service of one server.
#[derive(Clone)]
pub(super) struct Service(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = HandshakeStream;
    type ListFlightsStream = BoxedStream<FlightInfo>;
    type DoGetStream = DataStream;
    type DoPutStream = BoxedStream<PutResult>;
    type DoActionStream = BoxedStream<ActionResult>;
    type ListActionsStream = BoxedStream<ActionType>;
    type DoExchangeStream = DataStream;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        self.0.handshake(request.metadata()).await
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        // Tables are listed by GetTables; queries are their clients' own.
        self.0.session(&request).await?.respond(boxed(stream::empty()))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let found = self.0.session(&request).await?;
        let parent = Parent::of(request.metadata());
        found.respond(self.0.info(&found.session, request.get_ref(), parent).await?)
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let found = self.0.session(&request).await?;
        let parent = Parent::of(request.metadata());
        found.respond(self.0.poll_info(&found.session, request.get_ref(), parent).await?)
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let found = self.0.session(&request).await?;
        let schema = self.0.schema(&found.session, request.get_ref()).await?;
        found.respond(SchemaAsIpc::new(&schema, &IpcWriteOptions::default()).try_into().map_err(sql)?)
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let found = self.0.session(&request).await?;
        let rows = self.0.get(&found.session, request.get_ref()).await?;
        found.respond(boxed(until_deadline(rows, request.metadata())))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let found = self.0.session(&request).await?;
        let parent = Parent::of(request.metadata());
        let result = self.0.put(&found.session, request.into_inner(), parent).await?;
        found.respond(boxed(stream::iter([Ok(result)])))
    }

    async fn do_exchange(
        &self,
        _request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("Flight SQL has no use for DoExchange"))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let found = self.0.session(&request).await?;
        let answer = self.0.act(&found.session, request.get_ref()).await?;
        found.respond(boxed(stream::iter(answer.map(|body| Ok(ActionResult { body })))))
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let found = self.0.session(&request).await?;
        found.respond(boxed(stream::iter(action_types().map(Ok))))
    }
}
