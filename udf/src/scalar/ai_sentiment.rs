//! `ai_sentiment(text [, aspects])`: positive, negative, neutral or mixed. VARCHAR, or a MAP with one entry an aspect.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;
use serde_json::json;

use super::Arguments;
use crate::task::{Shape, Task};
use crate::value_type::{nullable, object_schema, text_map};

const LABELS: [&str; 4] = ["positive", "negative", "neutral", "mixed"];

pub(super) fn value_type(arguments: &Arguments) -> DataType {
    if arguments.positional.is_empty() { DataType::Utf8 } else { text_map() }
}

pub(super) fn task(arguments: &Arguments) -> Result<Task> {
    if arguments.positional.is_empty() {
        return Ok(Task {
            instruction: format!(
                "Classify the sentiment of the {} as positive, negative, neutral or mixed.",
                arguments.noun
            ),
            answer_form: "Answer with only the label.".into(),
            shape: Shape::Choice { labels: LABELS.map(String::from).to_vec(), multi: false },
            shown: String::new(),
        });
    }
    let aspects = arguments.texts(arguments.required(0, "aspects")?, "aspects")?;
    let label = || nullable(json!({"type": "string", "enum": LABELS}));
    let schema = object_schema(aspects.iter().map(|aspect| (aspect.clone(), label())));
    Ok(Task {
        instruction: format!(
            "Classify the sentiment of the {} towards each of these aspects as positive, negative, neutral or mixed: {}.",
            arguments.noun,
            aspects.join(", ")
        ),
        answer_form: "Answer with a JSON object with one key for each aspect. Use null for an aspect that is not mentioned."
            .into(),
        shape: Shape::Json { schema, value_type: text_map() },
        shown: format!("aspects=[{}]", aspects.join(", ")),
    })
}
