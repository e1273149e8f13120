//! A predicate over one side of an inner join on equal keys is asked of the rows that the join leaves.
//!
//! ```text
//! SELECT t.i FROM t JOIN u ON t.i = u.j WHERE ai_filter('a', u.w)
//!
//! Inner Join: t.i = u.j                        Projection: t.i, u.j
//!   TableScan: t                                 Filter: ai_filter('a', u.w)
//!   Projection: u.j                      ->        Inner Join: t.i = u.j
//!     Filter: ai_filter('a', u.w)                    TableScan: t
//!       TableScan: u                                 TableScan: u
//! ```
//!
//! DataFusion has pushed the predicate down before. Rows without a partner are not asked about; equal inputs of rows that the join
//! multiplies are one question all the same; and a LIMIT above stops the asking. Without equal keys a join may multiply rows without
//! bound, so there the predicate stays below; so it does where equal inputs are asked one by one.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType, Result, TableReference};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan, SubqueryAlias};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::{LlmCall, Settings, contains_llm_call, is_llm_call, rewrite_enabled};

use super::lower::is_volatile_apart_from_calls;
use super::note::note_filters;
use super::restore::restore;
use crate::node::NodeCall;

const NAME: &str = "ask_above_join";

/// Why a call stays below a join that may multiply its rows.
pub(super) const NO_DEDUP: &str = "equal inputs are calls of their own, and the join may multiply rows";

/// See the module documentation.
#[derive(Debug)]
pub struct AskAboveJoin;

impl OptimizerRule for AskAboveJoin {
    fn name(&self) -> &str {
        NAME
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Join(join) = &plan else { return Ok(Transformed::no(plan)) };
        let is_enabled = rewrite_enabled(&config.options(), self.name());
        // Pairs are many, so what is asked about one side is asked before them.
        let asks_itself = join.filter.as_ref().is_some_and(contains_llm_call);
        if !is_enabled || asks_itself {
            return Ok(Transformed::no(plan));
        }
        let reason = match join.join_type {
            JoinType::Inner if join.on.is_empty() => Some("the join has no equal keys and may multiply rows".to_owned()),
            JoinType::Inner => None,
            other => Some(format!("the join is not inner but {other}")),
        };
        let settings = config.options().extensions.get::<Settings>().cloned().unwrap_or_default();
        if let Some(reason) = reason {
            // Noted in the round after the calls have become nodes.
            return plan.map_children(|side| note_filters(side, &|call| call.notes.refuse(NAME, &reason)));
        }
        // Columns that were dropped below may bear the name of one of the other side; then the plan stays as it is.
        if let Ok(Some(above)) = with_predicates_above(join, &settings) {
            return Ok(Transformed::yes(above));
        }
        let note = |call: &mut NodeCall| !dedups(&call.call, &settings) && call.notes.refuse(NAME, NO_DEDUP);
        plan.map_children(|side| note_filters(side, &note))
    }
}

/// Returns the name of the rule if it has put a predicate of a filter there: over one side of the join right below it, where nothing else
/// leaves it.
pub(super) fn asked_above_join(predicate: &Expr, input: &LogicalPlan) -> Option<&'static str> {
    let LogicalPlan::Join(join) = input else { return None };
    let columns = predicate.column_refs();
    let reads_only = |side: &LogicalPlan| columns.iter().all(|column| side.schema().has_column(column));
    let is_one_sided = !columns.is_empty() && (reads_only(&join.left) || reads_only(&join.right));
    (join.join_type == JoinType::Inner && !join.on.is_empty() && is_one_sided).then_some(NAME)
}

