//! One call of an LLM function as the optimizer and the operator see it: everything constant checked, inputs apart.

use std::fmt::Write as _;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, StructArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result, ScalarValue, internal_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, ExprSchemable};
use serde_json::{Map, Value};

use crate::constant::constant;
use crate::function::Function;
use crate::inputs::{Input, inputs, labels};
use crate::options::{CallOptions, Mode, NullInput, OnError};
use crate::placeholder::{AiFunction, LABELS_OPTION, captured, captured_fields, is_ai_options, placeholder, prompt_args};
use crate::prompt::LAYOUT_VERSION;
use crate::scalar::{self, Arguments, shorten};
use crate::task::{Shape, Task};
use crate::template::{Template, has_placeholder, refer_to_fields};

/// One call of an LLM function. Equal calls over equal inputs have equal answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LlmCall {
    /// The function that is called.
    pub function: Function,
    /// What it asks.
    pub task: Task,
    /// How the inputs of a row become a prompt.
    pub prompt: Prompt,
    /// The options written in the call.
    pub options: CallOptions,
    /// The inputs, one for each field of the prompt. They vary by row.
    pub inputs: Vec<Expr>,
}

/// How the inputs of a row become a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Prompt {
    /// Labelled JSON fields, whose order is free.
    Fields {
        /// The label of each input; distinct.
        labels: Vec<String>,
        /// The input that is a list of passages, whose order is free.
        passages: Option<usize>,
    },
    /// A text with values put in, in the user's order.
    Template(Template),
    /// Several rows, one JSON object a line. The only input is their text: the lines of [`row_line`](crate::prompt::row_line).
    Rows {
        /// The labels of the fields of each row; distinct.
        labels: Vec<String>,
    },
}

/// Which rows get NULL without a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullPolicy {
    /// Rows of which any input is NULL.
    SkipIfAny,
    /// Rows of which all inputs are NULL; a single NULL is shown as `null`.
    SkipIfAll,
    /// None: every NULL is shown as `null`.
    Never,
}

impl LlmCall {
    /// Reads a call whose constant arguments are literals, which they are once the planner has simplified expressions.
    ///
    /// Fails if `function` is none of ours, or an argument, an option or a placeholder is wrong.
    pub fn bind(function: &ScalarFunction, schema: &DFSchema) -> Result<LlmCall> {
        let Some(called) = placeholder(function) else {
            return internal_err!("{} is no LLM function", function.func.name());
        };
        let (args, mut raw) = split_options(called.name, &function.args)?;
        called.check_options(&raw)?;
        called.check_count(args.len())?;
        let stored = raw.remove(LABELS_OPTION);
        let mut options = CallOptions::from_raw(called.name, &raw)?;
        if called.prefers_fields() && options.mode.is_none() {
            options.mode = Some(Mode::Fields);
        }
        let parts = Parts { called, args, raw: &raw, stored: stored.as_ref(), schema };
        let (task, prompt, inputs) = match called.function {
            Function::Embed => parts.whole_input()?,
            function if function.takes_instruction() => parts.instruction(options.mode)?,
            _ => parts.content()?,
        };
        if !options.stop.is_empty() && task.shape != Shape::Text {
            return plan_err!(
                "{}: option stop ends free text, and the answers of this call have a form of their own",
                called.name
            );
        }
        Ok(LlmCall { function: called.function, task, prompt, options, inputs })
    }

    /// Returns the same call over other expressions, of which there must be as many.
    pub fn with_inputs(self, inputs: Vec<Expr>) -> LlmCall {
        debug_assert_eq!(inputs.len(), self.inputs.len());
        LlmCall { inputs, ..self }
    }

    /// Returns the call that asks how probable Yes is where this one asks Yes or No; `None` if it asks something else.
    pub fn as_probability(&self) -> Option<LlmCall> {
        let task = Task { shape: Shape::Probability, ..self.task.clone() };
        (self.task.shape == Shape::Boolean).then(|| LlmCall { task, ..self.clone() })
    }

    /// Returns the type of the call: that of its value, or `STRUCT(value, error)` under `on_error => 'capture'`.
    pub fn output_type(&self) -> DataType {
        captured(self.task.value_type(), self.options.on_error)
    }

