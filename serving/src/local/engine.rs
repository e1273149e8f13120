//! The thread that owns a device, and how models come to it.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::mpsc::{self, error::TryRecvError, error::TrySendError};

use super::backend::{LocalBackend, LocalConfig, Shared, capabilities};
use super::model::{CompileShape, Model, ModelId};
use super::models::{Models, panicked};
use crate::backend::BatchId;
use crate::bridge::Completions;
use crate::constraint::{ConstraintCompiler, Hidden};
use crate::device::Device;
use crate::encoder::check_shape;
use crate::error::{Error, Result};
use crate::request::{Batch, OutputShape};
use crate::scheduler::OpenConstraint;
use crate::tokenizer::Tokenizer;

/// What an engine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Bytes of the KV pages of all models together.
    pub kv_bytes: usize,
    /// Threads that compute; `None` takes as many as the process may run at once.
    pub threads: Option<NonZeroUsize>,
    /// Most commands that may wait between two steps; further batches fail at once.
    pub queued_batches: usize,
}

impl EngineConfig {
    /// Returns the usual configuration.
    pub fn new(kv_bytes: usize) -> Self {
        EngineConfig { kv_bytes, threads: None, queued_batches: 4096 }
    }
}

/// What a model's device is opened with.
#[derive(Clone, Debug)]
pub struct EngineResources {
    /// The engine's threads, idle while no step runs. They also work out what each row may say next.
    pub threads: Arc<ThreadPool>,
    /// The most bytes of KV pages that a model can have, while no other needs any.
    pub kv_bytes: usize,
}

/// A thread that owns a device and runs the steps of several models on it, one at a time.
///
/// Models share the engine's threads and its budget of KV pages. The thread ends with the last backend, once the engine itself
/// is dropped.
#[derive(Debug)]
pub struct LocalEngine {
    thread: Arc<EngineThread>,
    resources: EngineResources,
    next_model: AtomicU64,
}

/// The running thread; dropping it ends the thread after the step it is in.
#[derive(Debug)]
pub(super) struct EngineThread {
    /// Present until the drop; the thread ends when it is gone.
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// What callers ask of the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// Take a model in.
    Add(Box<Model>),
    /// Start a batch.
    Submit { model: ModelId, id: BatchId, batch: Batch, completions: Completions },
    /// Look for what was cancelled or closed, in case there is nothing else to do.
    Wake,
}

/// A command that could not be sent.
#[derive(Debug)]
pub(super) enum Unsent {
    /// The queue is full; the thread is awake.
    Full,
    /// The thread has ended.
    Closed,
}

