//! `on_overflow => 'chunk'`: how the answers about the chunks of a text become the answer about all of it.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, StructArray};
use datafusion::arrow::datatypes::Float32Type;
use datafusion::common::{Result, ScalarValue, plan_err};
use serde_json::{Map, Value};

use crate::call::LlmCall;
use crate::constant::scalar_value;
use crate::function::Function;
use crate::options::OnOverflow;
use crate::task::{Shape, Task, vector_value};
use crate::value_type::scalar_of;

/// How far the length of a vector may be from 1 for it to count as normalised.
const UNIT_TOLERANCE: f64 = 1e-3;

/// How answers about chunks are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combination {
    /// TRUE if it is of any chunk.
    AnyTrue,
    /// The greatest probability.
    Greatest,
    /// The label whose chunks have most tokens; of equals the first.
    MostTokens,
    /// Each label that any chunk has, in the order of the labels.
    Union,
    /// The mean, by tokens.
    Mean,
    /// Of each field the first value that is not NULL.
    FirstValues,
    /// [`MostTokens`](Self::MostTokens), aspect by aspect; chunks that do not mention one do not count.
    MostTokensByAspect,
    /// The answers one after the other, with the white space that stood between the chunks.
    Joined,
    /// The answers are texts, and the question is asked again about all of them.
    AskedAgain,
    /// The mean of the vectors, by tokens, of unit length if they are.
    MeanVector,
}

/// The answer about one chunk.
#[derive(Clone, Copy, Debug)]
pub struct ChunkAnswer<'a> {
    /// The text of the chunk. All of them one after the other are the text that was cut.
    pub text: &'a str,
    /// How many tokens it has.
    pub tokens: usize,
    /// The answer.
    pub value: &'a ScalarValue,
}

impl Function {
    /// Fails if what is to happen to a text that is too long cannot be done for this function; `name` is how it was called.
    pub fn check_overflow(self, name: &str, on_overflow: OnOverflow) -> Result<()> {
        if on_overflow == OnOverflow::Chunk && (self == Function::Complete || self.is_aggregate()) {
            return plan_err!(
                "{name}: on_overflow = 'chunk' needs a rule that makes one answer of those about chunks, and {name} has none; \
                 use on_overflow => 'truncate' or 'error'"
            );
        }
        Ok(())
    }
}

impl Combination {
    /// Returns how answers to a call are combined; `None` if they cannot be.
    pub fn of(call: &LlmCall) -> Option<Combination> {
        Some(match (&call.task.shape, call.function) {
            (Shape::Boolean, _) => Combination::AnyTrue,
            (Shape::Probability, _) => Combination::Greatest,
            (Shape::Choice { multi: false, .. }, _) => Combination::MostTokens,
            (Shape::Choice { multi: true, .. }, _) => Combination::Union,
            (Shape::Number { .. }, _) => Combination::Mean,
            (Shape::Embedding { .. }, _) => Combination::MeanVector,
            (Shape::Json { .. }, Function::Extract) => Combination::FirstValues,
            (Shape::Json { .. }, Function::Sentiment) => Combination::MostTokensByAspect,
            (Shape::Text, Function::Summarize) => Combination::AskedAgain,
            (Shape::Text, Function::Translate | Function::Redact | Function::FixGrammar) => Combination::Joined,
            _ => return None,
        })
    }

