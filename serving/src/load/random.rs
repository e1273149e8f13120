//! Random models: the shape of a real one, and weights that are drawn instead of read.
//!
//! Their answers are noise. What they cost is what the real model costs, so they measure an engine where no weights are at hand.
//! Matrices are drawn from N(0, 0.02²), as models are before their training; norms are 1 and biases 0. Nothing ends an answer but
//! its length, so that every answer is as long as it may be.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use half::bf16;

use super::chat_template::ChatTemplate;
use super::folder::{LoadedModel, TOKENIZER_MAX};
use super::storage::{read_text, weights_error};
use super::tokenizer::HfTokenizer;
use crate::error::{Error, Result};
use crate::model::{DType, HostTensor, ModelConfig, Normal, TensorSource};

/// The standard deviation of all matrices.
const STD: f32 = 0.02;

/// The shape of a random model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RandomShape {
    /// Llama 3 8B.
    Llama3B8,
    /// Llama 3.2 1B, without its rotary scaling.
    Llama32B1,
    /// Qwen3 4B.
    Qwen3B4,
    /// Qwen3 8B.
    Qwen3B8,
    /// Llama 3 70B.
    Llama3B70,
    /// Qwen3 32B.
    Qwen3B32,
    /// Qwen2.5 7B.
    Qwen25B7,
    /// The bundled model.
    Mini,
}

impl RandomShape {
    /// Every shape.
    pub const ALL: [RandomShape; 8] = [
        RandomShape::Llama3B8,
        RandomShape::Llama3B70,
        RandomShape::Llama32B1,
        RandomShape::Qwen3B4,
        RandomShape::Qwen3B8,
        RandomShape::Qwen3B32,
        RandomShape::Qwen25B7,
        RandomShape::Mini,
    ];

    /// Returns the name by which users ask for the shape.
    pub fn name(self) -> &'static str {
        match self {
            RandomShape::Llama3B8 => "llama3-8b",
            RandomShape::Llama3B70 => "llama3-70b",
            RandomShape::Llama32B1 => "llama3.2-1b",
            RandomShape::Qwen3B4 => "qwen3-4b",
            RandomShape::Qwen3B8 => "qwen3-8b",
            RandomShape::Qwen3B32 => "qwen3-32b",
            RandomShape::Qwen25B7 => "qwen2.5-7b",
            RandomShape::Mini => "mini",
        }
    }

    /// Returns the sizes and constants, without end tokens.
    pub fn config(self) -> ModelConfig {
        let llama = ModelConfig {
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14_336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            rotary_dim: 128,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: None,
            layer_attention: vec![],
            qk_norm: false,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            tie_word_embeddings: false,
            max_context: 8192,
            end_tokens: vec![],
        };
        let qwen3 = ModelConfig {
            vocab_size: 151_936,
            intermediate_size: 12_288,
            layers: 36,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            qk_norm: true,
            max_context: 40_960,
            ..llama.clone()
        };
        match self {
            RandomShape::Llama3B8 => llama,
            RandomShape::Llama3B70 => {
                ModelConfig { hidden_size: 8192, intermediate_size: 28_672, layers: 80, heads: 64, ..llama }
            }
            RandomShape::Llama32B1 => ModelConfig {
                hidden_size: 2048,
                intermediate_size: 8192,
                layers: 16,
                head_dim: 64,
                rotary_dim: 64,
                tie_word_embeddings: true,
                max_context: 131_072,
                ..llama
            },
            RandomShape::Qwen3B4 => {
                ModelConfig { hidden_size: 2560, intermediate_size: 9728, tie_word_embeddings: true, ..qwen3 }
            }
            RandomShape::Qwen3B8 => qwen3,
            RandomShape::Qwen3B32 => {
                ModelConfig { hidden_size: 5120, intermediate_size: 25_600, layers: 64, heads: 64, ..qwen3 }
            }
            RandomShape::Qwen25B7 => ModelConfig {
                vocab_size: 152_064,
                hidden_size: 3584,
                intermediate_size: 18_944,
                layers: 28,
                heads: 28,
                kv_heads: 4,
                qk_norm: false,
                qkv_bias: true,
                max_context: 32_768,
                ..qwen3
            },
            RandomShape::Mini => ModelConfig {
                vocab_size: 16_384,
                hidden_size: 512,
                intermediate_size: 1024,
                layers: 10,
                heads: 8,
                kv_heads: 2,
                head_dim: 64,
                rotary_dim: 64,
                rope_theta: 10_000.0,
                tie_word_embeddings: true,
                max_context: 2048,
                ..llama
            },
        }
    }
}

