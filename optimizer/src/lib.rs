//! Planning for LLM calls: what is asked, of which rows, in which order.
//!
//! | part | what it does |
//! |---|---|
//! | [`node`] | `LlmNode`, the operator that LLM calls become |
//! | [`aggregate_node`] | `LlmAggregateNode`, the operator that LLM aggregates become |
//! | [`join_node`] | `LlmJoinNode`, a join on a condition that asks about pairs |
//! | [`classify_join`] | which of these may ask about rows instead |
//! | [`logical`] | rules over logical plans |
//! | [`cascade`] | when a cheap proxy may answer for the model; knows no plans and no models |
//! | [`rules`] | the list of all rules in order |
//! | [`cost`] | distinct values behind a sample, intervals, seconds of tokens |
//! | [`filter_order`] | orders the predicates of an AND by what has been seen of them |
//! | [`statistics`] | what earlier runs of a call have shown |
//! | [`rewrite_notes`] | what rules did to a call, for EXPLAIN |
//! | [`reorder`] | orders rows and fields so that prompts share prefixes; knows no plans and no Arrow |
//!
//! | rule | effect | needs |
//! |---|---|---|
//! | `pull_llm_filter_above_aggregate` | LLM predicates over group keys are asked of the groups | DataFusion's `push_down_filter` before it |
//! | `extract_llm` | LLM calls leave their expressions for `LlmNode`s below them | all of DataFusion's rules before it |
//! | `gather_llm_aggregates` | LLM aggregates leave their operator for an `LlmAggregateNode` over lists of inputs | `extract_llm` |
//! | `ask_columns_above_join` | answers that a side of an inner join brings along are asked above it | `extract_llm` |
//! | `order_llm_filters` | the LLM predicates of an AND become one operator that finds their best order | `extract_llm` |
//! | `defer_llm_past_topk` | `ORDER BY … LIMIT k` sorts first and asks for k rows | `extract_llm` |
//! | `sort_below_llm_filter` | `WHERE ai … ORDER BY … LIMIT k` sorts first, so that the filter may stop | `extract_llm`; `stop_llm_filter_at_limit` after it |
//! | `stop_llm_filter_at_limit` | an LLM filter below a `LIMIT` stops asking when it has enough rows | `extract_llm` |

pub mod aggregate_node;
pub mod cascade;
pub mod classify_join;
pub mod cost;
pub mod filter_order;
pub mod join_node;
pub mod logical;
pub mod node;
pub mod reorder;
pub mod rewrite_notes;
pub mod rules;
pub mod statistics;

pub use aggregate_node::{LlmAggregateNode, NodeAggregate};
pub use join_node::{JoinCondition, JoinEffort, JoinStep, LlmJoinNode};
pub use node::{FilterUntil, LlmNode, NodeCall};
pub use rewrite_notes::RewriteNotes;