    /// Returns which rows get NULL without a call.
    pub fn null_policy(&self, null_input: NullInput) -> NullPolicy {
        match &self.prompt {
            _ if self.function == Function::Embed => NullPolicy::SkipIfAny,
            _ if self.inputs.is_empty() => NullPolicy::Never,
            Prompt::Fields { .. } | Prompt::Rows { .. } => NullPolicy::SkipIfAll,
            Prompt::Template(_) if null_input == NullInput::Text => NullPolicy::Never,
            Prompt::Template(_) => NullPolicy::SkipIfAny,
        }
    }

    /// Returns the value of a row, of [`output_type`](Self::output_type): its parsed answer, or what `on_error` makes of
    /// `reason: message`. Under [`OnError::Fail`] a failure is NULL here as well; the caller ends the query.
    pub fn value(&self, outcome: Result<ScalarValue, &str>, on_error: OnError) -> ScalarValue {
        outcome_value(&self.task.value_type(), outcome, on_error)
    }

    /// Returns the call in a few words, as EXPLAIN shows it: `ai_filter('clearly positive', fields=[title, body])`.
    pub fn describe(&self) -> String {
        let mut parts = Vec::new();
        if let Prompt::Template(template) = &self.prompt
            && self.function != Function::Embed
        {
            parts.push(format!("prompt('{}')", shorten(&template.source)));
        }
        if !self.task.shown.is_empty() {
            parts.push(self.task.shown.clone());
        }
        match &self.prompt {
            Prompt::Fields { labels, .. } if labels.is_empty() => {}
            Prompt::Fields { labels, passages } => {
                let label = |(input, label): (usize, &String)| match *passages == Some(input) {
                    true => format!("{label} in any order"),
                    false => label.clone(),
                };
                parts.push(format!("fields=[{}]", labels.iter().enumerate().map(label).collect::<Vec<_>>().join(", ")));
            }
            Prompt::Template(template) => parts.push(format!("[{}]", template.labels.join(", "))),
            Prompt::Rows { labels } => parts.push(format!("rows=[{}]", labels.join(", "))),
        }
        format!("{}({})", self.function.name(), parts.join(", "))
    }

    /// Returns the identity of the question: calls of equal digest, asked of one model under equal settings, give equal
    /// answers for equal inputs, taken in [`key_order`](Self::key_order). Inputs and model are left out.
    pub fn digest(&self) -> [u8; 32] {
        let LlmCall { function, task, prompt, options, inputs: _ } = self;
        // Destructured in full, so that a new option is a decision here: does it change answers?
        let CallOptions {
            temperature,
            top_p,
            top_k,
            seed,
            max_tokens,
            stop,
            on_overflow,
            null_input,
            model: _,
            mode: _,
            on_error: _,
            reorder: _,
            reorder_window: _,
            dedup: _,
        } = options;
        let Task { instruction, answer_form, shape, shown: _ } = task;
        let prompt = match prompt {
            Prompt::Fields { labels, passages } => {
                let sorted: Vec<&String> = self.key_order().into_iter().map(|input| &labels[input]).collect();
                match passages {
                    Some(passages) => format!("fields {sorted:?} passages {:?}", labels[*passages]),
                    None => format!("fields {sorted:?}"),
                }
            }
            // What a template calls its inputs does not show in the prompt.
            Prompt::Template(template) => format!("template {:?}", template.pieces),
            Prompt::Rows { labels } => format!("rows {labels:?}"),
        };
        let mut text = String::new();
        // Debug output quotes strings, so parts cannot run into each other.
        write!(
            text,
            "{LAYOUT_VERSION} {function:?} {instruction:?} {answer_form:?} {shape:?} {prompt:?} {temperature:?} {top_p:?} \
             {top_k:?} {seed:?} {max_tokens:?} {stop:?} {on_overflow:?} {null_input:?}"
        )
        .expect("writing to a string cannot fail");
        *blake3::hash(text.as_bytes()).as_bytes()
    }

    /// Returns the inputs in the order in which they identify a question: by label in fields mode, where the order of fields is
    /// not part of it, and as declared in template mode.
    pub fn key_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.inputs.len()).collect();
        if let Prompt::Fields { labels, .. } = &self.prompt {
            order.sort_by(|a, b| labels[*a].cmp(&labels[*b]));
        }
        order
    }
}

