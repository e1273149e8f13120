//! Statements of clients: planned and given a ticket, or run at once where they change something.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, PollInfo, Ticket};
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::common::runtime::SpawnedTask;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, Statement as PlannedStatement};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::sync::watch;
use tonic::Status;

use super::plain::plain_schema;
use super::results::{FETCHED_BYTES, Job, Rows};
use super::service::Shared;
use super::sessions::Session;
use super::status::sql;
use super::traces::Trace;
use crate::Query;

/// A statement that a client may fetch.
pub(super) struct Statement {
    /// The columns as they are sent.
    schema: SchemaRef,
    cancelled: watch::Sender<bool>,
    stage: Mutex<Stage>,
}

enum Stage {
    /// Waits to be fetched.
    Planned(Vec<Query>, Trace),
    /// Runs for a client that polls, and fetches later.
    Polled(Rows),
    /// Changes something, for longer than the client was made to wait.
    Updating(Update),
    /// Has changed something.
    Updated(Vec<RecordBatch>),
    /// Is being fetched. The last stage.
    Fetched,
}

/// A change that runs, or has ended and nobody has asked for what it gave.
struct Update {
    task: SpawnedTask<Result<Vec<RecordBatch>, Status>>,
    is_over: Arc<AtomicBool>,
}

impl Update {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// A prepared statement and the values of its parameters.
pub(super) struct Prepared {
    query: Query,
    /// One list of values for each run.
    bound: Mutex<Vec<Vec<ScalarValue>>>,
}

impl Statement {
    fn new(schema: SchemaRef, stage: Stage) -> Self {
        Statement { schema, cancelled: watch::Sender::new(false), stage: Mutex::new(stage) }
    }

    /// Stops the statement; whoever fetches it is told.
    pub(super) fn cancel(&self) {
        self.cancelled.send_replace(true);
        // What nobody reads yet is dropped, and so stopped.
        let stage = std::mem::replace(&mut *self.lock(), Stage::Fetched);
        drop(stage);
    }

    /// Whether it runs now.
    pub(super) fn is_running(&self) -> bool {
        match &*self.lock() {
            Stage::Polled(_) | Stage::Fetched => true,
            Stage::Updating(update) => !update.is_over(),
            Stage::Planned(..) | Stage::Updated(_) => false,
        }
    }

