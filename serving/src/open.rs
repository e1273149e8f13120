//! A model of any kind, from a folder to a backend.
//!
//! A folder whose config.json names an encoder, or that sentence-transformers laid out, holds an embedding model; every other
//! one a model that completes text. Nothing here reads weights before a backend is started.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use crate::backend::{Backend, with_revision};
use crate::device::cpu::{Activations, CpuDevice, CpuEncoder, CpuOptions};
use crate::device::{Device, EncoderDevice};
use crate::encoder::{EncoderBackend, EncoderBackendConfig};
use crate::error::Result;
use crate::load::{
    FolderKind, LoadedEmbeddingDecoder, LoadedEncoder, LoadedModel, folder_kind, load_embedding_decoder, load_encoder,
    load_folder,
};
use crate::local::{LocalBackend, LocalConfig};
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
pub enum EmbeddingModel {
    /// Each token sees the whole text.
    Encoder(LoadedEncoder),
    /// The last token sees the whole text, and prefixes are shared.
    Decoder(LoadedEmbeddingDecoder),
}

/// What an embedding model may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingOptions {
    /// Threads that compute; `None` takes as many as the process may run at once.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of the KV pool of a decoder.
    pub kv_bytes: usize,
    /// The longest input, in tokens, if that is to be less than the model's own limit.
    pub max_tokens: Option<usize>,
}

/// Opens a model of any kind: a Hugging Face or sentence-transformers folder, or a GGUF file.
///
/// Fails with [`Error::Weights`](crate::Error::Weights), naming the file and what to do, if anything is missing, damaged or not
/// supported.
pub fn open_model(path: impl AsRef<Path>) -> Result<OpenedModel> {
    let path = path.as_ref();
    Ok(match folder_kind(path)? {
        FolderKind::Completion => OpenedModel::Completion(load_folder(path)?),
        FolderKind::Encoder => OpenedModel::Embedding(EmbeddingModel::Encoder(load_encoder(path)?)),
        FolderKind::EmbeddingDecoder => OpenedModel::Embedding(EmbeddingModel::Decoder(load_embedding_decoder(path)?)),
    })
}

/// Returns whether a folder holds an embedding model. Only config.json is read; a folder that cannot be read holds none.
pub fn is_embedding_folder(path: impl AsRef<Path>) -> bool {
    folder_kind(path.as_ref()).is_ok_and(|kind| kind != FolderKind::Completion)
}

impl EmbeddingModel {
    /// Returns the length of the model's vectors.
    pub fn dimensions(&self) -> u32 {
        let dimensions = match self {
            EmbeddingModel::Encoder(model) => model.config.hidden_size,
            EmbeddingModel::Decoder(model) => model.config.hidden_size,
        };
        u32::try_from(dimensions).expect("a checked configuration has a small hidden size")
    }

    /// Returns the longest input, in tokens.
    pub fn max_tokens(&self) -> usize {
        match self {
            EmbeddingModel::Encoder(model) => model.config.max_tokens,
            EmbeddingModel::Decoder(model) => model.config.max_context - 1,
        }
    }

    /// Returns the digest of weights, tokenizer and configuration.
    pub fn digest(&self) -> &str {
        match self {
            EmbeddingModel::Encoder(model) => &model.digest,
            EmbeddingModel::Decoder(model) => &model.digest,
        }
    }

    /// Adds the revision that a user gives the model to its digest.
    pub fn with_revision(mut self, revision: Option<&str>) -> Self {
        let digest = match &mut self {
            EmbeddingModel::Encoder(model) => &mut model.digest,
            EmbeddingModel::Decoder(model) => &mut model.digest,
        };
        *digest = with_revision(std::mem::take(digest), revision);
        self
    }

    /// Returns the model's tokenizer.
    pub fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        match self {
            EmbeddingModel::Encoder(model) => Arc::clone(&model.tokenizer) as Arc<dyn Tokenizer>,
            EmbeddingModel::Decoder(model) => Arc::clone(&model.tokenizer) as Arc<dyn Tokenizer>,
        }
    }

    /// Reads the weights and starts a backend on the CPU.
    ///
    /// Fails if a tensor is damaged, or if there is too little memory.
    pub fn start(self, options: EmbeddingOptions) -> Result<Arc<dyn Backend>> {
        let EmbeddingOptions { threads, kv_bytes, max_tokens } = options;
        let (dimensions, limit) = (self.dimensions(), self.max_tokens());
        let max_tokens = max_tokens.unwrap_or(limit).clamp(1, limit);
        match self {
            EmbeddingModel::Encoder(LoadedEncoder { config, weights, tokenizer, digest }) => {
                let backend = EncoderBackendConfig::new(max_tokens, dimensions, digest);
                let open =
                    move || Ok(Box::new(CpuEncoder::new(&config, weights.as_ref(), threads)?) as Box<dyn EncoderDevice>);
                Ok(Arc::new(EncoderBackend::start(open, tokenizer, backend)?))
            }
            EmbeddingModel::Decoder(LoadedEmbeddingDecoder { config, weights, tokenizer, digest }) => {
                let local = LocalConfig { embedding: Some(dimensions), ..LocalConfig::new(max_tokens + 1, digest) };
                let cpu = CpuOptions { threads, kv_bytes, activations: Activations::default() };
                let open = move || Ok(Box::new(CpuDevice::new(&config, weights.as_ref(), cpu)?) as Box<dyn Device>);
                Ok(Arc::new(LocalBackend::start(open, tokenizer, local)?))
            }
        }
    }
}
