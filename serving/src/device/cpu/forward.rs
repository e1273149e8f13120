//! The pass of a Llama-family decoder over the tokens of a plan.
//!
//! Each step works on all tokens before the next begins, so in every layer all keys and values are written before any
//! attention reads them. In the last layer only tokens whose successor is chosen go beyond their keys and values.

use pulp::Arch;

use super::aligned::AlignedVec;
use super::attention::{Inputs, Query, attention};
use super::gemm::{GemmScratch, Start, gemm};
use super::kv::KvPool;
use super::panels::PackedMatrix;
use super::rmsnorm::{rmsnorm, rmsnorm_heads};
use super::rope::Rope;
use super::rows::for_row_blocks;
use super::swiglu::swiglu;
use super::weights::{LayerWeights, Packer, Weights};
use crate::error::Result;
use crate::model::{ModelConfig, TensorSource};
use crate::request::TokenId;
use crate::step::StepPlan;

/// A decoder ready to run.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) config: ModelConfig,
    pub(super) weights: Weights,
    rope: Rope,
    arch: Arch,
}

/// Buffers of a pass, kept from pass to pass. Rows of `x` and `normed` are `hidden` wide.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// The residual stream.
    x: AlignedVec,
    /// Normalised rows of `x`; after the pass those of the live tokens, ready for the head.
    pub(super) normed: AlignedVec,
    /// [tokens, (heads + 2 * kv_heads) * head_dim].
    qkv: AlignedVec,
    /// What attention gives: `[kv_heads][queries][group * head_dim]`.
    heads: AlignedVec,
    /// The same as `[queries][heads * head_dim]`.
    attended: AlignedVec,
    /// [tokens, 2 * intermediate].
    gate_up: AlignedVec,
    /// [tokens, intermediate].
    activated: AlignedVec,
    /// Rotary cosines and sines of each token.
    angles: AlignedVec,
    queries: Vec<Query>,
    /// The tokens whose successor is chosen, ascending; row `i` of `normed` belongs to `live[i]`.
    pub(super) live: Vec<u32>,
    pub(super) gemm: GemmScratch,
}

impl Decoder {
    /// Reads the weights.
    pub(super) fn new(packer: Packer, config: &ModelConfig, source: &dyn TensorSource) -> Result<Self> {
        let weights = Weights::load(packer, config, source)?;
        Ok(Decoder { config: config.clone(), weights, rope: Rope::new(config), arch: packer.arch })
    }

    /// Runs all layers on the rayon pool of the calling thread, and leaves normalised hidden states of live tokens in `buffers`.
    /// `tokens` are the resolved tokens of `plan`, which must have been checked.
    pub(super) fn forward(&self, kv: &mut KvPool, plan: &StepPlan, tokens: &[TokenId], buffers: &mut Buffers) {
        list_queries(plan, buffers);
        self.embed(tokens, buffers);
        buffers.angles.resize(tokens.len() * self.rope.width());
        self.rope.angles(&plan.positions, &mut buffers.angles);
        for (layer, weights) in self.weights.layers.iter().enumerate() {
            self.project(weights, layer, buffers);
            kv.write(layer, &plan.writes, &buffers.qkv, self.qkv_width(), self.config.heads * self.config.head_dim);
            if layer + 1 == self.weights.layers.len() {
                drop_unsampled(buffers, self.config.hidden_size);
            }
            self.attend(weights, layer, kv, plan, buffers);
            self.feed_forward(weights, buffers);
        }
        self.normalise(&self.weights.final_norm, buffers);
    }

    fn qkv_width(&self) -> usize {
        (self.config.heads + 2 * self.config.kv_heads) * self.config.head_dim
    }

    fn embed(&self, tokens: &[TokenId], buffers: &mut Buffers) {
        let hidden = self.config.hidden_size;
        buffers.x.resize(tokens.len() * hidden);
        for_row_blocks(&mut buffers.x, hidden, |first, block| {
            for (row, &token) in block.chunks_exact_mut(hidden).zip(&tokens[first..]) {
                self.weights.embed(token, row);
            }
        });
    }

    fn normalise(&self, weight: &[f32], buffers: &mut Buffers) {
        buffers.normed.resize(buffers.x.len());
        rmsnorm(self.arch, &buffers.x, weight, self.config.rms_norm_eps, &mut buffers.normed);
    }