    /// Whether it runs, or may still be fetched.
    pub(super) fn is_unfinished(&self) -> bool {
        match &*self.lock() {
            Stage::Updated(_) => false,
            Stage::Updating(update) => !update.is_over(),
            Stage::Planned(..) | Stage::Polled(_) | Stage::Fetched => true,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Prepared {
    /// Prepares a planned statement.
    pub(super) fn new(query: Query) -> Self {
        Prepared { query, bound: Mutex::default() }
    }

    /// Returns the columns of the result as they are sent: none of a statement that changes something.
    pub(super) fn schema(&self) -> SchemaRef {
        result_schema(&self.query)
    }

    /// Returns the parameters.
    pub(super) fn parameters(&self) -> Result<SchemaRef, Status> {
        Ok(self.query.parameters()?)
    }

    /// Gives the parameters values, one list for each row.
    pub(super) fn bind(&self, batches: &[RecordBatch]) -> Result<(), Status> {
        let mut bound = vec![];
        for batch in batches {
            for row in 0..batch.num_rows() {
                let values = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, row));
                bound.push(values.collect::<Result<Vec<_>, _>>().map_err(sql)?);
            }
        }
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = bound;
        Ok(())
    }

    /// Returns the statement once for each list of values. Fails if there are parameters without values.
    pub(super) fn queries(&self) -> Result<Vec<Query>, Status> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if bound.is_empty() {
            return Ok(vec![self.query.bind(&[])?]);
        }
        Ok(bound.iter().map(|values| self.query.bind(values)).collect::<crate::Result<_>>()?)
    }
}

/// The columns of a result as they are sent.
pub(super) fn result_schema(query: &Query) -> SchemaRef {
    match query.returns_rows() {
        true => plain_schema(&query.schema()),
        false => Arc::new(Schema::empty()),
    }
}

/// Whether a statement may take long, so that it waits for its turn. Settings and KILL must not.
fn takes_turns(query: &Query) -> bool {
    let plan = query.logical_plan();
    plan.is_some_and(|plan| match plan {
        LogicalPlan::Ddl(ddl) => matches!(ddl, DdlStatement::CreateMemoryTable(_)),
        LogicalPlan::Statement(_) => false,
        _ => true,
    })
}

/// Returns what a statement that changes something gives a client: a count of rows, or nothing.
fn changed_schema(query: &Query) -> SchemaRef {
    match query.logical_plan() {
        // The plan of CREATE TABLE AS has the columns of the table.
        Some(LogicalPlan::Ddl(_)) => Arc::new(Schema::empty()),
        _ => plain_schema(&query.schema()),
    }
}

impl Shared {
    /// Plans a statement for a client.
    pub(crate) async fn plan(&self, session: &Session, text: &str) -> Result<Query, Status> {
        self.refuse_while_draining()?;
        // KILL waits for nobody: what all others wait for may be what it ends.
        if !session.changes.are_settled() && !session.db.is_kill(text) {
            session.changes.settled(self.config.times.turn).await?;
        }
        let query = session.db.sql(text).await?;
        if let Some(LogicalPlan::Statement(PlannedStatement::Execute(_))) = query.logical_plan() {
            return Err(Status::unimplemented(
                "EXECUTE is for the shell; clients of Flight SQL prepare statements themselves",
            ));
        }
        Ok(query)
    }

    /// Gives a ticket for statements, which are one query with several lists of values. What changes something is run now, since
    /// some clients never fetch; the rest runs when it is fetched.
    pub(super) async fn offer(
        self: &Arc<Self>,
        session: &Arc<Session>,
        queries: Vec<Query>,
        trace: Trace,
    ) -> Result<(Vec<u8>, Arc<Statement>), Status> {
        self.refuse_while_draining()?;
        let first = queries.first().ok_or_else(|| Status::internal("a statement without a query"))?;
        let statement = match first.returns_rows() {
            true => {
                // A prepared query was planned before the changes that it must see.
                session.changes.settled(self.config.times.turn).await?;
                Statement::new(plain_schema(&first.schema()), Stage::Planned(queries, trace))
            }
            false => {
                let schema = changed_schema(first);
                let mut update = self.start_update(session, queries, &schema, trace).await?;
                match tokio::time::timeout(self.config.times.update, &mut update.task).await {
                    Ok(updated) => Statement::new(schema, Stage::Updated(updated.map_err(died)??)),
                    Err(_) => Statement::new(schema, Stage::Updating(update)),
                }
            }
        };
        let statement = Arc::new(statement);
        Ok((session.keep(&statement)?, statement))
    }

    /// Runs statements that change something, to their end. Returns how many rows they have changed; 0 where there are none to
    /// count.
    pub(crate) async fn update(
        self: &Arc<Self>,
        session: &Arc<Session>,
        queries: Vec<Query>,
        trace: Trace,
    ) -> Result<i64, Status> {
        self.refuse_while_draining()?;
        let Some(first) = queries.first() else { return Ok(0) };
        if first.returns_rows() {
            return Err(Status::invalid_argument("the statement returns rows; run it as a query, not as an update"));
        }
        let schema = changed_schema(first);
        let update = self.start_update(session, queries, &schema, trace).await?;
        let batches = update.task.join().await.map_err(died)??;
        Ok(changed_rows(&batches))
    }

