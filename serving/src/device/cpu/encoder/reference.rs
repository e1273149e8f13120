//! The encoder in double precision and plain loops, what the kernels are compared with.

use super::super::reference::{MemoryTensors, Random};
use crate::model::{Activation, DType, EncoderConfig, HostTensor, Pooling};
use crate::request::TokenId;

/// Two layers, sizes that are no multiples of a vector.
pub(super) fn tiny_encoder() -> EncoderConfig {
    EncoderConfig {
        vocab_size: 97,
        hidden_size: 36,
        intermediate_size: 50,
        layers: 2,
        heads: 3,
        positions: 64,
        first_position: 0,
        token_types: 2,
        layer_norm_eps: 1e-12,
        activation: Activation::Gelu,
        pooling: Pooling::Mean,
        max_tokens: 64,
        tensor_prefix: String::new(),
    }
}

/// Random f32 tensors for every name of `config`.
pub(super) fn random_tensors(config: &EncoderConfig, seed: u64) -> MemoryTensors {
    let mut random = Random::new(seed);
    let tensors = config.tensors().into_iter().map(|(name, shape)| {
        let scale = if shape.len() == 2 { 2.0 / (shape[1] as f32).sqrt() } else { 1.0 };
        let values = random.floats(shape.iter().product());
        let bytes = values.iter().flat_map(|x| (x * scale).to_le_bytes()).collect();
        (name, HostTensor { shape, dtype: DType::F32, bytes })
    });
    MemoryTensors { tensors: tensors.collect() }
}

pub(super) fn tokens(config: &EncoderConfig, len: usize, seed: u64) -> Vec<TokenId> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.below(config.vocab_size as u64) as TokenId).collect()
}

pub(super) fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => x * normal_cdf(x),
        Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()),
        Activation::Relu => x.max(0.0),
    }
}

/// Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/(3·5) + …), which converges for every x; beyond |x| = 8 it is 0 or 1.
fn normal_cdf(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..400 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

pub(super) fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = (variance + eps).sqrt().recip();
    x.iter().zip(weight).zip(bias).map(|((x, weight), bias)| (x - mean) * scale * weight + bias).collect()
}

/// Full attention over `[tokens, 3 * heads * head_dim]`.
pub(super) fn attend(qkv: &[f64], tokens: usize, heads: usize, head_dim: usize) -> Vec<f64> {
    let hidden = heads * head_dim;
    let part = |token: usize, part: usize, head: usize| &qkv[(3 * token + part) * hidden + head * head_dim..][..head_dim];
    let mut out = vec![0.0; tokens * hidden];
    for token in 0..tokens {
        for head in 0..heads {
            let score = |key: usize| dot(part(token, 0, head), part(key, 1, head)) / (head_dim as f64).sqrt();
            let weights: Vec<f64> = (0..tokens).map(|key| score(key).exp()).collect();
            let total: f64 = weights.iter().sum();
            for channel in 0..head_dim {
                let sum: f64 = (0..tokens).map(|key| weights[key] * part(key, 2, head)[channel]).sum();
                out[token * hidden + head * head_dim + channel] = sum / total;
            }
        }
    }
    out
}

/// The pooled vector of one text.
pub(super) fn naive_vector(config: &EncoderConfig, tensors: &MemoryTensors, text: &[TokenId]) -> Vec<f64> {
    let hidden = config.hidden_size;
    let values = |name: &str| tensors.values(&format!("{}{name}", config.tensor_prefix));
    let norm = |name: &str, x: &[f64]| {
        layer_norm(x, &values(&format!("{name}.weight")), &values(&format!("{name}.bias")), f64::from(config.layer_norm_eps))
    };
    let project = |name: &str, x: &[f64]| -> Vec<f64> {
        let (weight, bias) = (values(&format!("{name}.weight")), values(&format!("{name}.bias")));
        weight.chunks(x.len()).zip(bias).map(|(row, bias)| dot(row, x) + bias).collect()
    };
    let add = |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x + y).collect() };
    let row = |name: &str, row: usize| values(&format!("embeddings.{name}.weight"))[row * hidden..][..hidden].to_vec();
    let embed = |(at, token): (usize, &TokenId)| {
        let (word, position) =
            (row("word_embeddings", *token as usize), row("position_embeddings", config.first_position + at));
        norm("embeddings.LayerNorm", &add(&add(&word, &position), &row("token_type_embeddings", 0)))
    };
    let mut states: Vec<Vec<f64>> = text.iter().enumerate().map(embed).collect();
    for layer in 0..config.layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let parts = ["query", "key", "value"];
        let qkv: Vec<f64> = states
            .iter()
            .flat_map(|x| parts.map(|part| project(&name(&format!("attention.self.{part}")), x)).concat())
            .collect();
        let attended = attend(&qkv, text.len(), config.heads, hidden / config.heads);
        for (x, attended) in states.iter_mut().zip(attended.chunks(hidden)) {
            *x = norm(&name("attention.output.LayerNorm"), &add(x, &project(&name("attention.output.dense"), attended)));
            let inner: Vec<f64> =
                project(&name("intermediate.dense"), x).into_iter().map(|x| activate(config.activation, x)).collect();
            *x = norm(&name("output.LayerNorm"), &add(x, &project(&name("output.dense"), &inner)));
        }
    }
    match config.pooling {
        Pooling::First => states.swap_remove(0),
        Pooling::Last => states.pop().unwrap(),
        Pooling::Mean => {
            (0..hidden).map(|c| states.iter().map(|state| state[c]).sum::<f64>() / states.len() as f64).collect()
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