/// Returns the value of an outcome whose value has a type: the value, or what `on_error` makes of `reason: message`. See
/// [`LlmCall::value`].
pub fn outcome_value(value_type: &DataType, outcome: Result<ScalarValue, &str>, on_error: OnError) -> ScalarValue {
    let null = || ScalarValue::try_from(value_type).unwrap_or(ScalarValue::Null);
    if on_error != OnError::Capture {
        return outcome.unwrap_or_else(|_| null());
    }
    let (value, error) = match outcome {
        Ok(value) => (value, None),
        Err(message) => (null(), Some(message.to_string())),
    };
    let columns: Result<Vec<ArrayRef>> = [value, ScalarValue::Utf8(error)].iter().map(|scalar| scalar.to_array()).collect();
    let capture = || captured(value_type.clone(), Some(OnError::Capture));
    match columns {
        Ok(columns) => ScalarValue::Struct(Arc::new(StructArray::new(captured_fields(value_type.clone()), columns, None))),
        Err(_) => ScalarValue::try_from(&capture()).unwrap_or(ScalarValue::Null),
    }
}

/// The options of a call, and its other arguments.
pub(crate) fn split_options<'a>(name: &str, args: &'a [Expr]) -> Result<(&'a [Expr], Map<String, Value>)> {
    let Some((Expr::ScalarFunction(last), rest)) = args.split_last().filter(|(last, _)| is_ai_options(last)) else {
        return Ok((args, Map::new()));
    };
    let mut options = Map::new();
    for pair in last.args.chunks(2) {
        let Some(Value::String(key)) = constant(&pair[0]) else {
            return plan_err!("{name}: names of options must be constant strings");
        };
        let key = key.to_lowercase();
        match pair.get(1).map(constant) {
            Some(Some(value)) => {
                if options.insert(key.clone(), value).is_some() {
                    return plan_err!("{name}: option {key} is given twice");
                }
            }
            _ => {
                return plan_err!("{name}: option {key} must be a constant, not a column or a computed value");
            }
        }
    }
    Ok((rest, options))
}

/// A call on its way to an [`LlmCall`].
struct Parts<'a> {
    called: &'a AiFunction,
    args: &'a [Expr],
    raw: &'a Map<String, Value>,
    stored: Option<&'a Value>,
    schema: &'a DFSchema,
}

