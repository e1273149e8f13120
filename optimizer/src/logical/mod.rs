//! Rules over DataFusion's logical plans. Each file is one rule and opens with SQL or plans before and after.

mod ask_above_join;
mod ask_columns_above_join;
mod defer_llm_past_topk;
mod extract_llm;
mod gather_llm_aggregates;
mod join_pairs;
mod lower;
mod not_in_as_not_exists;
mod note;
mod order_llm_filters;
mod pull_llm_filter_above_aggregate;
mod restore;
mod sort_below_llm_filter;
mod stop_llm_filter_at_limit;

pub use ask_above_join::AskAboveJoin;
pub use ask_columns_above_join::AskColumnsAboveJoin;
pub use defer_llm_past_topk::DeferLlmPastTopK;
pub use extract_llm::ExtractLlm;
pub use gather_llm_aggregates::GatherLlmAggregates;
pub use not_in_as_not_exists::NotInAsNotExists;
pub use order_llm_filters::OrderLlmFilters;
pub use pull_llm_filter_above_aggregate::PullLlmFilterAboveAggregate;
pub use sort_below_llm_filter::SortBelowLlmFilter;
pub use stop_llm_filter_at_limit::StopLlmFilterAtLimit;