    /// Queries, keys and values of all tokens; queries and keys normalised and turned by their positions where the model does so.
    fn project(&self, weights: &LayerWeights, layer: usize, buffers: &mut Buffers) {
        self.normalise(&weights.attention_norm, buffers);
        let Buffers { normed, qkv, angles, gemm: scratch, .. } = buffers;
        let width = self.qkv_width();
        qkv.resize(normed.len() / self.config.hidden_size * width);
        let start = start_from(weights.qkv_bias.as_deref(), qkv);
        gemm(self.arch, scratch, normed, &weights.qkv, qkv, start);
        if let Some(weight) = &weights.qk_norm {
            rmsnorm_heads(self.arch, qkv, width, weight, self.config.head_dim, self.config.rms_norm_eps);
        }
        if self.config.attention_of(layer).rotary {
            self.rope.apply(self.arch, angles, self.config.heads + self.config.kv_heads, width, qkv);
        }
    }

    /// Attention of the tokens in `queries` and its output projection, added to the residual stream.
    fn attend(&self, weights: &LayerWeights, layer: usize, kv: &KvPool, plan: &StepPlan, buffers: &mut Buffers) {
        let Buffers { x, qkv, heads, attended, queries, gemm: scratch, .. } = buffers;
        let (head_dim, group) = (self.config.head_dim, self.config.heads / self.config.kv_heads);
        let (width, all) = (group * head_dim, self.config.heads * head_dim);
        heads.resize(queries.len() * all);
        let window = self.config.attention_of(layer).window;
        let inputs = Inputs { queries, q: qkv, stride: self.qkv_width(), plan, kv, layer, group, head_dim, window };
        attention(self.arch, inputs, heads);
        attended.resize(queries.len() * all);
        for_row_blocks(attended, all, |first, block| {
            for (i, row) in block.chunks_exact_mut(all).enumerate() {
                for (head, row) in row.chunks_exact_mut(width).enumerate() {
                    row.copy_from_slice(&heads[(head * queries.len() + first + i) * width..][..width]);
                }
            }
        });
        add_bias(weights.output_bias.as_deref(), x);
        gemm(self.arch, scratch, attended, &weights.output, x, Start::Out);
    }

    fn feed_forward(&self, weights: &LayerWeights, buffers: &mut Buffers) {
        self.normalise(&weights.mlp_norm, buffers);
        let Buffers { x, normed, gate_up, activated, gemm: scratch, .. } = buffers;
        let (rows, channels) = (normed.len() / self.config.hidden_size, self.config.intermediate_size);
        gate_up.resize(rows * 2 * channels);
        let start = start_from(weights.gate_up_bias.as_deref(), gate_up);
        gemm(self.arch, scratch, normed, &weights.gate_up, gate_up, start);
        activated.resize(rows * channels);
        swiglu(self.arch, gate_up, channels, activated);
        add_bias(weights.down_bias.as_deref(), x);
        gemm(self.arch, scratch, activated, &weights.down, x, Start::Out);
    }

    /// Computes logits of `inputs` [rows, hidden] for the tokens that are the rows of `head`.
    pub(super) fn logits(&self, scratch: &mut GemmScratch, inputs: &[f32], head: &PackedMatrix, logits: &mut [f32]) {
        gemm(self.arch, scratch, inputs, head, logits, Start::Zero);
    }

    /// Returns the rows of the LM head that belong to `tokens`.
    pub(super) fn head_of(&self, tokens: &[TokenId]) -> PackedMatrix {
        self.weights.head.gather(self.arch, tokens.iter().map(|&token| token as usize))
    }
}

/// Sets each row of `out` to `bias`, and returns where a product into `out` is to start.
fn start_from(bias: Option<&[f32]>, out: &mut [f32]) -> Start {
    let Some(bias) = bias else { return Start::Zero };
    out.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
    Start::Out
}

/// Adds `bias` to each row of `x`.
fn add_bias(bias: Option<&[f32]>, x: &mut [f32]) {
    let Some(bias) = bias else { return };
    for row in x.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }
}

fn list_queries(plan: &StepPlan, buffers: &mut Buffers) {
    buffers.queries.clear();
    for (row, span) in (0..).zip(&plan.rows) {
        let query = |token: u32| Query { token, row, position: plan.positions[token as usize] };
        buffers.queries.extend(span.tokens.clone().map(query));
    }
    buffers.live.clear();
    buffers.live.extend(plan.sample.iter().map(|sample| sample.token));
    buffers.live.sort_unstable();
    buffers.live.dedup();
}

/// Keeps the queries and residual rows of live tokens only.
fn drop_unsampled(buffers: &mut Buffers, hidden: usize) {
    let Buffers { x, queries, live, .. } = buffers;
    queries.retain(|query| live.binary_search(&query.token).is_ok());
    for (to, &from) in live.iter().enumerate() {
        x.copy_within(from as usize * hidden..(from as usize + 1) * hidden, to * hidden);
    }
    x.resize(live.len() * hidden);
}
