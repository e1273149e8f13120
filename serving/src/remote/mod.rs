//! Models behind an OpenAI-compatible HTTP endpoint.
//!
//! Life of a request: the [`tokenizer`](MessageTokenizer) spells prompts as bytes, so that a batch can be sorted and deduplicated
//! before anything is sent. A task for each batch sends its requests in order, within bounds of concurrency and rate, as chat
//! messages. What comes back is checked against the request's shape. What goes wrong is tried again, costs the row, or ends the
//! batch.
//!
//! | part | what it is |
//! |---|---|
//! | `backend` | the backend: starts a task for each batch, and cancels it |
//! | `run`, `lead`, `slots` | which request goes next: the batch's order, leaders of long prompts, priorities |
//! | `service` | one row: attempts, retries, corrections, fields left out |
//! | `rate`, `retry`, `breaker` | requests and tokens in a minute, waits, and whether the service is up |
//! | `http`, `sse`, `endpoint` | one attempt: connection, time and size limits, streams |
//! | `body`, `reply`, `logprobs` | the wire format |
//! | `shape` | how shapes are asked for, and the check of answers |
//! | `fault` | what goes wrong, and whom it concerns |
//! | `config`, `secret`, `tokenizer` | what callers see |

mod backend;
mod body;
mod breaker;
mod config;
mod endpoint;
mod fault;
mod http;
mod lead;
mod logprobs;
mod rate;
mod reply;
mod retry;
mod run;
mod secret;
mod service;
mod shape;
mod slots;
mod sse;
mod tokenizer;

pub use backend::RemoteBackend;
pub use config::{ApiFormat, RemoteConfig, StructuredOutput};
pub use secret::Secret;
pub use tokenizer::MessageTokenizer;
