//! One model of an engine as a backend: commands in, completions out.
//!
//! Nothing here waits for the device, dropping the backend apart; see `bridge`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use super::engine::{Command, EngineConfig, EngineThread, LocalEngine, Unsent};
use super::model::ModelId;
use crate::backend::{Backend, BatchId, Capabilities, CompletionStream, ModelKind, Stats};
use crate::bridge::{Bridge, check_tokens};
use crate::device::Device;
use crate::device::cuda::PassTimes;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::request::Batch;
use crate::scheduler::SchedulerConfig;
use crate::tokenizer::Tokenizer;

/// How one model of an engine runs.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Budgets of the scheduler.
    pub scheduler: SchedulerConfig,
    /// Digest of weights, tokenizer and configuration; see [`Capabilities::model_digest`].
    pub model_digest: String,
    /// What is to be known of the device beside its description: why it is not another one.
    pub device_remark: Option<String>,
    /// For a model that makes vectors of the last token's state: their length. It answers nothing else.
    pub embedding: Option<u32>,
}

impl LocalConfig {
    /// Returns the usual configuration for a model.
    pub fn new(max_context: usize, model_digest: impl Into<String>) -> Self {
        LocalConfig {
            scheduler: SchedulerConfig::new(max_context),
            model_digest: model_digest.into(),
            device_remark: None,
            embedding: None,
        }
    }
}

/// Returns what a model can do on a device.
pub(super) fn capabilities(device: &dyn Device, config: LocalConfig) -> Capabilities {
    let LocalConfig { scheduler, model_digest, device_remark, embedding } = config;
    Capabilities {
        device: match device_remark {
            Some(remark) => format!("{} ({remark})", device.describe()),
            None => device.describe(),
        },
        // Of a vector nothing is written, which the scheduler leaves one place for.
        max_context: scheduler.max_context - usize::from(embedding.is_some()),
        prefix_granularity: 1,
        model_digest: match device.rounding() {
            Some(rounding) => format!("{model_digest}-{rounding}"),
            None => model_digest,
        },
        kind: match embedding {
            Some(_) => ModelKind::Embedding { dimensions: embedding },
            None => ModelKind::Completion,
        },
        token_scale: 1.0,
        held_bytes: device.held_bytes(),
        gpu_bytes: device.gpu_bytes(),
        dtype: device.dtype(),
    }
}

/// A backend that runs one model of an engine on this machine.
///
/// Dropping it cancels what has not finished and waits until the model is gone, which is after the step it is in; queries that
/// hold the backend therefore end first. If the device fails, or a step panics, every waiting batch ends with
/// [`Error::Device`], and so does every later one; other models of the engine go on.
#[derive(Debug)]
pub struct LocalBackend {
    thread: Arc<EngineThread>,
    model: ModelId,
    shared: Arc<Shared>,
    tokenizer: Arc<dyn Tokenizer>,
    capabilities: Capabilities,
}

/// What a backend and the thread both see of a model.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) bridge: Bridge,
    /// Set when the model is no longer wanted; tells when it is gone.
    closing: Mutex<Option<SyncSender<()>>>,
    /// Whether somebody asks where the time of passes goes.
    is_timed: AtomicBool,
    /// Where it has gone.
    times: Mutex<Option<PassTimes>>,
}

impl LocalBackend {
    /// Starts an engine of its own for one model, whose device brings its own KV memory. `tokenizer` must be that of the
    /// device's model.
    ///
    /// Fails if the device cannot be opened, or if a budget of the configuration is zero.
    pub fn start(
        open: impl FnOnce() -> Result<Box<dyn Device>>,
        tokenizer: Arc<dyn Tokenizer>,
        config: LocalConfig,
    ) -> Result<Self> {
        LocalEngine::start(EngineConfig::new(usize::MAX))?.add_model(|_| open(), tokenizer, config)
    }

    /// Wraps a model that was handed to the thread.
    pub(super) fn new(
        thread: Arc<EngineThread>,
        model: ModelId,
        shared: Arc<Shared>,
        tokenizer: Arc<dyn Tokenizer>,
        capabilities: Capabilities,
    ) -> Self {
        LocalBackend { thread, model, shared, tokenizer, capabilities }
    }

    fn send(&self, command: Command) -> Result<()> {
        match self.shared.bridge.failure() {
            Some(failure) => Err(failure),
            None => self.thread.send(command).map_err(|unsent| unsent.error()),
        }
    }

    /// Fails if a prompt has a token that the model does not know, or if a stop string is empty.
    fn check(&self, batch: &Batch) -> Result<()> {
        let vocab_size = self.tokenizer.vocab_size();
        for request in &batch.requests {
            check_tokens(request, vocab_size)?;
            if request.stop.iter().any(String::is_empty) {
                return Err(Error::Invalid(format!("request {} has an empty stop string; leave it out", request.id.0)));
            }
        }
        Ok(())
    }
}

impl Backend for LocalBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        self.shared.bridge.submit(batch, |id, batch, completions| {
            self.check(&batch)?;
            self.send(Command::Submit { model: self.model, id, batch, completions })
        })
    }

    fn cancel(&self, batch: BatchId) {
        self.shared.bridge.cancel(batch);
        // If the queue is full, the thread is awake; if it is closed, there is nothing left to cancel.
        let _ = self.send(Command::Wake);
    }

    fn stats(&self) -> Stats {
        self.shared.bridge.stats()
    }

    fn time_passes(&self) {
        self.shared.is_timed.store(true, Ordering::Relaxed);
    }

    fn pass_times(&self) -> Vec<PassTimes> {
        lock(&self.shared.times).iter().copied().collect()
    }

    fn is_lost(&self) -> bool {
        self.shared.bridge.failure().is_some()
    }
}

impl Drop for LocalBackend {
    fn drop(&mut self) {
        let (closed, gone) = sync_channel(1);
        *lock(&self.shared.closing) = Some(closed);
        if self.shared.bridge.failure().is_some() || matches!(self.thread.send(Command::Wake), Err(Unsent::Closed)) {
            return;
        }
        // The thread looks here once it is awake, as it is where the queue is full. It lets the sender go without a word if the
        // model fails first.
        let _ = gone.recv();
    }
}

impl Shared {
    pub(super) fn take_closing(&self) -> Option<SyncSender<()>> {
        lock(&self.closing).take()
    }

    /// Starts the device's measuring where somebody asks for it.
    pub(super) fn time(&self, device: &mut dyn Device) {
        if self.is_timed.load(Ordering::Relaxed) && device.pass_times().is_none() {
            device.time_passes();
        }
    }

    /// Notes what the device has measured.
    pub(super) fn note_times(&self, device: &dyn Device) {
        if let Some(times) = device.pass_times() {
            *lock(&self.times) = Some(times);
        }
    }

    /// Notes why the model ends. Nothing of it waits or runs from here on.
    pub(super) fn fail(&self, error: Error) {
        self.bridge.fail(error);
        drop(self.take_closing());
    }
}
