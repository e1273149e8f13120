//! What tests share: random numbers, a tiny model in memory, and a forward pass in double precision as simple as can be.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use rayon::ThreadPoolBuilder;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{DType, HostTensor, LayerAttention, ModelConfig, RopeScaling, TensorSource};
use crate::request::{Sampling, TokenId};
use crate::step::{Allowed, KvWrite, PAGE_TOKENS, PageId, RowSlot, RowSpan, SampleRow, StepPlan, StepResult, TokenSource};

/// A small linear congruential generator.
pub(in crate::device) struct Random(u64);

impl Random {
    pub(in crate::device) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678)
    }

    pub(in crate::device) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Numbers in -1..1.
    pub(in crate::device) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

/// Asserts that `got` is within `tolerance` of `expected`, relative for magnitudes above 1.
#[track_caller]
pub(in crate::device) fn close(got: f32, expected: f64, tolerance: f64) {
    let error = (f64::from(got) - expected).abs() / expected.abs().max(1.0);
    assert!(error <= tolerance, "{got} instead of {expected}");
}

/// Runs `work` on a pool of `threads` threads.
pub(in crate::device) fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// Two layers, sizes that are no multiples of a vector.
pub(in crate::device) fn tiny_config() -> ModelConfig {
    ModelConfig {
        vocab_size: 97,
        hidden_size: 40,
        intermediate_size: 50,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        rotary_dim: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        layer_attention: vec![],
        qk_norm: false,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        tie_word_embeddings: true,
        max_context: 256,
        end_tokens: vec![2],
    }
}

/// As [`tiny_config`], with all that other architectures do: windows, layers without rotary embedding, normalised heads, biases,
/// and heads of which a part turns, by rescaled frequencies.
pub(in crate::device) fn featured_config() -> ModelConfig {
    let layer = |window, rotary| LayerAttention { window: NonZeroUsize::new(window), rotary };
    ModelConfig {
        layers: 3,
        rotary_dim: 10,
        rope_scaling: Some(RopeScaling::Yarn {
            factor: 4.0,
            original_max_position: 32,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.2,
        }),
        layer_attention: vec![layer(20, true), layer(0, false), layer(3, true)],
        qk_norm: true,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        ..tiny_config()
    }
}

/// Rounds to the nearest number of FP8 with 4 bits of exponent and 3 of mantissa (Micikevicius et al. 2022), at ties to the even
/// one, and what is beyond the largest to that.
pub(in crate::device) fn e4m3(x: f64) -> f64 {
    // Below 2^-6 numbers lie as far apart as above it.
    let exponent = (x.abs().max(2f64.powi(-6)).to_bits() >> 52) as i32 - 1023;
    let step = 2f64.powi(exponent - 3);
    ((x / step).round_ties_even() * step).clamp(-E4M3_MAX, E4M3_MAX)
}

/// The largest number that [`e4m3`] gives.
pub(in crate::device) const E4M3_MAX: f64 = 448.0;

/// Rounds a row to FP8 with one scale, which makes its largest magnitude the largest number of FP8.
pub(in crate::device) fn quantised(row: &[f64]) -> Vec<f64> {
    let scale = row.iter().fold(1e-30, |largest: f64, x| largest.max(x.abs())) / E4M3_MAX;
    row.iter().map(|x| e4m3(x / scale) * scale).collect()
}

/// Tensors held in memory.
#[derive(Clone, Debug)]
pub(in crate::device) struct MemoryTensors {
    pub(in crate::device) tensors: HashMap<String, HostTensor>,
}

impl MemoryTensors {
    /// Random f32 tensors for every name that `config` may ask for.
    pub(in crate::device) fn random(config: &ModelConfig, seed: u64) -> Self {
        let all = ModelConfig {
            qk_norm: true,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            tie_word_embeddings: false,
            ..config.clone()
        };
        let shapes = all.tensors();
        let mut random = Random::new(seed);
        let tensors = shapes.into_iter().map(|(name, shape)| {
            let values = random.floats(shape.iter().product());
            let scale = if shape.len() == 2 { 2.0 / (shape[1] as f32).sqrt() } else { 1.0 };
            let bytes = values.iter().flat_map(|x| (x * scale).to_le_bytes()).collect();
            (name, HostTensor { shape, dtype: DType::F32, bytes })
        });
        MemoryTensors { tensors: tensors.collect() }
    }

