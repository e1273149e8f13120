//! Integration tests: one binary, since each would link the whole engine.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]
#![allow(clippy::print_stdout, reason = "a test says when it was skipped")]

mod bad_input;
mod bundled_model;
mod cancellation;
mod chat_server;
mod embeddings;
mod explain;
mod external_models;
mod layering;
mod limits;
mod query_shapes;
mod slt;
mod spilling;
mod support;
mod system_tables;
