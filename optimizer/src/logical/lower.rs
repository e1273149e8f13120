//! Lowering of expressions: each LLM call becomes a column of an `LlmNode`, with a guard that keeps SQL's short circuits.
//!
//! ```text
//! CASE WHEN i < 3 THEN ai_complete('lo', s) ELSE 'x' END
//!
//! CASE WHEN i < 3 THEN __llm_1 ELSE 'x' END
//!   LlmNode: ai_complete('lo', s) AS __llm_1 IF i < 3 IS TRUE
//! ```
//!
//! A call whose inputs or guard hold other calls waits for the next round, which stacks another node on top.

use std::sync::Arc;

use datafusion::arrow::datatypes::Field;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchemaRef, Result, not_impl_err, plan_err};
use datafusion::logical_expr::expr::{AggregateFunction, Case, ScalarFunction};
use datafusion::logical_expr::{BinaryExpr, Expr, Filter, LogicalPlan, Operator, Projection};
use datafusion::optimizer::OptimizerConfig;
use refrain_udf::{LlmCall, contains_llm_call, is_llm_call};

use crate::node::{LlmNode, NodeCall};
use crate::rewrite_notes::RewriteNotes;

/// Calls may be nested this deep: `ai_complete('…', ai_complete('…', x))` is two.
const MAX_DEPTH: usize = 32;

/// Prefix of the columns that hold answers.
pub(super) const ANSWER_COLUMN: &str = "__llm";

/// Replaces every LLM call in `exprs` by a column, and returns the expressions with the plan that provides these columns.
pub(super) fn lower(
    mut exprs: Vec<Expr>,
    mut input: LogicalPlan,
    config: &dyn OptimizerConfig,
) -> Result<(Vec<Expr>, LogicalPlan)> {
    for _ in 0..MAX_DEPTH {
        if !exprs.iter().any(contains_llm_call) {
            return Ok((exprs, input));
        }
        let mut round = Round { calls: vec![], reused: false, schema: Arc::clone(input.schema()), input, config };
        exprs = exprs.into_iter().map(|expr| round.expr(expr, None)).collect::<Result<_>>()?;
        let Round { calls, reused, input: below, .. } = round;
        if calls.is_empty() && !reused {
            let shown: Vec<String> = exprs.iter().map(ToString::to_string).collect();
            return not_impl_err!("an LLM call inside {}", shown.join(", "));
        }
        input = if calls.is_empty() { below } else { LlmNode::try_new(below, calls, None)?.into_plan() };
    }
    plan_err!("LLM calls are nested more than {MAX_DEPTH} deep; split the query")
}

/// One pass over the expressions of an operator: collects the calls that can be made now.
struct Round<'a> {
    calls: Vec<NodeCall>,
    /// The plan below, which may come to hand on answers that it has already.
    input: LogicalPlan,
    reused: bool,
    schema: DFSchemaRef,
    config: &'a dyn OptimizerConfig,
}