impl Parts<'_> {
    /// Reads a call whose first argument says what to do.
    fn instruction(&self, mode: Option<Mode>) -> Result<(Task, Prompt, Vec<Expr>)> {
        let name = self.called.name;
        let (text, rest, is_prompt) = match prompt_args(&self.args[0]) {
            Some([template, inputs @ ..]) => {
                if self.args.len() > 1 {
                    return plan_err!("{name}: inputs must stand inside prompt(…), and one stands after it");
                }
                (template, inputs, true)
            }
            _ => (&self.args[0], &self.args[1..], false),
        };
        let text = match constant(text) {
            Some(Value::String(text)) if !text.trim().is_empty() => text,
            Some(other) => {
                return plan_err!("{name}: the instruction must be a string that is not empty, not {other}");
            }
            None => {
                return plan_err!(
                    "{name}: the instruction must be a constant string; to ask what a column holds, write prompt('{{0}}', column)"
                );
            }
        };
        let passages = self.passages(rest)?;
        let (labels, inputs) = self.inputs(rest);
        let as_template = match mode.unwrap_or(Mode::Auto) {
            Mode::Fields => false,
            Mode::Template => true,
            Mode::Auto => is_prompt || has_placeholder(&text),
        };
        if as_template && passages.is_some() {
            return plan_err!(
                "{name}: option passages needs the fields mode, in which the order of inputs is free; leave out the placeholders, \
                 or write mode => 'fields'"
            );
        }
        if as_template {
            let template = Template::parse(name, &text, labels)?;
            return Ok((self.task("", &[], "text")?, Prompt::Template(template), inputs));
        }
        let instruction = refer_to_fields(&text, &labels);
        Ok((self.task(&instruction, &[], "text")?, Prompt::Fields { labels, passages }, inputs))
    }

    /// Returns which input is a list of passages.
    fn passages(&self, args: &[Expr]) -> Result<Option<usize>> {
        let name = self.called.name;
        let inputs = inputs(args, self.schema);
        let mut declared = inputs.iter().enumerate().filter(|(_, input)| input.is_passages);
        let Some((at, input)) = declared.next() else { return Ok(None) };
        if declared.next().is_some() {
            return plan_err!("{name}: option passages is given twice");
        }
        match input.expr.get_type(self.schema)? {
            DataType::Null => Ok(Some(at)),
            list if list.is_list() => Ok(Some(at)),
            other => plan_err!("{name}: option passages must be a list, such as [c1, c2], not {other}"),
        }
    }

    /// Reads a call whose first argument is the content, and whose task is fixed.
    fn content(&self) -> Result<(Task, Prompt, Vec<Expr>)> {
        if prompt_args(&self.args[0]).is_some() {
            return plan_err!(
                "{}: prompt(…) is an instruction, which ai_complete, ai_filter and ai_score take",
                self.called.name
            );
        }
        let (labels, inputs) = self.inputs(&self.args[..1]);
        let positional: Vec<Option<Value>> = self.args[1..].iter().map(constant).collect();
        let task = self.task("", &positional, noun(&labels))?;
        Ok((task, Prompt::Fields { labels, passages: None }, inputs))
    }

    /// Reads a call whose only input is the whole prompt, word for word.
    fn whole_input(&self) -> Result<(Task, Prompt, Vec<Expr>)> {
        let name = self.called.name;
        if prompt_args(&self.args[0]).is_some() {
            return plan_err!("{name}: prompt(…) is an instruction, and {name} takes a text; join texts with ||");
        }
        let (labels, inputs) = self.inputs(&self.args[..1]);
        // A struct is one text as well: that of its fields as JSON.
        let label = if inputs.len() == 1 { labels } else { vec!["input1".to_string()] };
        let template = Template::parse(name, "{0}", label)?;
        Ok((self.task("", &[], "text")?, Prompt::Template(template), self.args[..1].to_vec()))
    }

    fn task(&self, instruction: &str, positional: &[Option<Value>], noun: &str) -> Result<Task> {
        let arguments = Arguments {
            name: self.called.name,
            instruction,
            positional,
            options: self.raw,
            noun,
            embeddings: self.called.embeddings(),
        };
        scalar::task(self.called.function, &arguments)
    }

    /// Returns labels and expressions of the inputs. Stored labels win: a rule may since have replaced the columns that the
    /// user named by what they stand for.
    fn inputs(&self, args: &[Expr]) -> (Vec<String>, Vec<Expr>) {
        let inputs = inputs(args, self.schema);
        let stored = self.stored.and_then(Value::as_str).and_then(|json| serde_json::from_str::<Vec<String>>(json).ok());
        let labels = match stored {
            Some(stored) if stored.len() == inputs.len() => stored,
            _ => labels(&inputs),
        };
        (labels, inputs.into_iter().map(|Input { expr, .. }| expr).collect())
    }
}

/// Returns what a sentence calls the content: the label of its only field, or `text` if that says nothing.
pub(crate) fn noun(labels: &[String]) -> &str {
    match labels {
        [only] if !is_positional(only) && is_plain(only) => only,
        _ => "text",
    }
}

/// Returns whether a label may stand in the instruction. Names come with the data, from the head of a file for example, and
/// must not say more than a name does.
pub(crate) fn is_plain(label: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | ' ');
    label.len() <= 64 && label.split_whitespace().count() <= 4 && label.chars().all(is_name)
}

