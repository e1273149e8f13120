//! Models behind an OpenAI-compatible HTTP endpoint.
//!
//! Life of a request: the [`tokenizer`](MessageTokenizer) spells prompts as bytes, so that a batch can be sorted and deduplicated
//! before anything is sent. The backend turns each prompt back into chat messages and sends them in the batch's order, within
//! bounds of concurrency and rate. What comes back is checked against the request's shape.

mod backend;
mod config;
mod endpoint;
mod secret;
mod tokenizer;

pub use backend::RemoteBackend;
pub use config::{ApiFormat, RemoteConfig, StructuredOutput};
pub use secret::Secret;
pub use tokenizer::MessageTokenizer;
