//! What a function asks: the instruction, the form of the answer, and how an answer becomes a value.

use std::sync::Arc;

use datafusion::arrow::array::{FixedSizeListArray, Float32Array};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;
use refrain_serving::{Answer, OutputShape};
use serde_json::{Value, json};

use crate::options::Float;
use crate::value_type::scalar_of;

/// What one call asks of the model for every row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    /// What to do. In template mode the user's text stands in the template, and this is empty.
    pub instruction: String,
    /// How to answer, a sentence or two; may be empty.
    pub answer_form: String,
    /// What an answer must look like.
    pub shape: Shape,
    /// The constant arguments as EXPLAIN shows them, such as `'clearly positive'` or `labels=[a, b]`; may be empty.
    pub shown: String,
}

/// What an answer must look like, and which type it becomes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Labels: VARCHAR, or a list of VARCHAR.
    Choice {
        /// The labels, distinct and not empty.
        labels: Vec<String>,
        /// Whether any number of labels may be given.
        multi: bool,
    },
    /// Yes or No: BOOLEAN.
    Boolean,
    /// How probable Yes is where Yes or No is asked: DOUBLE between 0 and 1.
    Probability,
    /// A number within `min..=max`: DOUBLE.
    Number {
        /// The least value.
        min: Float,
        /// The greatest value.
        max: Float,
        /// Whether only whole numbers are allowed.
        integer: bool,
    },
    /// JSON under a schema.
    Json {
        /// The JSON schema.
        schema: Value,
        /// The type that an answer becomes.
        value_type: DataType,
    },
    /// Any text: VARCHAR.
    Text,
    /// Text that matches a regular expression as a whole: VARCHAR.
    Regex(String),
    /// A vector: a list of so many REAL.
    Embedding {
        /// Its length.
        dimensions: u32,
        /// Whether the call asks for this length; otherwise it is the model's own.
        is_shortened: bool,
    },
}

/// The answers of a [`Shape::Boolean`] and of a [`Shape::Probability`].
const YES: &str = "Yes";
const NO: &str = "No";

impl Task {
    /// Returns the shape as the serving engine enforces it.
    pub fn output_shape(&self) -> OutputShape {
        match &self.shape {
            Shape::Choice { labels, multi: false } => OutputShape::Choice(labels.clone()),
            Shape::Choice { labels, multi: true } => OutputShape::Json(
                json!({"type": "array", "items": {"type": "string", "enum": labels}, "maxItems": labels.len()}),
            ),
            Shape::Boolean | Shape::Probability => OutputShape::Choice(vec![YES.into(), NO.into()]),
            Shape::Number { min, max, integer } => OutputShape::Number { min: min.0, max: max.0, integer: *integer },
            Shape::Json { schema, .. } => OutputShape::Json(schema.clone()),
            Shape::Text => OutputShape::Text,
            Shape::Regex(expression) => OutputShape::Regex(expression.clone()),
            Shape::Embedding { dimensions, is_shortened } => {
                OutputShape::Embedding { dimensions: is_shortened.then_some(*dimensions) }
            }
        }
    }

    /// Returns how many probable tokens a request must report, if it must: none but the chosen one, among those of the shape.
    pub fn logprobs(&self) -> Option<u32> {
        (self.shape == Shape::Probability).then_some(0)
    }

    /// Returns the type of a value, errors aside.
    pub fn value_type(&self) -> DataType {
        match &self.shape {
            Shape::Choice { multi: false, .. } | Shape::Text | Shape::Regex(_) => DataType::Utf8,
            Shape::Choice { multi: true, .. } => DataType::new_list(DataType::Utf8, true),
            Shape::Boolean => DataType::Boolean,
            Shape::Number { .. } | Shape::Probability => DataType::Float64,
            Shape::Json { value_type, .. } => value_type.clone(),
            Shape::Embedding { dimensions, .. } => vector_type(*dimensions),
        }
    }

    /// Converts an answer to a value, from its vector or its text. Fails, in words, if the answer does not have the shape.
    pub fn read(&self, answer: Answer) -> Result<ScalarValue, String> {
        match (&self.shape, answer.embedding) {
            (Shape::Embedding { dimensions, .. }, Some(vector)) => vector_value(vector, *dimensions),
            (Shape::Embedding { .. }, None) => Err("the model answered without a vector".to_string()),
            (Shape::Probability, _) if !answer.logprobs.is_empty() => {
                let chosen = answer.logprobs.iter().map(|token| f64::from(token.logprob)).sum::<f64>().exp().min(1.0);
                let yes = truth(&answer.text)? == ScalarValue::Boolean(Some(true));
                Ok(ScalarValue::Float64(Some(if yes { chosen } else { 1.0 - chosen })))
            }
            (Shape::Probability, _) if truth(&answer.text).is_ok() => {
                Err("the model answered without probabilities".to_string())
            }
            _ => self.parse(&answer.text),
        }
    }

