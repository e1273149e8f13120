//! The aggregates that a model answers: what they ask, and in which steps a group becomes one value.
//!
//! A call binds to a placeholder as scalar functions do. The optimizer reads it as an [`LlmAggregate`] over the [`Gathered`]
//! inputs of each group. What is asked on the way to the value are the [`stages`](LlmAggregate::stages), each an ordinary
//! [`LlmCall`](crate::LlmCall) over texts that the operator makes of the inputs.

mod ai_agg;
mod ai_summarize_agg;
mod ai_top_k;
mod llm_aggregate;
mod placeholder;

pub use ai_top_k::{LISTWISE_ROWS_MAX, PAIR_LABELS, listwise_stage};
pub use llm_aggregate::{CHUNK_STAGE, COMBINE_STAGE, Gathered, LlmAggregate, Method, Overflow, Reduction};
pub use placeholder::is_llm_aggregate;
pub(crate) use placeholder::{AiAggregate, is_ai_aggregate};
