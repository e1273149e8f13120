//! `ai_complete(instruction [, input…] [, return_type => t | regex => r])`: VARCHAR, or a value of the type that is asked for.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};

use super::Arguments;
use super::arguments::{listing, shorten};
use crate::options::string;
use crate::task::{Shape, Task};
use crate::value_type::ValueType;

pub(super) fn value_type(arguments: &Arguments) -> Result<DataType> {
    regex(arguments)?;
    Ok(return_type(arguments)?.map_or(DataType::Utf8, |value_type| value_type.data_type))
}

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    let instruction = arguments.instruction.trim().to_string();
    let shown = arguments.shown_instruction();
    if let Some(expression) = regex(arguments)? {
        let answer_form = format!("Answer with ONLY text that matches this regular expression: {expression}");
        let of_shape = format!("regex='{}'", shorten(&expression));
        let shown = if shown.is_empty() { of_shape } else { format!("{shown}, {of_shape}") };
        return Ok(Task { instruction: arguments.sentence(), answer_form, shape: Shape::Regex(expression), shown });
    }
    let Some(ValueType { data_type, schema }) = return_type(arguments)? else {
        return Ok(Task { instruction, answer_form: String::new(), shape: Shape::Text, shown });
    };
    let answer_form = match &data_type {
        DataType::Boolean => "Answer with ONLY 'Yes' or 'No'.".to_string(),
        number if number.is_numeric() => "Answer with the number only.".to_string(),
        DataType::Struct(fields) => {
            let keys: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
            format!("Answer with a JSON object with the keys {}.", listing(&keys, "and"))
        }
        DataType::List(_) => "Answer with a JSON list.".to_string(),
        _ => format!("Answer with JSON that follows this schema: {schema}"),
    };
    let shape = if data_type == DataType::Boolean { Shape::Boolean } else { Shape::Json { schema, value_type: data_type } };
    Ok(Task { instruction: arguments.sentence(), answer_form, shape, shown })
}

/// Returns the regular expression that bounds the answer, if there is one. Whether it is one shows when the call is planned.
fn regex(arguments: &Arguments) -> Result<Option<String>> {
    let Some(value) = arguments.options.get("regex") else { return Ok(None) };
    if let Some(other) = ["return_type", "response_schema"].into_iter().find(|other| arguments.options.contains_key(*other))
    {
        return plan_err!("{}: regex and {other} both say what an answer looks like; give one of them", arguments.name);
    }
    Ok(Some(string(&arguments.option_subject("regex"), value)?))
}

/// Returns the type that is asked for; `None` for plain text.
fn return_type(arguments: &Arguments) -> Result<Option<ValueType>> {
    let (name, value) = match (arguments.options.get("return_type"), arguments.options.get("response_schema")) {
        (Some(_), Some(_)) => {
            return plan_err!("{}: return_type and response_schema are one option; give one of them", arguments.name);
        }
        (Some(value), None) => ("return_type", value),
        (None, Some(value)) => ("response_schema", value),
        (None, None) => return Ok(None),
    };
    let subject = arguments.option_subject(name);
    let text = string(&subject, value)?;
    let parsed = ValueType::parse(&subject, &text)?;
    let is_plain_text = parsed.data_type == DataType::Utf8 && !text.trim_start().starts_with('{');
    Ok((!is_plain_text).then_some(parsed))
}
