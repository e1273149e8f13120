//! The SQL functions as DataFusion sees them: placeholders that know their type and are never run.
//!
//! Options and fields must decide a type while a call is planned, and then only types and literals are in sight. So
//! `ai_options(…)` and `ai_fields(…)` put their literal arguments into the metadata of their own field, where the call reads
//! them. All are volatile: no rule of the host engine copies a call, moves it into a scan or runs it at plan time.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use serde_json::{Map, Value};

use crate::constant::{known_argument, known_options, scalar_value};
use crate::embeddings::{EmbeddingSource, Embeddings};
use crate::function::{self, Arity, Function};
use crate::options::{CallOptions, Keyword, OnError, OnOverflow, suggest, text_of};
use crate::scalar::{self, Arguments};

/// The field metadata in which `ai_options` leaves its options as JSON.
pub(crate) const OPTIONS_KEY: &str = "refrain.options";
/// The field metadata in which `ai_fields` leaves names and questions as JSON.
pub(crate) const FIELDS_KEY: &str = "refrain.fields";
/// The option in which the labels of the inputs are kept; users neither write nor see it.
pub(crate) const LABELS_OPTION: &str = "refrain.labels";

pub(crate) const AI_OPTIONS: &str = "ai_options";
pub(crate) const AI_FIELDS: &str = "ai_fields";
pub(crate) const AI_PASSAGES: &str = "ai_passages";

fn any_arguments() -> Signature {
    Signature::one_of(vec![TypeSignature::VariadicAny, TypeSignature::Nullary], Volatility::Volatile)
}

/// A function that a model answers.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct AiFunction {
    pub(crate) function: Function,
    /// The name in SQL, which is that of the function or `llm`.
    pub(crate) name: &'static str,
    aliases: Vec<String>,
    signature: Signature,
    /// The embedding models, for a function that makes vectors.
    embeddings: Option<Embeddings>,
}

impl AiFunction {
    pub(crate) fn udf(function: Function, embeddings: &Embeddings) -> ScalarUDF {
        Self::with_embeddings(function, (function == Function::Embed).then(|| embeddings.clone()))
    }

    /// As [`udf`](Self::udf), for a function that makes no vectors.
    pub(crate) fn of_text(function: Function) -> ScalarUDF {
        Self::with_embeddings(function, None)
    }

    fn with_embeddings(function: Function, embeddings: Option<Embeddings>) -> ScalarUDF {
        let aliases = function.signature().aliases.iter().map(|alias| alias.to_string()).collect();
        ScalarUDF::new_from_impl(AiFunction {
            function,
            name: function.name(),
            aliases,
            signature: any_arguments(),
            embeddings,
        })
    }

    pub(crate) fn llm() -> ScalarUDF {
        let (function, name) = (Function::Complete, function::LLM);
        let (aliases, signature) = (Vec::new(), any_arguments());
        ScalarUDF::new_from_impl(AiFunction { function, name, aliases, signature, embeddings: None })
    }

    /// Returns the embedding models, for a function that makes vectors.
    pub(crate) fn embeddings(&self) -> Option<&dyn EmbeddingSource> {
        self.embeddings.as_ref().map(|embeddings| embeddings.0.as_ref())
    }

    /// Returns whether the function reads placeholders as references to fields unless told otherwise.
    pub(crate) fn prefers_fields(&self) -> bool {
        self.name == function::LLM
    }

    /// Fails unless this many positional arguments are right.
    pub(crate) fn check_count(&self, count: usize) -> Result<()> {
        check_count(self.function, self.name, count)
    }

    /// Fails if an option is none of this function's, or is NULL.
    pub(crate) fn check_options(&self, options: &Map<String, Value>) -> Result<()> {
        check_options(self.function, self.name, options)
    }
}

/// Fails unless this many positional arguments of a function are right; `name` is how it was called.
pub(crate) fn check_count(function: Function, name: &str, count: usize) -> Result<()> {
    let params = function.signature().params;
    let missing: Vec<&str> =
        params.iter().skip(count).filter(|param| param.arity == Arity::One).map(|param| param.name).collect();
    if !missing.is_empty() {
        return plan_err!("{name}: {} must be given", missing.join(" and "));
    }
    let is_open = params.last().is_some_and(|param| param.arity == Arity::Any);
    if count > params.len() && !is_open {
        let names: Vec<&str> = params.iter().map(|param| param.name).collect();
        return plan_err!(
            "{name}: takes {} and options by name, but {count} positional arguments are given; write options as name => value",
            names.join(", ")
        );
    }
    Ok(())
}

