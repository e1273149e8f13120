//! `ai_embed(input [, dimensions => n])`: a vector of unit length, whose length is part of its type.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, internal_err, plan_err};

use super::Arguments;
use crate::options::{string, text_of, whole};
use crate::task::{Shape, Task, vector_type};

pub(super) fn value_type(arguments: &Arguments) -> Result<DataType> {
    Ok(vector_type(dimensions(arguments)?.0))
}

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    let (dimensions, is_shortened) = dimensions(arguments)?;
    Ok(Task {
        instruction: String::new(),
        answer_form: String::new(),
        shape: Shape::Embedding { dimensions, is_shortened },
        shown: if is_shortened { format!("dimensions={dimensions}") } else { String::new() },
    })
}

/// Returns the length of the vectors, and whether the call asks for it: otherwise it is the model's own.
fn dimensions(arguments: &Arguments) -> Result<(u32, bool)> {
    let name = arguments.name;
    let option = |option: &str| arguments.options.get(option).map(|value| (arguments.option_subject(option), value));
    let Some(source) = arguments.embeddings else { return internal_err!("{name} does not know the models") };
    let asked = option("dimensions").map(|(subject, value)| whole::<u32>(&subject, &text_of(value), 1)).transpose()?;
    let model = option("model").map(|(subject, value)| string(&subject, value)).transpose()?;
    match (asked, source.dimensions(model.as_deref())?) {
        (Some(asked), Some(own)) if asked > own => {
            plan_err!("{name}: dimensions => {asked} is more than the model gives, which is {own}")
        }
        // A type cannot be longer; models give some thousands at most.
        (Some(asked), _) if asked > i32::MAX as u32 => plan_err!("{name}: dimensions => {asked} is too many"),
        (Some(asked), own) => Ok((asked, own != Some(asked))),
        (None, Some(own)) => Ok((own, false)),
        (None, None) => plan_err!(
            "{name}: the length of the model's vectors is not known before it answers; write dimensions => n in the call, or in \
             CREATE EXTERNAL MODEL … WITH (dimensions = n)"
        ),
    }
}
