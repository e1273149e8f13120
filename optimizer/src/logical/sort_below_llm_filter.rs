//! `WHERE ai … ORDER BY … LIMIT k` over columns that no model is asked for: sort first, then ask until k rows have passed.
//!
//! ```text
//! SELECT i FROM t WHERE ai_filter('a', s) ORDER BY i LIMIT 3
//!
//! Sort: i, fetch=3                             Sort: i, fetch=3
//!   Projection: i                                Limit: fetch=3
//!     Filter: __llm_1                              Projection: i
//!       LlmNode: ai_filter('a', s)       ->          Filter: __llm_1
//!         TableScan: t                                 LlmNode: ai_filter('a', s)
//!                                                        Sort: i
//!                                                          TableScan: t
//! ```
//!
//! The operator keeps the order of its rows, so the first k that pass are those that a sort would have found.
//! [`StopLlmFilterAtLimit`] then ends it at the limit; without that rule nothing is gained and the plan stays as it is. The sort above is over
//! k rows, and tells DataFusion that whatever it does in between must not lose their order.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::Transformed;
use datafusion::logical_expr::{Expr, Filter, Limit, LogicalPlan, Sort, SortExpr, lit};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::rewrite_enabled;

use super::defer_llm_past_topk::below_names;
use super::note::note_calls;
use super::stop_llm_filter_at_limit::{StopLlmFilterAtLimit, may_fuse};
use crate::node::{FilterUntil, LlmNode};

const NAME: &str = "sort_below_llm_filter";

/// See the module documentation.
#[derive(Debug)]
pub struct SortBelowLlmFilter;

impl OptimizerRule for SortBelowLlmFilter {
    fn name(&self) -> &str {
        NAME
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let is_enabled = [NAME, StopLlmFilterAtLimit.name()].iter().all(|name| rewrite_enabled(&config.options(), name));
        let LogicalPlan::Sort(sort) = &plan else { return Ok(Transformed::no(plan)) };
        let Some(fetch) = sort.fetch.filter(|_| is_enabled) else { return Ok(Transformed::no(plan)) };
        let Some(sorted) = sorted_below(&sort.expr, &sort.input)? else { return Ok(Transformed::no(plan)) };
        let limit = Some(Box::new(lit(i64::try_from(fetch).unwrap_or(i64::MAX))));
        let input = LogicalPlan::Limit(Limit { skip: None, fetch: limit, input: Arc::new(sorted) });
        let (expr, fetch) = (sort.expr.clone(), sort.fetch);
        Ok(Transformed::yes(LogicalPlan::Sort(Sort { expr, input: Arc::new(input), fetch })))
    }
}

/// Sorts below the lowest filter over answers that is reached through operators that keep their rows in order; `None` if there is none,
/// or if the keys read what it adds.
fn sorted_below(keys: &[SortExpr], plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    if let Some((keys, input)) = below_names(keys, plan)? {
        let Some(input) = sorted_below(&keys, input)? else { return Ok(None) };
        return plan.with_new_exprs(plan.expressions(), vec![input]).map(Some);
    }
    match plan {
        LogicalPlan::Filter(filter) => {
            let stage = LlmNode::from_plan(&filter.input).filter(|_| may_fuse(filter));
            let input = match stage {
                Some(node) => sorted_below_stage(keys, node)?,
                None => sorted_below(keys, &filter.input)?,
            };
            let Some(input) = input else { return Ok(None) };
            Ok(Some(LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(input))?)))
        }
        _ => match LlmNode::from_plan(plan) {
            Some(node @ LlmNode { until: Some(FilterUntil { wanted: None, .. }), .. }) => sorted_below_stage(keys, node),
            Some(node @ LlmNode { until: None, .. }) if reads_input_only(keys, node) => {
                let Some(input) = sorted_below(keys, &node.input)? else { return Ok(None) };
                Ok(Some(LlmNode::try_new(input, node.calls.clone(), None)?.into_plan()))
            }
            _ => Ok(None),
        },
    }
}

/// Sorts below a node that filters, or that a filter is over: if possible below those further down. Keys are columns, which the node
/// hands on: DataFusion may drop a sort whose keys are gone.
fn sorted_below_stage(keys: &[SortExpr], node: &LlmNode) -> Result<Option<LogicalPlan>> {
    if !reads_input_only(keys, node) || !keys.iter().all(|key| matches!(key.expr, Expr::Column(_))) {
        return Ok(None);
    }
    let input = match sorted_below(keys, &node.input)? {
        Some(sorted) => sorted,
        None => LogicalPlan::Sort(Sort { expr: keys.to_vec(), input: Arc::new(node.input.clone()), fetch: None }),
    };
    let node = LlmNode::try_new(input, node.calls.clone(), node.until.clone())?.into_plan();
    Ok(Some(note_calls(node, &|call| call.notes.apply(NAME))?.data))
}

fn reads_input_only(keys: &[SortExpr], node: &LlmNode) -> bool {
    keys.iter().flat_map(|key| key.expr.column_refs()).all(|column| node.input.schema().has_column(column))
}
