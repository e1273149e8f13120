//! The remote model as a backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::config::{ApiFormat, RemoteConfig};
use super::endpoint::Endpoint;
use super::tokenizer::MessageTokenizer;
use crate::backend::{Backend, BatchId, Capabilities, CompletionStream, ModelKind, Stats};
use crate::error::{Error, Result};
use crate::request::Batch;
use crate::tokenizer::Tokenizer;

/// A byte counts as a quarter of a token: about what tokenizers make of English text.
const TOKENS_PER_BYTE: f64 = 0.25;

/// A model behind an OpenAI-compatible endpoint.
#[derive(Debug)]
pub struct RemoteBackend {
    config: RemoteConfig,
    endpoint: Endpoint,
    next_id: AtomicU64,
}

impl RemoteBackend {
    /// Checks the configuration; connects to nothing.
    ///
    /// Fails with [`Error::Invalid`] if a bound is zero, or the location is not https, not allowed, or no address.
    pub fn new(config: RemoteConfig) -> Result<Self> {
        config.validate()?;
        let endpoint = Endpoint::new(&config)?;
        Ok(RemoteBackend { config, endpoint, next_id: AtomicU64::new(0) })
    }
}

impl Backend for RemoteBackend {
    fn capabilities(&self) -> Capabilities {
        let kind = match self.config.api_format {
            ApiFormat::Embeddings => ModelKind::Embedding { dimensions: self.config.dimensions },
            ApiFormat::Chat | ApiFormat::Completions => ModelKind::Completion,
        };
        Capabilities {
            device: format!("remote, {}", self.endpoint.host()),
            max_context: self.config.max_context,
            prefix_granularity: 1,
            model_digest: format!("{}#{}", self.config.location, self.config.model),
            kind,
            token_scale: TOKENS_PER_BYTE,
        }
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::new(MessageTokenizer)
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        let id = BatchId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (completions, receiver) = mpsc::channel(batch.requests.len() + 1);
        let _ = completions.try_send(Err(Error::Http("remote models cannot be called yet".to_string())));
        CompletionStream::new(id, receiver)
    }

    fn cancel(&self, _batch: BatchId) {}

    fn stats(&self) -> Stats {
        Stats::default()
    }
}