    /// The same with the projections of layers rounded, row by row, to bfloat16 and then to FP8.
    pub(in crate::device) fn quantised(&self) -> Self {
        let mut tensors = self.tensors.clone();
        for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.ends_with("_proj.weight")) {
            let bf16: Vec<f64> = self.values(name).into_iter().map(|x| half::bf16::from_f64(x).to_f64()).collect();
            let rows = bf16.chunks(tensor.shape[1]).flat_map(quantised);
            tensor.bytes = rows.flat_map(|x| (x as f32).to_le_bytes()).collect();
        }
        MemoryTensors { tensors }
    }

    pub(in crate::device) fn values(&self, name: &str) -> Vec<f64> {
        self.tensors[name].bytes.as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
    }
}

impl TensorSource for MemoryTensors {
    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let tensor = self.tensors.get(name).filter(|tensor| tensor.shape == shape);
        tensor.cloned().ok_or_else(|| Error::Invalid(format!("no tensor {name} of shape {shape:?}")))
    }
}

/// Appends `row[from..]` to a plan as a row with `pages`, and a greedy sample after its last token.
pub(in crate::device) fn add_row(plan: &mut StepPlan, row: &[TokenId], from: usize, pages: &[PageId], top_logits: u32) {
    let first = plan.tokens.len() as u32;
    for (position, &token) in row.iter().enumerate().skip(from) {
        let token_idx = plan.tokens.len() as u32;
        let (page, offset) = (pages[position / PAGE_TOKENS], (position % PAGE_TOKENS) as u32);
        plan.tokens.push(TokenSource::Host(token));
        plan.positions.push(position as u32);
        plan.writes.push(KvWrite { token: token_idx, page, offset });
    }
    let (end, table) = (plan.tokens.len() as u32, plan.block_tables.len() as u32);
    plan.block_tables.extend(pages);
    plan.rows.push(RowSpan { tokens: first..end, pages: table..plan.block_tables.len() as u32 });
    plan.sample.push(SampleRow {
        token: end - 1,
        slot: RowSlot(plan.sample.len() as u32),
        allowed: Allowed::All,
        sampling: Sampling::GREEDY,
        draw: 0,
        top_logits,
        logprobs: None,
    });
}

/// Runs plans one behind the other, each of whose samples are left open until they are to be chosen.
pub(in crate::device) fn run_open(device: &mut dyn Device, plans: &[&StepPlan]) -> Vec<StepResult> {
    let mut launch = |plan: &&StepPlan| {
        let mut open = StepPlan { candidates: Vec::new(), masks: Vec::new(), ..(*plan).clone() };
        open.sample.iter_mut().for_each(|sample| sample.allowed = Allowed::Open);
        device.launch_open(&mut open, &mut |open| open.clone_from(plan)).unwrap()
    };
    let tickets: Vec<_> = plans.iter().map(&mut launch).collect();
    let result = |ticket| {
        let mut result = StepResult::default();
        device.wait(ticket, &mut result).unwrap();
        result
    };
    tickets.into_iter().map(result).collect()
}

/// Logits after each token of `row`, in double precision and without any cache.
pub(in crate::device) fn naive_logits(config: &ModelConfig, tensors: &MemoryTensors, row: &[TokenId]) -> Vec<Vec<f64>> {
    naive_logits_of_rounded(config, tensors, row, <[f64]>::to_vec)
}