/// Fails if an option is none of the function's, is NULL, or asks for what the function cannot do; `name` is how it was called.
pub(crate) fn check_options(function: Function, name: &str, options: &Map<String, Value>) -> Result<()> {
    let signature = function.signature();
    for (option, value) in options.iter().filter(|(option, _)| *option != LABELS_OPTION) {
        if !signature.option_names().any(|known| known == option) {
            return plan_err!("{name}: there is no option {option}{}", suggest(option, signature.option_names()));
        }
        if value.is_null() {
            return plan_err!("{name}: option {option} must not be NULL; leave it out instead");
        }
        if option == "on_overflow" {
            let chosen = OnOverflow::parse(&format!("{name}: option {option}"), &text_of(value))?;
            function.check_overflow(name, chosen)?;
        }
    }
    Ok(())
}

impl ScalarUDFImpl for AiFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(call_name(self.name, args))
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        exec_err!("{}: the type of a call depends on its constant arguments", self.name)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let (options, has_options) = known_options(&args);
        let count = args.arg_fields.len() - usize::from(has_options);
        self.check_count(count)?;
        self.check_options(&options)?;
        let positional: Vec<Option<Value>> = (1..count).map(|position| known_argument(&args, position)).collect();
        let arguments = Arguments {
            name: self.name,
            instruction: "",
            positional: &positional,
            options: &options,
            noun: "text",
            embeddings: self.embeddings(),
        };
        let value_type = scalar::value_type(self.function, &arguments)?;
        let on_error = CallOptions::from_raw(self.name, &options)?.on_error;
        Ok(Arc::new(Field::new(self.name, captured(value_type, on_error), true)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{} was not planned as an LLM operator; run it through a Refrain session", self.name)
    }
}

/// Returns the type of a call whose value has this type: the type, or `STRUCT(value, error)` if errors are captured.
pub(crate) fn captured(value_type: DataType, on_error: Option<OnError>) -> DataType {
    if on_error == Some(OnError::Capture) { DataType::Struct(captured_fields(value_type)) } else { value_type }
}

/// Returns the fields of a captured value.
pub(crate) fn captured_fields(value_type: DataType) -> Fields {
    Fields::from(vec![Field::new("value", value_type, true), Field::new("error", DataType::Utf8, true)])
}

/// A function that carries constants or inputs to the call around it: `ai_options`, `ai_fields`, `ai_passages`, `prompt`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Carrier {
    name: &'static str,
    signature: Signature,
}

impl Carrier {
    pub(crate) fn udf(name: &'static str) -> ScalarUDF {
        ScalarUDF::new_from_impl(Carrier { name, signature: any_arguments() })
    }
}

impl ScalarUDFImpl for Carrier {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(call_name(self.name, args))
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let field = Field::new(self.name, DataType::Utf8, true);
        let key = match self.name {
            AI_OPTIONS => OPTIONS_KEY,
            AI_FIELDS => FIELDS_KEY,
            _ => {
                if args.arg_fields.is_empty() {
                    let what = if self.name == AI_PASSAGES { "a list" } else { "a template" };
                    return plan_err!("{}: {what} must be given", self.name);
                }
                return Ok(Arc::new(field));
            }
        };
        let known = literal_pairs(self.name, &args)?;
        Ok(Arc::new(field.with_metadata(HashMap::from([(key.to_string(), Value::Object(known).to_string())]))))
    }

    /// Arguments are evaluated before the call around them, which has the better message; so options have a value here.
    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if self.name == function::PROMPT.name {
            return exec_err!("prompt stands inside the call of an ai_* function and has no value of its own");
        }
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(None)))
    }
}

/// Reads `name, value, …`, leaving out what is no literal yet.
fn literal_pairs(function: &str, args: &ReturnFieldArgs) -> Result<Map<String, Value>> {
    let mut known = Map::new();
    if !args.scalar_arguments.len().is_multiple_of(2) {
        return plan_err!("{function}: names and values must come in pairs");
    }
    for pair in args.scalar_arguments.chunks(2) {
        let Some(name) = pair[0].and_then(|name| name.try_as_str().flatten()) else {
            return plan_err!("{function}: names must be string literals");
        };
        // Fields keep their names and may come without a question; options are named in any case.
        let is_fields = function == AI_FIELDS;
        let value = match pair[1] {
            Some(value) => scalar_value(value)?,
            None if is_fields => Value::Null,
            None => continue,
        };
        let name = if is_fields { name.to_string() } else { name.to_lowercase() };
        if known.contains_key(&name) {
            let what = if is_fields { "ai_extract: field" } else { "option" };
            return plan_err!("{what} {name} is given twice");
        }
        known.insert(name, value);
    }
    Ok(known)
}

