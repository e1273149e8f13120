//! The bridge from async callers to the thread that owns a device: commands in, completions out.
//!
//! Nothing here waits for the device, [`LocalBackend::start`] and dropping the backend apart: commands go through a bounded
//! queue that is never waited for, completions through a channel for each batch that has room for all of them, and counters
//! through a lock that is held only to copy them.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rayon::ThreadPoolBuilder;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::engine::{Command, CompileShape, Engine, EngineThread};
use crate::backend::{Backend, BatchId, Capabilities, CompletionStream, ModelKind, Stats};
use crate::constraint::{ConstraintCompiler, Hidden};
use crate::device::Device;
use crate::encoder::check_shape;
use crate::error::{Error, Result};
use crate::request::{Batch, OutputShape};
use crate::scheduler::{OpenConstraint, SchedulerConfig};
use crate::tokenizer::Tokenizer;

/// How the embedded engine runs.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Budgets of the scheduler.
    pub scheduler: SchedulerConfig,
    /// Digest of weights, tokenizer and configuration; see [`Capabilities::model_digest`].
    pub model_digest: String,
    /// Most batches that may be submitted between two steps; further ones fail at once.
    pub queued_batches: usize,
    /// Threads that work out between two steps what each row may say next; `None` takes as many as the process may run at once.
    pub threads: Option<NonZeroUsize>,
    /// For a model that makes vectors of the last token's state: their length. It answers nothing else.
    pub embedding: Option<u32>,
}

impl LocalConfig {
    /// Returns the usual configuration for a model.
    pub fn new(max_context: usize, model_digest: impl Into<String>) -> Self {
        let (scheduler, model_digest) = (SchedulerConfig::new(max_context), model_digest.into());
        LocalConfig { scheduler, model_digest, queued_batches: 4096, threads: None, embedding: None }
    }
}

/// A backend that runs a model on a device of this machine, on a thread of its own.
///
/// Dropping it cancels what has not finished and waits for the thread, which ends after the step it is in. If the device fails,
/// or the thread panics, every waiting batch ends with [`Error::Device`], and so does every later one.
#[derive(Debug)]
pub struct LocalBackend {
    /// Present until the backend is dropped; the thread ends when it is gone.
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    tokenizer: Arc<dyn Tokenizer>,
    capabilities: Capabilities,
    next_id: AtomicU64,
}

/// What the backend and its thread both see. Each lock is held for a copy or a push, and never while waiting for anything.
#[derive(Debug, Default)]
pub(super) struct Shared {
    stats: Mutex<Stats>,
    cancelled: Mutex<Vec<BatchId>>,
    failure: Mutex<Option<Error>>,
}

impl LocalBackend {
    /// Starts the thread, opens the device on it, and returns when that is done. `tokenizer` must be that of the device's model.
    ///
    /// Fails if the device cannot be opened, or if a budget of the configuration is zero.
    pub fn start(
        open: impl FnOnce() -> Result<Box<dyn Device>> + Send + 'static,
        tokenizer: Arc<dyn Tokenizer>,
        config: LocalConfig,
    ) -> Result<Self> {
        if let Some(dimensions) = config.embedding {
            let compile = move |shape: &OutputShape| open_vector(shape, dimensions);
            return LocalBackend::start_with(open, tokenizer, Box::new(compile), config);
        }
        let lanes = worker_threads(&config);
        let compiler = ConstraintCompiler::new(Arc::clone(&tokenizer)).with_lanes(lanes);
        let compile = move |shape: &OutputShape| {
            let factory = compiler.compile(shape)?;
            Ok(Arc::new(move || factory.state()) as OpenConstraint)
        };
        LocalBackend::start_with(open, tokenizer, Box::new(compile), config)
    }

