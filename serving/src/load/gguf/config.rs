//! The metadata of a GGUF file as the configuration of a decoder.

use std::num::NonZeroUsize;

use super::header::{Contents, Meta};
use crate::model::{LayerAttention, ModelConfig, RopeScaling};
use crate::request::TokenId;

/// Architectures whose layout is understood. Mistral, TinyLlama and SmolLM models are written as llama.
const SUPPORTED: [&str; 5] = ["llama", "qwen2", "qwen3", "phi3", "smollm3"];

/// Returns the architecture that a file names.
pub(super) fn architecture(file: &Contents) -> Result<&str, String> {
    match file.meta("general.architecture") {
        Some(Meta::Text(name)) if SUPPORTED.contains(&name.as_str()) => Ok(name),
        Some(Meta::Text(name)) => {
            let supported = SUPPORTED.join(", ");
            Err(format!("the architecture is {name}; supported in GGUF files are {supported}: choose such a model"))
        }
        _ => Err("general.architecture is missing; the file is damaged, fetch it again".to_owned()),
    }
}

/// Reads the configuration. The error says what is wrong with the file.
pub(super) fn model_config(file: &Contents) -> Result<ModelConfig, String> {
    let keys = Keys { file, architecture: architecture(file)? };
    if keys.optional_size("expert_count")?.unwrap_or(0) > 0 {
        return Err("mixtures of experts are not supported: choose a dense model".to_owned());
    }
    let hidden_size = keys.size("embedding_length")?;
    let heads = keys.size("attention.head_count")?;
    let layers = keys.size("block_count")?;
    let embedding_rows = file.shape("token_embd.weight").and_then(|shape| shape.first().copied());
    let head_dim = keys.optional_size("attention.key_length")?.unwrap_or(hidden_size / heads.max(1));
    let rotary_dim = keys.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
    let rope_theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let max_context = keys.size("context_length")?;
    let has = |part: &str| file.shape(&format!("blk.0.{part}")).is_some();
    let config = ModelConfig {
        vocab_size: embedding_rows.ok_or("tensor \"token_embd.weight\" is missing; is this a language model?")?,
        hidden_size,
        intermediate_size: keys.size("feed_forward_length")?,
        layers,
        heads,
        kv_heads: keys.optional_size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rotary_dim,
        rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        rope_theta,
        rope_scaling: keys.rope_scaling(rotary_dim, rope_theta, max_context)?,
        layer_attention: keys.layer_attention(layers, max_context)?,
        qk_norm: has("attn_q_norm.weight"),
        qkv_bias: has("attn_q.bias") || has("attn_qkv.bias"),
        output_bias: has("attn_output.bias"),
        mlp_bias: has("ffn_up.bias"),
        tie_word_embeddings: file.shape("output.weight").is_none(),
        max_context,
        end_tokens: end_tokens(file)?,
    };
    config.check()?;
    if interleaved(keys.architecture) && rotary_dim != head_dim {
        return Err("only a part of each head is rotated, which is not supported for this architecture".to_owned());
    }
    Ok(config)
}

/// Returns whether the rows of query and key heads are interleaved rotary pairs in files of an architecture.
pub(super) fn interleaved(architecture: &str) -> bool {
    matches!(architecture, "llama" | "smollm3")
}

fn end_tokens(file: &Contents) -> Result<Vec<TokenId>, String> {
    let mut tokens = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        tokens.extend(size_of(file, key)?.and_then(|id| TokenId::try_from(id).ok()));
    }
    Ok(tokens)
}

/// The metadata of one architecture, whose name stands before each key.
struct Keys<'a> {
    file: &'a Contents,
    architecture: &'a str,
}

