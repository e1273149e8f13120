//! Refrain: a SQL engine for tables that a language model has to read.

pub mod api;
#[cfg(feature = "cli")]
pub mod cli;

pub use api::{
    Builder, CancelHandle, Error, Estimate, ModelInfo, ModelSource, NodeProgress, Progress, Query, QueryUsage, Refrain, Result,
    RowError, Run,
};
