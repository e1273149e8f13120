//! A join condition that asks about both sides becomes an `LlmJoinNode`, for every kind of join.
//!
//! ```text
//! SELECT i FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND ai_filter('a', t.s, u.w) AND ai_filter('b', u.w, t.s))
//!
//! LeftSemi Join: t.k = u.k                     LlmJoinNode: LeftSemi, on=[t.k = u.k],
//!   Filter: ai_filter('a', t.s, u.w)     ->        ask ai_filter('a', fields=[s, w]) AS __llm_1,
//!     AND ai_filter('b', u.w, t.s)                 ask ai_filter('b', fields=[w, s]) AS __llm_2, keep __llm_1 AND __llm_2,
//!   TableScan: t                                   stops at the first match
//!   TableScan: u                                 TableScan: t
//!                                                TableScan: u
//! ```
//!
//! What asks nobody decides first which pairs there are. Conjuncts whose place may change are one stage, which finds their best order
//! (`order_llm_filters`); each other one is a stage of its own, so that the next is asked about the survivors. For semi, anti and mark joins the rewrite `stop_join_at_match` lets the operator end with a row at its first
//! match; without it every candidate is asked about. With `classify_join` the operator may ask a row which values of the other input
//! match ([`halves`]).

use std::sync::Arc;

use datafusion::common::{DFSchema, JoinType, Result, internal_err, not_impl_err};
use datafusion::logical_expr::{EmptyRelation, Expr, Filter, Join, LogicalPlan};
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::{Settings, rewrite_enabled};

use super::lower::lower;
use super::order_llm_filters::{OrderLlmFilters, merged_steps};
use crate::classify_join::{CLASSIFY_JOIN, halves};
use crate::join_node::{JoinCondition, JoinEffort, JoinStep, LlmJoinNode};
use crate::node::LlmNode;

/// The name under which stopping at the first match is switched off.
pub(super) const STOP_JOIN_AT_MATCH: &str = "stop_join_at_match";

/// Returns the plan of `join`, whose condition has the conjuncts `asking` beside its own. The join itself asks nobody.
pub(super) fn join_pairs(join: Join, asking: Vec<Expr>, config: &dyn OptimizerConfig) -> Result<LogicalPlan> {
    // Those in WHERE are NOT EXISTS by now.
    if join.null_aware {
        return not_impl_err!("NOT IN with an LLM function over both sides at this place; write NOT EXISTS instead");
    }
    let settings = config.options().extensions.get::<Settings>().cloned().unwrap_or_default();
    let mut steps = steps(asking, join.left.schema().join(join.right.schema())?, config)?;
    if rewrite_enabled(&config.options(), OrderLlmFilters.name()) {
        steps = merged_steps(&steps, &settings)?;
    }
    let effort = JoinEffort {
        stops_at_match: needs_one_match(join.join_type) && rewrite_enabled(&config.options(), STOP_JOIN_AT_MATCH),
        ..JoinEffort::default()
    };
    let condition = JoinCondition { on: join.on, null_equality: join.null_equality, filter: join.filter, steps };
    let (left, right) = (Arc::unwrap_or_clone(join.left), Arc::unwrap_or_clone(join.right));
    let mut node = LlmJoinNode::try_new(left, right, join.join_type, condition, effort)?;
    let is_allowed = settings.allows_approximate_plans() && rewrite_enabled(&config.options(), CLASSIFY_JOIN);
    node.effort.may_classify = is_allowed && halves(&node)?.is_ok();
    Ok(node.into_plan())
}

fn needs_one_match(join_type: JoinType) -> bool {
    match join_type {
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => true,
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => true,
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => false,
    }
}

/// Lowers each conjunct over a stand-in for the pairs, and reads the steps off the plan that comes of it.
fn steps(asking: Vec<Expr>, pairs: DFSchema, config: &dyn OptimizerConfig) -> Result<Vec<JoinStep>> {
    let mut plan = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::new(pairs) });
    for conjunct in asking {
        let (mut lowered, with_answers) = lower(vec![conjunct], plan, config)?;
        plan = LogicalPlan::Filter(Filter::try_new(lowered.remove(0), Arc::new(with_answers))?);
    }
    let mut steps = vec![];
    let mut rest = &plan;
    loop {
        rest = match rest {
            LogicalPlan::EmptyRelation(_) => break,
            LogicalPlan::Filter(filter) => {
                steps.push(JoinStep::Keep(filter.predicate.clone()));
                filter.input.as_ref()
            }
            other => {
                let Some(node) = LlmNode::from_plan(other) else {
                    return internal_err!("a join condition was lowered to {}", other.display());
                };
                steps.push(JoinStep::Ask(node.calls.clone()));
                &node.input
            }
        };
    }
    steps.reverse();
    Ok(steps)
}