/// As [`naive_logits`], with the inputs of the projections of layers rounded by `rounded`.
pub(in crate::device) fn naive_logits_of_rounded(
    config: &ModelConfig,
    tensors: &MemoryTensors,
    row: &[TokenId],
    rounded: fn(&[f64]) -> Vec<f64>,
) -> Vec<Vec<f64>> {
    let (hidden, dim, group) = (config.hidden_size, config.head_dim, config.heads / config.kv_heads);
    let embedding = tensors.values("model.embed_tokens.weight");
    let mut x: Vec<Vec<f64>> = row.iter().map(|&t| embedding[t as usize * hidden..][..hidden].to_vec()).collect();
    for layer in 0..config.layers {
        let values = |part: &str| tensors.values(&format!("model.layers.{layer}.{part}"));
        let project = |part: &str, x: &[f64]| {
            let mut out = product(&values(&format!("{part}.weight")), &rounded(x));
            let biased = match part {
                "self_attn.o_proj" => config.output_bias,
                _ if part.starts_with("mlp") => config.mlp_bias,
                _ => config.qkv_bias,
            };
            if biased {
                out.iter_mut().zip(values(&format!("{part}.bias"))).for_each(|(out, bias)| *out += bias);
            }
            out
        };
        let normed: Vec<_> = x.iter().map(|x| normalise(x, &values("input_layernorm.weight"), config)).collect();
        let LayerAttention { window, rotary } = config.attention_of(layer);
        let turned = |part: &str| -> Vec<Vec<f64>> {
            let head = |at: usize, head: &[f64]| {
                let weight = || values(&format!("self_attn.{part}_norm.weight"));
                let head = if config.qk_norm { normalise(head, &weight(), config) } else { head.to_vec() };
                if rotary { rotate(head, at, config) } else { head }
            };
            let heads = |at: usize, x: Vec<f64>| x.chunks(dim).flat_map(|x| head(at, x)).collect();
            let projected = normed.iter().map(|x| project(&format!("self_attn.{part}_proj"), x));
            projected.enumerate().map(|(at, x)| heads(at, x)).collect()
        };
        let (q, k) = (turned("q"), turned("k"));
        let v: Vec<_> = normed.iter().map(|x| project("self_attn.v_proj", x)).collect();
        for (at, x) in x.iter_mut().enumerate() {
            let mut attended = vec![0.0; config.heads * dim];
            let first = window.map_or(0, |window| (at + 1).saturating_sub(window.get()));
            for head in 0..config.heads {
                let kv = head / group * dim;
                let score = |key: usize| dot(&q[at][head * dim..][..dim], &k[key][kv..][..dim]) / (dim as f64).sqrt();
                let weights: Vec<f64> = (first..=at).map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dim {
                    let value = |key: usize| weights[key - first] * v[key][kv + d];
                    attended[head * dim + d] = (first..=at).map(value).sum::<f64>() / total;
                }
            }
            add(x, &project("self_attn.o_proj", &attended));
            let normed = normalise(x, &values("post_attention_layernorm.weight"), config);
            let (gate, up) = (project("mlp.gate_proj", &normed), project("mlp.up_proj", &normed));
            let activated: Vec<_> = gate.iter().zip(&up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            add(x, &project("mlp.down_proj", &activated));
        }
    }
    let head = if config.tie_word_embeddings { embedding } else { tensors.values("lm_head.weight") };
    let norm = tensors.values("model.norm.weight");
    x.iter().map(|x| product(&head, &normalise(x, &norm, config))).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn product(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks(x.len()).map(|w| dot(w, x)).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn normalise(x: &[f64], weight: &[f64], config: &ModelConfig) -> Vec<f64> {
    let scale = (dot(x, x) / x.len() as f64 + f64::from(config.rms_norm_eps)).sqrt().recip();
    x.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
}

fn rotate(mut head: Vec<f64>, position: usize, config: &ModelConfig) -> Vec<f64> {
    let half = config.rotary_dim / 2;
    for i in 0..half {
        let angle = position as f64 * f64::from(config.rope_theta).powf(-(i as f64) / half as f64);
        let (left, right) = (head[i], head[i + half]);
        head[i] = left * angle.cos() - right * angle.sin();
        head[i + half] = right * angle.cos() + left * angle.sin();
    }
    head
}
