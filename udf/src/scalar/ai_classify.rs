//! `ai_classify(input, labels [, output_mode => 'multi'])`: one label, or all that fit. VARCHAR or LIST of VARCHAR.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};
use serde_json::Value;

use super::Arguments;
use crate::options::Keyword;
use crate::task::{Shape, Task};

#[derive(Clone, Copy, PartialEq)]
enum OutputMode {
    Single,
    Multi,
}

impl Keyword for OutputMode {
    const VALUES: &'static [(&'static str, OutputMode)] = &[("single", OutputMode::Single), ("multi", OutputMode::Multi)];
}

pub(super) fn value_type(arguments: &Arguments) -> Result<DataType> {
    Ok(match output_mode(arguments)? {
        OutputMode::Single => DataType::Utf8,
        OutputMode::Multi => DataType::new_list(DataType::Utf8, true),
    })
}

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    let (labels, descriptions) = labels(arguments)?;
    let multi = output_mode(arguments)? == OutputMode::Multi;
    let ask = if multi { "Assign every label that fits to" } else { "Assign one label to" };
    let list = if descriptions.iter().any(Option::is_some) {
        let line = |(label, description): (&String, &Option<String>)| match description {
            Some(text) => format!("\n- {label}: {text}"),
            None => format!("\n- {label}"),
        };
        labels.iter().zip(&descriptions).map(line).collect::<String>() + "\n"
    } else {
        format!(" {}.", labels.join(", "))
    };
    let answer_form = if multi { "Answer with a JSON list of labels." } else { "Answer with only the label." };
    Ok(Task {
        instruction: format!("{ask} the {}. Labels:{list}", arguments.noun).trim_end().to_string(),
        answer_form: answer_form.into(),
        shown: format!("labels=[{}]", labels.join(", ")),
        shape: Shape::Choice { labels, multi },
    })
}

fn output_mode(arguments: &Arguments) -> Result<OutputMode> {
    match arguments.options.get("output_mode") {
        None => Ok(OutputMode::Single),
        Some(value) => OutputMode::parse(&arguments.option_subject("output_mode"), &crate::options::text_of(value)),
    }
}

/// Returns the labels, and the description of each that has one.
fn labels(arguments: &Arguments) -> Result<(Vec<String>, Vec<Option<String>>)> {
    let value = arguments.required(0, "labels")?;
    if !matches!(value, Value::Array(values) if values.iter().any(Value::is_object)) {
        let labels = arguments.texts(value, "labels")?;
        let descriptions = vec![None; labels.len()];
        return Ok((labels, descriptions));
    }
    let (mut labels, mut descriptions) = (Vec::new(), Vec::new());
    for entry in value.as_array().into_iter().flatten() {
        let (Value::String(label), description) = (&entry["label"], &entry["description"]) else {
            return plan_err!(
                "{}: labels must be strings or {{label, description}}, and {entry} is neither",
                arguments.name
            );
        };
        arguments.push_distinct(&mut labels, label, "labels")?;
        descriptions.push(description.as_str().map(String::from));
    }
    Ok((labels, descriptions))
}
