//! One call of an aggregate as the optimizer and the operator see it: everything constant checked, inputs apart.

use datafusion::arrow::datatypes::{DataType, Fields};
use datafusion::common::{DFSchema, Result, internal_err, plan_err};
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams, Sort};
use datafusion::logical_expr::{Expr, ExprSchemable, lit};
use serde_json::{Map, Value};

use super::placeholder::ai_aggregate;
use super::{ai_agg, ai_summarize_agg, ai_top_k};
use crate::call::{LlmCall, Prompt, split_options};
use crate::constant::constant;
use crate::function::Function;
use crate::inputs::{inputs, labels};
use crate::options::{CallOptions, Keyword, text_of, whole};
use crate::placeholder::{LABELS_OPTION, captured, check_count, check_options, prompt_args};
use crate::scalar::Arguments;
use crate::task::{Shape, Task};
use crate::template::refer_to_fields;

/// One call of an aggregate. Equal calls over equal groups have equal answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LlmAggregate {
    /// The function that is called.
    pub function: Function,
    /// How the values of a group become one.
    pub reduction: Reduction,
    /// The labels of the fields of an input: one, or those of a struct.
    pub labels: Vec<String>,
    /// What is asked of the model on the way. The inputs of these calls are texts that the operator makes.
    pub stages: Vec<LlmCall>,
    /// Whether equal inputs of a group count once.
    pub distinct: bool,
    /// The type of a value, errors aside.
    pub value_type: DataType,
    /// The options written in the call.
    pub options: CallOptions,
    /// The constant arguments as EXPLAIN shows them.
    shown: String,
}

/// How the values of a group become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Chunks that fit into the context are answered ([`CHUNK_STAGE`]), and answers are combined ([`COMBINE_STAGE`]) until one
    /// is left.
    Hierarchy {
        /// What happens to a group of more than one chunk.
        overflow: Overflow,
    },
    /// The best values are found.
    TopK {
        /// How many.
        k: usize,
        /// What the model is asked about them.
        method: Method,
    },
}

/// The stage of [`Reduction::Hierarchy`] that answers for a chunk of inputs.
pub const CHUNK_STAGE: usize = 0;
/// The stage of [`Reduction::Hierarchy`] that combines answers.
pub const COMBINE_STAGE: usize = 1;

/// What happens to a group that is longer than the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// It is answered in chunks, whose answers are combined.
    Hierarchical,
    /// It fails.
    Error,
}

impl Keyword for Overflow {
    const VALUES: &'static [(&'static str, Overflow)] =
        &[("hierarchical", Overflow::Hierarchical), ("error", Overflow::Error)];
}

/// What the model is asked about values that are to be ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// A score for each.
    Score,
    /// Which of two is better.
    Pairwise,
    /// The order of a few.
    Listwise,
}

impl Keyword for Method {
    const VALUES: &'static [(&'static str, Method)] =
        &[("score", Method::Score), ("pairwise", Method::Pairwise), ("listwise", Method::Listwise)];
}

/// The inputs of an aggregate, which vary by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Gathered {
    /// What is aggregated. A struct stands for its fields.
    pub input: Expr,
    /// The order of the inputs of a group; where it leaves a choice, they are ordered by their text.
    pub order_by: Vec<Sort>,
    /// Rows for which this is not TRUE are left out.
    pub filter: Option<Expr>,
}

impl LlmAggregate {
    /// Reads a call whose constant arguments are literals, which they are once the planner has simplified expressions.
    ///
    /// Fails if `function` is none of ours, or an argument or an option is wrong.
    pub fn bind(function: &AggregateFunction, schema: &DFSchema) -> Result<(LlmAggregate, Gathered)> {
        let Some(called) = ai_aggregate(&function.func).map(|called| called.function) else {
            return internal_err!("{} is no LLM aggregate", function.func.name());
        };
        let name = called.name();
        let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment: _ } = &function.params;
        let (args, mut raw) = split_options(name, args)?;
        check_options(called, name, &raw)?;
        check_count(called, name, args.len())?;
        let stored = raw.remove(LABELS_OPTION);
        let options = CallOptions::from_raw(name, &raw)?;
        let input = &args[0];
        if prompt_args(input).is_some() {
            return plan_err!("{name}: the input comes first and is a value; prompt(…) is for the scalar functions");
        }
        let input_type = input.get_type(schema)?;
        let value_type = value_type(called, &input_type, &raw)?;
        let labels = labels_of(input, schema, stored.as_ref());
        let parts = Parts { function: called, constants: &args[1..], raw: &raw, labels: &labels, options: &options };
        let (reduction, stages, shown) = match called {
            Function::Agg => ai_agg::stages(&parts)?,
            Function::SummarizeAgg => ai_summarize_agg::stages(&parts)?,
            _ => ai_top_k::stages(&parts)?,
        };
        if !options.stop.is_empty() && stages.iter().any(|stage| stage.task.shape != Shape::Text) {
            return plan_err!("{name}: option stop ends free text, and the answers of this call have a form of their own");
        }
        let aggregate =
            LlmAggregate { function: called, reduction, labels, stages, distinct: *distinct, value_type, options, shown };
        let gathered = Gathered { input: input.clone(), order_by: order_by.clone(), filter: filter.as_deref().cloned() };
        Ok((aggregate, gathered))
    }

    /// Returns the type of the call: that of its value, or `STRUCT(value, error)` under `on_error => 'capture'`.
    pub fn output_type(&self) -> DataType {
        captured(self.value_type.clone(), self.options.on_error)
    }

    /// Returns the call in a few words, as EXPLAIN shows it: `ai_agg('What do they praise?', fields=[body])`.
    pub fn describe(&self) -> String {
        let fields = format!("fields=[{}]", self.labels.join(", "));
        let distinct = if self.distinct { "DISTINCT" } else { "" };
        let parts: Vec<&str> = [distinct, &self.shown, &fields].into_iter().filter(|part| !part.is_empty()).collect();
        format!("{}({})", self.function.name(), parts.join(", "))
    }
}

