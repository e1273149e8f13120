//! A decoder that makes vectors, from a sentence-transformers folder such as Qwen3-Embedding: the state of the last token, which
//! the tokenizer appends.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::embedding_tokenizer::EmbeddingTokenizer;
use super::encoder::{open_weights, read_tokenizer};
use super::folder::{CONFIG_MAX, digest_of};
use super::hf_config;
use super::safetensors::SafetensorsFiles;
use super::sentence::SentenceConfig;
use super::storage::{read_text, weights_error};
use super::weights::WeightFiles;
use crate::error::Result;
use crate::model::{HostTensor, ModelConfig, Pooling, StoredTensor, TensorSource};

/// What the names of a decoder's tensors begin with, except in files of the model without its head.
const PREFIX: &str = "model.";

/// A decoder that makes vectors, ready for a device.
#[derive(Debug)]
pub struct LoadedEmbeddingDecoder {
    /// Its sizes and constants; the context is the longest input.
    pub config: ModelConfig,
    /// Its weights, every tensor of `config.tensors()` among them. They are read from the files on demand.
    pub weights: Box<dyn TensorSource>,
    /// Its tokenizer.
    pub tokenizer: Arc<EmbeddingTokenizer>,
    /// Digest of configuration, tokenizer and weight files, as that of [`LoadedModel`](super::LoadedModel).
    pub digest: String,
}

/// Loads a decoder that makes vectors. Its config.json is that of a decoder of text, and 1_Pooling/config.json names the pooling
/// `lasttoken`.
///
/// Fails with [`Error::Weights`](crate::Error::Weights), naming the file and what to do, if anything is missing, damaged or not
/// supported.
pub fn load_embedding_decoder(folder: impl AsRef<Path>) -> Result<LoadedEmbeddingDecoder> {
    let folder = folder.as_ref();
    let path = folder.join("config.json");
    let text = read_text(&path, CONFIG_MAX)?;
    let sentence = SentenceConfig::read(folder)?;
    let mut config = hf_config::parse(&with_head(&text)).map_err(|reason| weights_error(&path, reason))?;
    if sentence.pooling != Some(Pooling::Last) {
        let reason =
            "a decoder makes vectors of its last token only: lasttoken must be the pooling of 1_Pooling/config.json";
        return Err(weights_error(folder, reason));
    }
    // The head is not used, so its own matrix may be left out.
    config.tie_word_embeddings = true;
    // One place of the context is for an answer, of which there is none here.
    config.max_context = sentence.max_tokens.unwrap_or(usize::MAX).min(config.max_context).saturating_add(1);
    let weights = Renamed::new(open_weights(folder)?);
    config.tensors().iter().try_for_each(|(name, shape)| weights.files.check(weights.name(name), shape))?;
    let (tokenizer, texts) = read_tokenizer(folder, config.vocab_size, sentence.lower_case)?;
    let texts: Vec<String> = sentence.texts.into_iter().chain([text]).chain(texts).collect();
    let digest = digest_of(&texts, &weights.files)?;
    Ok(LoadedEmbeddingDecoder { config, weights: Box::new(weights), tokenizer: Arc::new(tokenizer), digest })
}

/// Names the architecture as that of the whole model: a folder without the head may say `MistralModel` for `MistralForCausalLM`.
fn with_head(config: &str) -> String {
    let Ok(mut json) = serde_json::from_str::<Value>(config) else { return config.to_owned() };
    let family = json["architectures"][0].as_str().and_then(|name| name.strip_suffix("Model")).map(str::to_owned);
    if let Some(family) = family {
        json["architectures"] = json!([format!("{family}ForCausalLM")]);
    }
    json.to_string()
}

/// Weights whose names may lack their prefix.
#[derive(Debug)]
struct Renamed {
    files: SafetensorsFiles,
    lacks_prefix: bool,
}

impl Renamed {
    fn new(files: SafetensorsFiles) -> Self {
        let lacks_prefix = files.contains("embed_tokens.weight");
        Renamed { files, lacks_prefix }
    }

    fn name<'a>(&self, name: &'a str) -> &'a str {
        if self.lacks_prefix { name.strip_prefix(PREFIX).unwrap_or(name) } else { name }
    }
}

impl TensorSource for Renamed {
    fn contains(&self, name: &str) -> bool {
        self.files.contains(self.name(name))
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        self.files.read(self.name(name), shape)
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<Option<StoredTensor<'_>>> {
        self.files.stored(self.name(name), shape)
    }
}
