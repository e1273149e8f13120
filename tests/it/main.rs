//! Integration tests: one binary, since each would link the whole engine.

mod bad_input;
mod bundled_model;
mod cancellation;
mod explain;
mod layering;
mod limits;
mod query_shapes;
mod slt;
mod spilling;
mod support;
