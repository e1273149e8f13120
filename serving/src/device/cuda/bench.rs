//! Attention alone, with inputs of its own, for `examples/cuda_attention_bench.rs`.

use std::sync::Arc;

use super::attend::Attention;
use super::driver::Gpu;
use super::kernels::{Kernels, Precision};
use super::metadata::{Metadata, Uploader};
use super::weights::{Slice, draw};
use crate::error::Result;
use crate::model::{ModelConfig, Normal};
use crate::step::{PAGE_TOKENS, PageId, RowSpan, StepPlan, TokenSource};

/// Launches between two events.
const LAUNCHES: usize = 20;
/// Pairs of events, the fastest of which counts.
const ROUNDS: usize = 5;

/// Layers of the pool, one of which is read.
const LAYERS: usize = 2;

/// The heads of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// A GPU with its kernels loaded.
#[derive(Debug)]
pub struct AttentionBench {
    gpu: Arc<Gpu>,
    kernels: Kernels,
    uploader: Uploader,
}

/// What one launch for one layer took and did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Seconds.
    pub seconds: f64,
    /// Operations that the result needs: 4 for each query head, key seen and element.
    pub flops: f64,
    /// Bytes of keys and values, each row's counted.
    pub bytes: f64,
}

impl AttentionBench {
    /// Opens a GPU and compiles its kernels. Fails with a sentence if there is none.
    pub fn open(ordinal: u32) -> Result<Self> {
        let gpu = Gpu::open(ordinal)?;
        let kernels = Kernels::load(&gpu, Precision::Bf16, None)?;
        let uploader = Uploader::new(&gpu, 1, 1 << 16)?;
        Ok(AttentionBench { gpu, kernels, uploader })
    }

    /// Times one layer of a pass whose rows have (cached, new) tokens and up to `shared_pages` pages in common. Fails if there is
    /// too little memory.
    pub fn measure(&mut self, shape: HeadShape, rows: &[(u32, u32)], shared_pages: u32) -> Result<Measured> {
        let AttentionBench { gpu, kernels, uploader } = self;
        let HeadShape { heads, kv_heads, head_dim } = shape;
        let config = &config_of(shape);
        let plan = plan_of(rows, shared_pages);
        let attention = Attention::new(gpu, kernels, Precision::Bf16, config)?;
        let mut metadata = Metadata::default();
        let positions = metadata.extend(plan.positions.iter().map(|&position| position as i32));
        let places = attention.describe(&plan, positions, &mut metadata);
        uploader.upload(&mut metadata)?;
        let pages = plan.block_tables.iter().map(|page| page.0 as usize + 1).max().unwrap_or(0);
        let qkv = gpu.allocate::<half::bf16>(plan.tokens.len() * (heads + 2 * kv_heads) * head_dim)?;
        let pool = gpu.allocate::<half::bf16>(pages * LAYERS * 2 * kv_heads * PAGE_TOKENS * head_dim)?;
        let out = gpu.allocate::<half::bf16>(plan.tokens.len() * heads * head_dim)?;
        let fill_normal = kernels.get("random", "fill_normal", 0)?;
        for buffer in [&qkv, &pool] {
            // SAFETY: the buffer has that many values.
            unsafe { draw(gpu, fill_normal, buffer.at(0), Normal { seed: 7, std: 1.0 }, &Slice::whole(1, buffer.len())) }?;
        }
        let mut milliseconds = f32::INFINITY;
        for _ in 0..=ROUNDS {
            let (start, end) = (gpu.timed_event()?, gpu.timed_event()?);
            gpu.record(&start)?;
            for _ in 0..LAUNCHES {
                // SAFETY: pages and rows are as the plan says, and the buffers have its sizes.
                unsafe { attention.launch(gpu, &places, &metadata, 0, None, [qkv.at(0), pool.at(0), out.at(0)]) }?;
            }
            gpu.record(&end)?;
            end.wait()?;
            milliseconds = milliseconds.min(start.milliseconds_to(&end)?);
        }
        let seen: f64 = plan.positions.iter().map(|&position| f64::from(position + 1)).sum();
        let keys: f64 = rows.iter().map(|&(cached, new)| f64::from(cached + new)).sum();
        Ok(Measured {
            seconds: f64::from(milliseconds) / 1e3 / LAUNCHES as f64,
            flops: 4.0 * seen * (heads * head_dim) as f64,
            bytes: keys * (2 * kv_heads * head_dim * Precision::Bf16.bytes()) as f64,
        })
    }
}

/// Makes up what attention does not ask for.
fn config_of(HeadShape { heads, kv_heads, head_dim }: HeadShape) -> ModelConfig {
    ModelConfig {
        vocab_size: 32,
        hidden_size: heads * head_dim,
        intermediate_size: heads * head_dim,
        layers: LAYERS,
        heads,
        kv_heads,
        head_dim,
        rotary_dim: head_dim,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        layer_attention: vec![],
        qk_norm: false,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        tie_word_embeddings: true,
        max_context: 1 << 16,
        end_tokens: vec![],
    }
}

/// Makes a plan of rows with (cached, new) tokens. The first `shared_pages` pages of each are those of the first row, so far as
/// both rows have cached all their tokens.
pub(super) fn plan_of(rows: &[(u32, u32)], shared_pages: u32) -> StepPlan {
    let mut plan = StepPlan::default();
    let mut pages = 0;
    for &(cached, new) in rows {
        let (token, table) = (plan.positions.len() as u32, plan.block_tables.len() as u32);
        plan.positions.extend(cached..cached + new);
        let shared = if table == 0 { 0 } else { shared_pages.min(cached.min(rows[0].0) / PAGE_TOKENS as u32) };
        let own = (cached + new).div_ceil(PAGE_TOKENS as u32) - shared;
        plan.block_tables.extend_from_within(..shared as usize);
        plan.block_tables.extend((pages..pages + own).map(PageId));
        pages += own;
        plan.rows.push(RowSpan { tokens: token..token + new, pages: table..table + shared + own });
    }
    plan.tokens = vec![TokenSource::Host(0); plan.positions.len()];
    plan
}
