//! Projections that give a rewritten plan the columns it had before.

use std::sync::Arc;

use datafusion::common::{Column, DFSchema, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};

/// Projects `plan` to the columns of `schema`, found by name: drops what was added.
pub(super) fn restore(plan: LogicalPlan, schema: &DFSchema) -> Result<LogicalPlan> {
    let columns = schema.iter().map(|(q, f)| Expr::Column(Column::new(q.cloned(), f.name()))).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
}

/// Projects `plan` to its columns at `positions` and gives them the names of `schema`, for operators whose column names
/// follow from their expressions.
pub(super) fn restore_at(
    plan: LogicalPlan,
    positions: impl IntoIterator<Item = usize>,
    schema: &DFSchema,
) -> Result<LogicalPlan> {
    let columns = positions.into_iter().zip(schema.iter()).map(|(position, (qualifier, field))| {
        let (new_qualifier, new_field) = plan.schema().qualified_field(position);
        let column = Expr::Column(Column::new(new_qualifier.cloned(), new_field.name()));
        if (new_qualifier, new_field.name()) == (qualifier, field.name()) {
            column
        } else {
            column.alias_qualified(qualifier.cloned(), field.name())
        }
    });
    Ok(LogicalPlan::Projection(Projection::try_new(columns.collect(), Arc::new(plan.clone()))?))
}