    /// Returns the answer about all of the text, of which there is at least one chunk: a value of the task's type. Under
    /// [`AskedAgain`](Self::AskedAgain) it is the text to ask about. Fails, in words, if the answers are not of the task.
    pub fn combine(self, task: &Task, answers: &[ChunkAnswer<'_>]) -> Result<ScalarValue, String> {
        let values = || answers.iter().map(|answer| answer.value);
        match self {
            Combination::AnyTrue => Ok(ScalarValue::from(values().any(|value| *value == ScalarValue::Boolean(Some(true))))),
            Combination::Greatest => {
                let numbers = answers.iter().map(number).collect::<Result<Vec<_>, _>>()?;
                Ok(ScalarValue::Float64(numbers.into_iter().map(|(value, _)| value).reduce(f64::max)))
            }
            Combination::Mean => mean(task, answers),
            Combination::MostTokens => {
                let given =
                    answers.iter().map(|answer| Ok((json(answer)?, answer.tokens))).collect::<Result<Vec<_>, String>>()?;
                scalar_of(&most_tokens(labels(task), &given), &task.value_type())
            }
            Combination::Union => {
                let given = answers.iter().map(json).collect::<Result<Vec<_>, _>>()?;
                let is_given = |label: &&String| {
                    given.iter().filter_map(Value::as_array).flatten().any(|other| other == label.as_str())
                };
                let union = labels(task).iter().filter(is_given).map(|label| Value::from(label.as_str())).collect();
                scalar_of(&Value::Array(union), &task.value_type())
            }
            Combination::MostTokensByAspect => by_aspect(task, answers),
            Combination::FirstValues => first_values(answers),
            Combination::Joined => Ok(ScalarValue::from(joined(answers)?)),
            Combination::AskedAgain => {
                let texts = answers.iter().map(text).collect::<Result<Vec<_>, _>>()?;
                Ok(ScalarValue::from(texts.join("\n")))
            }
            Combination::MeanVector => mean_vector(task, answers),
        }
    }
}

/// Returns the labels of a task, in their order.
fn labels(task: &Task) -> &[String] {
    match &task.shape {
        Shape::Choice { labels, .. } => labels,
        _ => &[],
    }
}

fn json(answer: &ChunkAnswer<'_>) -> Result<Value, String> {
    scalar_value(answer.value).map_err(|error| error.to_string())
}

fn text<'a>(answer: &ChunkAnswer<'a>) -> Result<&'a str, String> {
    answer.value.try_as_str().flatten().ok_or_else(|| format!("{} is no text", answer.value))
}

/// Returns a number and the weight of its chunk.
fn number(answer: &ChunkAnswer<'_>) -> Result<(f64, f64), String> {
    match answer.value {
        ScalarValue::Float64(Some(value)) => Ok((*value, weight(answer))),
        other => Err(format!("{other} is no number")),
    }
}

/// A chunk without tokens, such as one of white space, counts as one with one.
fn weight(answer: &ChunkAnswer<'_>) -> f64 {
    answer.tokens.max(1) as f64
}

