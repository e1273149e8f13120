//! One LLM call as the operator runs it: bound to columns, a model and settled options.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use datafusion::arrow::compute::{and, prep_null_mask_filter};
use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_datafusion_err};
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};
use refrain_optimizer::RewriteNotes;
use refrain_optimizer::cascade::Targets;
use refrain_udf::{LlmCall, ResolvedOptions};

use crate::operators::memo::{Failure, Outcome};

/// One call of an [`LlmExec`](super::LlmExec).
#[derive(Clone, Debug)]
pub struct PhysicalCall {
    /// What is asked.
    pub call: Arc<LlmCall>,
    /// The inputs, over the operator's input; in the order of `call.inputs`.
    pub inputs: Vec<Arc<dyn PhysicalExpr>>,
    /// Rows for which this is not TRUE are not asked.
    pub guard: Option<Arc<dyn PhysicalExpr>>,
    /// The column of the answers.
    pub output: FieldRef,
    /// The name of the model that is asked.
    pub model: String,
    /// Call options and settings, merged.
    pub options: ResolvedOptions,
    /// Set where a proxy may answer first.
    pub cascade: Option<CascadeCall>,
    /// What rules did to the call.
    pub notes: RewriteNotes,
}

/// How a proxy may answer a call first.
#[derive(Clone, Debug)]
pub struct CascadeCall {
    /// Asks the proxy how probable yes is, of the same inputs.
    pub proxy: Arc<PhysicalCall>,
    /// What the user wants to hold.
    pub targets: Targets,
}

impl PhysicalCall {
    /// Evaluates the inputs for the rows that need the call, and returns which rows these are; `None` is all of them.
    ///
    /// An input is not evaluated for a row that does not need it: in `CASE WHEN x <> 0 THEN ai_complete('…', 100 / x) END` it could fail.
    pub fn evaluate(&self, batch: &RecordBatch) -> Result<(Vec<ArrayRef>, Option<BooleanArray>)> {
        let needed = self.evaluate_guard(batch)?;
        let inputs = self.inputs.iter().map(|input| evaluate_for(input, batch, needed.as_ref())).collect::<Result<_>>()?;
        Ok((inputs, needed))
    }

    /// Evaluates the guard, each condition for the rows that passed the ones before it.
    fn evaluate_guard(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>> {
        let Some(guard) = &self.guard else { return Ok(None) };
        let mut needed: Option<BooleanArray> = None;
        for condition in split_conjunction(guard) {
            let values = evaluate_for(condition, batch, needed.as_ref())?;
            let passed = without_nulls(as_boolean_array(&values)?);
            needed = Some(match needed {
                Some(before) => and(&before, &passed)?,
                None => passed,
            });
        }
        Ok(needed)
    }

    /// Returns the error that ends the query at a failed row, under `on_error => 'fail'`.
    pub fn failed_row(&self, failure: &Failure) -> DataFusionError {
        exec_datafusion_err!(
            "{} failed for a row ({}): {}; set on_error => 'null' to get NULL for such rows",
            self.function_name(),
            failure.reason,
            failure.message
        )
    }

    /// Returns the value that an outcome gives a row.
    pub(super) fn value_of(&self, outcome: &Outcome) -> ScalarValue {
        match outcome {
            Ok(value) => self.call.value(Ok(value.clone()), self.options.on_error),
            Err(failure) => self.call.value(Err(&format!("{}: {}", failure.reason, failure.message)), self.options.on_error),
        }
    }

    /// Returns the key under which the session counts and shows this call, such as `ai_filter`.
    pub fn function_name(&self) -> &'static str {
        self.call.function.name()
    }
}

/// Makes NULL false.
pub(super) fn without_nulls(mask: &BooleanArray) -> BooleanArray {
    match mask.null_count() {
        0 => BooleanArray::new(mask.values().clone(), None),
        _ => prep_null_mask_filter(mask),
    }
}

/// Evaluates an expression for some rows of a batch; the result has a value for each row, NULL for the others.
fn evaluate_for(expr: &Arc<dyn PhysicalExpr>, batch: &RecordBatch, rows: Option<&BooleanArray>) -> Result<ArrayRef> {
    let values = match rows {
        Some(rows) => expr.evaluate_selection(batch, rows)?,
        None => expr.evaluate(batch)?,
    };
    values.into_array(batch.num_rows())
}

impl fmt::Display for PhysicalCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} model={}", self.call.describe(), self.model)?;
        if let Some(guard) = &self.guard {
            write!(f, " if={guard}")?;
        }
        if let Some(CascadeCall { proxy, targets: Targets { recall, precision, failure_probability } }) = &self.cascade {
            write!(
                f,
                " cascade(proxy={}, recall≥{recall}, precision≥{precision}, failure≤{failure_probability})",
                proxy.model
            )?;
        }
        Ok(())
    }
}
