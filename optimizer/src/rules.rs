//! The ordered list of rules: DataFusion's own, then ours.

use std::sync::Arc;

use datafusion::optimizer::{Optimizer, OptimizerRule};

use crate::logical::{
    AskAboveJoin, AskColumnsAboveJoin, DeferLlmPastTopK, ExtractLlm, GatherLlmAggregates, NotInAsNotExists, OrderLlmFilters,
    PullLlmFilterAboveAggregate, SortBelowLlmFilter, StopLlmFilterAtLimit,
};

/// Returns our rules in order. They stand behind DataFusion's own: only then are subqueries decorrelated, predicates in their
/// final places and unused columns gone. DataFusion runs the whole list more than once, so its rules also clean up after ours.
pub fn llm_rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    vec![
        Arc::new(AskAboveJoin),
        Arc::new(PullLlmFilterAboveAggregate),
        Arc::new(ExtractLlm),
        Arc::new(GatherLlmAggregates),
        Arc::new(AskColumnsAboveJoin),
        Arc::new(OrderLlmFilters),
        Arc::new(DeferLlmPastTopK),
        Arc::new(SortBelowLlmFilter),
        Arc::new(StopLlmFilterAtLimit),
    ]
}

/// Returns DataFusion's rules followed by ours; one of ours must see subqueries as they were written.
pub fn optimizer_rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let mut rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> = vec![Arc::new(NotInAsNotExists)];
    rules.extend(Optimizer::new().rules);
    rules.extend(llm_rules());
    rules
}
