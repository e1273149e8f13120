//! An LLM filter below a `LIMIT` works until the limit is met instead of asking about the whole table.
//!
//! ```text
//! SELECT i FROM t WHERE ai_filter('a', s) LIMIT 5
//!
//! Limit: fetch=5                               Limit: fetch=5
//!   Projection: i                      ->        Projection: i
//!     Filter: __llm_1                              LlmNode: ai_filter('a', s) AS __llm_1, filter=__llm_1, fetch=5
//!       LlmNode: ai_filter('a', s)
//! ```
//!
//! The operator then asks in growing morsels; see `engine/src/operators`. A join that asks about pairs is told of the limit in the same
//! way. An aggregate between the limit and the filter, or a sort that [`SortBelowLlmFilter`](super::SortBelowLlmFilter) could not put below
//! them, needs every row, and the rule leaves such plans alone.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::{Expr, FetchType, Filter, LogicalPlan, SkipType};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::rewrite_enabled;

use super::note::note_filters;
use crate::join_node::{JoinEffort, LlmJoinNode};
use crate::node::{FilterUntil, LlmNode};

const NAME: &str = "stop_llm_filter_at_limit";

/// See the module documentation.
#[derive(Debug)]
pub struct StopLlmFilterAtLimit;

impl OptimizerRule for StopLlmFilterAtLimit {
    fn name(&self) -> &str {
        NAME
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if !rewrite_enabled(&config.options(), self.name()) {
            return Ok(Transformed::no(plan));
        }
        if matches!(&plan, LogicalPlan::Sort(sort) if sort.fetch.is_some()) {
            return refused_below(plan, "sort");
        }
        let LogicalPlan::Limit(limit) = plan else { return Ok(Transformed::no(plan)) };
        let (SkipType::Literal(skip), FetchType::Literal(Some(fetch))) = (limit.get_skip_type()?, limit.get_fetch_type()?)
        else {
            return Ok(Transformed::no(LogicalPlan::Limit(limit)));
        };
        let wanted = skip.saturating_add(fetch);
        let below = stop_at(limit.input.as_ref().clone(), wanted, true)?;
        Ok(below
            .update_data(|input| LogicalPlan::Limit(datafusion::logical_expr::Limit { input: Arc::new(input), ..limit })))
    }
}

/// Walks down through operators that keep the number and order of rows, to a filter over an `LlmNode`. `stops` is whether the
/// rows that reach this place are exactly those the limit counts.
fn stop_at(plan: LogicalPlan, wanted: usize, stops: bool) -> Result<Transformed<LogicalPlan>> {
    match &plan {
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => {
            plan.map_children(|child| stop_at(child, wanted, stops))
        }
        LogicalPlan::Extension(_) => match LlmNode::from_plan(&plan) {
            Some(LlmNode { until: None, .. }) => plan.map_children(|child| stop_at(child, wanted, stops)),
            // A filter over several answers, which no limit has been told of yet.
            Some(node @ LlmNode { until: Some(FilterUntil { predicate, wanted: None, .. }), .. }) => {
                let until = FilterUntil { predicate: predicate.clone(), wanted: Some(wanted), stops };
                let limited = LlmNode::try_new(node.input.clone(), node.calls.clone(), Some(until))?.into_plan();
                Ok(Transformed::yes(limited.map_children(|child| stop_at(child, wanted, false))?.data))
            }
            Some(LlmNode { until: Some(_), .. }) => plan.map_children(|child| stop_at(child, wanted, false)),
            None => Ok(join_stops(&plan, wanted, stops)?.map_or_else(|| Transformed::no(plan), Transformed::yes)),
        },
        LogicalPlan::Filter(filter) => match fused(filter, wanted, stops)? {
            Some(fused) => Ok(Transformed::yes(fused.map_children(|child| stop_at(child, wanted, false))?.data)),
            // A filter of another kind: the filters below it still need not look at every row.
            None => plan.map_children(|child| stop_at(child, wanted, false)),
        },
        LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) => refused_below(plan, "aggregate"),
        LogicalPlan::Window(_) => refused_below(plan, "window"),
        _ => Ok(Transformed::no(plan)),
    }
}

/// Notes that the filters below an operator ask about every row, whatever the limit above it.
fn refused_below(plan: LogicalPlan, operator: &str) -> Result<Transformed<LogicalPlan>> {
    let reason = format!("the {operator} above it needs every row");
    plan.map_children(|child| note_filters(child, &|call| call.notes.refuse(NAME, &reason)))
}

/// Tells a join that asks about pairs how many of its rows are wanted.
fn join_stops(plan: &LogicalPlan, wanted: usize, stops: bool) -> Result<Option<LogicalPlan>> {
    let Some(node) = LlmJoinNode::from_plan(plan).filter(|node| stops && node.effort.wanted.is_none()) else {
        return Ok(None);
    };
    let effort = JoinEffort { wanted: Some(wanted), ..node.effort };
    let (left, right) = (node.left.clone(), node.right.clone());
    Ok(Some(LlmJoinNode::try_new(left, right, node.join_type, node.condition.clone(), effort)?.into_plan()))
}

/// Puts a filter into the node below it.
fn fused(filter: &Filter, wanted: usize, stops: bool) -> Result<Option<LogicalPlan>> {
    let Some(node) = LlmNode::from_plan(&filter.input).filter(|_| may_fuse(filter)) else { return Ok(None) };
    let until = FilterUntil { predicate: filter.predicate.clone(), wanted: Some(wanted), stops };
    Ok(Some(LlmNode::try_new(node.input.clone(), node.calls.clone(), Some(until))?.into_plan()))
}

/// Returns whether a filter may be put into the node right below it.
pub(super) fn may_fuse(filter: &Filter) -> bool {
    // A scalar subquery is planned where it stands in an expression that the planner sees.
    let is_subquery = |expr: &Expr| Ok(matches!(expr, Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_)));
    let reads_subquery = filter.predicate.exists(is_subquery).unwrap_or(true);
    let below = LlmNode::from_plan(&filter.input);
    below.is_some_and(|node| node.until.is_none()) && !filter.predicate.is_volatile() && !reads_subquery
}