impl fmt::Display for RandomShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RandomShape {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        RandomShape::ALL.into_iter().find(|shape| shape.name() == name).ok_or_else(|| {
            let names = RandomShape::ALL.map(RandomShape::name).join(", ");
            Error::Invalid(format!("there is no random model {name:?}; there are {names}"))
        })
    }
}

/// Makes a random model. `seed` decides its weights; `tokenizer` is a tokenizer.json or a folder with one, and the bundled model's
/// if left out. The tokenizer may have fewer tokens than the model. There is no chat template and no end token.
///
/// Fails if the tokenizer cannot be read or has more tokens than the model, or if none is named in a build without the bundled
/// model.
pub fn random(shape: RandomShape, seed: u64, tokenizer: Option<&Path>) -> Result<LoadedModel> {
    let config = shape.config();
    let (text, path) = match tokenizer {
        Some(path) => {
            let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
            (read_text(&path, TOKENIZER_MAX)?, path)
        }
        None => (bundled_tokenizer()?.to_owned(), "bundled tokenizer.json".into()),
    };
    let tokenizer = HfTokenizer::from_bytes(text.as_bytes(), ChatTemplate::plain(), vec![]);
    let tokenizer = tokenizer.and_then(|tokenizer| tokenizer.padded_to(config.vocab_size));
    let tokenizer = tokenizer.map_err(|error| weights_error(&path, error.to_string()))?;
    let digest = format!("random-{shape}-{seed}-{}", blake3::hash(text.as_bytes()).to_hex());
    let weights = Box::new(RandomTensors { tensors: config.tensors().into_iter().collect(), seed });
    Ok(LoadedModel { config, weights, tokenizer: Arc::new(tokenizer), digest })
}

#[cfg(feature = "bundled-model")]
fn bundled_tokenizer() -> Result<&'static str> {
    Ok(super::bundled::TOKENIZER)
}

#[cfg(not(feature = "bundled-model"))]
fn bundled_tokenizer() -> Result<&'static str> {
    let reason = "a random model has no tokenizer in this build; name one with tokenizer = 'folder or tokenizer.json'";
    Err(Error::Invalid(reason.to_owned()))
}

/// Tensors that are drawn when they are read, the same ones each time.
#[derive(Debug)]
struct RandomTensors {
    tensors: BTreeMap<String, Vec<usize>>,
    seed: u64,
}

impl TensorSource for RandomTensors {
    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        if self.tensors.get(name).is_none_or(|found| found != shape) {
            return Err(Error::Invalid(format!("the random model has no tensor {name:?} of shape {shape:?}")));
        }
        let len = shape.iter().product::<usize>() as u64;
        let value = |index| match self.normal(name) {
            Some(normal) => normal.value(index),
            None => f32::from(u8::from(name.ends_with("norm.weight"))),
        };
        let bytes = (0..len).flat_map(|index| bf16::from_f32(value(index)).to_le_bytes()).collect();
        Ok(HostTensor { shape: shape.to_vec(), dtype: DType::BF16, bytes })
    }

    fn normal(&self, name: &str) -> Option<Normal> {
        if name.ends_with("norm.weight") || name.ends_with(".bias") {
            return None;
        }
        let hash = blake3::Hasher::new().update(&self.seed.to_le_bytes()).update(name.as_bytes()).finalize();
        let seed = hash.as_bytes().first_chunk().map(|bytes| u64::from_le_bytes(*bytes))?;
        Some(Normal { seed, std: STD })
    }
}

#[cfg(test)]
#[cfg(feature = "bundled-model")]
mod tests {
    use super::*;
    use crate::Tokenizer;
    use crate::load::{BundledModel, bundled};
    use crate::model::dequantize;

