//! A query that runs: its rows, how far it is, what it has cost, and how it is cancelled.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::execution::SendableRecordBatchStream;
use futures::future::{AbortHandle, Abortable};
use futures::{Stream, StreamExt};
use tokio::sync::watch;

use super::query::end_state;
use crate::error::{Error, Result};
#[cfg(feature = "flight")]
use crate::operators::NodeStats;
use crate::operators::{Progress, QueryScope, QueryUsage, RowError};
use crate::queries::{QueryState, RunningQuery};

/// How often the progress of a running query is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A query that runs: a stream of its rows.
pub struct Run {
    schema: SchemaRef,
    rows: Option<Pin<Box<Abortable<SendableRecordBatchStream>>>>,
    query: RunningQuery,
    progress: Option<(watch::Receiver<Progress>, SpawnedTask<()>)>,
}

impl Run {
    pub(super) fn new(schema: SchemaRef, rows: Pin<Box<Abortable<SendableRecordBatchStream>>>, query: RunningQuery) -> Self {
        Run { schema, rows: Some(rows), query, progress: None }
    }

    /// Returns the columns of the rows.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Returns how far the query is, ten times a second. Must be called within a tokio runtime.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use refrain::serving::mock::MockBackend;
    /// # use refrain::{ModelSource, Refrain};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> refrain::Result<()> {
    /// # let model = ModelSource::Backend(Arc::new(MockBackend::new(7)));
    /// # let db = Refrain::builder().model("mock", model).build().await?;
    /// let query = db.sql("SELECT ai_complete('Write about it', value) FROM generate_series(1, 100)").await?;
    /// let mut run = query.execute().await?;
    /// let mut progress = run.progress();
    /// let watching = tokio::spawn(async move {
    ///     // Ends with the run.
    ///     while progress.changed().await.is_ok() {
    ///         for node in &progress.borrow().nodes {
    ///             println!("{}: {} of {} calls", node.function, node.calls_done, node.calls);
    ///         }
    ///     }
    /// });
    /// run.fetch_all().await?;
    /// assert_eq!(run.usage().calls, 100);
    /// drop(run);
    /// watching.await.expect("printing does not fail");
    /// # Ok(())
    /// # }
    /// ```
    pub fn progress(&mut self) -> watch::Receiver<Progress> {
        let scope = Arc::clone(&self.query.scope);
        let (receiver, _) = self.progress.get_or_insert_with(|| {
            let (sender, receiver) = watch::channel(scope.progress());
            let task = SpawnedTask::spawn(async move {
                let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
                while !sender.is_closed() {
                    ticks.tick().await;
                    sender.send_replace(scope.progress());
                }
            });
            (receiver, task)
        });
        receiver.clone()
    }

    /// Returns a handle that cancels the query.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.query.cancel.clone()
    }

    /// Returns the number of the query, by which `ai_queries()` lists it and `KILL QUERY` ends it.
    pub fn query_id(&self) -> u64 {
        self.query.id()
    }

    /// Returns the plan that runs as JSON, with what it has done so far, in the form of `EXPLAIN (ANALYZE, FORMAT json)`; `None` for a
    /// statement without one.
    pub fn plan(&self) -> Option<String> {
        self.query.plan()
    }

    /// Returns what the query has cost so far.
    pub fn usage(&self) -> QueryUsage {
        self.query.scope.usage()
    }

    /// Returns the counters of its calls.
    #[cfg(feature = "flight")]
    pub(crate) fn nodes(&self) -> Vec<Arc<NodeStats>> {
        self.query.scope.nodes()
    }

    /// Returns the inputs that failed so far, at most a thousand.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// use refrain::serving::RowFailure;
    /// use refrain::serving::mock::{MockBackend, MockReply};
    /// # use refrain::{ModelSource, Refrain};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> refrain::Result<()> {
    /// let refused = || Some(MockReply::Fail(RowFailure::Refused("not a review".to_owned())));
    /// let mock = MockBackend::new(7).answer(move |prompt| if prompt.contains("spam") { refused() } else { None });
    /// # let model = ModelSource::Backend(Arc::new(mock));
    /// # let db = Refrain::builder().model("mock", model).build().await?;
    /// let query = db.sql("SELECT ai_sentiment(t) FROM (VALUES ('lovely'), ('spam'), ('spam')) AS v(t)").await?;
    /// let mut run = query.execute().await?;
    /// // Failed rows are NULL.
    /// assert_eq!(run.fetch_all().await?.iter().map(|batch| batch.column(0).null_count()).sum::<usize>(), 2);
    /// for error in run.row_errors() {
    ///     println!("{} failed {} rows of {}: {}", error.reason, error.rows, error.inputs, error.message);
    /// }
    /// assert_eq!((run.row_errors().len(), run.usage().failed_rows), (1, 2));
    /// # Ok(())
    /// # }
    /// ```
    pub fn row_errors(&self) -> Vec<RowError> {
        self.query.scope.row_errors()
    }

    /// Runs the query to its end and returns all rows.
    pub async fn fetch_all(&mut self) -> Result<Vec<RecordBatch>> {
        let mut batches = vec![];
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok(batches)
    }
}

impl Stream for Run {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(rows) = &mut self.rows else { return Poll::Ready(None) };
        match rows.as_mut().poll_next(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(batch))) => {
                self.query.add_rows(batch.num_rows());
                Poll::Ready(Some(Ok(batch)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.rows = None;
                let error = Error::from(error);
                self.query.end(end_state(&error));
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                // Dropping the operators is what stops their model calls.
                let cancelled = rows.is_aborted();
                self.rows = None;
                self.query.end(if cancelled { QueryState::Cancelled } else { QueryState::Finished });
                Poll::Ready(cancelled.then_some(Err(Error::Cancelled)))
            }
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// Cancels a running query from elsewhere.
///
/// ```
/// use std::sync::Arc;
///
/// use refrain::serving::mock::{Gate, MockBackend, MockReply};
/// use refrain::{Error, ModelSource, Refrain};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> refrain::Result<()> {
/// // A model that never answers.
/// let never = Gate::new();
/// let mock = Arc::new(MockBackend::new(7).answer(move |_| Some(MockReply::text("late").after(&never))));
/// let db = Refrain::builder().model("mock", ModelSource::Backend(mock.clone())).build().await?;
/// let query = db.sql("SELECT ai_complete('Write about it', value) FROM generate_series(1, 100)").await?;
///
/// let mut run = query.execute().await?;
/// let (cancel, asked) = (run.cancel_handle(), mock.clone());
/// tokio::spawn(async move {
///     asked.wait_for_calls(1).await;
///     cancel.cancel();
/// });
/// assert!(matches!(run.fetch_all().await, Err(Error::Cancelled)));
/// mock.wait_until_idle().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CancelHandle {
    rows: AbortHandle,
    scope: Arc<QueryScope>,
}

impl CancelHandle {
    pub(crate) fn new(rows: AbortHandle, scope: Arc<QueryScope>) -> Self {
        CancelHandle { rows, scope }
    }

    /// Cancels the query: its stream ends with [`Error::Cancelled`], and its model calls stop within one step.
    pub fn cancel(&self) {
        self.scope.cancel();
        self.rows.abort();
    }
}
