//! Weights as they lie in files, read tensor by tensor.

use std::f32::consts::PI;
use std::fmt;

use crate::error::Result;
use crate::split_mix;

/// Where a device takes its weights from. Names are those of Hugging Face, such as `model.layers.0.self_attn.q_proj.weight`.
pub trait TensorSource: Send + Sync + fmt::Debug {
    /// Returns whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;

    /// Reads one tensor. Fails if it is missing or damaged, or if its shape is not `shape`; the error names it.
    fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor>;

    /// Returns where a tensor's bytes lie, where they lie in one piece as they are, so that a device may read them piece by piece
    /// into memory of its own. Fails as `read` does.
    fn stored(&self, _name: &str, _shape: &[usize]) -> Result<Option<StoredTensor<'_>>> {
        Ok(None)
    }

    /// Returns how a tensor is drawn at random, where it is not read from anywhere: a device may then draw values of its own.
    fn normal(&self, _name: &str) -> Option<Normal> {
        None
    }
}

/// Something whose bytes can be read from any place, by several threads.
pub trait ReadAt: Send + Sync + fmt::Debug {
    /// Fills `out` with the bytes from `offset` on. Fails if there are not as many.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()>;
}

/// A tensor that has not been read, row-major.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    /// How the values are stored, little-endian.
    pub dtype: DType,
    /// What they are read from.
    pub file: &'a dyn ReadAt,
    /// The place of the first byte there.
    pub offset: u64,
}

/// Values drawn from a normal distribution around 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normal {
    /// Where the drawing starts.
    pub seed: u64,
    /// The standard deviation.
    pub std: f32,
}

impl Normal {
    /// Returns value number `index`, which depends on the seed and the index alone, by the transform of Box and Muller.
    pub fn value(self, index: u64) -> f32 {
        let bits = split_mix::bits(self.seed, index);
        let uniform = |bits: u64| (bits & 0xFF_FFFF) as f32 / (1 << 24) as f32;
        // Half a step above 0, whose logarithm is infinite.
        let radius = (-2.0 * (uniform(bits >> 40) + 0.5 / (1 << 24) as f32).ln()).sqrt();
        self.std * radius * (2.0 * PI * uniform(bits)).cos()
    }
}

/// One tensor in host memory, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How the values are stored.
    pub dtype: DType,
    /// The stored values, little-endian.
    pub bytes: Vec<u8>,
}

/// How values are stored. Blocks lie along the innermost dimension; their layouts are in the file `quant.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Blocks of 32 values of 8 bits with a scale.
    Q8_0,
    /// Blocks of 32 values of 4 bits with a scale.
    Q4_0,
    /// Blocks of 32 values of 4 bits with a scale and a minimum.
    Q4_1,
    /// Blocks of 32 values of 5 bits with a scale.
    Q5_0,
    /// Blocks of 32 values of 5 bits with a scale and a minimum.
    Q5_1,
    /// Blocks of 256 values of 2 bits with a scale and a minimum for each 16.
    Q2K,
    /// Blocks of 256 values of 3 bits with a scale for each 16.
    Q3K,
    /// Blocks of 256 values of 4 bits with a scale and a minimum for each 32.
    Q4K,
    /// Blocks of 256 values of 5 bits with a scale and a minimum for each 32.
    Q5K,
    /// Blocks of 256 values of 6 bits with a scale for each 16.
    Q6K,
}