/// Returns the placeholder that an expression calls, if it calls one.
pub(crate) fn placeholder(function: &ScalarFunction) -> Option<&AiFunction> {
    function.func.inner().downcast_ref::<AiFunction>()
}

pub(crate) fn is_ai_options(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(function) if is_carrier(function, AI_OPTIONS))
}

pub(crate) fn is_ai_fields(function: &ScalarFunction) -> bool {
    is_carrier(function, AI_FIELDS)
}

/// Returns the arguments of `prompt(…)`, if the expression is one.
pub(crate) fn prompt_args(expr: &Expr) -> Option<&[Expr]> {
    match expr {
        Expr::ScalarFunction(function) if is_carrier(function, function::PROMPT.name) => Some(&function.args),
        _ => None,
    }
}

/// Returns the list that an argument declares as passages, if it does.
pub(crate) fn passages_arg(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::ScalarFunction(function) if is_carrier(function, AI_PASSAGES) => function.args.first(),
        _ => None,
    }
}

fn is_carrier(function: &ScalarFunction, name: &str) -> bool {
    function.func.inner().downcast_ref::<Carrier>().is_some_and(|carrier| carrier.name == name)
}

/// Returns the name of a call as a column: options as they are written in SQL, labels left out.
pub(crate) fn call_name(name: &str, args: &[Expr]) -> String {
    let mut parts = Vec::with_capacity(args.len());
    for arg in args {
        match arg {
            Expr::ScalarFunction(options) if is_ai_options(arg) => {
                for pair in options.args.chunks(2) {
                    let [Expr::Literal(key, _), value] = pair else {
                        continue;
                    };
                    let key = key.try_as_str().flatten().unwrap_or_default();
                    if key != LABELS_OPTION {
                        parts.push(format!("{key} => {}", argument_name(value)));
                    }
                }
            }
            _ => match passages_arg(arg) {
                Some(list) => parts.push(format!("passages => {}", argument_name(list))),
                None => parts.push(argument_name(arg)),
            },
        }
    }
    format!("{name}({})", parts.join(", "))
}

fn argument_name(expr: &Expr) -> String {
    match expr {
        Expr::Literal(value, _) => match value.try_as_str() {
            Some(Some(text)) => format!("'{}'", text.replace('\'', "''")),
            _ => value.to_string(),
        },
        other => other.schema_name().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{plan, session};

    /// Runs a statement and returns the message of the error it ends in.
    async fn error(sql: &str) -> String {
        let ctx = session().await;
        let plan = match plan(&ctx, sql).await {
            Ok(plan) => plan,
            Err(message) => return message,
        };
        let result = match ctx.execute_logical_plan(plan).await {
            Ok(frame) => frame.collect().await,
            Err(error) => Err(error),
        };
        result.unwrap_err().strip_backtrace()
    }

    #[tokio::test]
    async fn placeholders_are_never_run() {
        let message = error("SELECT ai_sentiment(body) FROM t").await;
        assert!(
            message.contains("ai_sentiment was not planned as an LLM operator; run it through a Refrain session"),
            "{message}"
        );
        let message = error("SELECT prompt('{0}', body) FROM t").await;
        assert!(message.contains("prompt stands inside the call of an ai_* function"), "{message}");
    }

    #[tokio::test]
    async fn options_decide_types_without_the_pass() {
        let ctx = session().await;
        let sql =
            "SELECT ai_complete('p', body, ai_options('return_type', 'INT')), ai_extract(body, ai_fields('a', 'q')) FROM t";
        let frame = ctx.sql(sql).await.unwrap();
        let types: Vec<String> = frame.schema().fields().iter().map(|field| field.data_type().to_string()).collect();
        assert_eq!(types, ["Int32", "Struct(\"a\": Utf8)"]);
        let message = ctx.sql("SELECT ai_complete('p', ai_options('sed', 1)) FROM t").await.unwrap_err().to_string();
        assert!(message.contains("ai_complete: there is no option sed; did you mean seed?"), "{message}");
    }
}