impl LocalEngine {
    /// Starts the thread. Fails if the system gives no threads.
    pub fn start(config: EngineConfig) -> Result<Self> {
        let EngineConfig { kv_bytes, threads, queued_batches } = config;
        let threads = threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("refrain-cpu-{index}")).build();
        let pool = pool.map_err(|error| Error::Device(format!("cannot start {threads} threads: {error}")))?;
        let resources = EngineResources { threads: Arc::new(pool), kv_bytes };
        let (commands, receiver) = mpsc::channel(queued_batches.max(1));
        let workers = Arc::clone(&resources.threads);
        let thread = thread::Builder::new()
            .name("refrain-device".to_string())
            .spawn(move || run(receiver, Models::new(kv_bytes), &workers))
            .map_err(|error| Error::Device(format!("cannot start a thread: {error}")))?;
        let thread = Arc::new(EngineThread { commands: Some(commands), thread: Some(thread) });
        Ok(LocalEngine { thread, resources, next_model: AtomicU64::new(0) })
    }

    /// Opens a model on the caller's thread, which may take seconds while other models run, and hands it to the engine's.
    /// `tokenizer` must be that of the model.
    ///
    /// The model lives as long as the backend. Fails if the device cannot be opened, or if a budget of the configuration is
    /// zero.
    pub fn add_model(
        &self,
        open: impl FnOnce(&EngineResources) -> Result<Box<dyn Device>>,
        tokenizer: Arc<dyn Tokenizer>,
        config: LocalConfig,
    ) -> Result<LocalBackend> {
        if let Some(dimensions) = config.embedding {
            let compile = move |shape: &OutputShape| open_vector(shape, dimensions);
            return self.add_model_with(open, tokenizer, Box::new(compile), config);
        }
        let lanes = self.resources.threads.current_num_threads();
        let compiler = ConstraintCompiler::new(Arc::clone(&tokenizer)).with_lanes(lanes);
        let compile = move |shape: &OutputShape| {
            let factory = compiler.compile(shape)?;
            Ok(Arc::new(move || factory.state()) as OpenConstraint)
        };
        self.add_model_with(open, tokenizer, Box::new(compile), config)
    }

    /// As [`add_model`](Self::add_model), with shapes compiled by `compile`.
    pub(super) fn add_model_with(
        &self,
        open: impl FnOnce(&EngineResources) -> Result<Box<dyn Device>>,
        tokenizer: Arc<dyn Tokenizer>,
        compile: CompileShape,
        config: LocalConfig,
    ) -> Result<LocalBackend> {
        config.scheduler.validate()?;
        let device =
            catch_unwind(AssertUnwindSafe(|| open(&self.resources))).map_err(|panic| panicked(panic.as_ref()))??;
        let id = ModelId(self.next_model.fetch_add(1, Ordering::Relaxed));
        let shared = Arc::new(Shared::default());
        let scheduler = config.scheduler;
        let capabilities = capabilities(device.as_ref(), config);
        let model = Model::new(id, device, scheduler, Arc::clone(&tokenizer), compile, Arc::clone(&shared))?;
        if let Err(unsent) = self.thread.send(Command::Add(Box::new(model))) {
            return Err(unsent.error());
        }
        Ok(LocalBackend::new(Arc::clone(&self.thread), id, shared, tokenizer, capabilities))
    }
}

impl EngineThread {
    /// Sends a command without waiting.
    pub(super) fn send(&self, command: Command) -> Result<(), Unsent> {
        let commands = self.commands.as_ref().expect("the queue is there until the drop");
        commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => Unsent::Full,
            TrySendError::Closed(_) => Unsent::Closed,
        })
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // Panics on the thread are caught there and reported as failures.
            let _ = thread.join();
        }
    }
}

impl Unsent {
    pub(super) fn error(&self) -> Error {
        match self {
            Unsent::Full => Error::OutOfMemory("too many batches wait for the device thread".to_string()),
            Unsent::Closed => Error::Device("its thread has ended".to_string()),
        }
    }
}

/// Opens the constraint of a vector. Fails for any other shape.
fn open_vector(shape: &OutputShape, dimensions: u32) -> Result<OpenConstraint> {
    let dimensions = check_shape(shape, dimensions)?;
    Ok(Arc::new(move || Box::new(Hidden { dimensions })))
}

/// The thread: takes commands and runs steps until the last sender of commands is gone.
fn run(mut commands: mpsc::Receiver<Command>, mut models: Models, workers: &ThreadPool) {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        while take_commands(&mut commands, &mut models) {
            models.drop_unwanted();
            models.step(workers);
        }
    }));
    let failure = match ended {
        Ok(()) => Error::Cancelled,
        Err(panic) => panicked(panic.as_ref()),
    };
    commands.close();
    models.fail(&failure);
    while let Ok(command) = commands.try_recv() {
        match command {
            Command::Add(model) => model.fail(&failure),
            Command::Submit { completions, .. } => drop(completions.try_send(Err(failure.clone()))),
            Command::Wake => {}
        }
    }
}

/// Takes the commands that are there, waiting for one if there is nothing to do. Returns whether more may come.
fn take_commands(commands: &mut mpsc::Receiver<Command>, models: &mut Models) -> bool {
    if models.is_idle() {
        let Some(command) = commands.blocking_recv() else { return false };
        obey(models, command);
    }
    loop {
        match commands.try_recv() {
            Ok(command) => obey(models, command),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
}

fn obey(models: &mut Models, command: Command) {
    match command {
        Command::Add(model) => models.add(*model),
        Command::Submit { model, id, batch, completions } => models.submit(model, id, batch, completions),
        Command::Wake => {}
    }
}
