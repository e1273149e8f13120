//! `ai_agg(input, instruction [, overflow => 'hierarchical'])`: one answer for all inputs of a group. VARCHAR, or `return_type`.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;
use serde_json::{Map, Value};

use super::llm_aggregate::{Overflow, Parts, Reduction};
use crate::call::LlmCall;
use crate::function::Function;
use crate::scalar::{self, Arguments};
use crate::task::Task;

/// The label of a partial answer in the prompt that combines several.
pub(super) const PARTIAL_LABEL: &str = "answer";

pub(super) fn value_type(options: &Map<String, Value>) -> Result<DataType> {
    let name = Function::Agg.name();
    let arguments = Arguments { name, instruction: "", positional: &[], options, noun: "text", embeddings: None };
    scalar::value_type(Function::Complete, &arguments)
}

pub(super) fn stages(parts: &Parts) -> Result<(Reduction, Vec<LlmCall>, String)> {
    let instruction = parts.instruction()?;
    let chunk = scalar::task(Function::Complete, &parts.arguments(&instruction, parts.raw()))?;
    let combine = Task {
        instruction: format!(
            "Each row holds an answer to the query below, given for a part of the data. Combine them into one answer for all \
             of the data.\n\nQuery: {}",
            chunk.instruction
        ),
        ..chunk.clone()
    };
    let shown = chunk.shown.clone();
    let stages = vec![parts.rows_stage(chunk, parts.labels.to_vec()), parts.rows_stage(combine, vec![PARTIAL_LABEL.into()])];
    let overflow = parts.keyword("overflow", Overflow::Hierarchical)?;
    Ok((Reduction::Hierarchy { overflow }, stages, shown))
}
