//! The SQL functions that a language model answers: signature, prompt and output type.
//!
//! Life of a call: [`desugar`] folds `k => v` options of the syntax tree into `ai_options(…)`. The function binds to a
//! placeholder, which knows its type and is never run. [`NameInputs`] stores the labels of its inputs. The optimizer reads it as
//! an [`LlmCall`] and lifts it into an operator, which lays out prompts by [`PromptLayout`], with values written by
//! [`JsonRenderer`], and turns answers into values by [`Task::parse`] and [`LlmCall::value`].
//!
//! | part | what it is |
//! |---|---|
//! | [`desugar`] | the pass over the syntax tree |
//! | `function` | names, parameters and options of the functions |
//! | `placeholder` | the functions as the host engine sees them |
//! | `similarity`, `embeddings` | the cosine of vectors, and where their lengths come from |
//! | [`named_prompts`], `argument` | prompts with names, and the types of their arguments |
//! | [`name_inputs`] | labels are kept as the user wrote them |
//! | [`call`] | one call, everything constant checked |
//! | [`combine`] | answers about the chunks of a text become one |
//! | `pair_labels` | a question about pairs as one about their halves |
//! | [`options`], [`settings`] | what may be said in a call, and in a session |
//! | `scalar` | what each function asks |
//! | [`aggregate`] | what the aggregates ask, and in which steps a group becomes one value |
//! | [`task`], `value_type` | the shape of answers and their values |
//! | [`template`], [`prompt`], [`render`] | how a row becomes a prompt |

pub mod aggregate;
mod argument;
pub mod call;
pub mod combine;
mod constant;
mod count_tokens;
pub mod desugar;
mod embeddings;
#[cfg(test)]
mod fixture;
mod function;
mod inputs;
pub mod name_inputs;
pub mod named_prompts;
pub mod options;
mod pair_labels;
mod placeholder;
pub mod prompt;
pub mod render;
pub mod rewrites;
mod scalar;
pub mod settings;
mod similarity;
pub mod task;
pub mod template;
mod value_type;

use std::sync::Arc;

use datafusion::common::ScalarValue;
use datafusion::common::tree_node::TreeNode;
use datafusion::logical_expr::{AggregateUDF, Expr, ScalarUDF, lit};

pub use aggregate::{LlmAggregate, Method, Overflow, Reduction};
pub use call::{LlmCall, NullPolicy, Prompt, outcome_value};
pub use combine::{ChunkAnswer, Combination};
pub use count_tokens::TokenizerSource;
pub use embeddings::EmbeddingSource;
pub use function::{Function, option_names, prompt_option_names};
pub use name_inputs::NameInputs;
pub use named_prompts::{NamedPrompt, NamedPrompts, Parameter, PromptDefinition};
pub use options::{CallOptions, Dedup, Float, Keyword, Mode, NullInput, OnError, OnOverflow, Reorder, ResolvedOptions};
pub use prompt::{FieldTokens, LAYOUT_VERSION, Layout, Place, PromptLayout, row_line};
pub use render::{JsonRenderer, list_items};
pub use rewrites::{REWRITES, rewrite_enabled};
pub use settings::{Cache, LayoutChoice, OptimizationMode, Priority, Settings};
pub use similarity::EmbedTexts;
pub use task::{Shape, Task};
pub use template::{Piece, Template};

use crate::embeddings::Embeddings;
use crate::placeholder::{AI_FIELDS, AI_OPTIONS, AI_PASSAGES, AiFunction, Carrier};

/// Returns every scalar function, to be registered with a session.
pub fn scalar_functions(tokenizers: Arc<dyn TokenizerSource>, embeddings: Arc<dyn EmbeddingSource>) -> Vec<ScalarUDF> {
    let embeddings = Embeddings(embeddings);
    let mut functions: Vec<ScalarUDF> =
        Function::ALL.into_iter().map(|function| AiFunction::udf(function, &embeddings)).collect();
    functions.push(similarity::Similarity::udf(Arc::new(AiFunction::udf(Function::Embed, &embeddings))));
    functions.push(AiFunction::llm());
    functions.extend([AI_OPTIONS, AI_FIELDS, AI_PASSAGES, function::PROMPT.name].map(Carrier::udf));
    functions.push(argument::Argument::udf());
    functions.push(count_tokens::CountTokens::udf(tokenizers));
    functions
}

/// Returns a call of a scalar function over positional arguments, for programs that make queries of expressions. Not for
/// [`Function::Embed`], whose type depends on the models of a session: that function is the session's own.
pub fn call_of(function: Function, args: Vec<Expr>) -> Expr {
    debug_assert!(function != Function::Embed && !function.is_aggregate(), "{function:?} is no function of text");
    AiFunction::of_text(function).call(args)
}

/// Returns the last argument of a call that has options: `name => value` in SQL.
pub fn options_of(options: impl IntoIterator<Item = (String, ScalarValue)>) -> Expr {
    let pairs = options.into_iter().flat_map(|(name, value)| [lit(name), lit(value)]);
    name_inputs::options_call(pairs.collect())
}

/// Returns every aggregate function, to be registered with a session.
pub fn aggregate_functions() -> Vec<AggregateUDF> {
    Function::AGGREGATES.into_iter().map(aggregate::AiAggregate::udaf).collect()
}

/// Returns whether a function of this name takes inputs of a row for a prompt: a function that a model answers, or `prompt`.
pub fn is_llm_function_name(name: &str) -> bool {
    let is_called = |signature: &function::Signature| signature.is_called(name);
    function::find(name).is_some() || name.eq_ignore_ascii_case(function::LLM) || is_called(&function::PROMPT)
}

/// Returns whether the expression itself is a call that a model answers.
pub fn is_llm_call(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(function) if placeholder::placeholder(function).is_some())
}

/// Returns whether the expression holds a call that a model answers.
pub fn contains_llm_call(expr: &Expr) -> bool {
    expr.exists(|expr| Ok(is_llm_call(expr))).unwrap_or(false)
}
