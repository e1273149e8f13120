//! Weights as they lie in files, read tensor by tensor.

use std::fmt;

use crate::error::Result;

/// Where a device takes its weights from. Names are those of Hugging Face, such as `model.layers.0.self_attn.q_proj.weight`.
pub trait TensorSource: Send + Sync + fmt::Debug {
    /// Returns whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;

    /// Reads one tensor. Fails if it is missing or damaged, or if its shape is not `shape`; the error names it.
    fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor>;
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

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// GGUF's blocks of 32 values along the innermost dimension: an f16 scale, then 32 signed bytes.
    Q8_0,
}