    /// Converts the text of an answer to a value; that of a vector is a JSON list, that of a probability the number. Fails, in words, if the answer does not have
    /// the shape.
    pub fn parse(&self, answer: &str) -> Result<ScalarValue, String> {
        match &self.shape {
            Shape::Text => Ok(ScalarValue::Utf8(Some(answer.trim().to_string()))),
            // White space may be part of it.
            Shape::Regex(_) => Ok(ScalarValue::Utf8(Some(answer.to_string()))),
            Shape::Boolean => truth(answer),
            Shape::Choice { labels, multi: false } => Ok(ScalarValue::Utf8(Some(label(answer, labels)?))),
            Shape::Choice { labels, multi: true } => {
                let mut chosen: Vec<Value> = Vec::new();
                for text in serde_json::from_str::<Vec<String>>(answer).map_err(|error| not_json(answer, &error))? {
                    let label = Value::String(label(&text, labels)?);
                    if !chosen.contains(&label) {
                        chosen.push(label);
                    }
                }
                scalar_of(&Value::Array(chosen), &self.value_type())
            }
            Shape::Number { min, max, integer } => number(answer, min.0, max.0, *integer),
            Shape::Probability => number(answer, 0.0, 1.0, false),
            Shape::Json { value_type, .. } => {
                let value: Value = serde_json::from_str(answer).map_err(|error| not_json(answer, &error))?;
                scalar_of(&value, value_type)
            }
            Shape::Embedding { dimensions, .. } => {
                vector_value(serde_json::from_str(answer).map_err(|error| not_json(answer, &error))?, *dimensions)
            }
        }
    }
}

/// Returns the type of vectors of a length.
pub(crate) fn vector_type(dimensions: u32) -> DataType {
    DataType::FixedSizeList(vector_item(), dimensions as i32)
}

fn vector_item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Float32, true))
}

pub(crate) fn vector_value(vector: Vec<f32>, dimensions: u32) -> Result<ScalarValue, String> {
    if vector.len() != dimensions as usize {
        return Err(format!("the model answered with {} dimensions, and {dimensions} were planned", vector.len()));
    }
    if vector.iter().any(|x| !x.is_finite()) {
        return Err("the model answered with a vector that is not finite".to_string());
    }
    let values = Arc::new(Float32Array::from(vector));
    let list = FixedSizeListArray::try_new(vector_item(), dimensions as i32, values, None);
    list.map(|list| ScalarValue::FixedSizeList(Arc::new(list))).map_err(|error| error.to_string())
}

fn truth(answer: &str) -> Result<ScalarValue, String> {
    let word = answer.trim().trim_end_matches('.');
    if word.eq_ignore_ascii_case(YES) || word.eq_ignore_ascii_case("true") {
        Ok(ScalarValue::Boolean(Some(true)))
    } else if word.eq_ignore_ascii_case(NO) || word.eq_ignore_ascii_case("false") {
        Ok(ScalarValue::Boolean(Some(false)))
    } else {
        Err(format!("{answer:?} is neither Yes nor No"))
    }
}

/// Returns the label that an answer means: exactly, or but for case if only one label fits.
fn label(answer: &str, labels: &[String]) -> Result<String, String> {
    if let Some(label) = labels.iter().find(|label| *label == answer) {
        return Ok(label.clone());
    }
    let word = answer.trim().to_lowercase();
    let mut near = labels.iter().filter(|label| label.trim().to_lowercase() == word);
    match (near.next(), near.next()) {
        (Some(label), None) => Ok(label.clone()),
        _ => Err(format!("{answer:?} is none of the labels")),
    }
}

fn number(answer: &str, min: f64, max: f64, integer: bool) -> Result<ScalarValue, String> {
    let value = answer.trim().parse::<f64>().ok().filter(|value| value.is_finite());
    let Some(value) = value else {
        return Err(format!("{answer:?} is no number"));
    };
    if integer && value.fract() != 0.0 {
        return Err(format!("{value} is no whole number"));
    }
    if value < min || value > max {
        return Err(format!("{value} is not between {min} and {max}"));
    }
    Ok(ScalarValue::Float64(Some(value)))
}

fn not_json(answer: &str, error: &serde_json::Error) -> String {
    format!("{answer:?} is not the JSON that was asked for: {error}")
}

