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
//! Groups are cut in the same way before their LLM aggregates are asked about.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, Sort};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::rewrite_enabled;

use crate::aggregate_node::LlmAggregateNode;
use crate::node::LlmNode;

/// See the module documentation.
#[derive(Debug)]
pub struct DeferLlmPastTopK;

impl OptimizerRule for DeferLlmPastTopK {
    fn name(&self) -> &str {
        "defer_llm_past_topk"
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
            None => Ok(Transformed::no(plan)),
        }
    }
}

/// Returns the plan with the sort below the node, if the sort has a limit and reads nothing that the node adds.
fn deferred(plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let LogicalPlan::Sort(sort) = plan else { return Ok(None) };
    let (projection, below) = match sort.input.as_ref() {
        LogicalPlan::Projection(projection) => (Some(projection), projection.input.as_ref()),
        other => (None, other),
    };
    let Some(input) = input_of(below) else { return Ok(None) };
    if sort.fetch.is_none() {
        return Ok(None);
    }
    let definitions = projection.map(definitions).unwrap_or_default();
    let mut keys = Vec::with_capacity(sort.expr.len());
    for key in &sort.expr {
        let expr = key.expr.clone().transform_up(|expr| Ok(resolve(expr, &definitions)))?.data;
        if expr.is_volatile() || !expr.column_refs().iter().all(|column| input.schema().has_column(column)) {
            return Ok(None);
        }
        keys.push(expr.sort(key.asc, key.nulls_first));
    }
    let sorted = LogicalPlan::Sort(Sort { expr: keys, input: Arc::new(input.clone()), fetch: sort.fetch });
    let node = below.with_new_exprs(below.expressions(), vec![sorted])?;
    Ok(Some(match projection {
        Some(projection) => LogicalPlan::Projection(Projection::try_new(projection.expr.clone(), Arc::new(node))?),
        None => node,
    }))
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