fn mean(task: &Task, answers: &[ChunkAnswer<'_>]) -> Result<ScalarValue, String> {
    let (mut sum, mut weights) = (0.0, 0.0);
    for answer in answers {
        let (value, weight) = number(answer)?;
        (sum, weights) = (sum + value * weight, weights + weight);
    }
    let mean: f64 = sum / weights;
    let value = match &task.shape {
        Shape::Number { integer: true, .. } => mean.round(),
        // Rounding must not lead out of the range.
        Shape::Number { min, max, .. } => mean.clamp(min.0, max.0),
        _ => mean,
    };
    Ok(ScalarValue::Float64(Some(value)))
}

/// Returns the label whose chunks have most tokens; NULL if no chunk has one.
fn most_tokens(labels: &[String], given: &[(Value, usize)]) -> Value {
    let tokens_of = |label: &String| {
        given.iter().filter(|(value, _)| value == label.as_str()).map(|(_, tokens)| (*tokens).max(1)).sum::<usize>()
    };
    let mut best: Option<(&String, usize)> = None;
    for label in labels {
        let tokens = tokens_of(label);
        if tokens > best.map_or(0, |(_, most)| most) {
            best = Some((label, tokens));
        }
    }
    best.map_or(Value::Null, |(label, _)| Value::from(label.as_str()))
}

fn by_aspect(task: &Task, answers: &[ChunkAnswer<'_>]) -> Result<ScalarValue, String> {
    let Shape::Json { schema, value_type } = &task.shape else { return Err("the answers have no aspects".to_owned()) };
    let given = answers.iter().map(|answer| Ok((json(answer)?, answer.tokens))).collect::<Result<Vec<_>, String>>()?;
    let mut result = Map::new();
    for (aspect, of_aspect) in schema["properties"].as_object().into_iter().flatten() {
        let labels = of_aspect["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let of_chunks: Vec<(Value, usize)> = given.iter().map(|(value, tokens)| (value[aspect].clone(), *tokens)).collect();
        result.insert(aspect.clone(), most_tokens(&labels.collect::<Vec<_>>(), &of_chunks));
    }
    scalar_of(&Value::Object(result), value_type)
}

fn first_values(answers: &[ChunkAnswer<'_>]) -> Result<ScalarValue, String> {
    let mut rows: Vec<&Arc<StructArray>> = vec![];
    for answer in answers {
        match answer.value {
            ScalarValue::Struct(row) => rows.push(row),
            other => return Err(format!("{other} is no struct")),
        }
    }
    let first = rows.first().ok_or("there is no answer")?;
    let column = |at: usize| -> ArrayRef {
        let said = rows.iter().find(|row| row.is_valid(0) && row.column(at).is_valid(0)).unwrap_or(first);
        Arc::clone(said.column(at))
    };
    let columns = (0..first.num_columns()).map(column).collect();
    let row =
        StructArray::try_new_with_length(first.fields().clone(), columns, None, 1).map_err(|error| error.to_string())?;
    Ok(ScalarValue::Struct(Arc::new(row)))
}

/// Joins texts. Answers are trimmed, so the white space at the ends of their chunks is put back between them.
fn joined(answers: &[ChunkAnswer<'_>]) -> Result<String, String> {
    let mut out = String::new();
    for (at, answer) in answers.iter().enumerate() {
        let chunk = answer.text;
        if at > 0 {
            out += &chunk[..chunk.len() - chunk.trim_start().len()];
        }
        out += text(answer)?;
        if at + 1 < answers.len() {
            // All of a blank chunk stands in front of its answer.
            out += &chunk[chunk.trim_end().len().max(chunk.len() - chunk.trim_start().len())..];
        }
    }
    Ok(out)
}

fn mean_vector(task: &Task, answers: &[ChunkAnswer<'_>]) -> Result<ScalarValue, String> {
    let Shape::Embedding { dimensions, .. } = task.shape else { return Err("the answers are no vectors".to_owned()) };
    let mut sum = vec![0.0_f64; dimensions as usize];
    let (mut weights, mut are_units) = (0.0, true);
    for answer in answers {
        let ScalarValue::FixedSizeList(list) = answer.value else { return Err(format!("{} is no vector", answer.value)) };
        let vector = list.value(0);
        let vector = vector.as_primitive::<Float32Type>().values();
        let weight = weight(answer);
        sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += f64::from(*x) * weight);
        weights += weight;
        are_units &= (norm(vector.iter().map(|x| f64::from(*x))) - 1.0).abs() < UNIT_TOLERANCE;
    }
    let length = norm(sum.iter().copied());
    let divisor = if are_units && length > 0.0 { length } else { weights };
    vector_value(sum.into_iter().map(|x| (x / divisor) as f32).collect(), dimensions)
}

fn norm(vector: impl Iterator<Item = f64>) -> f64 {
    vector.map(|x| x * x).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::call;

    /// Combines the answers `(chunk, tokens, answer of the model)` of a call.
    #[track_caller]
    fn check(call: &LlmCall, answers: &[(&str, usize, &str)], expected: &str) {
        let values: Vec<ScalarValue> = answers.iter().map(|(_, _, answer)| call.task.parse(answer).unwrap()).collect();
        let answers: Vec<ChunkAnswer> = answers
            .iter()
            .zip(&values)
            .map(|((text, tokens, _), value)| ChunkAnswer { text, tokens: *tokens, value })
            .collect();
        let combined = Combination::of(call).unwrap().combine(&call.task, &answers).unwrap();
        assert_eq!(combined.data_type(), call.task.value_type());
        assert_eq!(combined.to_string(), expected);
    }

    macro_rules! check {
        ($sql:expr, $answers:expr, $expected:expr) => {
            check(&call($sql).await.unwrap(), &$answers, $expected)
        };
    }

    #[tokio::test]
    async fn each_function_has_its_rule() {
        check!("ai_filter('p', body)", [("a", 1, "No"), ("b", 1, "Yes")], "true");
        check!("ai_filter('p', body)", [("a", 1, "No"), ("b", 1, "No")], "false");
        check!("ai_filter('p', body, output_mode => 'probability')", [("a", 9, "0.25"), ("b", 1, "0.5")], "0.5");
        let classes = "ai_classify(body, ['x', 'y', 'z'])";
        check!(classes, [("a", 3, "z"), ("b", 4, "y"), ("c", 2, "z")], "z");
        check!(classes, [("a", 4, "z"), ("b", 4, "y")], "y");
        check!(
            "ai_classify(body, ['x', 'y', 'z'], output_mode => 'multi')",
            [("a", 1, r#"["z"]"#), ("b", 1, r#"["z", "x"]"#)],
            "[x, z]"
        );
        check!("ai_sentiment(body)", [("a", 4, "neutral"), ("b", 5, "positive")], "positive");
        check!(
            "ai_sentiment(body, ['food', 'staff', 'room'])",
            [
                ("a", 9, r#"{"food": "negative", "staff": null, "room": null}"#),
                ("b", 5, r#"{"food": "positive", "staff": "mixed", "room": null}"#),
                ("c", 5, r#"{"food": "positive", "staff": null, "room": null}"#)
            ],
            "[{food:positive,staff:mixed,room:}]"
        );
        check!("ai_score('p', body)", [("a", 3, "0"), ("b", 1, "1")], "0.25");
        check!("ai_score('p', body, min => 1, max => 5, integer => true)", [("a", 3, "2"), ("b", 1, "5")], "3");
        check!(
            "ai_extract(body, 'STRUCT(n INT, s VARCHAR)')",
            [("a", 1, r#"{"n": null, "s": "x"}"#), ("b", 1, r#"{"n": 3, "s": "y"}"#)],
            "{n:3,s:x}"
        );
        check!("ai_summarize(body)", [("a ", 1, "One."), ("b", 1, "Two.")], "One.\nTwo.");
        check!("ai_translate(body, 'de')", [(" a\n\n", 1, "A"), ("b ", 1, "B"), (" ", 1, ""), ("c ", 1, "C")], "A\n\nB  C");
        check!("ai_fix_grammar(body)", [("mid", 1, "mid"), ("dle", 1, "dle")], "middle");
    }

    #[tokio::test]
    async fn vectors_are_normalised_as_the_model_does() {
        let call = call("ai_embed(body, dimensions => 2)").await.unwrap();
        check(&call, &[("a", 3, "[1, 0]"), ("b", 4, "[0, 1]")], "[0.6, 0.8]");
        check(&call, &[("a", 1, "[4, 0]"), ("b", 1, "[0, 2]")], "[2.0, 1.0]");
    }

    #[tokio::test]
    async fn free_text_is_not_combined() {
        for sql in ["ai_complete('p', body)", "ai_complete('p', body, return_type => 'INT')"] {
            assert_eq!(Combination::of(&call(sql).await.unwrap()), None);
        }
        let message = call("ai_complete('p', body, on_overflow => 'chunk')").await.unwrap_err();
        assert!(
            message.contains("ai_complete: on_overflow = 'chunk' needs a rule") && message.contains("'truncate'"),
            "{message}"
        );
        assert!(call("ai_filter('p', body, on_overflow => 'Chunk')").await.is_ok());
        let value = ScalarValue::from(json!("x").to_string());
        let answer = ChunkAnswer { text: "", tokens: 1, value: &value };
        let score = call("ai_score('p', body)").await.unwrap();
        assert!(Combination::Mean.combine(&score.task, &[answer]).is_err());
    }
}
