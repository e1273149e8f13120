//! `ai_extract(input, fields)`: a STRUCT with one field for each thing asked, typed when the statement is planned.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};
use serde_json::Value;

use super::Arguments;
use super::arguments::listing;
use crate::task::{Shape, Task};
use crate::value_type::ValueType;

pub(super) fn value_type(arguments: &Arguments) -> Result<DataType> {
    Ok(fields(arguments)?.0.data_type)
}

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    let (ValueType { data_type, schema }, questions) = fields(arguments)?;
    let DataType::Struct(fields) = &data_type else {
        return plan_err!("{}: fields must describe an object", arguments.name);
    };
    let names: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
    let mut instruction = format!("Extract {} from the {} as a JSON object.", listing(&names, "and"), arguments.noun);
    for (name, question) in &questions {
        instruction.push_str(&format!("\n- {name}: {question}"));
    }
    if !questions.is_empty() {
        instruction.push('\n');
    }
    Ok(Task {
        instruction: instruction.trim_end().to_string(),
        answer_form: "Use null for what is not there.".into(),
        shown: format!("extract=[{}]", names.join(", ")),
        shape: Shape::Json { schema, value_type: data_type },
    })
}

/// Returns the struct to answer with, and the question of each field that has one.
fn fields(arguments: &Arguments) -> Result<(ValueType, Vec<(String, String)>)> {
    match arguments.required(0, "fields")? {
        Value::String(text) => {
            let subject = format!("{}: fields", arguments.name);
            let parsed = ValueType::parse(&subject, text)?;
            match &parsed.data_type {
                DataType::Struct(fields) if !fields.is_empty() => Ok((parsed, Vec::new())),
                other => plan_err!("{subject} must describe a struct such as 'STRUCT(name VARCHAR)', not {other}"),
            }
        }
        list @ Value::Array(_) => {
            let names = arguments.texts(list, "fields")?;
            Ok((ValueType::text_fields(names.iter().map(String::as_str)), Vec::new()))
        }
        Value::Object(object) if !object.is_empty() => {
            let question = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_string()));
            let questions = object.iter().filter_map(question).collect();
            Ok((ValueType::text_fields(object.keys().map(String::as_str)), questions))
        }
        other => plan_err!(
            "{}: fields must be a list of names, a struct of questions, or a type such as 'STRUCT(name VARCHAR)', not {other}",
            arguments.name
        ),
    }
}
