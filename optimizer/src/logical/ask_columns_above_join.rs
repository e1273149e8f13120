//! Answers that one side of an inner join on equal keys brings along are asked for the rows that the join leaves.
//!
//! ```text
//! SELECT u.j, x FROM (SELECT i, ai_complete('p', s) x FROM t) q JOIN u ON q.i = u.j
//!
//! Inner Join: q.i = u.j                        Projection: __llm_1 AS q.x, u.j
//!   SubqueryAlias: q                             LlmNode: ai_complete('p', s) AS __llm_1
//!     Projection: t.i, __llm_1 AS x                Inner Join: t.i = u.j
//!       LlmNode: ai_complete('p', s)     ->          TableScan: t
//!         TableScan: t                               TableScan: u
//!   TableScan: u
//! ```
//!
//! Rows without a partner are not asked about, and equal inputs of rows that the join multiplies are one question all the same. The join
//! must not read the answers. Predicates of one side go the same way by [`AskAboveJoin`](super::AskAboveJoin).

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, JoinType, Result};
use datafusion::logical_expr::{Expr, Join, JoinConstraint, LogicalPlan, Projection};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::{Settings, rewrite_enabled};

use super::ask_above_join::{NO_DEDUP, dedups};
use super::note::note_calls;
use crate::node::{LlmNode, NodeCall};

const NAME: &str = "ask_columns_above_join";

/// See the module documentation.
#[derive(Debug)]
pub struct AskColumnsAboveJoin;

impl OptimizerRule for AskColumnsAboveJoin {
    fn name(&self) -> &str {
        NAME
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if !rewrite_enabled(&config.options(), self.name()) {
            return Ok(Transformed::no(plan));
        }
        let LogicalPlan::Join(join) = &plan else { return Ok(Transformed::no(plan)) };
        let settings = config.options().extensions.get::<Settings>().cloned().unwrap_or_default();
        for is_left in [true, false] {
            let input = if is_left { &join.left } else { &join.right };
            let Some(side) = Side::of(input)?.filter(Side::hands_on_answers) else { continue };
            if let Some(reason) = refused(join, &side, &settings) {
                let noted = noted(input.as_ref().clone(), &reason)?;
                if noted.transformed {
                    return Ok(Transformed::yes(LogicalPlan::Join(with_side(join, noted.data, is_left))));
                }
                continue;
            }
            // Columns that were dropped below may bear the name of one of the other side; then the plan stays as it is.
            if let Ok(Some(above)) = asked_above(join, &side, is_left) {
                return Ok(Transformed::yes(above));
            }
        }
        Ok(Transformed::no(plan))
    }
}

/// One side of a join: an operator that adds answers, below nothing but operators that name columns.
struct Side<'a> {
    node: &'a LlmNode,
    /// What each column of the side stands for, over the columns of the node, by its full name.
    definitions: HashMap<String, Expr>,
}

