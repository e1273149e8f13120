//! LLM aggregates become lists of their inputs, gathered by the host engine, and an `LlmAggregateNode` over these.
//!
//! ```text
//! SELECT g, ai_agg(s, 'p'), count(*) FROM t GROUP BY g
//!
//! Projection: t.g, __llm_2 AS ai_agg(…), count(*)
//!   LlmAggregateNode: ai_agg('p', fields=[s]) OF __llm_1 AS __llm_2
//!     Aggregate: groupBy=[[t.g]], aggr=[[count(*), array_agg(t.s) FILTER (WHERE t.s IS NOT NULL) AS __llm_1]]
//!       TableScan: t
//! ```
//!
//! So grouping sets, FILTER, memory and spilling are those of any aggregate. Aggregates over the same inputs share one list.

use std::sync::Arc;

use datafusion::arrow::datatypes::Field;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, Result};
use datafusion::functions::core::expr_fn::named_struct;
use datafusion::functions_aggregate::array_agg::array_agg_udaf;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, lit};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::aggregate::{Gathered, is_llm_aggregate};
use refrain_udf::{LlmAggregate, contains_llm_call};

use super::lower::ANSWER_COLUMN;
use super::restore::restore_at;
use crate::aggregate_node::{LlmAggregateNode, NodeAggregate};
use crate::rewrite_notes::RewriteNotes;

/// See the module documentation.
#[derive(Debug)]
pub struct GatherLlmAggregates;

impl OptimizerRule for GatherLlmAggregates {
    fn name(&self) -> &str {
        "gather_llm_aggregates"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match plan {
            LogicalPlan::Aggregate(aggregate) if aggregate.aggr_expr.iter().any(is_llm_aggregate_column) => {
                Ok(Transformed::yes(gather(aggregate, config)?))
            }
            other => Ok(Transformed::no(other)),
        }
    }
}

/// A call inside is taken out by `extract_llm` first.
fn is_llm_aggregate_column(expr: &Expr) -> bool {
    let inner = without_aliases(expr);
    is_llm_aggregate(inner) && !contains_llm_call(inner)
}

fn without_aliases(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => without_aliases(&alias.expr),
        other => other,
    }
}

/// Where a column of the aggregate comes from.
enum Source {
    /// An ordinary aggregate, by its number.
    Ordinary(usize),
    /// An LLM aggregate, by its number.
    Llm(usize),
}

fn gather(aggregate: Aggregate, config: &dyn OptimizerConfig) -> Result<LogicalPlan> {
    let n_groups = aggregate.schema.fields().len() - aggregate.aggr_expr.len();
    let (mut ordinary, mut lists, mut calls, mut sources) = (vec![], Lists::default(), vec![], vec![]);
    for expr in aggregate.aggr_expr {
        let Expr::AggregateFunction(function) = without_aliases(&expr) else {
            sources.push(Source::Ordinary(ordinary.len()));
            ordinary.push(expr);
            continue;
        };
        if !is_llm_aggregate_column(&expr) {
            sources.push(Source::Ordinary(ordinary.len()));
            ordinary.push(expr);
            continue;
        }
        let (call, gathered) = LlmAggregate::bind(function, aggregate.input.schema())?;
        let name = config.alias_generator().next(ANSWER_COLUMN);
        sources.push(Source::Llm(calls.len()));
        calls.push(NodeAggregate {
            output: Arc::new(Field::new(name, call.output_type(), true)),
            aggregate: call,
            order: gathered.order_by.iter().map(|key| (key.asc, key.nulls_first)).collect(),
            list: lists.column(list(gathered), config),
            notes: RewriteNotes::default(),
        });
    }
    let n_ordinary = ordinary.len();
    ordinary.extend(lists.exprs.into_iter().map(|(list, name)| list.alias(name)));
    let gathered = Aggregate::try_new(aggregate.input, aggregate.group_expr, ordinary)?;
    let node = LlmAggregateNode::try_new(LogicalPlan::Aggregate(gathered), calls)?;
    let position = |source: Source| match source {
        Source::Ordinary(number) => n_groups + number,
        Source::Llm(number) => n_groups + n_ordinary + number,
    };
    let positions: Vec<usize> = (0..n_groups).chain(sources.into_iter().map(position)).collect();
    restore_at(node.into_plan(), positions, &aggregate.schema)
}

/// The lists to gather, each with the name of its column.
#[derive(Default)]
struct Lists {
    exprs: Vec<(Expr, String)>,
}

impl Lists {
    /// Returns the column of a list, which calls over the same inputs share.
    fn column(&mut self, list: Expr, config: &dyn OptimizerConfig) -> Expr {
        let known = self.exprs.iter().find(|(known, _)| *known == list).map(|(_, name)| name.clone());
        let name = known.unwrap_or_else(|| {
            let name = config.alias_generator().next(ANSWER_COLUMN);
            self.exprs.push((list, name.clone()));
            name
        });
        Expr::Column(Column::new_unqualified(name))
    }
}

/// Returns the list of the inputs of a group, with their keys if they are ordered.
fn list(gathered: Gathered) -> Expr {
    let Gathered { input, order_by, filter } = gathered;
    let is_known = input.clone().is_not_null();
    let filter = match filter {
        Some(filter) => filter.and(is_known),
        None => is_known,
    };
    let item = match order_by.is_empty() {
        true => input,
        false => {
            let keys = order_by.into_iter().enumerate().map(|(idx, key)| (format!("key{}", idx + 1), key.expr));
            let parts = std::iter::once(("value".to_string(), input)).chain(keys);
            named_struct(parts.flat_map(|(name, part)| [lit(name), part]).collect())
        }
    };
    let filter = Some(Box::new(filter));
    Expr::AggregateFunction(AggregateFunction::new_udf(array_agg_udaf(), vec![item], false, filter, vec![], None))
}
