//! Calls of the `ai_*` functions as expressions, for programs that make their queries by DataFusion's DataFrames.
//!
//! They mean what the same call means in SQL; [`with_options`] is its `name => value`. `ai_embed` and `ai_similarity`, whose types
//! depend on the models of a session, are functions of that session.
//!
//! ```
//! use std::sync::Arc;
//!
//! use refrain::datafusion::common::ScalarValue;
//! use refrain::datafusion::prelude::col;
//! use refrain::functions::{ai_filter, ai_summarize, with_options};
//! use refrain::serving::mock::{MockBackend, MockReply};
//! use refrain::{ModelSource, Refrain};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> refrain::Result<()> {
//! # let judge = |prompt: &str| MockReply::text(if prompt.contains("lovely") { "Yes" } else { "No" });
//! # let mock = MockBackend::new(7).answer(move |prompt| prompt.contains("praise").then(|| judge(prompt)));
//! # let db = Refrain::builder().model("mock", ModelSource::Backend(Arc::new(mock))).build().await?;
//! let reviews = db.context().sql("SELECT * FROM (VALUES ('lovely'), ('dull')) AS v(review)").await?;
//! let short = with_options(ai_summarize(col("review")), [("max_words", ScalarValue::from(5_i64))])?;
//! let praise = reviews.filter(ai_filter("Is it praise?", [col("review")]))?.select(vec![short.alias("short")])?;
//! assert_eq!(praise.collect().await?.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
//! # Ok(())
//! # }
//! ```

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{ScalarValue, plan_datafusion_err};
use datafusion::logical_expr::{Expr, lit};
use refrain_udf::{Function, call_of, is_llm_call, options_of};

use crate::error::Result;

/// Free text: `ai_complete(instruction, input…)`.
pub fn ai_complete(instruction: impl Into<String>, inputs: impl IntoIterator<Item = Expr>) -> Expr {
    instructed(Function::Complete, instruction, inputs)
}

/// Whether a statement holds: `ai_filter(instruction, input…)`.
pub fn ai_filter(instruction: impl Into<String>, inputs: impl IntoIterator<Item = Expr>) -> Expr {
    instructed(Function::Filter, instruction, inputs)
}

/// A number within a range: `ai_score(instruction, input…)`.
pub fn ai_score(instruction: impl Into<String>, inputs: impl IntoIterator<Item = Expr>) -> Expr {
    instructed(Function::Score, instruction, inputs)
}

/// One of these labels: `ai_classify(input, [label…])`.
pub fn ai_classify<T: Into<String>>(input: Expr, labels: impl IntoIterator<Item = T>) -> Expr {
    let labels: Vec<ScalarValue> = labels.into_iter().map(|label| ScalarValue::from(label.into())).collect();
    let list = ScalarValue::List(ScalarValue::new_list_nullable(&labels, &DataType::Utf8));
    call_of(Function::Classify, vec![input, lit(list)])
}

/// A struct of what a text says, such as `'STRUCT(name VARCHAR, age INT)'`: `ai_extract(input, fields)`.
pub fn ai_extract(input: Expr, fields: impl Into<String>) -> Expr {
    call_of(Function::Extract, vec![input, lit(fields.into())])
}

/// Positive, negative, neutral or mixed: `ai_sentiment(text)`.
pub fn ai_sentiment(text: Expr) -> Expr {
    call_of(Function::Sentiment, vec![text])
}

/// A shorter text: `ai_summarize(text)`.
pub fn ai_summarize(text: Expr) -> Expr {
    call_of(Function::Summarize, vec![text])
}

/// The text in another language: `ai_translate(text, target)`.
pub fn ai_translate(text: Expr, target: impl Into<String>) -> Expr {
    call_of(Function::Translate, vec![text, lit(target.into())])
}

/// The text without personal data: `ai_redact(text)`.
pub fn ai_redact(text: Expr) -> Expr {
    call_of(Function::Redact, vec![text])
}

/// The text without mistakes: `ai_fix_grammar(text)`.
pub fn ai_fix_grammar(text: Expr) -> Expr {
    call_of(Function::FixGrammar, vec![text])
}

/// Gives a call options, once. Fails if the expression is no such call.
pub fn with_options<'a>(call: Expr, options: impl IntoIterator<Item = (&'a str, ScalarValue)>) -> Result<Expr> {
    let is_call = is_llm_call(&call);
    match call {
        Expr::ScalarFunction(mut function) if is_call => {
            function.args.push(options_of(options.into_iter().map(|(name, value)| (name.to_owned(), value))));
            Ok(Expr::ScalarFunction(function))
        }
        other => Err(plan_datafusion_err!("cannot give options to {other}: it is no call of an ai_* function").into()),
    }
}

fn instructed(function: Function, instruction: impl Into<String>, inputs: impl IntoIterator<Item = Expr>) -> Expr {
    call_of(function, [lit(instruction.into())].into_iter().chain(inputs).collect())
}
