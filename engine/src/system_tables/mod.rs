//! Tables about the session itself: what queries cost, what failed, which models there are.
//!
//! Each is a table function (`ai_usage()`) and a view of the same rows (`refrain.ai_usage`). Rows are read when the query runs, so
//! they show what other queries of the session are doing at that moment; planning reads nothing.

mod cache;
mod columns;
mod errors;
mod models;
mod prompts;
mod queries;
mod register;
mod table;
mod usage;

pub(crate) use register::{SCHEMA, register};
