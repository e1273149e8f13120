//! `ai_filter(instruction [, input…])`: whether a statement holds or a question is answered by yes. BOOLEAN, or with
//! `output_mode => 'probability'` how sure the model is of it: DOUBLE.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;

use super::Arguments;
use crate::options::{Keyword, text_of};
use crate::task::{Shape, Task};

#[derive(Clone, Copy, PartialEq)]
enum OutputMode {
    Boolean,
    Probability,
}

impl Keyword for OutputMode {
    const VALUES: &'static [(&'static str, OutputMode)] =
        &[("boolean", OutputMode::Boolean), ("probability", OutputMode::Probability)];
}

pub(super) fn value_type(arguments: &Arguments) -> Result<DataType> {
    Ok(match output_mode(arguments)? {
        OutputMode::Boolean => DataType::Boolean,
        OutputMode::Probability => DataType::Float64,
    })
}

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    Ok(Task {
        instruction: arguments.sentence(),
        answer_form: "Answer with ONLY 'Yes' or 'No'.".into(),
        shape: match output_mode(arguments)? {
            OutputMode::Boolean => Shape::Boolean,
            OutputMode::Probability => Shape::Probability,
        },
        shown: arguments.shown_instruction(),
    })
}

fn output_mode(arguments: &Arguments) -> Result<OutputMode> {
    match arguments.options.get("output_mode") {
        None => Ok(OutputMode::Boolean),
        Some(value) => OutputMode::parse(&arguments.option_subject("output_mode"), &text_of(value)),
    }
}