fn is_positional(label: &str) -> bool {
    label.strip_prefix("input").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{call, calls, plan, session};
    use crate::options::Float;

    /// `expected` is what EXPLAIN says and the type, or the message.
    #[track_caller]
    fn check(got: Result<LlmCall, String>, expected: Result<(&str, &str), &str>) {
        let got = got.map(|call| (call.describe(), call.output_type().to_string()));
        let expected = expected.map(|(shown, data_type)| (shown.to_string(), data_type.to_string()));
        assert_eq!(got, expected.map_err(String::from));
    }

    macro_rules! check {
        ($sql:expr, $expected:expr) => {
            check(call($sql).await, $expected)
        };
    }

    #[tokio::test]
    async fn binds_every_function() {
        check!("ai_complete('Sum up', title, body)", Ok(("ai_complete('Sum up', fields=[title, body])", "Utf8")));
        check!("ai_complete('Hello')", Ok(("ai_complete('Hello')", "Utf8")));
        check!(
            "ai_filter('Is it so?', title, passages => [body, title])",
            Ok(("ai_filter('Is it so?', fields=[title, passages in any order])", "Boolean"))
        );
        check!(
            "ai_filter('Is it so?', passages => body)",
            Err("ai_filter: option passages must be a list, such as [c1, c2], not Utf8")
        );
        check!(
            "ai_filter('Is {title} so?', title, passages => [body])",
            Err("ai_filter: option passages needs the fields mode, in which the order of inputs is free; leave out the \
                 placeholders, or write mode => 'fields'")
        );
        check!(
            "ai_sentiment(body, passages => [body])",
            Err("ai_sentiment: there is no argument passages; valid names are text, aspects, model, \
            temperature, top_p, top_k, seed, max_tokens, stop, on_error, on_overflow, reorder, reorder_window, dedup")
        );
        check!("ai_gen('Sum up', address)", Ok(("ai_complete('Sum up', fields=[city, zip])", "Utf8")));
        check!("ai_if('positive', body)", Ok(("ai_filter('positive', fields=[body])", "Boolean")));
        check!("ai_classify(body, ['a', 'b'])", Ok(("ai_classify(labels=[a, b], fields=[body])", "Utf8")));
        check!(
            "ai_classify(body, ['a', 'b'], output_mode => 'multi')",
            Ok(("ai_classify(labels=[a, b], fields=[body])", "List(Utf8)"))
        );
        check!("ai_embed(body)", Ok(("ai_embed([body])", "FixedSizeList(8 x Float32)")));
        check!("ai_embed(body, dimensions => 4)", Ok(("ai_embed(dimensions=4, [body])", "FixedSizeList(4 x Float32)")));
        check!("ai_embed(body, dimensions => 9)", Err("ai_embed: dimensions => 9 is more than the model gives, which is 8"));
        check!("ai_embed(body, model => 'words')", Err("model words makes no vectors"));
        check!(
            "ai_embed(body, temperature => 1)",
            Err("ai_embed: there is no argument temperature; valid names are input, model, \
            dimensions, on_error, on_overflow, reorder_window, dedup")
        );
        check!(
            "ai_extract(body, ['who', 'where'])",
            Ok(("ai_extract(extract=[who, where], fields=[body])", "Struct(\"who\": Utf8, \"where\": Utf8)"))
        );
        check!(
            "ai_extract(body, {who: 'Who is it?'})",
            Ok(("ai_extract(extract=[who], fields=[body])", "Struct(\"who\": Utf8)"))
        );
        check!(
            "ai_extract(body, 'STRUCT(name VARCHAR, age INT)')",
            Ok(("ai_extract(extract=[name, age], fields=[body])", "Struct(\"name\": Utf8, \"age\": Int32)"))
        );
        check!(
            "ai_score('How good?', body, min => 1, max => 5)",
            Ok(("ai_score('How good?', range=1..5, fields=[body])", "Float64"))
        );
        check!("ai_sentiment(body)", Ok(("ai_sentiment(fields=[body])", "Utf8")));
        check!(
            "ai_sentiment(body, ['food'])",
            Ok((
                "ai_sentiment(aspects=[food], fields=[body])",
                "Map(\"entries\": non-null Struct(\"key\": non-null Utf8, \"value\": Utf8), unsorted)"
            ))
        );
        check!("ai_summarize(body, max_words => 9)", Ok(("ai_summarize(max_words=9, fields=[body])", "Utf8")));
        check!("ai_translate(body, 'de')", Ok(("ai_translate(to 'German', fields=[body])", "Utf8")));
        check!("ai_mask(body, ['name'])", Ok(("ai_redact(categories=[name], fields=[body])", "Utf8")));
        check!("ai_fix_grammar(upper(body))", Ok(("ai_fix_grammar(fields=[input1])", "Utf8")));
    }

    #[tokio::test]
    async fn decides_the_mode_from_the_text() {
        check!(
            "ai_complete(prompt('Sum {0} of {1}', body, title))",
            Ok(("ai_complete(prompt('Sum {0} of {1}'), [body, title])", "Utf8"))
        );
        check!("ai_complete('Sum {body}', body)", Ok(("ai_complete(prompt('Sum {body}'), [body])", "Utf8")));
        check!(
            "ai_complete('Sum {body}', body, mode => 'fields')",
            Ok(("ai_complete('Sum `body`', fields=[body])", "Utf8"))
        );
        check!("LLM('Sum {body}', body)", Ok(("ai_complete('Sum `body`', fields=[body])", "Utf8")));
        check!("LLM('Sum', t.*)", Ok(("ai_complete('Sum', fields=[title, body])", "Utf8")));
        check!("ai_complete('Use {{braces}}', body)", Ok(("ai_complete('Use {braces}', fields=[body])", "Utf8")));
        check!(
            "ai_filter('{t} good', named_struct('t', upper(title)))",
            Ok(("ai_filter(prompt('{t} good'), [t])", "Boolean"))
        );
        check!(
            "ai_complete('Sum {boddy}', body)",
            Err("ai_complete: the template names {boddy}, which is no input; did you mean body?; inputs are body")
        );
        check!(
            "ai_complete('Sum', body, mode => 'template')",
            Err("ai_complete: the template has no placeholder for body; add {body}, or leave the input out, \
                 or set mode => 'fields'")
        );
    }

    #[tokio::test]
    async fn return_types() {
        check!("ai_complete('p', return_type => 'INT')", Ok(("ai_complete('p')", "Int32")));
        check!("ai_complete('p', return_type => 'boolean')", Ok(("ai_complete('p')", "Boolean")));
        check!("ai_complete('p', return_type => 'TEXT')", Ok(("ai_complete('p')", "Utf8")));
        check!("ai_complete('p', regex => '[0-9]+')", Ok(("ai_complete('p', regex='[0-9]+')", "Utf8")));
        check!(
            "ai_complete('p', regex => 'a', return_type => 'INT')",
            Err("ai_complete: regex and return_type both say what an answer looks like; give one of them")
        );
        check!("ai_complete('p', regex => 5)", Err("ai_complete: option regex must be a string that is not empty, not 5"));
        check!(
            "ai_complete('p', regex => 'a', stop => 'b')",
            Err("ai_complete: option stop ends free text, and the answers of this call have a form of their own")
        );
        check!(
            "ai_complete('p', response_schema => '{\"type\": \"array\", \"items\": {\"type\": \"number\"}}')",
            Ok(("ai_complete('p')", "List(Float64)"))
        );
        check!(
            "ai_filter('p', body, on_error => 'capture')",
            Ok(("ai_filter('p', fields=[body])", "Struct(\"value\": Boolean, \"error\": Utf8)"))
        );
    }

    #[tokio::test]
    async fn refuses_wrong_arguments() {
        check!("ai_complete()", Err("ai_complete: instruction must be given"));
        check!("ai_classify(body)", Err("ai_classify: labels must be given"));
        check!(
            "ai_classify(body, ['a'], 'multi')",
            Err("ai_classify: takes input, labels and options by name, but 3 positional arguments are given; \
                 write options as name => value")
        );
        check!("ai_classify(body, [])", Err("ai_classify: labels must not be empty"));
        check!("ai_classify(body, ['a', 'a'])", Err("ai_classify: labels must be distinct, and 'a' is given twice"));
        check!("ai_classify(body, ['a', ''])", Err("ai_classify: labels must not hold the empty string"));
        check!("ai_classify(body, [1, 2])", Err("ai_classify: labels must be strings, and 1 is none"));
        check!(
            "ai_classify(body, [title])",
            Err("ai_classify: labels must be a constant, not a column or a computed value")
        );
        check!(
            "ai_classify(body, ['a'], output_mode => 'many')",
            Err("ai_classify: option output_mode must be 'single' or 'multi', not 'many'")
        );
        check!("ai_extract(body, title)", Err("ai_extract: fields must be a constant, not a column or a computed value"));
        check!(
            "ai_extract(body, 'INT')",
            Err("ai_extract: fields must describe a struct such as 'STRUCT(name VARCHAR)', not Int32")
        );
        check!(
            "ai_filter(body, title)",
            Err(
                "ai_filter: the instruction must be a constant string; to ask what a column holds, write prompt('{0}', column)"
            )
        );
        check!("ai_filter('', body)", Err("ai_filter: the instruction must be a string that is not empty, not \"\""));
        check!(
            "ai_filter('p', body, max_tokens => price)",
            Err("ai_filter: option max_tokens must be a constant, not a column or a computed value")
        );
        check!(
            "ai_filter('p', body, max_tokens => 0)",
            Err("ai_filter: option max_tokens must be a whole number of at least 1, not '0'")
        );
        check!("ai_filter('p', body, seed => NULL)", Err("ai_filter: option seed must not be NULL; leave it out instead"));
        check!("ai_score('p', min => 2, max => 1)", Err("ai_score: min must be below max, and 2 is not below 1"));
        check!(
            "ai_sentiment(prompt('{0}', body))",
            Err("ai_sentiment: prompt(…) is an instruction, which ai_complete, ai_filter and ai_score take")
        );
        check!(
            "ai_filter(prompt('{0}', body), title)",
            Err("ai_filter: inputs must stand inside prompt(…), and one stands after it")
        );
        check!("ai_translate(body, 5)", Err("ai_translate: target must be the name of a language such as 'German' or 'de'"));
    }

    #[tokio::test]
    async fn computed_constants_are_constants() {
        let call = call("ai_complete('a' || 'b', body, max_tokens => 10 + 5, temperature => 0.5)").await.unwrap();
        assert_eq!(call.describe(), "ai_complete('ab', fields=[body])");
        assert_eq!(call.options.max_tokens, Some(15));
        assert_eq!(call.options.temperature, Some(Float(0.5)));
    }

    #[tokio::test]
    async fn prepared_parameters_are_constants_once_bound() {
        let ctx = session().await;
        let sql = "SELECT ai_filter($1, body, seed => $2) AS x FROM t";
        let plan = plan(&ctx, sql).await.unwrap();
        let params = vec![ScalarValue::from("positive"), ScalarValue::from(7_i64)];
        let plan = plan.with_param_values(params).unwrap();
        let shown = ctx.state().optimize(&plan).unwrap().display_indent().to_string();
        assert!(shown.contains("positive") && shown.contains("Int64(7)"), "{shown}");
    }

    #[tokio::test]
    async fn types_are_the_same_planned_and_bound() {
        for sql in [
            "ai_complete('p', body, return_type => 'STRUCT(a INT[], b DATE)')",
            "ai_classify(body, labels => ['a'], output_mode => 'multi', on_error => 'capture')",
            "ai_extract(body, {a: 'q', b: 'r'})",
            "ai_sentiment(body, ['x', 'y'])",
            "ai_score('p', body)",
            "ai_filter('p', body)",
        ] {
            let ctx = session().await;
            let sql = format!("SELECT {sql} AS x FROM t");
            let planned = plan(&ctx, &sql).await.unwrap();
            let call = calls(&sql).await.unwrap().remove(0);
            assert_eq!(planned.schema().field(0).data_type(), &call.output_type(), "{sql}");
        }
    }

    #[tokio::test]
    async fn null_policies() {
        let policy = async |sql| call(sql).await.unwrap().null_policy(NullInput::Skip);
        assert_eq!(policy("ai_complete('Hello')").await, NullPolicy::Never);
        assert_eq!(policy("ai_complete('Hello', body, title)").await, NullPolicy::SkipIfAll);
        assert_eq!(policy("ai_sentiment(body)").await, NullPolicy::SkipIfAll);
        let template = call("ai_complete('{body}', body)").await.unwrap();
        assert_eq!(template.null_policy(NullInput::Skip), NullPolicy::SkipIfAny);
        assert_eq!(template.null_policy(NullInput::Text), NullPolicy::Never);
    }

    #[tokio::test]
    async fn values_and_captured_errors() {
        let call = call("ai_filter('p', body, on_error => 'capture')").await.unwrap();
        let shown = |outcome, on_error| call.value(outcome, on_error).to_string();
        let yes = || Ok(ScalarValue::Boolean(Some(true)));
        assert_eq!(shown(yes(), OnError::Null), "true");
        assert_eq!(call.value(Err("overflow: too long"), OnError::Null), ScalarValue::Boolean(None));
        assert_eq!(shown(yes(), OnError::Capture), "{value:true,error:}");
        assert_eq!(shown(Err("overflow: too long"), OnError::Capture), "{value:,error:overflow: too long}");
        assert_eq!(call.value(Err("x"), OnError::Capture).data_type(), call.output_type());
    }

    #[tokio::test]
    async fn digest_is_of_the_question_alone() {
        let digest = async |sql| call(sql).await.unwrap().digest();
        let base = digest("ai_filter('p', body)").await;
        assert_eq!(digest("ai_filter('p', body, model => 'm', reorder => 'none', on_error => 'fail')").await, base);
        assert_eq!(digest("ai_if('p', named_struct('body', title))").await, base, "inputs do not count, labels do");
        assert_eq!(digest("ai_filter('p', title, body)").await, digest("ai_filter('p', body, title)").await);
        assert_ne!(digest("ai_filter('p', title)").await, base);
        assert_ne!(digest("ai_filter('q', body)").await, base);
        assert_ne!(digest("ai_filter('p', body, seed => 1)").await, base);
        assert_ne!(digest("ai_complete('p', body)").await, base);
    }
}
