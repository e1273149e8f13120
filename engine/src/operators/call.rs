//! One LLM call as the operator runs it: bound to columns, a model and settled options.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use datafusion::arrow::datatypes::FieldRef;
use datafusion::common::Result;
use datafusion::common::cast::as_boolean_array;
use datafusion::physical_expr::PhysicalExpr;
use refrain_udf::{LlmCall, ResolvedOptions};

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
}

impl PhysicalCall {
    /// Evaluates the inputs for each row of `batch`.
    pub fn evaluate_inputs(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.inputs.iter().map(|input| input.evaluate(batch)?.into_array(batch.num_rows())).collect()
    }

    /// Returns for which rows the call is needed; `None` is all of them.
    pub fn evaluate_guard(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>> {
        let Some(guard) = &self.guard else { return Ok(None) };
        let mask = guard.evaluate(batch)?.into_array(batch.num_rows())?;
        let mask = as_boolean_array(&mask)?;
        Ok(Some(match mask.nulls() {
            Some(nulls) => BooleanArray::new(mask.values() & nulls.inner(), None),
            None => mask.clone(),
        }))
    }

    /// Returns the key under which the session counts and shows this call, such as `ai_filter`.
    pub fn function_name(&self) -> &'static str {
        self.call.function.name()
    }
}

impl fmt::Display for PhysicalCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} model={}", self.call.describe(), self.model)?;
        if let Some(guard) = &self.guard {
            write!(f, " if={guard}")?;
        }
        Ok(())
    }
}