/// Returns the plan that asks above the join; `None` if its sides ask nobody.
fn with_predicates_above(join: &Join, settings: &Settings) -> Result<Option<LogicalPlan>> {
    let (left, right) = (without_predicates(&join.left, settings)?, without_predicates(&join.right, settings)?);
    let asking = [&left, &right].into_iter().flatten().flat_map(|side| side.asking.clone());
    let Some(predicate) = conjunction(asking) else { return Ok(None) };
    let input = |side: Option<Side>, as_it_was: &Arc<LogicalPlan>| match side {
        Some(side) => Arc::new(side.rest),
        None => Arc::clone(as_it_was),
    };
    let joined = Join::try_new(
        input(left, &join.left),
        input(right, &join.right),
        join.on.clone(),
        join.filter.clone(),
        join.join_type,
        join.join_constraint,
        join.null_equality,
        join.null_aware,
    )?;
    let filter = Filter::try_new(predicate, Arc::new(LogicalPlan::Join(joined)))?;
    restore(LogicalPlan::Filter(filter), &join.schema).map(Some)
}

/// One side of a join, taken apart.
struct Side {
    /// The predicates that ask, over the columns of `rest`.
    asking: Vec<Expr>,
    rest: LogicalPlan,
}

/// Takes the predicates that ask off the top of a plan, through projections that only drop columns and through aliases. `None` if
/// there are none.
fn without_predicates(plan: &LogicalPlan, settings: &Settings) -> Result<Option<Side>> {
    match plan {
        LogicalPlan::Filter(filter) => {
            let moves = |conjunct: &Expr| {
                contains_llm_call(conjunct)
                    && !is_volatile_apart_from_calls(conjunct)
                    && all_dedup(conjunct, filter.input.schema(), settings)
            };
            let (asking, cheap): (Vec<_>, Vec<_>) =
                split_conjunction_owned(filter.predicate.clone()).into_iter().partition(moves);
            if asking.is_empty() {
                return Ok(None);
            }
            let rest = match conjunction(cheap) {
                Some(cheap) => LogicalPlan::Filter(Filter::try_new(cheap, Arc::clone(&filter.input))?),
                None => filter.input.as_ref().clone(),
            };
            Ok(Some(Side { asking, rest }))
        }
        LogicalPlan::Projection(projection) if projection.expr.iter().all(|expr| matches!(expr, Expr::Column(_))) => {
            without_predicates(&projection.input, settings)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let Some(Side { asking, rest }) = without_predicates(&alias.input, settings)? else { return Ok(None) };
            let Some(asking) = asking.into_iter().map(|expr| renamed(expr, rest.schema(), &alias.alias)).collect() else {
                return Ok(None);
            };
            let rest = SubqueryAlias::try_new(Arc::new(rest), alias.alias.clone())?;
            Ok(Some(Side { asking, rest: LogicalPlan::SubqueryAlias(rest) }))
        }
        _ => Ok(None),
    }
}

/// Returns whether equal inputs are one question for every call of an expression.
fn all_dedup(expr: &Expr, schema: &DFSchema, settings: &Settings) -> bool {
    let mut all = true;
    let _ = expr.apply(|expr| {
        if let Expr::ScalarFunction(function) = expr
            && is_llm_call(expr)
        {
            all &= LlmCall::bind(function, schema).map_or(true, |call| dedups(&call, settings));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    all
}

/// Returns whether equal inputs are one question of a call.
pub(super) fn dedups(call: &LlmCall, settings: &Settings) -> bool {
    call.options.resolve(settings).dedups()
}

/// Names the columns of an expression by an alias of their table; `None` if one of them would not be the only one of its name.
fn renamed(expr: Expr, schema: &DFSchema, alias: &TableReference) -> Option<Expr> {
    let is_clear = |column: &&Column| schema.fields().iter().filter(|field| *field.name() == column.name).count() == 1;
    if !expr.column_refs().iter().all(is_clear) {
        return None;
    }
    let name = |expr| match expr {
        Expr::Column(column) => Ok(Transformed::yes(Expr::Column(Column::new(Some(alias.clone()), column.name)))),
        other => Ok(Transformed::no(other)),
    };
    expr.transform(name).ok().map(|renamed| renamed.data)
}
