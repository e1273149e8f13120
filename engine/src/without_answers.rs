//! The rows that LLM calls will be asked about, where some depend on answers that EXPLAIN must not ask for.
//!
//! ```text
//! LlmNode: ai_classify(s)            the input of the upper call without answers:
//!   Filter: __llm_1
//!     LlmNode: ai_filter(s)     ->   Projection: s, NULL AS __llm_1
//!       TableScan: t                   TableScan: t                      and half of its rows, as long as nothing is known
//! ```
//!
//! Answers become NULL, and a predicate over them a share of the rows. Where an answer decides more than which rows there are,
//! as in a join key or a group, nothing can be said.

use std::collections::HashSet;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, Result, ScalarValue};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{BinaryExpr, Expr, Filter, LogicalPlan, LogicalPlanBuilder, Operator, Projection};
use refrain_optimizer::filter_order::UNKNOWN_SELECTIVITY;
use refrain_optimizer::{JoinStep, LlmAggregateNode, LlmJoinNode, LlmNode};
use refrain_udf::{LlmCall, Shape};

/// A plan that asks nobody.
#[derive(Debug)]
pub(crate) struct WithoutAnswers {
    /// The plan, with the columns of the one it was made of.
    pub(crate) plan: LogicalPlan,
    /// The share of its rows that predicates over answers would leave.
    pub(crate) share: f64,
    /// Names of columns that depend on answers.
    depends: HashSet<String>,
}

impl WithoutAnswers {
    /// Returns whether an expression reads an answer.
    pub(crate) fn reads_answer(&self, expr: &Expr) -> bool {
        reads(expr, &self.depends)
    }
}

/// Takes the answers out of a plan; `None` if they decide more than which rows there are. `known` returns the share of rows for
/// which the answer of a call is TRUE, where an earlier run has shown it.
pub(crate) fn without_answers(
    plan: &LogicalPlan,
    known: &impl Fn(&LlmCall) -> Option<f64>,
) -> Result<Option<WithoutAnswers>> {
    if let Some(node) = LlmNode::from_plan(plan) {
        let Some(mut below) = without_answers(&node.input, known)? else { return Ok(None) };
        let mut columns: Vec<Expr> = node.input.schema().columns().into_iter().map(Expr::Column).collect();
        for call in &node.calls {
            let null = ScalarValue::try_from(call.output.data_type())?;
            columns.push(Expr::Literal(null, None).alias(call.output.name()));
            below.depends.insert(call.output.name().clone());
        }
        below.plan = LogicalPlanBuilder::from(below.plan).project(columns)?.build()?;
        let predicates = node.until.iter().flat_map(|until| split_conjunction_owned(until.predicate.clone()));
        let calls = |name: &str| node.calls.iter().find(|call| call.output.name() == name).map(|call| call.call.clone());
        below.share *= predicates.map(|predicate| share_of(&predicate, &calls, known)).product::<f64>();
        return Ok(Some(below));
    }
    if let Some(node) = LlmAggregateNode::from_plan(plan) {
        let Some(mut below) = without_answers(&node.input, known)? else { return Ok(None) };
        let columns = node.input.schema().columns();
        let mut columns: Vec<Expr> =
            node.passed_columns().into_iter().map(|idx| Expr::Column(columns[idx].clone())).collect();
        for aggregate in &node.aggregates {
            let null = ScalarValue::try_from(aggregate.output.data_type())?;
            columns.push(Expr::Literal(null, None).alias(aggregate.output.name()));
            below.depends.insert(aggregate.output.name().clone());
        }
        below.plan = LogicalPlanBuilder::from(below.plan).project(columns)?.build()?;
        return Ok(Some(below));
    }
    if let Some(node) = LlmJoinNode::from_plan(plan) {
        return join_without_answers(node, known);
    }
    if plan.expressions().iter().any(asks_in_a_subquery) {
        return Ok(None);
    }
    let mut below = vec![];
    for input in plan.inputs() {
        match without_answers(input, known)? {
            Some(input) => below.push(input),
            None => return Ok(None),
        }
    }
    let depends: HashSet<String> = below.iter().flat_map(|input| input.depends.iter().cloned()).collect();
    let mut share: f64 = below.iter().map(|input| input.share).product();
    let inputs: Vec<LogicalPlan> = below.into_iter().map(|input| input.plan).collect();
    if depends.is_empty() {
        let plan = plan.with_new_exprs(plan.expressions(), inputs)?;
        return Ok(Some(WithoutAnswers { plan, share, depends }));
    }
    match plan {
        LogicalPlan::Filter(filter) => {
            let (over_answers, others): (Vec<_>, Vec<_>) =
                split_conjunction_owned(filter.predicate.clone()).into_iter().partition(|part| reads(part, &depends));
            let calls = |name: &str| call_named(&filter.input, name);
            share *= over_answers.iter().map(|part| share_of(part, &calls, known)).product::<f64>();
            let input = inputs.into_iter().next().unwrap_or_else(|| plan.clone());
            let plan = match conjunction(others) {
                Some(predicate) => LogicalPlan::Filter(Filter::try_new(predicate, input.into())?),
                None => input,
            };
            Ok(Some(WithoutAnswers { plan, share, depends }))
        }
        LogicalPlan::Projection(projection) => {
            let names = projection.schema.fields().iter().map(|field| field.name().clone());
            let depending = names.zip(&projection.expr).filter(|(_, expr)| reads(expr, &depends)).map(|(name, _)| name);
            let depends = depending.collect();
            let input = inputs.into_iter().next().unwrap_or_else(|| plan.clone());
            // The types may have changed with the NULLs in front of them, so the schema is made anew.
            let plan = LogicalPlan::Projection(Projection::try_new(projection.expr.clone(), input.into())?);
            Ok(Some(WithoutAnswers { plan, share, depends }))
        }
        LogicalPlan::SubqueryAlias(_) | LogicalPlan::Repartition(_) | LogicalPlan::Union(_) => {
            let plan = plan.with_new_exprs(plan.expressions(), inputs)?;
            Ok(Some(WithoutAnswers { plan, share, depends }))
        }
        // Elsewhere an answer must not decide anything.
        other if !other.expressions().iter().any(|expr| reads(expr, &depends)) && keeps_rows(other) => {
            let plan = other.with_new_exprs(other.expressions(), inputs)?;
            Ok(Some(WithoutAnswers { plan, share, depends }))
        }
        _ => Ok(None),
    }
}

