//! Queries that run, row by row to the client.
//!
//! A task runs the query and puts batches into a queue that holds so many bytes. Dropping the reading end ends the task, which drops
//! the query, which stops its model calls: whatever way a client goes, its response is dropped.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use arrow_flight::FlightData;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::utils::batches_to_flight_data;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::Status;

use super::metrics::Ended;
use super::plain::plain_batch;
use super::service::Shared;
use super::sessions::Session;
use super::status::sql;
use super::traces::Trace;
use crate::operators::Progress;
use crate::{Query, QueryUsage, Run};

/// Bytes of a result that wait for a client that fetches.
pub(super) const FETCHED_BYTES: usize = 8 << 20;

/// Room in a queue is counted in units of this many bytes.
const ROOM_UNIT: usize = 1 << 10;

/// How often the tokens of a session with a limit are looked at.
const BUDGET_INTERVAL: Duration = Duration::from_millis(100);

/// Queries to run one after the other, as one result.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) session: Arc<Session>,
    pub(super) queries: Vec<Query>,
    /// The columns of the result as they are sent.
    pub(super) schema: SchemaRef,
    /// Turns true when somebody cancels the statement.
    pub(super) cancelled: watch::Receiver<bool>,
    pub(super) trace: Trace,
}

/// The rows of a job that runs.
pub(crate) struct Rows {
    queue: mpsc::UnboundedReceiver<Result<Sent, Status>>,
    flow: Arc<Flow>,
    _task: SpawnedTask<()>,
}

struct Sent {
    batch: RecordBatch,
    _room: OwnedSemaphorePermit,
}

/// What is known of a job beside its rows.
pub(crate) struct Flow {
    /// Turns true when the job has ended, or waits for its reader.
    is_ready: watch::Sender<bool>,
    /// The number of the query that runs.
    query_id: OnceLock<u64>,
    progress: Mutex<Option<watch::Receiver<Progress>>>,
    notice: Mutex<Option<String>>,
}

impl Job {
    /// Starts the job. At most `bytes` of its rows, or one batch, wait for their reader.
    pub(super) fn start(self, bytes: usize) -> Rows {
        let units = (bytes / ROOM_UNIT).clamp(1, Semaphore::MAX_PERMITS);
        let flow = Arc::new(Flow {
            is_ready: watch::Sender::new(false),
            query_id: OnceLock::new(),
            progress: Mutex::default(),
            notice: Mutex::default(),
        });
        let (sender, queue) = mpsc::unbounded_channel();
        let outlet = Outlet { sender, room: Arc::new(Semaphore::new(units)), units, flow: Arc::clone(&flow) };
        Rows { queue, flow, _task: SpawnedTask::spawn(self.produce(outlet)) }
    }

    async fn produce(self, outlet: Outlet) {
        let mut cancelled = self.cancelled.clone();
        let cut = async {
            if cancelled.wait_for(|cancelled| *cancelled).await.is_err() {
                future::pending::<()>().await;
            }
        };
        let outcome = tokio::select! {
            biased;
            () = cut => Err(Status::cancelled("the query was cancelled")),
            outcome = self.run(&outlet) => outcome,
        };
        if let Err(status) = outcome {
            self.trace.failed(&status);
            // Whoever does not read any more needs no error.
            let _ = outlet.sender.send(Err(status));
        }
        outlet.flow.is_ready.send_replace(true);
    }

    async fn run(&self, outlet: &Outlet) -> Result<(), Status> {
        let priority = self.session.db.priority();
        let _permit = self.trace.part("wait", self.shared.admission.admit(&self.session.id, priority)).await?;
        let (mut rows, mut failed) = (0, QueryUsage::default());
        for query in &self.queries {
            let mut run = Measured::start(self, query.clone()).await?;
            outlet.flow.started(&mut run.run);
            while let Some(batch) = run.next().await? {
                rows += batch.num_rows() as u64;
                if let Some(limit) = self.shared.config.limits.rows.filter(|limit| rows > *limit) {
                    let message = format!("the result has more than {limit} rows, as many as the server sends; add a LIMIT");
                    return Err(Status::resource_exhausted(message));
                }
                if !outlet.send(plain_batch(&batch, &self.schema).map_err(sql)?, self.shared.config.times.unread).await? {
                    return Ok(());
                }
            }
            let usage = run.run.usage();
            failed.failed_rows += usage.failed_rows;
            failed.rows += usage.rows;
            for (reason, count) in usage.errors {
                *failed.errors.entry(reason).or_default() += count;
            }
        }
        *outlet.flow.notice.lock().unwrap_or_else(PoisonError::into_inner) = lost_rows(&failed);
        Ok(())
    }

