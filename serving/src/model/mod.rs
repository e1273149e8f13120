//! What a decoder is made of, apart from its weights.

mod config;
mod quant;
mod tensor;

pub use config::{LayerAttention, ModelConfig, RopeScaling};
pub use quant::dequantize;
pub use tensor::{DType, HostTensor, TensorSource};
