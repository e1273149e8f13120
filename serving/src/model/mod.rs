//! What a model is made of, apart from its weights.

mod config;
mod cost;
mod encoder;
mod quant;
mod tensor;

pub use config::{LayerAttention, ModelConfig, RopeScaling};
pub use cost::TokenCost;
pub use encoder::{Activation, EncoderConfig, Pooling};
pub use quant::{as_q8_0, dequantize};
pub use tensor::{DType, HostTensor, Normal, ReadAt, StoredTensor, TensorSource};
