//! The result of EXPLAIN as plain text: a plan is read by its indentation, which a table's cells would break.

use std::io::Write;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;

use super::format::ResultWriter;
use crate::cells;
use crate::cli::error::Outcome;

/// Whether this is the schema of EXPLAIN.
pub(super) fn is_plan(schema: &SchemaRef) -> bool {
    schema.fields().iter().map(|field| field.name().as_str()).eq(["plan_type", "plan"])
}

/// Writes each plan under its kind.
pub(super) struct Plan;

impl ResultWriter for Plan {
    fn batch(&mut self, out: &mut dyn Write, batch: &RecordBatch) -> Outcome<()> {
        let schema = batch.schema();
        let kinds = cells::column_texts(&schema.fields()[0], batch.column(0))?;
        let plans = cells::column_texts(&schema.fields()[1], batch.column(1))?;
        for (kind, plan) in kinds.into_iter().zip(plans) {
            writeln!(out, "── {}", kind.unwrap_or_default())?;
            writeln!(out, "{}\n", plan.unwrap_or_default().trim_end())?;
        }
        Ok(())
    }

    fn finish(&mut self, _out: &mut dyn Write) -> Outcome<usize> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, StringArray};

    use super::super::format::tests::written;
    use super::super::format::{Format, Layout};
    use super::*;

    #[test]
    fn plans_keep_their_lines() {
        let text = |text: &str| Arc::new(StringArray::from(vec![text.to_owned()])) as ArrayRef;
        let batch =
            RecordBatch::try_from_iter([("plan_type", text("logical_plan")), ("plan", text("Limit\n  Scan\n"))]).unwrap();
        let layout = Layout { width: Some(20), ..Layout::default() };
        assert_eq!(written(Format::Table, layout, &[batch]).0, "── logical_plan\nLimit\n  Scan\n\n");
    }
}