    fn read(model: &LoadedModel, name: &str) -> Vec<f32> {
        let tensors = model.config.tensors();
        let (_, shape) = tensors.iter().find(|(found, _)| found == name).unwrap();
        let tensor = model.weights.read(name, shape).unwrap();
        let mut values = vec![0.0; shape.iter().product()];
        dequantize(tensor.dtype, &tensor.bytes, &mut values);
        values
    }

    #[test]
    fn every_shape_is_possible_and_has_its_name() {
        for shape in RandomShape::ALL {
            assert_eq!(shape.config().check(), Ok(()), "{shape}");
            assert_eq!(shape.name().parse::<RandomShape>().unwrap(), shape);
        }
        let error = "llama4".parse::<RandomShape>().unwrap_err().to_string();
        assert!(error.contains("no random model \"llama4\"; there are llama3-8b, llama3-70b, llama3.2-1b"), "{error}");
    }

    #[test]
    fn the_shapes_have_the_parameters_of_their_names() {
        let billions = |shape: RandomShape| {
            let sizes = shape.config().tensors().into_iter().map(|(_, shape)| shape.iter().product::<usize>());
            sizes.sum::<usize>() as f64 / 1e9
        };
        let found = RandomShape::ALL.map(|shape| (billions(shape) * 100.0).round() / 100.0);
        assert_eq!(found, [8.03, 70.55, 1.24, 4.02, 8.19, 32.76, 7.62, 0.03]);
    }

    #[test]
    fn mini_has_the_shape_of_the_bundled_model() {
        let config = bundled(BundledModel::Mini).unwrap().config;
        assert_eq!(ModelConfig { end_tokens: vec![], ..config }, RandomShape::Mini.config());
    }

    #[test]
    fn values_are_normal_and_depend_on_seed_and_name_alone() {
        let name = "model.layers.3.mlp.up_proj.weight";
        let model = random(RandomShape::Mini, 5, None).unwrap();
        let values = read(&model, name);
        let moment =
            |power| values.iter().map(|value| f64::from(value / STD).powi(power)).sum::<f64>() / values.len() as f64;
        for (power, expected) in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)] {
            assert!((moment(power) - expected).abs() < 0.05, "moment {power} is {}", moment(power));
        }
        assert_eq!(values, read(&random(RandomShape::Mini, 5, None).unwrap(), name));
        assert_ne!(values, read(&random(RandomShape::Mini, 6, None).unwrap(), name));
        assert_ne!(values, read(&model, "model.layers.4.mlp.up_proj.weight"));
        assert!(read(&model, "model.norm.weight").iter().all(|value| *value == 1.0));
        let biased = RandomTensors { tensors: RandomShape::Qwen25B7.config().tensors().into_iter().collect(), seed: 5 };
        let bias = biased.read("model.layers.0.self_attn.k_proj.bias", &[512]).unwrap();
        assert!(bias.bytes.iter().all(|byte| *byte == 0));
        assert!(biased.read("model.layers.0.self_attn.k_proj.bias", &[511]).is_err());
    }

    #[test]
    fn the_tokenizer_is_padded_and_named_in_the_digest() {
        let model = random(RandomShape::Llama32B1, 0, None).unwrap();
        assert_eq!(model.tokenizer.vocab_size(), 128_256);
        assert!(model.tokenizer.end_tokens().is_empty());
        assert_eq!(model.tokenizer.render_chat("S", "U").unwrap(), "S\n\nU\n");
        assert!(model.digest.starts_with("random-llama3.2-1b-0-"), "{}", model.digest);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini");
        for path in [&folder, &folder.join("tokenizer.json")] {
            assert_eq!(random(RandomShape::Llama32B1, 0, Some(path)).unwrap().digest, model.digest);
        }
        assert_ne!(random(RandomShape::Llama32B1, 1, None).unwrap().digest, model.digest);
        let missing = random(RandomShape::Mini, 0, Some(Path::new("/nonexistent/tokenizer.json"))).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/tokenizer.json"), "{missing}");
    }
}