#[cfg(test)]
mod tests {
    use refrain_serving::{FinishReason, TokenLogprobs};

    use super::*;

    fn task(shape: Shape) -> Task {
        Task { instruction: String::new(), answer_form: String::new(), shape, shown: String::new() }
    }

    #[track_caller]
    fn check(shape: Shape, answer: &str, expected: Result<&str, &str>) {
        let task = task(shape);
        let got = task.parse(answer);
        if let Ok(value) = &got {
            assert_eq!(value.data_type(), task.value_type());
        }
        assert_eq!(got.map(|value| value.to_string()), expected.map(String::from).map_err(String::from));
    }

    #[test]
    fn parses_each_shape() {
        check(Shape::Text, " hello ", Ok("hello"));
        check(Shape::Regex(" ?a+".into()), " aa", Ok(" aa"));
        check(Shape::Boolean, "Yes", Ok("true"));
        check(Shape::Boolean, "no.", Ok("false"));
        check(Shape::Boolean, "maybe", Err("\"maybe\" is neither Yes nor No"));
        let choice = |multi| Shape::Choice { labels: vec!["a".into(), "B".into()], multi };
        check(choice(false), "B", Ok("B"));
        check(choice(false), "b ", Ok("B"));
        check(choice(false), "c", Err("\"c\" is none of the labels"));
        check(choice(true), r#"["a", "B", "a"]"#, Ok("[a, B]"));
        check(choice(true), "[]", Ok("[]"));
        check(choice(true), r#"["c"]"#, Err("\"c\" is none of the labels"));
        let number = |integer| Shape::Number { min: Float(0.0), max: Float(5.0), integer };
        check(number(false), "2.5", Ok("2.5"));
        check(number(true), "3", Ok("3"));
        check(number(true), "2.5", Err("2.5 is no whole number"));
        check(number(false), "7", Err("7 is not between 0 and 5"));
        check(number(false), "many", Err("\"many\" is no number"));
        let list = Shape::Json { schema: json!({}), value_type: DataType::new_list(DataType::Utf8, true) };
        check(list.clone(), r#"["x"]"#, Ok("[x]"));
        check(list, "{}", Err("{} is no List(Utf8)"));
    }

    #[test]
    fn reads_probabilities() {
        let task = task(Shape::Probability);
        let answer = |text: &str, logprobs: &[f32]| Answer {
            logprobs: logprobs.iter().map(|&logprob| TokenLogprobs { logprob, top: vec![] }).collect(),
            ..Answer::text(text.into(), vec![], FinishReason::Stop)
        };
        let quarter = 0.25_f32.ln();
        assert_eq!(task.read(answer("Yes", &[quarter])), Ok(ScalarValue::Float64(Some(f64::from(quarter).exp()))));
        assert_eq!(task.read(answer("No", &[quarter, 0.0])), Ok(ScalarValue::Float64(Some(1.0 - f64::from(quarter).exp()))));
        assert_eq!(task.read(answer("No", &[])), Err("the model answered without probabilities".to_string()));
        // As it is kept.
        assert_eq!(task.read(answer("0.5", &[])), Ok(ScalarValue::Float64(Some(0.5))));
        assert_eq!((task.logprobs(), task.value_type()), (Some(0), DataType::Float64));
    }

    #[test]
    fn reads_vectors() {
        let task = task(Shape::Embedding { dimensions: 2, is_shortened: true });
        let answer = |embedding| Answer { embedding, ..Answer::text("[1, 2]".into(), vec![], FinishReason::Stop) };
        let value = task.read(answer(Some(vec![0.5, 2.0]))).unwrap();
        assert_eq!((value.data_type(), value.to_string()), (task.value_type(), "[0.5, 2.0]".to_string()));
        assert_eq!(task.parse("[0.5, 2.0]").unwrap(), value);
        for wrong in [None, Some(vec![1.0]), Some(vec![1.0, f32::NAN])] {
            assert!(task.read(answer(wrong)).is_err());
        }
        assert_eq!(task.output_shape(), OutputShape::Embedding { dimensions: Some(2) });
    }

    #[test]
    fn shapes_for_serving() {
        assert_eq!(task(Shape::Regex("a+".into())).output_shape(), OutputShape::Regex("a+".into()));
        assert_eq!(task(Shape::Boolean).output_shape(), OutputShape::Choice(vec!["Yes".into(), "No".into()]));
        assert_eq!(
            task(Shape::Choice { labels: vec!["a".into()], multi: true }).output_shape(),
            OutputShape::Json(json!({"type": "array", "items": {"type": "string", "enum": ["a"]}, "maxItems": 1}))
        );
    }
}