/// Returns the type of a value, from what is known while types are decided.
pub(super) fn value_type(function: Function, input: &DataType, options: &Map<String, Value>) -> Result<DataType> {
    match function {
        Function::Agg => ai_agg::value_type(options),
        Function::SummarizeAgg => Ok(DataType::Utf8),
        _ => Ok(ai_top_k::value_type(input)),
    }
}

/// Labels that were stored win: a rule may since have replaced the columns that the user named.
fn labels_of(input: &Expr, schema: &DFSchema, stored: Option<&Value>) -> Vec<String> {
    let inputs = inputs(std::slice::from_ref(input), schema);
    let stored = stored.and_then(Value::as_str).and_then(|json| serde_json::from_str::<Vec<String>>(json).ok());
    stored.filter(|stored| stored.len() == inputs.len()).unwrap_or_else(|| labels(&inputs))
}

/// A call on its way to an [`LlmAggregate`].
pub(super) struct Parts<'a> {
    pub(super) function: Function,
    /// The positional arguments behind the input.
    constants: &'a [Expr],
    raw: &'a Map<String, Value>,
    pub(super) labels: &'a [String],
    options: &'a CallOptions,
}

impl<'a> Parts<'a> {
    /// Returns the name of the function, which begins every message.
    pub(super) fn name(&self) -> &'static str {
        self.function.name()
    }

    /// Returns the instruction, which stands behind the input; references to fields are names of fields.
    pub(super) fn instruction(&self) -> Result<String> {
        match self.constants.first().map(constant) {
            Some(Some(Value::String(text))) if !text.trim().is_empty() => Ok(refer_to_fields(&text, self.labels)),
            Some(Some(other)) => {
                plan_err!("{}: the instruction must be a string that is not empty, not {other}", self.name())
            }
            _ => plan_err!("{}: the instruction must be a constant string", self.name()),
        }
    }

    /// Reads a whole number of at least 1 behind the instruction.
    pub(super) fn count(&self, position: usize, name: &str) -> Result<usize> {
        match self.constants.get(position).and_then(constant) {
            Some(Value::Null) | None => plan_err!("{}: {name} must be a constant whole number", self.name()),
            Some(value) => whole(&format!("{}: {name}", self.name()), &text_of(&value), 1),
        }
    }

    /// Reads an option that is one of a few words.
    pub(super) fn keyword<T: Keyword>(&self, option: &str, default: T) -> Result<T> {
        match self.raw.get(option) {
            Some(value) => T::parse(&format!("{}: option {option}", self.name()), &text_of(value)),
            None => Ok(default),
        }
    }

    /// Returns the constant arguments as the tasks of scalar functions read them; `options` are those of the stage.
    pub(super) fn arguments(&self, instruction: &'a str, options: &'a Map<String, Value>) -> Arguments<'a> {
        let noun = crate::call::noun(self.labels);
        Arguments { name: self.name(), instruction, positional: &[], options, noun, embeddings: None }
    }

    /// Returns all options.
    pub(super) fn raw(&self) -> &'a Map<String, Value> {
        self.raw
    }

    /// Returns a stage that asks `task` about `n_inputs` texts.
    pub(super) fn stage(&self, function: Function, task: Task, prompt: Prompt, n_inputs: usize) -> LlmCall {
        LlmCall { function, task, prompt, options: self.options.clone(), inputs: vec![lit(""); n_inputs] }
    }

    /// Returns a stage about several rows with these labels.
    pub(super) fn rows_stage(&self, task: Task, labels: Vec<String>) -> LlmCall {
        self.stage(self.function, task, Prompt::Rows { labels }, 1)
    }
}

/// Returns the fields of a ranked value.
pub(super) fn ranked_fields(value: &DataType) -> Fields {
    use datafusion::arrow::datatypes::Field;
    Fields::from(vec![Field::new("value", value.clone(), true), Field::new("rank", DataType::Int64, true)])
}