    /// Runs the job to its end and returns all rows.
    pub(super) async fn collect(self) -> Result<Vec<RecordBatch>, Status> {
        self.start(usize::MAX).try_collect().await
    }
}

/// The writing end of a queue.
struct Outlet {
    sender: mpsc::UnboundedSender<Result<Sent, Status>>,
    room: Arc<Semaphore>,
    units: usize,
    flow: Arc<Flow>,
}

impl Outlet {
    /// Puts a batch into the queue once there is room. Returns whether anybody reads it; fails if nobody has read for too long.
    async fn send(&self, batch: RecordBatch, patience: Duration) -> Result<bool, Status> {
        // A batch larger than the queue takes all of it.
        let units = (batch.get_array_memory_size() / ROOM_UNIT).clamp(1, self.units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let room = match Arc::clone(&self.room).try_acquire_many_owned(units) {
            Ok(room) => room,
            Err(_) => {
                self.flow.is_ready.send_replace(true);
                let room = Arc::clone(&self.room).acquire_many_owned(units);
                tokio::select! {
                    room = tokio::time::timeout(patience, room) => match room {
                        Ok(Ok(room)) => room,
                        Ok(Err(_)) => return Ok(false),
                        Err(_) => {
                            let seconds = patience.as_secs_f64();
                            return Err(Status::deadline_exceeded(format!("nobody has read the result for {seconds} s")));
                        }
                    },
                    () = self.sender.closed() => return Ok(false),
                }
            }
        };
        Ok(self.sender.send(Ok(Sent { batch, _room: room })).is_ok())
    }
}

impl Flow {
    fn started(&self, run: &mut Run) {
        // The first of several that are one statement with other parameters.
        self.query_id.get_or_init(|| run.query_id());
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.progress());
    }

    /// Returns the number of the query in `ai_queries()`, once it runs.
    pub(crate) fn query_id(&self) -> Option<u64> {
        self.query_id.get().copied()
    }

    /// Returns the share of the tokens submitted so far that is done, if any model is asked.
    pub(super) fn progress(&self) -> Option<f64> {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = progress.as_ref()?.borrow();
        let (done, total) =
            progress.nodes.iter().fold((0, 0), |(done, total), node| (done + node.tokens_done, total + node.tokens_total));
        (total > 0).then(|| (done as f64 / total as f64).clamp(0.0, 1.0))
    }

    /// Waits until the job has ended or waits for its reader, or for so long. Returns whether it has or does.
    pub(super) async fn ready_within(&self, patience: Duration) -> bool {
        let mut is_ready = self.is_ready.subscribe();
        let ready = is_ready.wait_for(|is_ready| *is_ready);
        tokio::time::timeout(patience, ready).await.is_ok()
    }