impl<'a> Side<'a> {
    /// Takes a side apart; `None` if it is none.
    fn of(plan: &'a LogicalPlan) -> Result<Option<Side<'a>>> {
        if let Some(node) = LlmNode::from_plan(plan).filter(|node| node.until.is_none()) {
            let columns = plan.schema().columns().into_iter();
            let definitions = columns.map(|column| (column.flat_name(), Expr::Column(column))).collect();
            return Ok(Some(Side { node, definitions }));
        }
        let (input, exprs): (&LogicalPlan, Vec<Expr>) = match plan {
            LogicalPlan::Projection(projection) => {
                let exprs = projection.expr.iter().map(|expr| expr.clone().unalias_nested().data);
                (projection.input.as_ref(), exprs.collect())
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let columns = alias.input.schema().columns();
                (alias.input.as_ref(), columns.into_iter().map(Expr::Column).collect())
            }
            _ => return Ok(None),
        };
        let Some(below) = Side::of(input)? else { return Ok(None) };
        let is_known = |column: &Column| below.definitions.contains_key(&column.flat_name());
        if !exprs.iter().flat_map(Expr::column_refs).all(is_known) {
            return Ok(None);
        }
        let mut definitions = HashMap::new();
        for (column, expr) in plan.schema().columns().into_iter().zip(exprs) {
            definitions.insert(column.flat_name(), below.over_node(expr)?);
        }
        Ok(Some(Side { node: below.node, definitions }))
    }

    /// Writes an expression over the columns of the side as one over the columns of the node.
    fn over_node(&self, expr: Expr) -> Result<Expr> {
        let resolved = expr.transform_up(|expr| {
            let definition = match &expr {
                Expr::Column(column) => self.definitions.get(&column.flat_name()).cloned(),
                _ => None,
            };
            Ok(definition.map_or(Transformed::no(expr), Transformed::yes))
        });
        Ok(resolved?.data)
    }

    fn reads_answer(&self, expr: &Expr) -> bool {
        let is_answer = |column: &Column| self.node.calls.iter().any(|call| *call.output.name() == column.name);
        expr.column_refs().into_iter().any(is_answer)
    }

    /// Returns whether a column of the side depends on an answer.
    fn hands_on_answers(&self) -> bool {
        self.definitions.values().any(|definition| self.reads_answer(definition))
    }
}

/// Returns why the answers of a side are asked below the join.
fn refused(join: &Join, side: &Side<'_>, settings: &Settings) -> Option<String> {
    if join.join_type != JoinType::Inner {
        return Some(format!("the join is not inner but {}", join.join_type));
    }
    if join.on.is_empty() {
        return Some("the join has no equal keys and may multiply rows".to_owned());
    }
    let compared = join.on.iter().flat_map(|(left, right)| [left, right]).chain(&join.filter);
    let reads = |expr: &Expr| side.over_node(expr.clone()).map_or(true, |expr| side.reads_answer(&expr));
    if compared.into_iter().any(reads) {
        return Some("the join compares its answers".to_owned());
    }
    let all_dedup = side.node.calls.iter().all(|call| dedups(&call.call, settings));
    (!all_dedup).then(|| NO_DEDUP.to_owned())
}

/// Returns the plan that asks above the join; `None` if what is asked or handed on is volatile, or a column would not be the only one of its
/// name.
fn asked_above(join: &Join, side: &Side<'_>, is_left: bool) -> Result<Option<LogicalPlan>> {
    let Side { node, definitions } = side;
    let asked = node.calls.iter().flat_map(|call| call.call.inputs.iter().chain(&call.guard));
    if asked.chain(definitions.values()).any(Expr::is_volatile) {
        return Ok(None);
    }
    let on = join.on.iter().map(|(left, right)| match is_left {
        true => Ok((side.over_node(left.clone())?, right.clone())),
        false => Ok((left.clone(), side.over_node(right.clone())?)),
    });
    let filter = join.filter.clone().map(|filter| side.over_node(filter)).transpose()?;
    let input = Arc::new(node.input.clone());
    let (left, right) = match is_left {
        true => (input, Arc::clone(&join.right)),
        false => (Arc::clone(&join.left), input),
    };
    let joined = LogicalPlan::Join(Join::try_new(
        left,
        right,
        on.collect::<Result<_>>()?,
        filter,
        join.join_type,
        // A side may name its key otherwise than the other one.
        JoinConstraint::On,
        join.null_equality,
        join.null_aware,
    )?);
    let named = |name: &str| joined.schema().fields().iter().filter(|field| field.name() == name).count();
    let is_clear = |column: &Column| column.relation.is_some() || named(&column.name) <= 1;
    let read = node.calls.iter().flat_map(|call| call.call.inputs.iter().chain(&call.guard)).chain(definitions.values());
    if !read.flat_map(Expr::column_refs).all(is_clear) {
        return Ok(None);
    }
    let asking = LlmNode::try_new(joined, node.calls.clone(), None)?.into_plan();
    let asking = note_calls(asking, &|call| call.notes.apply(NAME))?.data;
    let columns = join.schema.iter().map(|(qualifier, field)| {
        let column = Column::new(qualifier.cloned(), field.name());
        match definitions.get(&column.flat_name()) {
            Some(Expr::Column(definition)) if *definition == column => Expr::Column(column),
            Some(definition) => definition.clone().alias_qualified(qualifier.cloned(), field.name()),
            None => Expr::Column(column),
        }
    });
    Ok(Some(LogicalPlan::Projection(Projection::try_new(columns.collect(), Arc::new(asking))?)))
}

/// Notes for the calls of a side why they stay there.
fn noted(plan: LogicalPlan, reason: &str) -> Result<Transformed<LogicalPlan>> {
    match &plan {
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => plan.map_children(|input| noted(input, reason)),
        _ => note_calls(plan, &|call: &mut NodeCall| call.notes.refuse(NAME, reason)),
    }
}

/// Returns the join over another plan of the same columns on one side.
fn with_side(join: &Join, side: LogicalPlan, is_left: bool) -> Join {
    let mut join = join.clone();
    match is_left {
        true => join.left = Arc::new(side),
        false => join.right = Arc::new(side),
    }
    join
}