impl Round<'_> {
    fn expr(&mut self, expr: Expr, guard: Option<Expr>) -> Result<Expr> {
        if !contains_llm_call(&expr) {
            return Ok(expr);
        }
        match expr {
            Expr::ScalarFunction(function) if is_llm_call(&Expr::ScalarFunction(function.clone())) => {
                self.call(function, guard)
            }
            Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
                self.short_circuit(*left, op, *right, guard)
            }
            Expr::Case(case) => self.case(case, guard),
            Expr::ScalarFunction(function) if function.func.name() == "nullif" => self.null_if(function, guard),
            Expr::AggregateFunction(function) if function.params.filter.is_some() => {
                self.filtered_aggregate(function, guard)
            }
            Expr::Lambda(_) | Expr::HigherOrderFunction(_) => {
                not_impl_err!(
                    "an LLM function inside a lambda; unnest the list, call the function on its elements, and aggregate"
                )
            }
            other => Ok(other
                .map_children(|child| {
                    let has_call = contains_llm_call(&child);
                    let child = self.expr(child, guard.clone())?;
                    Ok(if has_call { Transformed::yes(child) } else { Transformed::no(child) })
                })?
                .data),
        }
    }

    /// Registers the call, or lowers its inputs first if they hold calls themselves.
    fn call(&mut self, function: ScalarFunction, guard: Option<Expr>) -> Result<Expr> {
        let must_wait = guard.as_ref().is_some_and(contains_llm_call);
        if must_wait || function.args.iter().any(contains_llm_call) {
            let ScalarFunction { func, args } = function;
            let args = args.into_iter().map(|arg| self.expr(arg, guard.clone())).collect::<Result<_>>()?;
            return Ok(Expr::ScalarFunction(ScalarFunction { func, args }));
        }
        let call = LlmCall::bind(&function, &self.schema)?;
        if let Some(same) = self.calls.iter_mut().find(|c| c.call == call) {
            same.guard = match (same.guard.take(), guard) {
                (Some(a), Some(b)) if a == b => Some(a),
                (Some(a), Some(b)) => Some(a.or(b)),
                _ => None,
            };
            return Ok(Expr::Column(Column::new_unqualified(same.output.name())));
        }
        if let Some((input, column)) = answered(&self.input, &call)? {
            self.input = input;
            self.reused = true;
            return Ok(Expr::Column(Column::new_unqualified(column)));
        }
        let name = self.config.alias_generator().next(ANSWER_COLUMN);
        let output = Arc::new(Field::new(&name, call.output_type(), true));
        self.calls.push(NodeCall { call, guard, output, notes: RewriteNotes::default() });
        Ok(Expr::Column(Column::new_unqualified(name)))
    }

    /// `a AND b`, `a OR b`: the side without a call decides for which rows the other side is asked.
    fn short_circuit(&mut self, left: Expr, op: Operator, right: Expr, guard: Option<Expr>) -> Result<Expr> {
        let undecided = |side: &Expr| match op {
            Operator::And => side.clone().is_not_false(),
            _ => side.clone().is_not_true(),
        };
        let right_first = contains_llm_call(&left) && !contains_llm_call(&right);
        let (left, right) = if right_first {
            let left_guard = and(&guard, undecided(&right));
            (self.expr(left, left_guard)?, self.expr(right, guard)?)
        } else {
            let right_guard = and(&guard, undecided(&left));
            (self.expr(left, guard)?, self.expr(right, right_guard)?)
        };
        Ok(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right))))
    }

    /// Each arm is asked for the rows that reach it.
    fn case(&mut self, case: Case, guard: Option<Expr>) -> Result<Expr> {
        let Case { expr: base, when_then_expr, else_expr } = case;
        let mut reaches = guard.clone();
        let mut arms = Vec::with_capacity(when_then_expr.len());
        for (when, then) in when_then_expr {
            let condition = match &base {
                Some(base) => base.as_ref().clone().eq(when.as_ref().clone()),
                None => when.as_ref().clone(),
            };
            let then = self.expr(*then, and(&reaches, condition.clone().is_true()))?;
            let when = self.expr(*when, reaches.clone())?;
            reaches = and(&reaches, condition.is_not_true());
            arms.push((Box::new(when), Box::new(then)));
        }
        let otherwise = else_expr.map(|expr| self.expr(*expr, reaches)).transpose()?;
        let base = base.map(|expr| self.expr(*expr, guard)).transpose()?;
        Ok(Expr::Case(Case::new(base.map(Box::new), arms, otherwise.map(Box::new))))
    }

    /// `nullif(a, b)`: where `a` is NULL the result is, whatever `b` is.
    fn null_if(&mut self, function: ScalarFunction, guard: Option<Expr>) -> Result<Expr> {
        let ScalarFunction { func, args } = function;
        let first = args.first().cloned();
        let mut lowered = Vec::with_capacity(args.len());
        for (position, arg) in args.into_iter().enumerate() {
            let guard = match &first {
                Some(first) if position > 0 => and(&guard, first.clone().is_not_null()),
                _ => guard.clone(),
            };
            lowered.push(self.expr(arg, guard)?);
        }
        Ok(Expr::ScalarFunction(ScalarFunction { func, args: lowered }))
    }

    /// `max(ai_score(…)) FILTER (WHERE p)`: rows that fail `p` are not asked.
    fn filtered_aggregate(&mut self, mut function: AggregateFunction, guard: Option<Expr>) -> Result<Expr> {
        let inner = match &function.params.filter {
            Some(filter) => and(&guard, filter.as_ref().clone().is_true()),
            None => guard.clone(),
        };
        let args = std::mem::take(&mut function.params.args);
        function.params.args = args.into_iter().map(|arg| self.expr(arg, inner.clone())).collect::<Result<_>>()?;
        for sort in &mut function.params.order_by {
            sort.expr = self.expr(sort.expr.clone(), inner.clone())?;
        }
        function.params.filter = function.params.filter.map(|f| self.expr(*f, guard).map(Box::new)).transpose()?;
        Ok(Expr::AggregateFunction(function))
    }
}

/// Finds the answers of an equal call in the plan below, and returns the plan that hands them on with the name of their column:
/// `SELECT f(x) … WHERE f(x)` asks once, also where answers are drawn at random. A call with a guard has not answered every row.
fn answered(plan: &LogicalPlan, call: &LlmCall) -> Result<Option<(LogicalPlan, String)>> {
    if let Some(node) = LlmNode::from_plan(plan) {
        if let Some(same) = node.calls.iter().find(|below| below.guard.is_none() && below.call == *call) {
            return Ok(Some((plan.clone(), same.output.name().clone())));
        }
        let Some((input, column)) = answered(&node.input, call)? else { return Ok(None) };
        return Ok(Some((LlmNode::try_new(input, node.calls.clone(), node.until.clone())?.into_plan(), column)));
    }
    match plan {
        LogicalPlan::Filter(filter) => {
            let Some((input, column)) = answered(&filter.input, call)? else { return Ok(None) };
            let filter = Filter::try_new(filter.predicate.clone(), Arc::new(input))?;
            Ok(Some((LogicalPlan::Filter(filter), column)))
        }
        LogicalPlan::Projection(projection) if projection.expr.iter().all(|expr| matches!(expr, Expr::Column(_))) => {
            let Some((input, column)) = answered(&projection.input, call)? else { return Ok(None) };
            let mut columns = projection.expr.clone();
            let answer = Expr::Column(Column::new_unqualified(&column));
            if !columns.contains(&answer) {
                columns.push(answer);
            }
            Ok(Some((LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?), column)))
        }
        _ => Ok(None),
    }
}

/// Adds a condition to a guard. A volatile condition must not be evaluated a second time, so it does not guard: its calls are
/// made for more rows than needed.
fn and(guard: &Option<Expr>, condition: Expr) -> Option<Expr> {
    if is_volatile_apart_from_calls(&condition) {
        return guard.clone();
    }
    Some(match guard {
        Some(guard) => guard.clone().and(condition),
        None => condition,
    })
}

/// Returns whether the expression is volatile for another reason than an LLM call, which is replaced by a column in time.
pub(super) fn is_volatile_apart_from_calls(expr: &Expr) -> bool {
    if is_llm_call(expr) {
        return false;
    }
    let mut volatile = expr.is_volatile_node();
    let _ = expr.apply_children(|child| {
        volatile |= is_volatile_apart_from_calls(child);
        Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
    });
    volatile
}
