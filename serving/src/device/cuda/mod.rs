//! The CUDA device: one decoder over one pool of KV pages, on one NVIDIA GPU.
//!
//! Nothing of CUDA is needed to build or to start the program: its libraries are loaded when a GPU is first asked for. Kernels are
//! compiled then, by NVRTC, for the chip that is there, and kept on disk.
//!
//! The order of kernels in a pass is that of the CPU device, and every kernel has its twin there. A pass is described by one
//! array of words, copied in one piece; it runs while the host plans the next, which may take its tokens from where this one will
//! leave them. Memory is taken when the device is opened.
//!
//! | file | what it is |
//! |---|---|
//! | `device` | `CudaDevice`: launch, poll, copy |
//! | `driver` | the GPU: memory, kernels, events |
//! | `memory` | how much of it a model may take |
//! | `kernels` | compiles and loads `kernels/*.cu` |
//! | `kernel_tests` | every kernel against plain Rust |
//! | `fp8_tests` | products of 8 bits against plain Rust |
//! | `weights` | tensors in the GPU's memory |
//! | `tensor_parallel` | `TensorParallel`: one model split over several GPUs |
//! | `share` | which part of a model a GPU holds |
//! | `nccl` | sums over GPUs |
//! | `gemm` | matrix products by cuBLASLt |
//! | `forward` | the pass: layers in order |
//! | `attend` | attention of a pass: which kernels run |
//! | `attention` | its work items |
//! | `head` | logits where tokens are chosen, and the choice |
//! | `metadata` | what describes a pass, in one copy |
//! | `timing` | where the time of a pass goes |
//! | `bench` | attention alone, for examples/cuda_attention_bench.rs |
//! | `kernel_bench` | the other kernels alone, for examples/cuda_bench.rs |
#![expect(unsafe_code, reason = "CUDA is called through its C interfaces")]

mod attend;
mod attention;
#[doc(hidden)]
pub mod bench;
mod device;
mod driver;
mod forward;
#[cfg(test)]
mod fp8_tests;
mod gemm;
mod head;
#[doc(hidden)]
pub mod kernel_bench;
#[cfg(test)]
mod kernel_tests;
mod kernels;
mod memory;
mod metadata;
mod nccl;
mod share;
mod tensor_parallel;
mod timing;
mod weights;

pub use device::{CudaDevice, CudaOptions, INVARIANT_ROWS};
pub use driver::{GpuFacts, find, find_all};
pub use kernels::Precision;
pub use memory::GpuMemory;
pub use nccl::find_split;
pub use tensor_parallel::TensorParallel;
pub use timing::PassTimes;