/// Returns whether a plan itself asks a model.
pub(crate) fn asks(plan: &LogicalPlan) -> bool {
    LlmNode::from_plan(plan).is_some()
        || LlmAggregateNode::from_plan(plan).is_some()
        || LlmJoinNode::from_plan(plan).is_some()
}

/// Takes the answers out of a join on a condition that asks about pairs. What an outer join fills with NULLs, and which rows a semi
/// or anti join keeps, is decided by answers.
fn join_without_answers(node: &LlmJoinNode, known: &impl Fn(&LlmCall) -> Option<f64>) -> Result<Option<WithoutAnswers>> {
    if node.join_type != JoinType::Inner {
        return Ok(None);
    }
    let Some(mut below) = without_answers(&node.candidates()?, known)? else { return Ok(None) };
    let calls = |name: &str| node.calls().find(|call| call.output.name() == name).map(|call| call.call.clone());
    for step in &node.condition.steps {
        if let JoinStep::Keep(predicate) = step {
            let predicates = split_conjunction_owned(predicate.clone());
            below.share *= predicates.iter().map(|predicate| share_of(predicate, &calls, known)).product::<f64>();
        }
    }
    Ok(Some(below))
}

/// Returns whether an expression holds a subquery that asks a model.
fn asks_in_a_subquery(expr: &Expr) -> bool {
    let asks = |plan: &LogicalPlan| {
        let mut found = false;
        let _ = plan.apply_with_subqueries(|node| {
            found |= asks(node);
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        });
        found
    };
    let is_asking = |expr: &Expr| {
        Ok(match expr {
            Expr::ScalarSubquery(subquery) => asks(&subquery.subquery),
            Expr::Exists(exists) => asks(&exists.subquery.subquery),
            Expr::InSubquery(within) => asks(&within.subquery.subquery),
            _ => false,
        })
    };
    expr.exists(is_asking).unwrap_or(true)
}

/// Whether the rows of a plan are those of its inputs, or pairs of them, however many there are.
fn keeps_rows(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Sort(sort) if sort.fetch.is_none()) || matches!(plan, LogicalPlan::Join(_))
}

fn reads(expr: &Expr, depends: &HashSet<String>) -> bool {
    expr.column_refs().into_iter().any(|column: &Column| depends.contains(&column.name))
}

/// Returns the call behind a column of a plan.
fn call_named(plan: &LogicalPlan, name: &str) -> Option<LlmCall> {
    if let Some(node) = LlmNode::from_plan(plan)
        && let Some(call) = node.calls.iter().find(|call| call.output.name() == name)
    {
        return Some(call.call.clone());
    }
    plan.inputs().into_iter().find_map(|input| call_named(input, name))
}

/// Returns the share of rows that a predicate over answers should leave.
fn share_of(predicate: &Expr, calls: &impl Fn(&str) -> Option<LlmCall>, known: &impl Fn(&LlmCall) -> Option<f64>) -> f64 {
    match predicate {
        Expr::Column(column) => calls(&column.name).and_then(|call| known(&call)).unwrap_or(UNKNOWN_SELECTIVITY),
        Expr::Not(inner) => 1.0 - share_of(inner, calls, known),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, .. }) => {
            let Expr::Column(column) = left.as_ref() else { return UNKNOWN_SELECTIVITY };
            match calls(&column.name).map(|call| call.task.shape) {
                // One label of several.
                Some(Shape::Choice { labels, multi: false }) => 1.0 / labels.len().max(1) as f64,
                _ => UNKNOWN_SELECTIVITY,
            }
        }
        _ => UNKNOWN_SELECTIVITY,
    }
}
