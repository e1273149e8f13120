//! Finds the calls that a rule has something to note about.

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::LogicalPlan;

use crate::node::{LlmNode, NodeCall};

/// Notes something about the calls of `plan`, if it is an `LlmNode`. `note` returns whether that is news.
pub(super) fn note_calls(plan: LogicalPlan, note: &impl Fn(&mut NodeCall) -> bool) -> Result<Transformed<LogicalPlan>> {
    let Some(node) = LlmNode::from_plan(&plan) else { return Ok(Transformed::no(plan)) };
    let mut calls: Vec<NodeCall> = node.calls.clone();
    let mut is_news = false;
    for call in &mut calls {
        is_news |= note(call);
    }
    if !is_news {
        return Ok(Transformed::no(plan));
    }
    Ok(Transformed::yes(LlmNode::try_new(node.input.clone(), calls, node.until.clone())?.into_plan()))
}

/// Notes something about the calls that the filters on top of `plan` ask: those below nothing but filters, other calls, and operators
/// that name columns.
pub(super) fn note_filters(plan: LogicalPlan, note: &impl Fn(&mut NodeCall) -> bool) -> Result<Transformed<LogicalPlan>> {
    note_below(plan, &[], note)
}

/// Goes down below a filter that reads the columns `read`.
fn note_below(
    plan: LogicalPlan,
    read: &[String],
    note: &impl Fn(&mut NodeCall) -> bool,
) -> Result<Transformed<LogicalPlan>> {
    match &plan {
        LogicalPlan::Filter(filter) => {
            let read: Vec<String> = filter.predicate.column_refs().iter().map(|column| column.name.clone()).collect();
            plan.map_children(|child| note_below(child, &read, note))
        }
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => {
            plan.map_children(|child| note_below(child, read, note))
        }
        LogicalPlan::Extension(_) => {
            let Some(node) = LlmNode::from_plan(&plan) else { return Ok(Transformed::no(plan)) };
            let filters = node.until.is_some() || node.calls.iter().any(|call| read.contains(call.output.name()));
            let noted = if filters { note_calls(plan, note)? } else { Transformed::no(plan) };
            noted.transform_data(|plan| plan.map_children(|child| note_below(child, read, note)))
        }
        _ => Ok(Transformed::no(plan)),
    }
}
