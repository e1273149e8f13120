//! The physical operator of LLM aggregates, and its parts in the order in which a group meets them.
//!
//! [`LlmAggregateExec`] reads lists of inputs, one for each group (`groups`). Each group becomes a [`reducer`] that says what it
//! must know next: the answers for its chunks and their combination (`hierarchy`, `chunks`), or what ranks its values (`top_k`).
//! What all groups ask in one round is asked as one batch (`run`), by the same way as the calls of `LlmExec`.

mod chunks;
mod estimate;
mod groups;
mod hierarchy;
mod llm_aggregate_exec;
mod measure;
mod reducer;
mod run;
mod top_k;

pub use estimate::AggregateEstimate;
pub(super) use estimate::first_questions;
pub(crate) use estimate::{ModelFacts, estimate_aggregate};
pub use llm_aggregate_exec::{LlmAggregateExec, PhysicalAggregate};
pub use measure::Context;