    /// Takes what is to be told of the rows once they have ended: how many have failed.
    pub(crate) fn notice(&self) -> Option<String> {
        self.notice.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Rows {
    /// Returns what is known of the job beside its rows.
    pub(crate) fn flow(&self) -> Arc<Flow> {
        Arc::clone(&self.flow)
    }

    /// Encodes the rows: the schema at once, batches as they come, and what the query has lost with a last batch of no rows.
    pub(super) fn into_flight_data(self, schema: SchemaRef) -> BoxStream<'static, Result<FlightData, Status>> {
        let flow = self.flow();
        let rows = self.map_err(|status| FlightError::Tonic(Box::new(status)));
        let encoded = FlightDataEncoderBuilder::new().with_schema(Arc::clone(&schema)).build(rows).map_err(Status::from);
        // Asked only once the rows have ended.
        let notice = stream::once(async move { flow.notice().map(|notice| empty_batch(&schema, notice)) });
        encoded.chain(notice.filter_map(future::ready)).boxed()
    }
}

/// Encodes a batch of no rows that carries a text: a message without a batch would puzzle some clients.
fn empty_batch(schema: &SchemaRef, text: String) -> Result<FlightData, Status> {
    // The stream encoder leaves out batches of no rows.
    let messages = batches_to_flight_data(schema, vec![RecordBatch::new_empty(Arc::clone(schema))]).map_err(sql)?;
    let batch = messages.into_iter().next_back().ok_or_else(|| Status::internal("a batch without a message"))?;
    Ok(batch.with_app_metadata(text))
}

impl Stream for Rows {
    type Item = Result<RecordBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_recv(cx).map(|next| next.map(|sent| sent.map(|sent| sent.batch)))
    }
}

/// Says how many rows have failed and why: `37 rows failed: 30 overflow, 7 schema`.
fn lost_rows(usage: &QueryUsage) -> Option<String> {
    let reasons = usage.errors.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ");
    (usage.failed_rows > 0).then(|| format!("{} rows failed: {reasons}", usage.failed_rows))
}

/// A query that runs, and is counted however it ends.
struct Measured {
    run: Run,
    shared: Arc<Shared>,
    session: Arc<Session>,
    trace: Trace,
    started: Instant,
    started_at: SystemTime,
    ended: Ended,
    rows: u64,
    /// Tokens that the session has been charged with.
    charged: u64,
}

impl Measured {
    async fn start(job: &Job, query: Query) -> Result<Self, Status> {
        let Job { shared, session, trace, .. } = job;
        check_tokens(shared, session)?;
        let (started, started_at) = (Instant::now(), SystemTime::now());
        let run =
            query.execute().await.inspect_err(|_| shared.metrics.query_ended(Ended::Failed, started.elapsed(), None))?;
        let (shared, session, trace) = (Arc::clone(shared), Arc::clone(session), trace.clone());
        Ok(Measured { run, shared, session, trace, started, started_at, ended: Ended::Cancelled, rows: 0, charged: 0 })
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>, Status> {
        let next = match self.shared.config.limits.session_tokens {
            None => self.run.try_next().await,
            Some(_) => loop {
                let tick = tokio::time::sleep(BUDGET_INTERVAL);
                tokio::select! {
                    next = self.run.try_next() => break next,
                    () = tick => {
                        self.charge();
                        check_tokens(&self.shared, &self.session)?;
                    }
                }
            },
        };
        match &next {
            Ok(Some(batch)) => {
                self.rows += batch.num_rows() as u64;
                self.shared.metrics.rows_sent(batch.num_rows());
            }
            Ok(None) => self.ended = Ended::Finished,
            Err(crate::Error::Cancelled) => {}
            Err(_) => self.ended = Ended::Failed,
        }
        Ok(next?)
    }

    /// Charges the session with the tokens that were used since the last time.
    fn charge(&mut self) {
        let usage = self.run.usage();
        let spent = usage.prompt_tokens + usage.output_tokens;
        self.session.tokens_spent.fetch_add(spent.saturating_sub(self.charged), Ordering::Relaxed);
        self.charged = spent.max(self.charged);
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.charge();
        self.shared.metrics.query_ended(self.ended, self.started.elapsed(), Some(&self.run.usage()));
        self.trace.executed(self.started_at, self.ended, self.rows, &self.run);
    }
}

fn check_tokens(shared: &Shared, session: &Session) -> Result<(), Status> {
    let spent = session.tokens_spent.load(Ordering::Relaxed);
    match shared.config.limits.session_tokens {
        Some(limit) if spent >= limit => Err(Status::resource_exhausted(format!(
            "the session has used {spent} tokens of the {limit} that the server allows; nothing more is asked"
        ))),
        _ => Ok(()),
    }
}
