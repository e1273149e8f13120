//! `ORDER BY … LIMIT k` over columns that no model is asked for: sort and cut first, ask for k rows.
//!
//! ```text
//! SELECT i, ai_complete('p', s) FROM t ORDER BY i LIMIT 3
//!
//! Sort: i, fetch=3                             Projection: i, __llm_1
//!   Projection: i, __llm_1             ->        LlmNode: ai_complete('p', s) AS __llm_1
//!     LlmNode: ai_complete('p', s)                 Sort: i, fetch=3
//! ```
//!
//! Views and subqueries are looked through, and groups are cut in the same way before their LLM aggregates are asked about. A sort by
//! answers scores every row, which EXPLAIN says.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, Sort, SortExpr};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::rewrite_enabled;

use super::note::note_calls;
use crate::aggregate_node::LlmAggregateNode;
use crate::node::{LlmNode, NodeCall};

const NAME: &str = "defer_llm_past_topk";

/// See the module documentation.
#[derive(Debug)]
pub struct DeferLlmPastTopK;

impl OptimizerRule for DeferLlmPastTopK {
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
        match deferred(&plan)? {
            Some(deferred) => Ok(Transformed::yes(deferred)),
            None => noted_as_scored(plan),
        }
    }
}

/// Returns the plan with the sort below the node, if the sort has a limit and reads nothing that the node adds.
fn deferred(plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    match plan {
        LogicalPlan::Sort(sort) if sort.fetch.is_some() => below(&sort.expr, sort.fetch, &sort.input),
        _ => Ok(None),
    }
}

/// Sorts and cuts below the first operator of `plan` that adds answers, looking through those that only name columns.
fn below(keys: &[SortExpr], fetch: Option<usize>, plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    if let Some((keys, input)) = below_names(keys, plan)? {
        let Some(input) = below(&keys, fetch, input)? else { return Ok(None) };
        return plan.with_new_exprs(plan.expressions(), vec![input]).map(Some);
    }
    let Some(input) = input_of(plan) else { return Ok(None) };
    let is_below = |column: &&Column| input.schema().has_column(column);
    if keys.iter().any(|key| key.expr.is_volatile() || !key.expr.column_refs().iter().all(is_below)) {
        return Ok(None);
    }
    let sorted = LogicalPlan::Sort(Sort { expr: keys.to_vec(), input: Arc::new(input.clone()), fetch });
    noted(plan.with_new_exprs(plan.expressions(), vec![sorted])?).map(Some)
}

/// Notes the rewrite for the operator that adds answers.
fn noted(plan: LogicalPlan) -> Result<LogicalPlan> {
    let Some(node) = LlmAggregateNode::from_plan(&plan) else {
        return Ok(note_calls(plan, &|call| call.notes.apply(NAME))?.data);
    };
    let mut aggregates = node.aggregates.clone();
    for aggregate in &mut aggregates {
        aggregate.notes.apply(NAME);
    }
    Ok(LlmAggregateNode::try_new(node.input.clone(), aggregates)?.into_plan())
}

/// Notes for the calls whose answers a sort with a limit reads that they are asked about every row.
fn noted_as_scored(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let keys = match &plan {
        LogicalPlan::Sort(sort) if sort.fetch.is_some() => sort.expr.clone(),
        _ => return Ok(Transformed::no(plan)),
    };
    plan.map_children(|input| note_keys(input, &keys))
}

fn note_keys(plan: LogicalPlan, keys: &[SortExpr]) -> Result<Transformed<LogicalPlan>> {
    if let Some((keys, _)) = below_names(keys, &plan)? {
        return plan.map_children(|input| note_keys(input, &keys));
    }
    match &plan {
        LogicalPlan::Filter(_) => plan.map_children(|input| note_keys(input, keys)),
        LogicalPlan::Extension(_) if LlmNode::from_plan(&plan).is_some() => {
            let reads = |name: &str| keys.iter().any(|key| key.expr.column_refs().iter().any(|column| column.name == name));
            let note = |call: &mut NodeCall| reads(call.output.name()) && call.notes.refuse("top_k", "every row is scored");
            note_calls(plan, &note)?.transform_data(|plan| plan.map_children(|input| note_keys(input, keys)))
        }
        _ => Ok(Transformed::no(plan)),
    }
}

/// Returns the input of an operator that only names columns, and keys over it; `None` for other operators.
pub(super) fn below_names<'a>(keys: &[SortExpr], plan: &'a LogicalPlan) -> Result<Option<(Vec<SortExpr>, &'a LogicalPlan)>> {
    Ok(match plan {
        LogicalPlan::Projection(projection) => Some((renamed(keys, &definitions(projection))?, projection.input.as_ref())),
        LogicalPlan::SubqueryAlias(alias) => {
            let inner = alias.input.schema().columns().into_iter().map(Expr::Column);
            let names = alias.schema.columns().into_iter().map(|column| column.flat_name());
            Some((renamed(keys, &names.zip(inner).collect())?, alias.input.as_ref()))
        }
        _ => None,
    })
}

/// Writes keys over what their columns stand for.
fn renamed(keys: &[SortExpr], definitions: &HashMap<String, Expr>) -> Result<Vec<SortExpr>> {
    let renamed = keys.iter().map(|key| {
        let expr = key.expr.clone().transform_up(|expr| Ok(resolve(expr, definitions)))?.data;
        Ok(expr.sort(key.asc, key.nulls_first))
    });
    renamed.collect()
}

/// Returns the input of an operator that adds answers to each row of it: rows of a table, or groups.
fn input_of(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    match (LlmNode::from_plan(plan), LlmAggregateNode::from_plan(plan)) {
        (Some(node), _) if node.until.is_none() => Some(&node.input),
        (_, Some(node)) => Some(&node.input),
        _ => None,
    }
}

/// Maps the names of a projection's columns to the expressions behind them.
fn definitions(projection: &Projection) -> HashMap<String, Expr> {
    let names = projection.schema.iter().map(|(q, f)| Column::new(q.cloned(), f.name()).flat_name());
    names.zip(projection.expr.iter().map(|expr| expr.clone().unalias_nested().data)).collect()
}

fn resolve(expr: Expr, definitions: &HashMap<String, Expr>) -> Transformed<Expr> {
    match &expr {
        Expr::Column(column) => match definitions.get(&column.flat_name()) {
            Some(definition) => Transformed::yes(definition.clone()),
            None => Transformed::no(expr),
        },
        _ => Transformed::no(expr),
    }
}