    /// As [`start`](Self::start), with shapes compiled by `compile`.
    pub(super) fn start_with(
        open: impl FnOnce() -> Result<Box<dyn Device>> + Send + 'static,
        tokenizer: Arc<dyn Tokenizer>,
        compile: CompileShape,
        config: LocalConfig,
    ) -> Result<Self> {
        config.scheduler.validate()?;
        let (commands, receiver) = mpsc::channel(config.queued_batches.max(1));
        let (opened, opening) = std::sync::mpsc::sync_channel(1);
        let shared = Arc::new(Shared::default());
        let engine_thread = EngineThread::new(receiver, Arc::clone(&shared));
        let workers = ThreadPoolBuilder::new().num_threads(worker_threads(&config)).build();
        let workers = workers.map_err(|error| Error::Device(format!("cannot start threads: {error}")))?;
        let (engine_tokenizer, scheduler) = (Arc::clone(&tokenizer), config.scheduler);
        let thread = thread::Builder::new()
            .name("refrain-device".to_string())
            .spawn(move || {
                engine_thread.run(|| {
                    let device = open()?;
                    let description = device.describe();
                    let engine = Engine::new(device, scheduler, engine_tokenizer, compile, workers)?;
                    // A caller that does not wait for this any more has dropped the queue as well.
                    let _ = opened.send(description);
                    Ok(engine)
                })
            })
            .map_err(|error| Error::Device(format!("cannot start a thread: {error}")))?;
        let Ok(device) = opening.recv() else {
            // The sender is dropped without a word only if opening failed, which the thread reports before it ends.
            let _ = thread.join();
            return Err(shared.failure());
        };
        let capabilities = Capabilities {
            device,
            // Of a vector nothing is written, which the scheduler leaves one place for.
            max_context: config.scheduler.max_context - usize::from(config.embedding.is_some()),
            prefix_granularity: 1,
            model_digest: config.model_digest,
            kind: match config.embedding {
                Some(_) => ModelKind::Embedding { dimensions: config.embedding },
                None => ModelKind::Completion,
            },
            token_scale: 1.0,
        };
        let (commands, thread, next_id) = (Some(commands), Some(thread), AtomicU64::new(0));
        Ok(LocalBackend { commands, thread, shared, tokenizer, capabilities, next_id })
    }

    fn send(&self, command: Command) -> Result<()> {
        let commands = self.commands.as_ref().expect("the queue is there until the backend is dropped");
        commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => Error::OutOfMemory("too many batches wait for the device thread".to_string()),
            TrySendError::Closed(_) => self.shared.failure(),
        })
    }

    /// Fails if a prompt has a token that the model does not know, or if a stop string is empty.
    fn check(&self, batch: &Batch) -> Result<()> {
        let vocab_size = self.tokenizer.vocab_size();
        for request in &batch.requests {
            let mut tokens = request.prompt.iter().flat_map(|segment| segment.iter());
            if let Some(token) = tokens.find(|token| **token as usize >= vocab_size) {
                let message = format!("request {} has token {token}, the vocabulary has {vocab_size}", request.id.0);
                return Err(Error::Invalid(message));
            }
            if request.stop.iter().any(String::is_empty) {
                return Err(Error::Invalid(format!("request {} has an empty stop string; leave it out", request.id.0)));
            }
        }
        Ok(())
    }
}

/// Opens the constraint of a vector. Fails for any other shape.
fn open_vector(shape: &OutputShape, dimensions: u32) -> Result<OpenConstraint> {
    let dimensions = check_shape(shape, dimensions)?;
    Ok(Arc::new(move || Box::new(Hidden { dimensions })))
}

impl Backend for LocalBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        let id = BatchId(self.next_id.fetch_add(1, Ordering::Relaxed));
        // Room for every completion and one error, so that the thread never waits for a reader.
        let (completions, receiver) = mpsc::channel(batch.requests.len() + 1);
        let sent =
            self.check(&batch).and_then(|()| self.send(Command::Submit { id, batch, completions: completions.clone() }));
        if let Err(error) = sent {
            let _ = completions.try_send(Err(error));
        }
        CompletionStream::new(id, receiver)
    }

    fn cancel(&self, batch: BatchId) {
        lock(&self.shared.cancelled).push(batch);
        // If the queue is full, the thread is awake; if it is closed, there is nothing left to cancel.
        let _ = self.send(Command::Wake);
    }

    fn stats(&self) -> Stats {
        *lock(&self.shared.stats)
    }
}

impl Drop for LocalBackend {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // Panics on the thread are caught there and reported as failures.
            let _ = thread.join();
        }
    }
}

impl Shared {
    pub(super) fn publish(&self, stats: Stats) {
        *lock(&self.stats) = stats;
    }

    pub(super) fn take_cancelled(&self) -> Vec<BatchId> {
        std::mem::take(&mut *lock(&self.cancelled))
    }

    /// Notes why the thread ends. Nothing waits or runs from here on.
    pub(super) fn fail(&self, error: Error) {
        *lock(&self.failure) = Some(error);
        let mut stats = lock(&self.stats);
        stats.cancelled += std::mem::take(&mut stats.pending);
        stats.pages_used = 0;
    }

    fn failure(&self) -> Error {
        lock(&self.failure).clone().unwrap_or_else(|| Error::Device("its thread has ended".to_string()))
    }
}

fn worker_threads(config: &LocalConfig) -> usize {
    config.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

/// The values behind these locks are whole at any time, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