impl Keys<'_> {
    fn size(&self, key: &str) -> Result<usize, String> {
        let missing = || format!("{}.{key} is missing; the file is damaged, fetch it again", self.architecture);
        self.optional_size(key)?.ok_or_else(missing)
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, String> {
        size_of(self.file, &format!("{}.{key}", self.architecture))
    }

    fn number(&self, key: &str) -> Result<Option<f32>, String> {
        match self.file.meta(&format!("{}.{key}", self.architecture)) {
            None => Ok(None),
            Some(Meta::Float(value)) => Ok(Some(*value as f32)),
            Some(other) => Err(format!("{}.{key} is {other:?} instead of a number", self.architecture)),
        }
    }

    /// Reads how layers attend: over a window, or without rotary embedding in each fourth layer of SmolLM3.
    fn layer_attention(&self, layers: usize, max_context: usize) -> Result<Vec<LayerAttention>, String> {
        let window = self.optional_size("attention.sliding_window")?.filter(|window| *window < max_context);
        let window = window.and_then(NonZeroUsize::new);
        let without_rotary = self.architecture == "smollm3";
        if window.is_none() && !without_rotary || layers > LAYERS_MAX {
            return Ok(vec![]);
        }
        let attention = |layer| LayerAttention { window, rotary: !(without_rotary && layer % 4 == 3) };
        Ok((0..layers).map(attention).collect())
    }

    /// Reads the rotary scaling: named in the metadata, or Llama 3.1's or LongRoPE's, which stand in tensors of factors.
    fn rope_scaling(&self, rotary_dim: usize, theta: f32, max_context: usize) -> Result<Option<RopeScaling>, String> {
        if let Some(factors) = self.factors("rope_freqs.weight", rotary_dim)? {
            return llama3_scaling(&factors, rotary_dim, theta).map(Some);
        }
        let original_max_position = self.optional_size("rope.scaling.original_context_length")?.unwrap_or(max_context);
        let grown = max_context as f32 / original_max_position.max(1) as f32;
        let (short, long) = ("rope_factors_short.weight", "rope_factors_long.weight");
        match (self.factors(short, rotary_dim)?, self.factors(long, rotary_dim)?) {
            (Some(short_factors), Some(long_factors)) => {
                let named = self.number("rope.scaling.attn_factor")?;
                let attention_factor =
                    named.unwrap_or_else(|| RopeScaling::longrope_attention(grown, original_max_position));
                return Ok(Some(RopeScaling::LongRope {
                    short_factors,
                    long_factors,
                    original_max_position,
                    attention_factor,
                }));
            }
            (None, None) => {}
            _ => {
                return Err(
                    "one of the two tensors of rotary factors is missing; the file is damaged, fetch it again".into()
                );
            }
        }
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        };
        let kind = match self.file.meta(&format!("{}.rope.scaling.type", self.architecture)) {
            Some(Meta::Text(kind)) => kind.as_str(),
            Some(other) => return Err(format!("the rotary scaling is {other:?}; the file is damaged, fetch it again")),
            None if factor.is_some_and(|factor| factor != 1.0) => "linear",
            None => "none",
        };
        let factor = || factor.ok_or(format!("{}.rope.scaling.factor is missing", self.architecture));
        match kind {
            "none" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear { factor: factor()? })),
            "yarn" => self.yarn(factor()?, original_max_position).map(Some),
            other => {
                Err(format!("the rotary scaling is {other}; supported are linear, yarn and those of Llama 3.1 and Phi-3"))
            }
        }
    }

    fn yarn(&self, factor: f32, original_max_position: usize) -> Result<RopeScaling, String> {
        let named = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let named = named * self.number("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0);
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position,
            beta_fast: self.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            truncate: true,
            attention_factor: named * RopeScaling::yarn_attention(factor, 1.0),
        })
    }

    /// Reads a tensor of one factor for each frequency, if there is one.
    fn factors(&self, name: &str, rotary_dim: usize) -> Result<Option<Vec<f32>>, String> {
        let Some(shape) = self.file.shape(name) else {
            return Ok(None);
        };
        if shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size)) != Some(rotary_dim / 2) {
            return Err(format!("tensor {name:?} does not fit the head size; the file is damaged, fetch it again"));
        }
        self.file.floats(name).map(Some)
    }
}

/// The most layers whose attention is described, so that a false number takes no memory before it is refused.
const LAYERS_MAX: usize = 1 << 12;

/// Finds Llama 3.1's scaling behind the factors by which frequencies are divided. Its published models differ in the largest
/// factor alone.
fn llama3_scaling(factors: &[f32], rotary_dim: usize, rope_theta: f32) -> Result<RopeScaling, String> {
    let factor = factors.iter().copied().fold(1.0, f32::max);
    let (low, high, original) = (1.0, 4.0, 8192);
    for (i, found) in factors.iter().enumerate() {
        let wavelength = std::f32::consts::TAU * rope_theta.powf(2.0 * i as f32 / rotary_dim as f32);
        let smooth = ((original as f32 / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
        if (found - expected).abs() > 1e-2 * expected {
            return Err(format!(
                "the rotary factors are not those of Llama 3.1: factor {i} is {found} instead of {expected}"
            ));
        }
    }
    Ok(RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_position: original })
}

fn size_of(file: &Contents, key: &str) -> Result<Option<usize>, String> {
    let value = match file.meta(key) {
        None => return Ok(None),
        Some(Meta::Unsigned(value)) => usize::try_from(*value).ok(),
        Some(Meta::Signed(value)) => usize::try_from(*value).ok(),
        Some(_) => None,
    };
    value.map(Some).ok_or(format!("{key} is not a size; models whose layers differ are not supported"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_llama_3_scaling_behind_its_factors() {
        let (head_dim, theta, factor) = (64, 500_000.0_f32, 32.0);
        let factors: Vec<f32> = (0..head_dim / 2)
            .map(|i| {
                let wavelength = std::f32::consts::TAU * theta.powf(2.0 * i as f32 / head_dim as f32);
                if wavelength < 2048.0 {
                    1.0
                } else if wavelength > 8192.0 {
                    factor
                } else {
                    let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            })
            .collect();
        let found = llama3_scaling(&factors, head_dim, theta).unwrap();
        assert!(matches!(found, RopeScaling::Llama3 { factor: 32.0, original_max_position: 8192, .. }), "{found:?}");
        let other: Vec<f32> = factors.iter().map(|f| f * 1.5).collect();
        assert!(llama3_scaling(&other, head_dim, theta).is_err());
    }
}
