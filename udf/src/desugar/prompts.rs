//! Calls of prompts become calls of the functions that they stand for.

use datafusion::common::{Result, plan_err};
use datafusion::sql::sqlparser::ast::{Expr, FunctionArg, Value};

use super::pass::CallArgs;
use super::syntax::{call, literal, named, text, unnamed};
use crate::argument::AI_ARGUMENT;
use crate::function::Function;
use crate::named_prompts::{PROMPT_VERSION, Parameter, PromptDefinition};
use crate::options::{Keyword, Mode, suggest};
use crate::placeholder::AI_OPTIONS;

/// Takes the version that a call names out of its arguments.
pub(super) fn take_version(name: &str, args: &mut CallArgs) -> Result<Option<usize>> {
    let Some(at) = args.named.iter().position(|(key, _)| key == PROMPT_VERSION) else { return Ok(None) };
    let (_, value) = args.named.remove(at);
    let number = match &value {
        Expr::Value(value) => match &value.value {
            Value::Number(number, _) => number.to_string().parse().ok(),
            _ => None,
        },
        _ => None,
    };
    match number {
        Some(version) => Ok(Some(version)),
        None => plan_err!("{name}: {PROMPT_VERSION} must be the number of a version, not {value}"),
    }
}

/// Returns the function that a call of a prompt stands for, and its arguments. What the call says wins over what the prompt says.
pub(super) fn expand(prompt: &PromptDefinition, args: CallArgs) -> Result<(Function, Vec<FunctionArg>)> {
    let PromptDefinition { name, parameters, return_type, model, template } = prompt;
    let CallArgs { positional, named: by_name, options } = args;
    if positional.len() > parameters.len() {
        let (count, given) = (parameters.len(), positional.len());
        let arguments = if count == 1 { "argument" } else { "arguments" };
        return plan_err!("{name}: takes {count} {arguments}, as in {}, and {given} are given", prompt.signature());
    }
    let mut values: Vec<Option<Expr>> = positional.into_iter().map(Some).collect();
    values.resize(parameters.len(), None);
    let (function, needs_type) = prompt.function()?;
    let mut said: Vec<(String, Expr)> = vec![];
    for (key, value) in by_name {
        if let Some(position) = parameters.iter().position(|parameter| parameter.name == key) {
            if values[position].replace(value).is_some() {
                return plan_err!("{name}: {key} is given twice");
            }
        } else if prompt.options()?.any(|option| option == key) {
            said.push((key, value));
        } else {
            let mut known: Vec<&str> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
            prompt.options()?.for_each(|option| known.push(option));
            return plan_err!("{name}: there is no argument {key}{}", suggest(&key, known));
        }
    }
    let mut fields = vec![];
    for (Parameter { name: parameter, sql_type }, value) in parameters.iter().zip(values) {
        let Some(value) = value else {
            return plan_err!("{name}: {parameter} must be given, as in {}", prompt.signature());
        };
        let argument = call(AI_ARGUMENT, [value, text(name), text(parameter), text(sql_type)].map(unnamed).into());
        fields.extend([unnamed(text(parameter)), unnamed(argument)]);
    }
    let mut expanded = vec![unnamed(text(template))];
    if !fields.is_empty() {
        expanded.push(unnamed(call("named_struct", fields)));
    }
    let decided = [
        ("mode", Some(Mode::Template.name())),
        ("model", model.as_deref()),
        ("return_type", needs_type.then_some(return_type.as_str())),
    ];
    let is_said = |key: &str| {
        said.iter().any(|(other, _)| other == key) || options.iter().step_by(2).any(|option| literal(option) == Some(key))
    };
    let left_open = decided.into_iter().filter(|(key, _)| !is_said(key));
    let left_open: Vec<FunctionArg> = left_open.filter_map(|(key, value)| Some(named(key, text(value?)))).collect();
    if !options.is_empty() {
        expanded.push(unnamed(call(AI_OPTIONS, options)));
    }
    expanded.extend(left_open);
    expanded.extend(said.iter().map(|(key, value)| named(key, value.clone())));
    Ok((function, expanded))
}
