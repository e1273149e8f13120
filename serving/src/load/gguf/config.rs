//! The metadata of a GGUF file as the configuration of a decoder.

use super::header::{Contents, Meta};
use crate::model::{ModelConfig, RopeScaling};
use crate::request::TokenId;

/// Reads the configuration. The error says what is wrong with the file.
pub(super) fn model_config(file: &Contents) -> Result<ModelConfig, String> {
    match file.meta("general.architecture") {
        Some(Meta::Text(name)) if name == "llama" => {}
        Some(Meta::Text(name)) => {
            return Err(format!("the architecture is {name}; supported in GGUF files is llama"));
        }
        _ => {
            return Err("general.architecture is missing; the file is damaged, fetch it again".to_owned());
        }
    }
    if optional_size(file, "llama.expert_count")?.unwrap_or(0) > 0 {
        return Err("mixtures of experts are not supported".to_owned());
    }
    let hidden_size = size(file, "llama.embedding_length")?;
    let heads = size(file, "llama.attention.head_count")?;
    let embedding_rows = file.shape("token_embd.weight").and_then(|shape| shape.first().copied());
    let head_dim = optional_size(file, "llama.attention.key_length")?
        .or(optional_size(file, "llama.rope.dimension_count")?)
        .unwrap_or(hidden_size / heads.max(1));
    let rope_theta = number(file, "llama.rope.freq_base")?.unwrap_or(10_000.0);
    let config = ModelConfig {
        vocab_size: embedding_rows.ok_or("tensor \"token_embd.weight\" is missing; is this a language model?")?,
        hidden_size,
        intermediate_size: size(file, "llama.feed_forward_length")?,
        layers: size(file, "llama.block_count")?,
        heads,
        kv_heads: optional_size(file, "llama.attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rotary_dim: head_dim,
        rms_norm_eps: number(file, "llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        rope_theta,
        rope_scaling: rope_scaling(file, head_dim, rope_theta)?,
        layer_attention: vec![],
        qk_norm: false,
        qkv_bias: file.shape("blk.0.attn_q.bias").is_some(),
        output_bias: false,
        mlp_bias: false,
        tie_word_embeddings: file.shape("output.weight").is_none(),
        max_context: size(file, "llama.context_length")?,
        end_tokens: end_tokens(file)?,
    };
    config.check()?;
    if optional_size(file, "llama.rope.dimension_count")?.is_some_and(|rotated| rotated != head_dim) {
        return Err("only a part of each head is rotated, which is not supported".to_owned());
    }
    Ok(config)
}

fn end_tokens(file: &Contents) -> Result<Vec<TokenId>, String> {
    let mut tokens = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        tokens.extend(optional_size(file, key)?.and_then(|id| TokenId::try_from(id).ok()));
    }
    Ok(tokens)
}

/// Reads the rotary scaling: either named in the metadata, or Llama 3.1's, which stands in a tensor of factors.
fn rope_scaling(file: &Contents, head_dim: usize, rope_theta: f32) -> Result<Option<RopeScaling>, String> {
    if file
        .shape("rope_freqs.weight")
        .is_some_and(|shape| shape.iter().try_fold(1_usize, |n, size| n.checked_mul(*size)) == Some(head_dim / 2))
    {
        let factors = file.floats("rope_freqs.weight").map_err(|error| error.to_string())?;
        return llama3_scaling(&factors, head_dim, rope_theta).map(Some);
    }
    if file.shape("rope_freqs.weight").is_some() {
        return Err(
            "tensor \"rope_freqs.weight\" does not fit the head size; the file is damaged, fetch it again".to_owned()
        );
    }
    match file.meta("llama.rope.scaling.type") {
        Some(Meta::Text(kind)) if kind == "linear" => {
            let factor = number(file, "llama.rope.scaling.factor")?.ok_or("llama.rope.scaling.factor is missing")?;
            Ok(Some(RopeScaling::Linear { factor }))
        }
        Some(Meta::Text(kind)) if kind != "none" => {
            Err(format!("the rotary scaling is {kind}; supported are linear and that of Llama 3.1"))
        }
        _ => Ok(None),
    }
}

/// Finds Llama 3.1's scaling behind the factors by which frequencies are divided. Its published models differ in the largest
/// factor alone.
fn llama3_scaling(factors: &[f32], head_dim: usize, rope_theta: f32) -> Result<RopeScaling, String> {
    let factor = factors.iter().copied().fold(1.0, f32::max);
    let (low, high, original) = (1.0, 4.0, 8192);
    for (i, found) in factors.iter().enumerate() {
        let wavelength = std::f32::consts::TAU * rope_theta.powf(2.0 * i as f32 / head_dim as f32);
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

fn size(file: &Contents, key: &str) -> Result<usize, String> {
    optional_size(file, key)?.ok_or(format!("{key} is missing; the file is damaged, fetch it again"))
}

fn optional_size(file: &Contents, key: &str) -> Result<Option<usize>, String> {
    let value = match file.meta(key) {
        None => return Ok(None),
        Some(Meta::Unsigned(value)) => usize::try_from(*value).ok(),
        Some(Meta::Signed(value)) => usize::try_from(*value).ok(),
        Some(_) => None,
    };
    value.map(Some).ok_or(format!("{key} is not a size; models whose layers differ are not supported"))
}

fn number(file: &Contents, key: &str) -> Result<Option<f32>, String> {
    match file.meta(key) {
        None => Ok(None),
        Some(Meta::Float(value)) => Ok(Some(*value as f32)),
        Some(other) => Err(format!("{key} is {other:?} instead of a number")),
    }
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
