//! Attention of a pass: which kernel runs, and on what.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::driver::{Arg, Gpu, Kernel, Size};
use super::kernels::{Kernels, Precision};
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// The largest head of `attention_simple`.
const HEAD_DIM_MAX: usize = 256;

/// Warps of a block of `attention_simple`, each for one head.
const SIMPLE_WARPS: usize = 4;

/// The kernels of attention for one model.
#[derive(Debug)]
pub(super) struct Attention {
    simple: Kernel,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
}

/// Addresses of what describes a pass, on the GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionInputs {
    /// Tokens of the pass.
    pub(super) n: usize,
    /// `int4[rows]`: first token, number of tokens, position of the first, first entry of `block_tables`.
    pub(super) rows: u64,
    /// `int[n]`.
    pub(super) row_of_token: u64,
    /// `int[n]`.
    pub(super) positions: u64,
    /// Page tables of all rows.
    pub(super) block_tables: u64,
}

impl Attention {
    /// Takes the kernels for a model. Fails if its heads are too large.
    pub(super) fn new(kernels: &Kernels, _precision: Precision, config: &ModelConfig) -> Result<Self> {
        let ModelConfig { heads, kv_heads, head_dim, layers, .. } = *config;
        if head_dim > HEAD_DIM_MAX {
            return Err(Error::Invalid(format!("a GPU runs heads of at most {HEAD_DIM_MAX} elements, not {head_dim}")));
        }
        let simple = kernels.get("attention_simple", "attention_simple", 0)?;
        Ok(Attention { simple, heads, kv_heads, head_dim, layers })
    }

    /// Launches the attention of a layer.
    ///
    /// # Safety
    ///
    /// `inputs` must describe a checked pass, and `qkv`, `pool` and `out` be the addresses of its activations and pages.
    pub(super) unsafe fn launch(
        &self,
        gpu: &Arc<Gpu>,
        inputs: &AttentionInputs,
        layer: usize,
        window: Option<NonZeroUsize>,
        [qkv, pool, out]: [u64; 3],
    ) -> Result<()> {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let args: [Arg; 14] = [
            qkv.into(),
            pool.into(),
            inputs.rows.into(),
            inputs.row_of_token.into(),
            inputs.positions.into(),
            inputs.block_tables.into(),
            out.into(),
            self.heads.into(),
            self.kv_heads.into(),
            self.head_dim.into(),
            self.layers.into(),
            layer.into(),
            scale.into(),
            window.map_or(0, NonZeroUsize::get).into(),
        ];
        let grid = (inputs.n as u32, self.heads.div_ceil(SIMPLE_WARPS) as u32);
        // SAFETY: the kernel's parameters in its order; memory is the caller's promise.
        unsafe { gpu.launch(self.simple, Size { grid, block: 32 * SIMPLE_WARPS as u32, shared: 0 }, &args) }
    }
}
