//! Joins on a condition that asks a model about pairs of rows.
//!
//! [`LlmJoinExec`] gathers both inputs (`side`), lets DataFusion find the pairs that pass whatever asks nobody (`candidates`), and
//! asks about these block by block, in an order that keeps the pairs of one row together (`pairs`).

mod candidates;
mod llm_join_exec;
mod pairs;
mod side;

pub use candidates::{PairFilter, Pairing};
pub(crate) use llm_join_exec::PairPlan;
pub use llm_join_exec::{LlmJoinExec, PairColumn, PairStep};
