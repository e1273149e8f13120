//! The physical operator that asks the model, and its parts in the order in which a row meets them.
//!
//! [`LlmExec`] gathers a window of rows (`window`), finds the distinct questions among them (`distinct`), looks up what the
//! query has asked already (`memo`) and what earlier ones have ([`answers`](crate::answers)), orders the rest so that prompts
//! share prefixes and turns them into requests (`prompts`, `cells`), asks the backend (`ask`, `requests`) as far as the `budget` goes, and puts the
//! answers beside the rows. Where it is a filter over several calls, `conjunction` decides which row is asked what; below a limit, `morsels` says how
//! many rows are asked at a time, and `enough` when the rest of them need no answer. `layout` decides
//! whether several calls share their rows, those of operators above included (`row_readers`). A prompt that is too long (`overflow`) has its longest text cut (`truncate`), or is asked in
//! chunks (`chunk`, `chunked`). [`LlmAggregateExec`] asks about groups of rows in the same way (`aggregate`),
//! and [`LlmJoinExec`] about pairs of rows (`join`).

mod aggregate;
mod ask;
mod budget;
mod call;
mod cascade;
mod cells;
mod chunk;
mod chunk_estimate;
mod chunked;
mod conjunction;
mod counters;
mod describe;
mod distinct;
mod enough;
mod estimate;
mod job;
mod join;
mod keys;
mod layout;
mod llm_exec;
mod memo;
mod morsels;
mod overflow;
mod parallel;
mod prefix_tree;
mod prompts;
mod requests;
mod row_readers;
mod sampling;
mod scope;
mod truncate;
mod window;

pub use aggregate::{AggregateEstimate, Context, LlmAggregateExec, PhysicalAggregate};
pub(crate) use aggregate::{ModelFacts, estimate_aggregate};
pub use budget::{Budget, Ledger, Limits, Spent};
pub use call::{CascadeCall, PhysicalCall};
pub use chunk_estimate::Chunked;
pub use estimate::{Basis, CallEstimate, Selectivity};
pub(crate) use estimate::{InputRows, estimate_calls};
pub(crate) use join::{Classification, Half, PairHalves, PairPlan, is_worth_classifying};
pub use join::{LlmJoinExec, PairColumn, PairFilter, PairStep, Pairing};
pub(crate) use llm_exec::DETAIL;
pub(crate) use llm_exec::call_key;
pub(crate) use llm_exec::output_schema;
pub use llm_exec::{LlmExec, Shared, Until};
pub use memo::Memo;
pub use prefix_tree::{PrefixNode, PrefixTree};
pub(crate) use sampling::{sample_aggregate, sample_answers};
pub use scope::{CascadeStats, NodeProgress, NodeStats, NodeTimes, Progress, QueryScope, QueryUsage, RowError};
