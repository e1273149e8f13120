//! The constant arguments of a call, and the way to the file of its function.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, internal_err, plan_err};
use serde_json::{Map, Value};

use super::*;
use crate::embeddings::EmbeddingSource;
use crate::function::Function;
use crate::task::Task;

/// The constant arguments of a call.
pub(crate) struct Arguments<'a> {
    /// The name of the function, which begins every message.
    pub(crate) name: &'static str,
    /// What the user asks, for functions that take an instruction; empty in template mode and for the others.
    pub(crate) instruction: &'a str,
    /// The positional arguments after the content; `None` if the argument is not constant.
    pub(crate) positional: &'a [Option<Value>],
    /// The options, names checked.
    pub(crate) options: &'a Map<String, Value>,
    /// What the content is called in a sentence: `review`, or `text` if it has no name.
    pub(crate) noun: &'a str,
    /// The embedding models, for functions that make vectors.
    pub(crate) embeddings: Option<&'a dyn EmbeddingSource>,
}

impl Arguments<'_> {
    /// Returns the value of a positional argument that must be there; fails if it is not constant.
    pub(crate) fn required(&self, position: usize, name: &str) -> Result<&Value> {
        match self.positional.get(position) {
            Some(Some(Value::Null)) | None => {
                plan_err!("{}: {name} must be given and must not be NULL", self.name)
            }
            Some(Some(value)) => Ok(value),
            Some(None) => plan_err!("{}: {name} must be a constant, not a column or a computed value", self.name),
        }
    }

    /// Returns the value of a positional argument that may be left out; fails if it is not constant.
    pub(super) fn optional(&self, position: usize, name: &str) -> Result<Option<&Value>> {
        match self.positional.get(position) {
            None | Some(Some(Value::Null)) => Ok(None),
            Some(_) => self.required(position, name).map(Some),
        }
    }

    /// Returns `name: option x`, the beginning of messages about an option.
    pub(crate) fn option_subject(&self, option: &str) -> String {
        format!("{}: option {option}", self.name)
    }

    /// Reads a list of texts that are distinct and not blank.
    pub(super) fn texts(&self, value: &Value, name: &str) -> Result<Vec<String>> {
        let Value::Array(values) = value else {
            return plan_err!("{}: {name} must be a list of strings such as ['a', 'b'], not {value}", self.name);
        };
        let mut texts: Vec<String> = Vec::with_capacity(values.len());
        for value in values {
            let Value::String(text) = value else {
                return plan_err!("{}: {name} must be strings, and {value} is none", self.name);
            };
            self.push_distinct(&mut texts, text, name)?;
        }
        if texts.is_empty() {
            return plan_err!("{}: {name} must not be empty", self.name);
        }
        Ok(texts)
    }

    /// Appends a text unless it is blank or there already, which are errors.
    pub(super) fn push_distinct(&self, texts: &mut Vec<String>, text: &str, name: &str) -> Result<()> {
        if text.trim().is_empty() {
            return plan_err!("{}: {name} must not hold the empty string", self.name);
        }
        if texts.iter().any(|other| other == text) {
            return plan_err!("{}: {name} must be distinct, and '{text}' is given twice", self.name);
        }
        texts.push(text.to_string());
        Ok(())
    }

    /// Returns the instruction, ended by a full stop if it ends in a letter or a digit, so that a sentence may follow.
    pub(crate) fn sentence(&self) -> String {
        let text = self.instruction.trim();
        let open = text.ends_with(|last: char| last.is_alphanumeric() || matches!(last, '`' | '\'' | '"' | ')'));
        if open { format!("{text}.") } else { text.to_string() }
    }

    /// Returns the instruction in quotes for EXPLAIN, shortened; empty if there is none.
    pub(crate) fn shown_instruction(&self) -> String {
        if self.instruction.is_empty() { String::new() } else { format!("'{}'", shorten(self.instruction)) }
    }
}

/// Returns the first words of a text, on one line, for people.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LONGEST {
        return line;
    }
    let mut short: String = line.chars().take(LONGEST - 1).collect();
    short.truncate(short.trim_end().len());
    short + " …"
}

/// Returns `a`, `a and b`, `a, b and c`.
pub(super) fn listing(words: &[String], last_word: &str) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} {last_word} {last}", first.join(", ")),
    }
}

/// Returns the type of a call's value, from what is known while types are decided.
pub(crate) fn value_type(function: Function, arguments: &Arguments) -> Result<DataType> {
    match function {
        Function::Complete => ai_complete::value_type(arguments),
        Function::Filter => ai_filter::value_type(arguments),
        Function::Classify => ai_classify::value_type(arguments),
        Function::Extract => ai_extract::value_type(arguments),
        Function::Score => Ok(DataType::Float64),
        Function::Sentiment => Ok(ai_sentiment::value_type(arguments)),
        Function::Summarize | Function::Translate | Function::Redact | Function::FixGrammar => Ok(DataType::Utf8),
        Function::Embed => ai_embed::value_type(arguments),
        Function::Agg | Function::SummarizeAgg | Function::TopK => no_scalar(function),
    }
}

/// Returns what a call asks. Fails if a constant argument is missing or wrong.
pub(crate) fn task(function: Function, arguments: &Arguments) -> Result<Task> {
    match function {
        Function::Complete => ai_complete::task(arguments),
        Function::Filter => ai_filter::task(arguments),
        Function::Classify => ai_classify::task(arguments),
        Function::Extract => ai_extract::task(arguments),
        Function::Score => ai_score::task(arguments),
        Function::Sentiment => ai_sentiment::task(arguments),
        Function::Summarize => ai_summarize::task(arguments),
        Function::Translate => ai_translate::task(arguments),
        Function::Redact => ai_redact::task(arguments),
        Function::FixGrammar => Ok(ai_fix_grammar::task(arguments)),
        Function::Embed => ai_embed::task(arguments),
        Function::Agg | Function::SummarizeAgg | Function::TopK => no_scalar(function),
    }
}

fn no_scalar<T>(function: Function) -> Result<T> {
    internal_err!("{} is an aggregate", function.name())
}
