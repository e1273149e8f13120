//! LLM predicates of one AND become one operator, which asks them in the order that costs least.
//!
//! ```text
//! SELECT i FROM t WHERE ai_filter('a', s) AND ai_filter('b', s)
//!
//! Filter: __llm_2                               LlmNode: ai_filter('a', s) AS __llm_1, ai_filter('b', s) AS __llm_2,
//!   LlmNode: ai_filter('b', s) AS __llm_2  ->            filter=__llm_1 AND __llm_2
//!     Filter: __llm_1                             TableScan: t
//!       LlmNode: ai_filter('a', s) AS __llm_1
//!         TableScan: t
//! ```
//!
//! Predicates whose place may change are extracted before the others, so that they stand side by side; the others keep their order.
//!
//! The operator asks about a row until one predicate is not TRUE; which one comes first is decided while it runs, by
//! [`FilterOrder`](crate::filter_order::FilterOrder). A stage stays where it is if its rows depend on the order: its inputs could
//! fail for rows that an earlier stage drops, a failed row ends the query, or answers are drawn at random.
//!
//! The steps of a join that asks about pairs are merged in the same way, when it is made ([`join_pairs`](super::join_pairs)).

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Operator};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::{Function, LlmCall, OnError, Settings, is_llm_call, rewrite_enabled};

use super::note::note_filters;
use crate::filter_order::PREDICATES_MAX;
use crate::join_node::JoinStep;
use crate::node::{FilterUntil, LlmNode, NodeCall};

/// Functions over text that give a value for every input.
const TOTAL_FUNCTIONS: &[&str] =
    &["concat", "concat_ws", "coalesce", "lower", "upper", "btrim", "ltrim", "rtrim", "named_struct", "struct", "nullif"];

/// See the module documentation.
#[derive(Debug)]
pub struct OrderLlmFilters;

impl OptimizerRule for OrderLlmFilters {
    fn name(&self) -> &str {
        "order_llm_filters"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        // From the top, so that the highest filter finds all stages below it.
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if !rewrite_enabled(&config.options(), self.name()) {
            return Ok(Transformed::no(plan));
        }
        let settings = config.options().extensions.get::<Settings>().cloned().unwrap_or_default();
        let merged = merged(&plan, &settings)?;
        if settings.allows_cascades() && merged.is_some() {
            // A cascade proves its thresholds on the rows of a whole stage.
            return note_filters(plan, &|call| {
                call.notes.refuse(self.name(), "a proxy answers for each predicate on its own")
            });
        }
        match merged {
            Some(merged) => Ok(Transformed::yes(merged)),
            None => Ok(Transformed::no(plan)),
        }
    }
}

/// Merges the stages on top of each other; `None` if there are not two of them.
fn merged(plan: &LogicalPlan, settings: &Settings) -> Result<Option<LogicalPlan>> {
    let (mut calls, mut predicates): (Vec<NodeCall>, Vec<Expr>) = (vec![], vec![]);
    let mut input = plan;
    while let Some((filter, node)) = stage(input, settings)?
        && calls.len() < PREDICATES_MAX
        && !calls.iter().any(|above| reads(above, &node.calls[0]))
    {
        predicates.push(filter.predicate.clone());
        calls.push(node.calls[0].clone());
        input = &node.input;
    }
    if calls.len() < 2 {
        return Ok(None);
    }
    // As written: the lowest stage is the first predicate.
    calls.reverse();
    predicates.reverse();
    let Some(predicate) = conjunction(predicates) else { return Ok(None) };
    let until = FilterUntil { predicate, wanted: None, stops: false };
    Ok(Some(LlmNode::try_new(input.clone(), calls, Some(until))?.into_plan()))
}

/// Returns a filter over the answer of the one call of the node below it, if its place may change.
fn stage<'a>(plan: &'a LogicalPlan, settings: &Settings) -> Result<Option<(&'a Filter, &'a LlmNode)>> {
    let LogicalPlan::Filter(filter) = plan else { return Ok(None) };
    let Some(node) = LlmNode::from_plan(&filter.input) else { return Ok(None) };
    let (None, [call]) = (&node.until, node.calls.as_slice()) else { return Ok(None) };
    Ok(is_free(call, &filter.predicate, settings)?.then_some((filter, node)))
}

