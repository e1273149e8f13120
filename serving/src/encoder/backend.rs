//! The bridge from async callers to the thread that owns an encoder, as [`LocalBackend`](crate::local::LocalBackend) is for a
//! decoder: commands go through a bounded queue that is never waited for, completions through a channel for each batch that has
//! room for all of them.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::engine::{Command, EngineThread};
use crate::backend::{Backend, BatchId, Capabilities, CompletionStream, ModelKind, Stats};
use crate::bridge::{Bridge, check_tokens};
use crate::device::EncoderDevice;
use crate::error::{Error, Result};
use crate::request::{Batch, OutputShape};
use crate::tokenizer::Tokenizer;

/// How an embedding model runs.
#[derive(Clone, Debug)]
pub struct EncoderBackendConfig {
    /// The longest input, in tokens; longer ones fail with [`RowFailure::Overflow`](crate::RowFailure::Overflow).
    pub max_tokens: usize,
    /// Length of the model's vectors.
    pub dimensions: u32,
    /// Digest of weights, tokenizer and configuration; see [`Capabilities::model_digest`].
    pub model_digest: String,
    /// Most tokens of one pass, a single text apart. A cancelled batch ends after the pass it is in.
    pub step_tokens: usize,
    /// Most batches that may be submitted between two passes; further ones fail at once.
    pub queued_batches: usize,
}

impl EncoderBackendConfig {
    /// Returns the usual configuration for a model.
    pub fn new(max_tokens: usize, dimensions: u32, model_digest: impl Into<String>) -> Self {
        EncoderBackendConfig {
            max_tokens,
            dimensions,
            model_digest: model_digest.into(),
            step_tokens: 1024,
            queued_batches: 4096,
        }
    }
}

/// A backend that runs an embedding model on a device of this machine, on a thread of its own.
///
/// Dropping it cancels what has not finished and waits for the thread, which ends after the pass it is in. If the device fails,
/// or the thread panics, every waiting batch ends with [`Error::Device`], and so does every later one.
#[derive(Debug)]
pub struct EncoderBackend {
    /// Present until the backend is dropped; the thread ends when it is gone.
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    bridge: Arc<Bridge>,
    tokenizer: Arc<dyn Tokenizer>,
    capabilities: Capabilities,
    dimensions: u32,
}

impl EncoderBackend {
    /// Starts the thread, opens the device on it, and returns when that is done. `tokenizer` must be that of the device's model.
    ///
    /// Fails if the device cannot be opened, or if a pass may hold no tokens.
    pub fn start(
        open: impl FnOnce() -> Result<Box<dyn EncoderDevice>> + Send + 'static,
        tokenizer: Arc<dyn Tokenizer>,
        config: EncoderBackendConfig,
    ) -> Result<Self> {
        let EncoderBackendConfig { max_tokens, dimensions, model_digest, step_tokens, queued_batches } = config;
        if step_tokens == 0 {
            return Err(Error::Invalid("step_tokens must be above 0".to_string()));
        }
        let (commands, receiver) = mpsc::channel(queued_batches.max(1));
        let (opened, opening) = std::sync::mpsc::sync_channel(1);
        let bridge = Arc::new(Bridge::default());
        let engine_thread = EngineThread::new(receiver, Arc::clone(&bridge), max_tokens, step_tokens);
        let thread = thread::Builder::new()
            .name("refrain-encoder".to_string())
            .spawn(move || {
                engine_thread.run(|| {
                    let device = open()?;
                    // A caller that does not wait for this any more has dropped the queue as well.
                    let _ = opened.send((device.describe(), device.held_bytes()));
                    Ok(device)
                })
            })
            .map_err(|error| Error::Device(format!("cannot start a thread: {error}")))?;
        let Ok((device, held_bytes)) = opening.recv() else {
            // The sender is dropped without a word only if opening failed, which the thread reports before it ends.
            let _ = thread.join();
            return Err(failure(&bridge));
        };
        let capabilities = Capabilities {
            device,
            max_context: max_tokens,
            prefix_granularity: 1,
            model_digest,
            kind: ModelKind::Embedding { dimensions: Some(dimensions) },
            token_scale: 1.0,
            held_bytes,
            gpu_bytes: None,
            dtype: None,
        };
        let (commands, thread) = (Some(commands), Some(thread));
        Ok(EncoderBackend { commands, thread, bridge, tokenizer, capabilities, dimensions })
    }

    fn send(&self, command: Command) -> Result<()> {
        let commands = self.commands.as_ref().expect("the queue is there until the backend is dropped");
        commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => Error::OutOfMemory("too many batches wait for the embedding model".to_string()),
            TrySendError::Closed(_) => failure(&self.bridge),
        })
    }

    /// Fails if a request asks for what the model does not give, or has a token that it does not know.
    fn check(&self, batch: &Batch) -> Result<()> {
        let vocab_size = self.tokenizer.vocab_size();
        for request in &batch.requests {
            check_shape(&request.shape, self.dimensions)?;
            if request.prompt_len() == 0 {
                return Err(Error::Invalid(format!("the prompt of request {} is empty", request.id.0)));
            }
            check_tokens(request, vocab_size)?;
        }
        Ok(())
    }
}

/// Returns how many leading dimensions are kept, all for `None`. Fails unless the shape is a vector that a model with vectors of
/// `dimensions` can give.
pub(crate) fn check_shape(shape: &OutputShape, dimensions: u32) -> Result<Option<u32>> {
    match shape {
        OutputShape::Embedding { dimensions: None } => Ok(None),
        OutputShape::Embedding { dimensions: Some(kept) } if (1..=dimensions).contains(kept) => Ok(Some(*kept)),
        OutputShape::Embedding { dimensions: Some(kept) } => Err(Error::Invalid(format!(
            "a vector of {kept} dimensions was asked for, and the model gives 1 to {dimensions}"
        ))),
        _ => Err(Error::Invalid(
            "the model embeds: it answers with a vector and not with text; ask a completion model instead".to_string(),
        )),
    }
}

impl Backend for EncoderBackend {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        self.bridge.submit(batch, |id, batch, completions| {
            self.check(&batch)?;
            self.send(Command::Submit { id, batch, completions })
        })
    }

    fn cancel(&self, batch: BatchId) {
        self.bridge.cancel(batch);
        // If the queue is full, the thread is awake; if it is closed, there is nothing left to cancel.
        let _ = self.send(Command::Wake);
    }

    fn stats(&self) -> Stats {
        self.bridge.stats()
    }
}

impl Drop for EncoderBackend {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // Panics on the thread are caught there and reported as failures.
            let _ = thread.join();
        }
    }
}

/// Why the thread has ended.
fn failure(bridge: &Bridge) -> Error {
    bridge.failure().unwrap_or_else(|| Error::Device("its thread has ended".to_string()))
}
