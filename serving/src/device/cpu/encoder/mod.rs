//! A BERT-family encoder on the CPU: texts in, one vector for each out, on a thread pool of its own.
//!
//! The tokens of all texts of a pass stand one after the other, without padding; only attention knows where a text ends. As in
//! the decoder, a vector is the same bits whatever else is in the pass, and on any number of threads: matrix products are
//! those of `gemm`, and everything else works on one token, or on one text, by itself.
//!
//! | file | what it is |
//! |---|---|
//! | `pass` | `CpuEncoder`: the layers in order, over reused buffers, and the pooling |
//! | `weights` | tensors into panels, embedding rows |
//! | `attention` | each token attends to all tokens of its text |
//! | `layernorm`, `activation` | small kernels |
//! | `reference` | the same in double precision and plain loops, for tests |

mod activation;
mod attention;
mod layernorm;
mod pass;
#[cfg(test)]
mod reference;
mod weights;

pub use pass::CpuEncoder;