/// Returns whether the place of a call and of the predicate over its answer may change.
fn is_free(call: &NodeCall, predicate: &Expr, settings: &Settings) -> Result<bool> {
    let columns = predicate.column_refs();
    let reads_answer_alone = !columns.is_empty() && columns.iter().all(|column| column.name == *call.output.name());
    let is_subquery = |expr: &Expr| Ok(matches!(expr, Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_)));
    Ok(reads_answer_alone
        && !predicate.is_volatile()
        && !predicate.exists(is_subquery)?
        && call.guard.is_none()
        && may_be_asked_earlier(&call.call, settings))
}

/// Merges the steps of a join that follow each other and whose places may change: one asks all their calls, and one keeps the pairs that pass
/// all their predicates.
pub(super) fn merged_steps(steps: &[JoinStep], settings: &Settings) -> Result<Vec<JoinStep>> {
    let mut merged: Vec<JoinStep> = vec![];
    // Whether the last two of them may take more.
    let mut is_open = false;
    let mut rest = steps;
    while let Some(step) = rest.first() {
        let free = match rest {
            [JoinStep::Ask(calls), JoinStep::Keep(predicate), ..] => match calls.as_slice() {
                [call] if is_free(call, predicate, settings)? => Some((call, predicate)),
                _ => None,
            },
            _ => None,
        };
        let Some((call, predicate)) = free else {
            merged.push(step.clone());
            (is_open, rest) = (false, &rest[1..]);
            continue;
        };
        rest = &rest[2..];
        match merged.as_mut_slice() {
            [.., JoinStep::Ask(calls), JoinStep::Keep(before)]
                if is_open && calls.len() < PREDICATES_MAX && !calls.iter().any(|other| reads(call, other)) =>
            {
                calls.push(call.clone());
                *before = before.clone().and(predicate.clone());
            }
            _ => merged.extend([JoinStep::Ask(vec![call.clone()]), JoinStep::Keep(predicate.clone())]),
        }
        is_open = true;
    }
    Ok(merged)
}

/// Returns whether a call may be asked about rows that a predicate written before it drops.
fn may_be_asked_earlier(call: &LlmCall, settings: &Settings) -> bool {
    let options = call.options.resolve(settings);
    call.function != Function::Embed
        && call.inputs.iter().all(cannot_fail)
        && options.on_error != OnError::Fail
        && options.sampling.temperature == 0.0
}

/// Returns whether a conjunct that still holds its call will be a stage whose place may change.
pub(super) fn may_move(conjunct: &Expr, schema: &DFSchema, settings: &Settings) -> bool {
    let (mut calls, mut has_branches) = (vec![], false);
    let _ = conjunct.apply(|expr| {
        match expr {
            Expr::ScalarFunction(function) if is_llm_call(expr) => calls.push(function.clone()),
            Expr::Case(_) => has_branches = true,
            Expr::BinaryExpr(binary) => has_branches |= binary.op.is_logic_operator(),
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    });
    let [call] = calls.as_slice() else { return false };
    !has_branches && LlmCall::bind(call, schema).is_ok_and(|call| may_be_asked_earlier(&call, settings))
}

/// Returns whether a call reads the answers of another.
fn reads(call: &NodeCall, below: &NodeCall) -> bool {
    call.call.inputs.iter().flat_map(|input| input.column_refs()).any(|column| column.name == *below.output.name())
}

/// Returns whether an expression has a value for every row, and the same one whenever it is evaluated.
fn cannot_fail(expr: &Expr) -> bool {
    let is_total = match expr {
        Expr::Column(_) | Expr::Literal(..) | Expr::Alias(_) | Expr::Case(_) => true,
        Expr::IsNull(_) | Expr::IsNotNull(_) | Expr::Not(_) => true,
        Expr::BinaryExpr(binary) => {
            binary.op.supports_propagation() || binary.op.is_logic_operator() || binary.op == Operator::StringConcat
        }
        Expr::Cast(cast) => cast.field.data_type().is_string(),
        Expr::ScalarFunction(function) => TOTAL_FUNCTIONS.contains(&function.func.name()),
        _ => false,
    };
    let mut all = is_total;
    let _ = expr.apply_children(|child| {
        all &= cannot_fail(child);
        Ok(TreeNodeRecursion::Continue)
    });
    all
}