    /// Starts to run statements that change something, once those before them in the session have ended.
    async fn start_update(
        self: &Arc<Self>,
        session: &Arc<Session>,
        queries: Vec<Query>,
        schema: &SchemaRef,
        trace: Trace,
    ) -> Result<Update, Status> {
        let takes_turns = queries.iter().any(takes_turns);
        let change = match queries.iter().all(Query::is_kill) {
            true => None,
            false => Some(trace.part("order", session.changes.begin(self.config.times.turn)).await?),
        };
        let (shared, session, schema) = (Arc::clone(self), Arc::clone(session), Arc::clone(schema));
        let is_over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&is_over);
        let task = SpawnedTask::spawn(async move {
            let _change = change;
            let outcome = match takes_turns {
                true => {
                    let cancelled = watch::Sender::new(false).subscribe();
                    Job { shared, session, queries, schema, cancelled, trace }.collect().await
                }
                false => trace.part("execute", execute_all(queries)).await,
            };
            ended.store(true, Ordering::Relaxed);
            outcome
        });
        Ok(Update { task, is_over })
    }

    /// Runs a statement for the client that fetches it; once.
    pub(super) fn fetch(
        self: &Arc<Self>,
        session: &Arc<Session>,
        handle: &[u8],
    ) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
        let statement = session.statements.get(handle)?;
        let schema = Arc::clone(&statement.schema);
        let stage = std::mem::replace(&mut *statement.lock(), Stage::Fetched);
        let data = match stage {
            Stage::Planned(queries, trace) => {
                self.job(session, &statement, queries, trace).start(FETCHED_BYTES).into_flight_data(schema)
            }
            Stage::Polled(rows) => rows.into_flight_data(schema),
            Stage::Updated(batches) => encoded(schema, stream::iter(batches.into_iter().map(Ok))),
            Stage::Updating(update) => {
                let updated = async move { update.task.join().await.map_err(died)? };
                let batches = stream::once(updated).map_ok(|batches| stream::iter(batches.into_iter().map(Ok)));
                encoded(schema, batches.try_flatten())
            }
            Stage::Fetched => {
                let message = "the ticket has been fetched or cancelled; ask for the query again";
                return Err(Status::failed_precondition(message));
            }
        };
        let fetched = Fetched { session: Arc::clone(session), handle: handle.to_vec(), statement };
        Ok(Box::pin(Held { data, _fetched: fetched }))
    }

    /// Runs a statement that returns rows for a reader in this process, whose hold on it is what is returned: dropping that cancels.
    pub(crate) fn read(self: &Arc<Self>, session: &Arc<Session>, query: Query, trace: Trace) -> Result<Reading, Status> {
        self.refuse_while_draining()?;
        let schema = plain_schema(&query.schema());
        let statement = Arc::new(Statement::new(Arc::clone(&schema), Stage::Fetched));
        let handle = session.keep(&statement)?;
        let rows = self.job(session, &statement, vec![query], trace).start(FETCHED_BYTES);
        Ok(Reading { rows, schema, _fetched: Fetched { session: Arc::clone(session), handle, statement } })
    }

    /// Starts a statement for a client that polls, and says how far it is.
    pub(super) async fn poll(
        self: &Arc<Self>,
        session: &Arc<Session>,
        handle: Vec<u8>,
        descriptor: &FlightDescriptor,
    ) -> Result<PollInfo, Status> {
        let statement = session.statements.get(&handle)?;
        let flow = {
            let mut stage = statement.lock();
            *stage = match std::mem::replace(&mut *stage, Stage::Fetched) {
                Stage::Planned(queries, trace) => {
                    Stage::Polled(self.job(session, &statement, queries, trace).start(self.config.limits.polled_bytes))
                }
                other => other,
            };
            match &*stage {
                Stage::Polled(rows) => Some(rows.flow()),
                _ => None,
            }
        };
        let is_ready = match &flow {
            Some(flow) => flow.ready_within(self.config.times.poll).await,
            None => true,
        };
        let info = flight_info(&statement, &handle, descriptor)?;
        if is_ready {
            return Ok(PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() });
        }
        // Without an endpoint, since there is nothing to fetch before the descriptor is gone.
        let info = FlightInfo { endpoint: vec![], ..info };
        let again = FlightDescriptor::new_cmd(ticket(&handle));
        let progress = flow.and_then(|flow| flow.progress());
        Ok(PollInfo { info: Some(info), flight_descriptor: Some(again), progress, ..PollInfo::default() })
    }

    fn job(self: &Arc<Self>, session: &Arc<Session>, statement: &Statement, queries: Vec<Query>, trace: Trace) -> Job {
        Job {
            shared: Arc::clone(self),
            session: Arc::clone(session),
            queries,
            schema: Arc::clone(&statement.schema),
            cancelled: statement.cancelled.subscribe(),
            trace,
        }
    }
}

