//! Joins on a condition that asks a model about pairs of rows.
//!
//! [`LlmJoinExec`] gathers both inputs (`side`), lets DataFusion find the pairs that pass whatever asks nobody (`candidates`), and
//! asks about these block by block, in an order that keeps the pairs of one row together (`pairs`). Where one side has few values and
//! the session allows weaker answers, each row of the other is asked which of them match (`classification`).

mod candidates;
mod classification;
mod llm_join_exec;
mod pairs;
mod side;

pub use candidates::{PairFilter, Pairing};
pub(crate) use classification::{Classification, Half, PairHalves, is_worth_classifying};
pub(crate) use llm_join_exec::PairPlan;
pub use llm_join_exec::{LlmJoinExec, PairColumn, PairStep};
