//! Refrain's serving engine: tokens in, tokens out. It knows no SQL and no Arrow.
//!
//! Life of a request: a caller submits a [`Batch`] of [`Request`]s to a [`Backend`] and reads [`Completion`]s from a stream.
//! The embedded backend ([`local`]) hands the batch to a thread that owns the device. There the [`scheduler`] matches each
//! prompt against the prefix tree, reserves KV pages, and turns waiting and running rows into [`step::StepPlan`]s, which a
//! [`device::Device`] runs. Sampled tokens pass through the request's [`constraint`] until its answer is complete.
//!
//! | part | what it is |
//! |---|---|
//! | [`request`] | batches, requests, completions |
//! | [`backend`] | the trait that the embedded engine, remote endpoints and the mock implement |
//! | [`local`] | the embedded engine: one thread for each device |
//! | [`encoder`] | embedding models: a thread that runs an encoder |
//! | [`open`] | a model of either kind, from a folder to a backend |
//! | [`remote`] | models behind an OpenAI-compatible endpoint |
//! | [`mock`] | a deterministic, scriptable backend for tests |
//! | [`scheduler`] | which tokens run in the next step; the prefix tree and the KV pool |
//! | [`constraint`] | which tokens an answer may consist of |
//! | [`step`] | one forward pass as plain data |
//! | [`device`] | runs step plans |
//! | [`model`] | configuration of a decoder, or of an encoder |
//! | [`load`] | weights, tokenizer and chat template from files |

pub mod backend;
mod bridge;
mod byte_vocabulary;
pub mod constraint;
pub mod device;
pub mod encoder;
pub mod error;
pub mod load;
pub mod local;
mod lock;
pub mod mock;
pub mod model;
pub mod open;
pub mod remote;
pub mod request;
pub mod scheduler;
mod split_mix;
pub mod step;
pub mod tokenizer;

pub use backend::{Backend, BatchId, Capabilities, CompletionStream, ModelKind, Stats};
pub use error::{Error, Result};
pub use open::{EmbeddingModel, EmbeddingOptions, OpenedModel, open_model};
pub use request::{
    Answer, Batch, Completion, FinishReason, OutputShape, Request, RequestId, RowFailure, Sampling, Segment, TokenId,
    TokenLogprobs, Usage,
};
pub use tokenizer::Tokenizer;