/// Runs statements one after the other, and returns what they give.
async fn execute_all(queries: Vec<Query>) -> Result<Vec<RecordBatch>, Status> {
    let mut batches = vec![];
    for query in queries {
        batches.extend(query.execute().await?.fetch_all().await?);
    }
    Ok(batches)
}

/// Describes a statement with the one ticket that fetches all of it.
pub(super) fn flight_info(
    statement: &Statement,
    handle: &[u8],
    descriptor: &FlightDescriptor,
) -> Result<FlightInfo, Status> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket(handle)));
    info_with(&statement.schema, endpoint, descriptor)
}

/// Describes a result of these columns.
pub(super) fn info_with(
    schema: &SchemaRef,
    endpoint: FlightEndpoint,
    descriptor: &FlightDescriptor,
) -> Result<FlightInfo, Status> {
    let info = FlightInfo::new().try_with_schema(schema).map_err(sql)?;
    // Rows of a query come in the order that it asks for.
    Ok(info.with_endpoint(endpoint).with_descriptor(descriptor.clone()).with_ordered(true))
}

fn ticket(handle: &[u8]) -> Vec<u8> {
    TicketStatementQuery { statement_handle: handle.to_vec().into() }.as_any().encode_to_vec()
}

/// Encodes rows that are there.
pub(super) fn encoded(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, Status>> + Send + 'static,
) -> BoxStream<'static, Result<FlightData, Status>> {
    let batches = batches.map_err(|status| FlightError::Tonic(Box::new(status)));
    let encoder = FlightDataEncoderBuilder::new().with_schema(schema).build(batches);
    encoder.map_err(Status::from).boxed()
}

/// Sums what INSERT and COPY return: the number of rows.
fn changed_rows(batches: &[RecordBatch]) -> i64 {
    let counts = batches.iter().filter(|batch| batch.num_columns() == 1);
    let counts = counts.filter(|batch| *batch.column(0).data_type() == DataType::UInt64);
    let sums = counts.flat_map(|batch| batch.column(0).as_primitive::<UInt64Type>().iter().flatten());
    i64::try_from(sums.sum::<u64>()).unwrap_or(i64::MAX)
}

fn died(error: tokio::task::JoinError) -> Status {
    Status::internal(format!("a statement died: {error}"))
}

/// Forgets a statement when its response has ended, or nobody reads it any more.
struct Fetched {
    session: Arc<Session>,
    handle: Vec<u8>,
    statement: Arc<Statement>,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        self.session.statements.remove(&self.handle);
        self.statement.cancel();
    }
}

/// A statement that is read in this process. The rows are dropped first.
pub(crate) struct Reading {
    pub(crate) rows: Rows,
    /// The columns of the rows.
    pub(crate) schema: SchemaRef,
    _fetched: Fetched,
}

/// A response and what goes with it. The response is dropped first.
struct Held {
    data: BoxStream<'static, Result<FlightData, Status>>,
    _fetched: Fetched,
}

impl Stream for Held {
    type Item = Result<FlightData, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.data.poll_next_unpin(cx)
    }
}
