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
//! Views and subqueries are looked through, and groups are cut in the same way before their LLM aggregates are asked about.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, Sort, SortExpr, SubqueryAlias};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::rewrite_enabled;

use super::note::note_calls;
use crate::aggregate_node::LlmAggregateNode;
use crate::node::LlmNode;

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
            None => Ok(Transformed::no(plan)),
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
    let input = match plan {
        LogicalPlan::Projection(projection) => {
            let keys = renamed(keys, &definitions(projection))?;
            let Some(input) = below(&keys, fetch, &projection.input)? else { return Ok(None) };
            let projection = Projection::try_new(projection.expr.clone(), Arc::new(input))?;
            return Ok(Some(LogicalPlan::Projection(projection)));
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let inner = alias.input.schema().columns().into_iter().map(Expr::Column);
            let names = alias.schema.columns().into_iter().map(|column| column.flat_name());
            let keys = renamed(keys, &names.zip(inner).collect())?;
            let Some(input) = below(&keys, fetch, &alias.input)? else { return Ok(None) };
            return Ok(Some(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?)));
        }
        other => input_of(other),
    };
    let Some(input) = input else { return Ok(None) };
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
        return Ok(note_calls(plan, &|notes| notes.apply(NAME))?.data);
    };
    let mut aggregates = node.aggregates.clone();
    for aggregate in &mut aggregates {
        aggregate.notes.apply(NAME);
    }
    Ok(LlmAggregateNode::try_new(node.input.clone(), aggregates)?.into_plan())
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
