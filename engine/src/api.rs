//! A plain DataFusion session behind the names of the engine API, so that the shell can be built and tested alone.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{Stream, StreamExt};
use tokio::sync::watch;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The statement is wrong, or plain SQL failed.
    #[error("{0}")]
    Sql(DataFusionError),
    /// A model is missing or of the wrong kind.
    #[error("{0}")]
    Model(String),
    /// Too many rows failed.
    #[error("{ratio} of the rows failed")]
    RowErrors {
        /// Share of failed rows.
        ratio: f64,
    },
    /// A budget is used up.
    #[error("{which} is used up")]
    Budget {
        /// Which budget.
        which: String,
    },
    /// The query was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The serving engine failed.
    #[error("{message}")]
    Backend {
        /// Whether the engine is lost.
        fatal: bool,
        /// What happened.
        message: String,
    },
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        Self::Sql(error)
    }
}

/// Results of the engine API.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where a model comes from.
#[derive(Clone, Debug)]
pub struct ModelSource(PathBuf);

impl ModelSource {
    /// A folder or a GGUF file.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

/// Builds a session.
#[derive(Default)]
pub struct Builder {
    models: Vec<(String, ModelSource)>,
}

impl Builder {
    /// Adds a model.
    #[must_use]
    pub fn model(mut self, name: impl Into<String>, source: ModelSource) -> Self {
        self.models.push((name.into(), source));
        self
    }

    /// Sets a session setting.
    #[must_use]
    pub fn setting(self, _key: impl Into<String>, _value: impl Into<String>) -> Self {
        self
    }

    /// Builds the session.
    pub async fn build(self) -> Result<Refrain> {
        let config = SessionConfig::new().with_information_schema(true);
        let models = self.models.into_iter().map(|(name, source)| ModelInfo {
            name,
            location: source.0.display().to_string(),
            device: String::new(),
            state: "not loaded".into(),
            max_context: String::new(),
        });
        Ok(Refrain { ctx: SessionContext::new_with_config(config), models: models.collect() })
    }
}

/// One model of a session.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Name in SQL.
    pub name: String,
    /// Folder, file or URL.
    pub location: String,
    /// Device that serves it.
    pub device: String,
    /// Whether it is loaded.
    pub state: String,
    /// Longest prompt and answer together.
    pub max_context: String,
}

/// One session.
#[derive(Clone)]
pub struct Refrain {
    ctx: SessionContext,
    models: Vec<ModelInfo>,
}

impl Refrain {
    /// Starts a builder.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Plans one statement.
    pub async fn sql(&self, statement: &str) -> Result<Query> {
        Ok(Query { frame: self.ctx.sql(statement).await? })
    }

    /// Splits a script.
    pub fn statements(&self, script: &str) -> Result<Vec<String>> {
        Ok(script.split(';').map(str::to_owned).collect())
    }

    /// The DataFusion session.
    pub fn context(&self) -> &SessionContext {
        &self.ctx
    }

    /// The models of the session.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.models.clone()
    }

    /// One line about the default model.
    pub fn banner(&self) -> String {
        "no model".into()
    }
}

/// A planned statement.
pub struct Query {
    frame: DataFrame,
}

impl Query {
    /// Schema of the result.
    pub fn schema(&self) -> SchemaRef {
        self.frame.schema().inner().clone()
    }

    /// What the query would cost.
    pub async fn estimate(&self) -> Result<Estimate> {
        Ok(Estimate)
    }

    /// Runs it.
    pub async fn execute(self) -> Result<Run> {
        Ok(Run { stream: self.frame.execute_stream().await?, progress: watch::channel(Progress::default()).0 })
    }
}

/// What a query would cost.
pub struct Estimate;

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no model call")
    }
}

/// A running query.
pub struct Run {
    stream: SendableRecordBatchStream,
    progress: watch::Sender<Progress>,
}

impl Stream for Run {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(cx).map(|item| item.map(|batch| batch.map_err(Error::from)))
    }
}

/// Cancels a run.
pub struct CancelHandle;

impl CancelHandle {
    /// Cancels it.
    pub fn cancel(&self) {}
}

impl Run {
    /// Schema of the batches.
    pub fn schema(&self) -> SchemaRef {
        self.stream.schema()
    }

    /// Progress so far.
    pub fn progress(&mut self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Cancels from elsewhere.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle
    }

    /// What was used so far.
    pub fn usage(&self) -> QueryUsage {
        QueryUsage::default()
    }

    /// Rows that failed.
    pub fn row_errors(&self) -> Vec<RowError> {
        Vec::new()
    }
}

/// Progress of a query.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// One entry per AI node.
    pub nodes: Vec<NodeProgress>,
}

/// Progress of one AI node.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "stand-in")]
pub struct NodeProgress {
    pub function: String,
    pub rows: u64,
    pub distinct: u64,
    pub calls: u64,
    pub calls_done: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    pub tokens_total: u64,
    pub tokens_done: u64,
    pub errors: u64,
}

/// What a query used.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "stand-in")]
pub struct QueryUsage {
    pub rows: u64,
    pub distinct: u64,
    pub calls: u64,
    pub dedup_saved: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    pub errors: BTreeMap<String, u64>,
    pub failed_rows: u64,
}

/// One failed row.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "stand-in")]
pub struct RowError {
    pub function: String,
    pub reason: String,
    pub message: String,
    pub inputs: String,
}
