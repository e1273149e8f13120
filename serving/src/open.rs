//! A model of either kind, from a folder to a backend.
//!
//! A folder whose config.json names an encoder, or that sentence-transformers laid out, holds an embedding model; every other
//! one a model that completes text. Nothing here reads weights before a backend is started.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use crate::backend::Backend;
use crate::device::EncoderDevice;
use crate::device::cpu::CpuEncoder;
use crate::encoder::{EncoderBackend, EncoderBackendConfig};
use crate::error::Result;
use crate::load::{FolderKind, LoadedEncoder, LoadedModel, folder_kind, load_encoder, load_folder};
use crate::tokenizer::Tokenizer;

/// A model that was found at a path.
#[derive(Debug)]
pub enum OpenedModel {
    /// It completes text.
    Completion(LoadedModel),
    /// It makes vectors.
    Embedding(EmbeddingModel),
}

/// A model that makes vectors, ready for a device.
#[derive(Debug)]
pub struct EmbeddingModel(LoadedEncoder);

/// Opens a model of either kind: a Hugging Face or sentence-transformers folder, or a GGUF file.
///
/// Fails with [`Error::Weights`](crate::Error::Weights), naming the file and what to do, if anything is missing, damaged or not
/// supported.
pub fn open_model(path: impl AsRef<Path>) -> Result<OpenedModel> {
    let path = path.as_ref();
    Ok(match folder_kind(path)? {
        FolderKind::Completion => OpenedModel::Completion(load_folder(path)?),
        FolderKind::Encoder => OpenedModel::Embedding(EmbeddingModel(load_encoder(path)?)),
    })
}

/// Returns whether a folder holds an embedding model. Only config.json is read; a folder that cannot be read holds none.
pub fn is_embedding_folder(path: impl AsRef<Path>) -> bool {
    folder_kind(path.as_ref()).is_ok_and(|kind| kind != FolderKind::Completion)
}

impl EmbeddingModel {
    /// Returns the length of the model's vectors.
    pub fn dimensions(&self) -> u32 {
        // Checked to be small when the configuration was read.
        self.0.config.hidden_size as u32
    }

    /// Returns the longest input, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.0.config.max_tokens
    }

    /// Returns the model with inputs of at most so many tokens, if that is less than its own limit.
    pub fn with_max_tokens(mut self, max_tokens: Option<usize>) -> Self {
        let limit = &mut self.0.config.max_tokens;
        *limit = max_tokens.unwrap_or(*limit).clamp(1, *limit);
        self
    }

    /// Returns the digest of weights, tokenizer and configuration.
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    /// Returns the model's tokenizer.
    pub fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::clone(&self.0.tokenizer) as Arc<dyn Tokenizer>
    }

    /// Reads the weights and starts a backend on the CPU. `threads` compute; `None` takes as many as the process may run at
    /// once.
    ///
    /// Fails if a tensor is damaged, or if there is too little memory.
    pub fn start(self, threads: Option<NonZeroUsize>) -> Result<Arc<dyn Backend>> {
        let dimensions = self.dimensions();
        let LoadedEncoder { config, weights, tokenizer, digest } = self.0;
        let backend = EncoderBackendConfig::new(config.max_tokens, dimensions, digest);
        let device = move || Ok(Box::new(CpuEncoder::new(&config, weights.as_ref(), threads)?) as Box<dyn EncoderDevice>);
        Ok(Arc::new(EncoderBackend::start(device, tokenizer, backend)?))
    }
}
