//! An LLM predicate over group keys alone is asked of the groups, after the cheap conditions on them.
//!
//! ```text
//! SELECT s FROM t GROUP BY s HAVING count(*) > 1 AND ai_filter('a', s)
//!
//! Filter: count(*) > 1                         Filter: count(*) > 1
//!   Aggregate: s, count(*)             ->        Filter: ai_filter('a', s)
//!     Filter: ai_filter('a', s)                    Aggregate: s, count(*)
//! ```
//!
//! DataFusion has pushed the predicate down before. The filter on the left goes below the call in the next round of rules.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Aggregate, Expr, Filter, LogicalPlan};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::{contains_llm_call, rewrite_enabled};

use super::lower::is_volatile_apart_from_calls;

const NAME: &str = "pull_llm_filter_above_aggregate";

/// See the module documentation.
#[derive(Debug)]
pub struct PullLlmFilterAboveAggregate;

impl OptimizerRule for PullLlmFilterAboveAggregate {
    fn name(&self) -> &str {
        NAME
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if !rewrite_enabled(&config.options(), self.name()) {
            return Ok(Transformed::no(plan));
        }
        let LogicalPlan::Aggregate(aggregate) = plan else { return Ok(Transformed::no(plan)) };
        let LogicalPlan::Filter(filter) = aggregate.input.as_ref() else {
            return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
        };
        let over_groups = |conjunct: &Expr| {
            contains_llm_call(conjunct)
                && !is_volatile_apart_from_calls(conjunct)
                && reads_groups_only(conjunct, &aggregate.group_expr)
        };
        let conjuncts = split_conjunction_owned(filter.predicate.clone());
        let (above, below): (Vec<_>, Vec<_>) = conjuncts.into_iter().partition(over_groups);
        let Some(above) = conjunction(above) else { return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate))) };
        let input = match conjunction(below) {
            Some(below) => Arc::new(LogicalPlan::Filter(Filter::try_new(below, Arc::clone(&filter.input))?)),
            None => Arc::clone(&filter.input),
        };
        let aggregate = Aggregate::try_new(input, aggregate.group_expr, aggregate.aggr_expr)?;
        let filter = Filter::try_new(above, Arc::new(LogicalPlan::Aggregate(aggregate)))?;
        Ok(Transformed::yes(LogicalPlan::Filter(filter)))
    }
}

/// Returns the name of the rule if it has put a predicate of a filter there: over the keys of the groups right below it, where nothing
/// else leaves it.
pub(super) fn asked_of_groups(predicate: &Expr, input: &LogicalPlan) -> Option<&'static str> {
    let LogicalPlan::Aggregate(aggregate) = input else { return None };
    reads_groups_only(predicate, &aggregate.group_expr).then_some(NAME)
}

/// Without group keys an aggregate yields a row even for no input, so a filter must stay below it; grouping sets hide keys.
fn reads_groups_only(conjunct: &Expr, groups: &[Expr]) -> bool {
    let columns = conjunct.column_refs();
    !columns.is_empty()
        && groups.iter().all(|group| matches!(group, Expr::Column(_)))
        && columns.iter().all(|column| groups.iter().any(|group| matches!(group, Expr::Column(key) if key == *column)))
}
