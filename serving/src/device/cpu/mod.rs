//! The CPU device: one decoder over one pool of KV pages, on a thread pool of its own.
//!
//! **Batch invariance.** The logits of a token are the same bits whatever else is in the step, however its prompt was cut into
//! chunks, and on however many threads. Two rules give this: every output of a matrix product is one chain of fused
//! multiply-adds over `k` in ascending order (`gemm`), or over blocks of it (`gemm_int8`), and every query attends by itself, page after page from the first
//! position (`attention`). Everything else works on one token at a time.
//!
//! | file | what it is |
//! |---|---|
//! | `device` | `CpuDevice`: launch, poll, copy |
//! | `forward` | the pass: layers in order, over reused buffers |
//! | `head` | logits where tokens are chosen |
//! | `weights` | tensors into panels, embedding rows |
//! | `kv` | the page pool: layout, writes, copies |
//! | `attention` | paged causal attention |
//! | `panels` | packed matrices, at 32, 16 or 8 bits a value |
//! | `gemm` | their product with activations |
//! | `gemm_int8`, `int8_avx512`, `int8_avx2` | the same of bytes, and the instructions that multiply them |
//! | `rmsnorm`, `rope`, `swiglu`, `exp` | small kernels |
//! | `encoder` | encoders for embeddings, over the same kernels |
//! | `bench` | one matrix product, for examples/cpu_bench.rs |
//! | `rows`, `aligned` | splitting rows over threads, sums of a row; aligned buffers |

mod aligned;
mod attention;
#[doc(hidden)]
pub mod bench;
mod device;
mod encoder;
mod exp;
mod forward;
mod gemm;
#[cfg(target_arch = "x86_64")]
mod gemm_int8;
mod head;
#[cfg(target_arch = "x86_64")]
mod int8_avx2;
#[cfg(target_arch = "x86_64")]
mod int8_avx512;
mod kv;
mod panels;
#[cfg(test)]
pub(super) mod reference;
mod rmsnorm;
pub(super) mod rope;
mod rows;
mod swiglu;
mod weights;

pub use device::{Activations, CpuDevice, CpuOptions};
pub use encoder::CpuEncoder;
