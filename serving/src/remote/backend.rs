//! The remote model as a backend: one task for each batch, on the caller's runtime.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::config::{ApiFormat, RemoteConfig};
use super::run::Run;
use super::service::{Service, TOKENS_PER_BYTE};
use super::tokenizer::MessageTokenizer;
use crate::backend::{Backend, BatchId, Capabilities, CompletionStream, ModelKind, Stats, with_revision};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::request::{Batch, Completion};
use crate::tokenizer::Tokenizer;

/// A model behind an OpenAI-compatible endpoint.
///
/// Batches run on the tokio runtime of whoever submits them, which must have timers and networking on. Dropping the backend
/// cancels what has not finished; requests on their way are broken off.
///
/// In [`Stats`], `steps` counts HTTP requests, and pages are none.
#[derive(Debug)]
pub struct RemoteBackend {
    service: Arc<Service>,
    running: Arc<Running>,
    next_id: AtomicU64,
}

/// The tasks of unfinished batches.
#[derive(Debug, Default)]
struct Running(Mutex<HashMap<BatchId, AbortHandle>>);

impl RemoteBackend {
    /// Checks the configuration; connects to nothing.
    ///
    /// Fails with [`Error::Invalid`] if a bound is zero, or the location is not https, not allowed, or no address.
    pub fn new(config: RemoteConfig) -> Result<Self> {
        config.validate()?;
        let service = Arc::new(Service::new(config)?);
        Ok(RemoteBackend { service, running: Arc::default(), next_id: AtomicU64::new(0) })
    }

    /// Returns the version of the model that the service reported last, for provenance; `None` before the first answer.
    pub fn version(&self) -> Option<String> {
        self.service.version()
    }

    /// Starts a task for a batch. Fails outside of a runtime, and if too many batches are unfinished.
    fn start(&self, id: BatchId, batch: Batch, completions: mpsc::Sender<Result<Completion>>) -> Result<()> {
        let runtime = Handle::try_current().map_err(|_| {
            Error::Http("a remote model can be called on a tokio runtime only: run the query within one".to_string())
        })?;
        let mut running = self.running.lock();
        let limit = self.service.config.queued_batches;
        if running.len() >= limit {
            return Err(Error::OutOfMemory(format!("{limit} batches wait for the remote model already")));
        }
        let run = Run::new(Arc::clone(&self.service), id, batch.requests.len(), completions);
        let tasks = Arc::clone(&self.running);
        // The task cannot end before its handle is in the map, since it takes the lock then.
        let task = runtime.spawn(async move {
            let _ended = Ended { tasks, id };
            run.run(batch).await;
        });
        running.insert(id, task.abort_handle());
        Ok(())
    }
}

/// Takes a batch off the list when its task ends, in whatever way.
struct Ended {
    tasks: Arc<Running>,
    id: BatchId,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.tasks.lock().remove(&self.id);
    }
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, HashMap<BatchId, AbortHandle>> {
        lock(&self.0)
    }
}

impl Backend for RemoteBackend {
    fn capabilities(&self) -> Capabilities {
        let config = &self.service.config;
        let kind = match config.api_format {
            ApiFormat::Embeddings => ModelKind::Embedding { dimensions: config.dimensions },
            ApiFormat::Chat | ApiFormat::Completions => ModelKind::Completion,
        };
        Capabilities {
            device: format!("remote, {}", self.service.endpoint.host()),
            max_context: config.max_context,
            prefix_granularity: 1,
            model_digest: digest(config),
            kind,
            token_scale: TOKENS_PER_BYTE,
            held_bytes: None,
            gpu_bytes: None,
            dtype: None,
        }
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::new(MessageTokenizer)
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        let id = BatchId(self.next_id.fetch_add(1, Ordering::Relaxed));
        // Room for every completion and one error, so that the task never waits for a reader.
        let (completions, receiver) = mpsc::channel(batch.requests.len() + 1);
        if let Err(error) = self.start(id, batch, completions.clone()) {
            let _ = completions.try_send(Err(error));
        }
        CompletionStream::new(id, receiver)
    }

    fn cancel(&self, batch: BatchId) {
        let task = self.running.lock().remove(&batch);
        if let Some(task) = task {
            task.abort();
        }
    }

    fn stats(&self) -> Stats {
        *self.service.stats()
    }

    fn reported_version(&self) -> Option<String> {
        self.version()
    }
}

impl Drop for RemoteBackend {
    fn drop(&mut self) {
        let tasks: Vec<AbortHandle> = self.running.lock().drain().map(|(_, task)| task).collect();
        tasks.iter().for_each(AbortHandle::abort);
    }
}

/// The identity of the model: location, name, interface, what else decides its answers, and the revision that its user gives it. The
/// version that the service reports is no part of it, since it is not known before the first answer.
fn digest(config: &RemoteConfig) -> String {
    let RemoteConfig { location, model, api_format, structured_output, extra_body, revision, .. } = config;
    let extra = serde_json::Value::from(extra_body.clone());
    let options = format!("{location} {api_format:?} {structured_output:?} {extra}");
    // What follows the path is not for everyone's eyes.
    let address = location.split(['?', '#']).next().unwrap_or_default();
    let digest = format!("{address}#{model}#{}", &blake3::hash(options.as_bytes()).to_hex()[..16]);
    with_revision(digest, revision.as_deref())
}
