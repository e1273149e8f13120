//! How plans are shown: details of an operator below it, and the whole plan as JSON.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{DisplayFormatType, ExecutionPlan, displayable};
use serde_json::{Value, json};

use crate::operators::{DETAIL, LlmAggregateExec, LlmExec, LlmJoinExec};

/// What an EXPLAIN of ours asks for beside DataFusion's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExplainOptions {
    /// The query is run, and what happened is shown as well.
    pub(crate) analyze: bool,
    /// Plans after each rule are shown as well.
    pub(crate) verbose: bool,
    /// As JSON.
    pub(crate) json: bool,
    /// So many distinct questions of each call are asked, to learn from their answers.
    pub(crate) sample: Option<usize>,
}

/// The columns of a plan as JSON.
pub(crate) fn json_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("plan", DataType::Utf8, false)]))
}

/// Returns a plan as JSON, in one row.
pub(crate) fn json_batch(plan: &Arc<dyn ExecutionPlan>) -> Result<RecordBatch> {
    let text = format!("{:#}", to_json(plan));
    let column: ArrayRef = Arc::new(StringArray::from(vec![text]));
    Ok(RecordBatch::try_new(json_schema(), vec![column])?)
}

/// Returns plans as EXPLAIN shows them.
pub(crate) fn text_batch(logical: &str, physical: &Arc<dyn ExecutionPlan>, verbose: bool) -> Result<RecordBatch> {
    let physical = indented(&displayable(physical.as_ref()).indent(verbose).to_string());
    let column = |texts: [&str; 2]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
    let columns = vec![column(["logical_plan", "physical_plan"]), column([logical, physical.trim_end()])];
    Ok(RecordBatch::try_new(LogicalPlan::explain_schema(), columns)?)
}

/// Returns a plan as JSON: of LLM operators all that is known, of others their name and what EXPLAIN says of them.
pub(crate) fn to_json(plan: &Arc<dyn ExecutionPlan>) -> Value {
    let llm = plan.downcast_ref::<LlmExec>().map(LlmExec::to_json);
    let llm = llm.or_else(|| plan.downcast_ref::<LlmAggregateExec>().map(LlmAggregateExec::to_json));
    let llm = llm.or_else(|| plan.downcast_ref::<LlmJoinExec>().map(LlmJoinExec::to_json));
    let other = || json!({"operator": plan.name(), "detail": OneLine(plan.as_ref()).to_string()});
    let mut node = llm.unwrap_or_else(other);
    node["children"] = plan.children().into_iter().map(to_json).collect();
    node
}

struct OneLine<'a>(&'a dyn ExecutionPlan);

impl std::fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt_as(DisplayFormatType::Default, f)
    }
}

/// Puts the details of operators below them, in the text columns of a plan.
pub(crate) fn indent_details(batch: RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| -> ArrayRef {
        match column.as_string_opt::<i32>() {
            Some(texts) => Arc::new(texts.iter().map(|text| text.map(indented)).collect::<StringArray>()),
            None => Arc::clone(column),
        }
    });
    Ok(RecordBatch::try_new(batch.schema(), columns.collect())?)
}

fn indented(plan: &str) -> String {
    if !plan.contains(DETAIL) {
        return plan.to_owned();
    }
    let (mut shown, mut indent) = (String::with_capacity(plan.len() + 256), 0);
    for line in plan.lines() {
        match line.strip_prefix(DETAIL).or_else(|| (line == DETAIL.trim_end()).then_some("")) {
            Some(detail) => {
                // What DataFusion appends to an operator begins with a comma.
                let detail = detail.trim_start_matches(", ");
                if !detail.is_empty() {
                    shown.extend(std::iter::repeat_n(' ', indent + 4));
                    shown.push_str(detail);
                    shown.push('\n');
                }
            }
            None => {
                indent = line.len() - line.trim_start().len();
                shown.push_str(line);
                shown.push('\n');
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_stand_below_their_operator() {
        let plan = "A\n  LlmExec: x\n· rows=1\n· , metrics=[y]\n    B\n      LlmExec: z\n· rows=2\n· \n";
        let expected = "A\n  LlmExec: x\n      rows=1\n      metrics=[y]\n    B\n      LlmExec: z\n          rows=2\n";
        assert_eq!(indented(plan), expected);
        assert_eq!(indented("A\n  B"), "A\n  B");
    }
}
