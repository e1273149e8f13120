//! `NOT IN` over a subquery that asks about rows of both queries becomes `NOT EXISTS`.
//!
//! ```text
//! SELECT … FROM t WHERE x NOT IN (SELECT y FROM u WHERE ai_filter('a', t.s, u.w))
//!
//! SELECT … FROM t WHERE NOT EXISTS (SELECT y FROM u WHERE ai_filter('a', t.s, u.w) AND (x = y) IS NOT FALSE)
//! ```
//!
//! `x NOT IN (…)` is TRUE if no `y` equals `x` or may equal it. The rule runs before subqueries are decorrelated: in the join that comes of
//! one, that comparison cannot be told from the equalities inside the subquery, for which NULL is no match. It looks at predicates of
//! filters, below AND and OR only, where NULL and FALSE are the same. It belongs to the meaning of a query, so it is never switched off.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, ExprSchema, Result};
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Filter, LogicalPlan, Operator, Subquery};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::contains_llm_call;

/// See the module documentation.
#[derive(Debug)]
pub struct NotInAsNotExists;

impl OptimizerRule for NotInAsNotExists {
    fn name(&self) -> &str {
        "not_in_as_not_exists"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Filter(filter) = plan else { return Ok(Transformed::no(plan)) };
        let Filter { predicate, input, .. } = filter;
        let predicate = not_exists(predicate, input.schema())?;
        predicate.map_data(|predicate| Ok(LogicalPlan::Filter(Filter::try_new(predicate, input)?)))
    }
}

/// Rewrites what stands below AND and OR.
fn not_exists(predicate: Expr, outer: &DFSchema) -> Result<Transformed<Expr>> {
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if matches!(op, Operator::And | Operator::Or) => {
            let (left, right) = (not_exists(*left, outer)?, not_exists(*right, outer)?);
            let changed = left.transformed || right.transformed;
            let both = Expr::BinaryExpr(BinaryExpr::new(Box::new(left.data), op, Box::new(right.data)));
            Ok(Transformed::new_transformed(both, changed))
        }
        Expr::Not(inner) => match *inner {
            Expr::InSubquery(found) if !found.negated && asks_about_both(&found.subquery.subquery)? => {
                Ok(Transformed::yes(no_row_may_equal(found, outer)?))
            }
            other => Ok(Transformed::no(Expr::Not(Box::new(other)))),
        },
        Expr::InSubquery(found) if found.negated && asks_about_both(&found.subquery.subquery)? => {
            Ok(Transformed::yes(no_row_may_equal(found, outer)?))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// Returns whether a condition of the subquery has an LLM call and reads the outer query.
fn asks_about_both(subquery: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    subquery.apply(|node| {
        found |= node.expressions().iter().any(|expr| contains_llm_call(expr) && expr.contains_outer());
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

fn no_row_may_equal(InSubquery { expr, subquery, .. }: InSubquery, outer: &DFSchema) -> Result<Expr> {
    let Subquery { subquery: inner, mut outer_ref_columns, spans } = subquery;
    let (value, value_field) = (Expr::from(inner.schema().qualified_field(0)), inner.schema().field(0));
    let may_be_null = value_field.is_nullable() || expr.nullable(outer)?;
    let expr = expr.transform(|part| match part {
        Expr::Column(column) => {
            let field = Arc::clone(outer.field_from_column(&column)?);
            let reference = Expr::OuterReferenceColumn(field, column);
            if !outer_ref_columns.contains(&reference) {
                outer_ref_columns.push(reference.clone());
            }
            Ok(Transformed::yes(reference))
        }
        other => Ok(Transformed::no(other)),
    })?;
    let equal = expr.data.eq(value);
    let condition = if may_be_null { equal.is_not_false() } else { equal };
    let inner = Arc::new(LogicalPlan::Filter(Filter::try_new(condition, inner)?));
    Ok(Expr::Exists(Exists { subquery: Subquery { subquery: inner, outer_ref_columns, spans }, negated: true }))
}
