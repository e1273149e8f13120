//! The pass: visits a statement and rewrites the calls in it.

use std::ops::ControlFlow;

use datafusion::common::{DataFusionError, Result, plan_datafusion_err, plan_err};
use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::sqlparser::ast::{
    DictionaryField, Expr, Function as SqlFunction, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName,
    Query, Select, SetExpr, VisitMut, VisitorMut,
};

use super::captured::captured_filter;
use super::fields::fold_fields;
use super::names::name_columns;
use super::prompts;
use super::syntax::{call, function_name, is_call_of, literal, simple_name, text, unnamed};
use crate::function::{self, Arity, COUNT_TOKENS, Function, PROMPT, SIMILARITY, Signature};
use crate::named_prompts::NamedPrompts;
use crate::options::{Keyword, Mode, OnError, suggest};
use crate::placeholder::{AI_OPTIONS, AI_PASSAGES};
use crate::settings::Settings;

/// Expands a wildcard inside a call: `t.*`, or `*` for `None`, over the tables of a SELECT, to one column each.
pub type ExpandWildcard<'a> = dyn FnMut(Option<&ObjectName>, &Select) -> Result<Vec<Expr>> + 'a;

/// Rewrites the calls of our functions and of prompts in a statement, wherever they stand.
///
/// Fails if an argument is unknown, given twice, or missing where a later one is given.
pub fn desugar(
    statement: &mut Statement,
    settings: &Settings,
    prompts: &NamedPrompts,
    expand: &mut ExpandWildcard<'_>,
) -> Result<()> {
    let mut pass = Pass { settings, prompts, expand, selects: Vec::new() };
    let flow = match statement {
        Statement::Statement(statement) => statement.visit(&mut pass),
        Statement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => query.visit(&mut pass),
            CopyToSource::Relation(_) => ControlFlow::Continue(()),
        },
        Statement::Explain(explain) => return desugar(&mut explain.statement, settings, prompts, expand),
        Statement::CreateExternalTable(_) | Statement::Reset(_) => ControlFlow::Continue(()),
    };
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// Returns the arguments that a wildcard over these columns stands for in a call: the columns, or a struct of them where the
/// function takes one content.
pub fn wildcard_arguments(function: &str, columns: Vec<Expr>) -> Vec<Expr> {
    let takes_columns = function::find(&function.to_lowercase()).is_none_or(Function::takes_instruction);
    if takes_columns { columns } else { vec![as_struct(columns)] }
}

fn as_struct(columns: Vec<Expr>) -> Expr {
    let field = |column: Expr| {
        let name = match &column {
            Expr::CompoundIdentifier(names) => names.last().map_or_else(String::new, |name| name.value.clone()),
            Expr::Identifier(name) => name.value.clone(),
            other => other.to_string(),
        };
        DictionaryField { key: Ident::with_quote('\'', name), value: Box::new(column) }
    };
    Expr::Dictionary(columns.into_iter().map(field).collect())
}

struct Pass<'a, 'b> {
    settings: &'a Settings,
    prompts: &'a NamedPrompts,
    expand: &'a mut ExpandWildcard<'b>,
    /// The SELECTs around the expression that is visited; `None` for a query that is no SELECT.
    selects: Vec<Option<Select>>,
}

impl VisitorMut for Pass<'_, '_> {
    type Break = DataFusionError;

    /// A query's ORDER BY stands outside its SELECT, but sees its tables.
    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<DataFusionError> {
        self.selects.push(match query.body.as_ref() {
            SetExpr::Select(select) => Some(select.as_ref().clone()),
            _ => None,
        });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<DataFusionError> {
        self.selects.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<DataFusionError> {
        self.selects.push(Some(select.clone()));
        name_columns(&mut select.projection, self.prompts);
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<DataFusionError> {
        self.selects.pop();
        match [&select.selection, &select.having].into_iter().flatten().find_map(captured_filter) {
            Some(name) => ControlFlow::Break(plan_datafusion_err!(
                "{name}: under on_error => 'capture' a filter is a struct; as a condition write ({name}(…)).value"
            )),
            None => ControlFlow::Continue(()),
        }
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<DataFusionError> {
        if let Expr::Function(function) = expr
            && let Err(error) = self.rewrite(function)
        {
            return ControlFlow::Break(error);
        }
        ControlFlow::Continue(())
    }
}

/// The arguments of a call, sorted.
#[derive(Default)]
pub(super) struct CallArgs {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(String, Expr)>,
    /// The arguments of an `ai_options` that stood last.
    pub(super) options: Vec<FunctionArg>,
}

impl Pass<'_, '_> {
    fn rewrite(&mut self, sql: &mut SqlFunction) -> Result<()> {
        let Some(mut name) = simple_name(sql) else {
            return Ok(());
        };
        if self.prompts.contains(&name) {
            name = self.expand_prompt(&name, sql)?;
        }
        let (signature, called) = match function::find(&name) {
            Some(called) => (called.signature(), Some(called)),
            None if name == COUNT_TOKENS.name => (COUNT_TOKENS, None),
            None if name == SIMILARITY.name => (SIMILARITY, None),
            None if name == PROMPT.name => (PROMPT, None),
            None => return Ok(()),
        };
        if sql.over.is_some() && called.is_some_and(Function::is_aggregate) {
            return plan_err!("{name}: cannot be used with OVER; aggregate in a subquery with GROUP BY, and join it");
        }
        let FunctionArguments::List(list) = &mut sql.args else {
            return Ok(());
        };
        let takes_columns = called.is_none_or(Function::takes_instruction);
        let mut args = self.sort_args(&name, takes_columns, std::mem::take(&mut list.args))?;
        let mut options = place_named(&name, signature, &mut args)?;
        // Passages are an input: their values vary by row.
        if let Some(at) = options.iter().position(|(option, _)| option == "passages") {
            args.positional.push(call(AI_PASSAGES, vec![unnamed(options.remove(at).1)]));
        }
        if let Some(called) = called {
            if name == function::LLM {
                sql.name = function_name(called.name());
                default_option(&mut options, &args, "mode", Mode::Fields.name());
            }
            if called == Function::Extract && args.positional.len() > 1 {
                fold_fields(&mut args.positional[1]);
            }
            self.write_settings(called, &args, &mut options);
        }
        if name == SIMILARITY.name {
            self.write_model(self.settings.embedding_model.as_deref(), &args, &mut options);
        }
        list.args = args.positional.into_iter().map(unnamed).collect();
        let mut pairs = args.options;
        pairs.extend(options.into_iter().flat_map(|(name, value)| [unnamed(text(&name)), unnamed(value)]));
        if !pairs.is_empty() {
            list.args.push(unnamed(call(AI_OPTIONS, pairs)));
        }
        Ok(())
    }

    /// Turns a call of a prompt into that of the function it stands for, and returns its name.
    fn expand_prompt(&mut self, name: &str, sql: &mut SqlFunction) -> Result<String> {
        let FunctionArguments::List(list) = &mut sql.args else {
            return plan_err!("{name}: is a prompt, and its arguments stand in brackets");
        };
        let mut args = self.sort_args(name, true, std::mem::take(&mut list.args))?;
        let version = prompts::take_version(name, &mut args)?;
        let Some(prompt) = self.prompts.find(name, version)? else {
            return plan_err!("{name}: the prompt has just been dropped");
        };
        let (function, args) = prompts::expand(&prompt, args)?;
        list.args = args;
        sql.name = function_name(function.name());
        Ok(function.name().to_owned())
    }

    /// Sorts arguments by kind and expands wildcards: to columns, or to a struct where one content is expected.
    fn sort_args(&mut self, name: &str, takes_columns: bool, list: Vec<FunctionArg>) -> Result<CallArgs> {
        let mut args = CallArgs::default();
        for arg in list {
            let (key, arg) = match arg {
                FunctionArg::Named { name, arg, .. } => (Some(name.value.to_lowercase()), arg),
                FunctionArg::ExprNamed { name: Expr::Identifier(name), arg, .. } => (Some(name.value.to_lowercase()), arg),
                FunctionArg::ExprNamed { name: other, .. } => {
                    return plan_err!("{name}: {other} is no name of an argument");
                }
                FunctionArg::Unnamed(arg) => (None, arg),
            };
            let values = match arg {
                FunctionArgExpr::Expr(expr) => vec![expr],
                FunctionArgExpr::QualifiedWildcard(table) => self.columns(name, Some(&table), takes_columns)?,
                FunctionArgExpr::Wildcard => self.columns(name, None, takes_columns)?,
                other => {
                    return plan_err!("{name}: cannot expand {other}; name the columns instead");
                }
            };
            match key {
                None if !args.named.is_empty() && !is_call_of(&values, AI_OPTIONS) => {
                    return plan_err!("{name}: arguments without a name must stand before those with one");
                }
                None => args.positional.extend(values),
                Some(key) => args.named.extend(values.into_iter().map(|value| (key.clone(), value))),
            }
        }
        if args.positional.last().is_some_and(|last| is_call_of(std::slice::from_ref(last), AI_OPTIONS))
            && let Some(Expr::Function(options)) = args.positional.pop()
            && let FunctionArguments::List(list) = options.args
        {
            args.options = list.args;
        }
        Ok(args)
    }

    fn columns(&mut self, name: &str, table: Option<&ObjectName>, takes_columns: bool) -> Result<Vec<Expr>> {
        let Some(Some(select)) = self.selects.last() else {
            return plan_err!("{name}: a wildcard can be expanded inside a SELECT only; name the columns instead");
        };
        let columns = (self.expand)(table, select)?;
        Ok(if takes_columns { columns } else { vec![as_struct(columns)] })
    }

    /// Writes the settings into the call that it must keep or that decide its type.
    fn write_settings(&self, called: Function, args: &CallArgs, options: &mut Vec<(String, Expr)>) {
        let is_embedding = called == Function::Embed;
        let model = if is_embedding { &self.settings.embedding_model } else { &self.settings.model };
        self.write_model(model.as_deref(), args, options);
        if self.settings.on_error == OnError::Capture {
            default_option(options, args, "on_error", OnError::Capture.name());
        }
        if self.settings.mode != Mode::Auto && called.signature().options.contains(&"mode") {
            default_option(options, args, "mode", self.settings.mode.name());
        }
    }

    fn write_model(&self, model: Option<&str>, args: &CallArgs, options: &mut Vec<(String, Expr)>) {
        if let Some(model) = model {
            default_option(options, args, "model", model);
        }
    }
}

/// Moves named arguments to their positions, and returns those that are options.
fn place_named(name: &str, signature: Signature, args: &mut CallArgs) -> Result<Vec<(String, Expr)>> {
    let mut placed: Vec<(usize, Expr)> = Vec::new();
    let mut options: Vec<(String, Expr)> = Vec::new();
    for (key, value) in std::mem::take(&mut args.named) {
        if let Some(position) = signature.params.iter().position(|param| param.name == key) {
            let is_open = signature.params[position].arity == Arity::Any;
            let is_taken = position < args.positional.len() || placed.iter().any(|(other, _)| *other == position);
            if is_taken && !is_open {
                return plan_err!("{name}: {key} is given twice");
            }
            placed.push((position, value));
        } else if signature.option_names().any(|option| option == key) {
            if has_option(&options, args, &key) {
                return plan_err!("{name}: {key} is given twice");
            }
            options.push((key, value));
        } else {
            return plan_err!("{name}: there is no argument {key}{}", suggest(&key, signature.argument_names()));
        }
    }
    placed.sort_by_key(|(position, _)| *position);
    for (position, value) in placed {
        if let Some(missing) = signature.params.get(args.positional.len()).filter(|_| position > args.positional.len()) {
            return plan_err!("{name}: {} must be given", missing.name);
        }
        args.positional.push(value);
    }
    Ok(options)
}

fn has_option(options: &[(String, Expr)], args: &CallArgs, key: &str) -> bool {
    let is_written = |arg: &FunctionArg| matches!(literal(arg), Some(name) if name.eq_ignore_ascii_case(key));
    options.iter().any(|(name, _)| name == key) || args.options.iter().step_by(2).any(is_written)
}

fn default_option(options: &mut Vec<(String, Expr)>, args: &CallArgs, key: &str, value: &str) {
    if !has_option(options, args, key) {
        options.push((key.to_string(), text(value)));
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::parser::DFParser;

    use super::*;
    use crate::named_prompts::{Parameter, PromptDefinition};

    /// Every table has the columns a and b.
    fn columns(table: Option<&ObjectName>, _: &Select) -> Result<Vec<Expr>> {
        let column = |name: &str| match table {
            Some(table) => Expr::CompoundIdentifier(vec![Ident::new(table.to_string()), Ident::new(name)]),
            None => Expr::Identifier(Ident::new(name)),
        };
        Ok(vec![column("a"), column("b")])
    }

    /// Knows `refund(ticket)` in two versions and `age(a, b)`.
    fn prompts() -> NamedPrompts {
        let parameter = |name: &str, sql_type: &str| Parameter { name: name.into(), sql_type: sql_type.into() };
        let prompt = |name: &str, parameters, return_type: &str, model: Option<&str>, template: &str| PromptDefinition {
            name: name.into(),
            parameters,
            return_type: return_type.into(),
            model: model.map(str::to_owned),
            template: template.into(),
        };
        let prompts = NamedPrompts::default();
        let ticket = || vec![parameter("ticket", "VARCHAR")];
        prompts.create(prompt("refund", ticket(), "VARCHAR", None, "Why {ticket}?")).unwrap();
        prompts.create_or_replace(prompt("refund", ticket(), "BOOLEAN", Some("q"), "Is {ticket} so?")).unwrap();
        let two = vec![parameter("a", "INT"), parameter("b", "DOUBLE")];
        prompts.create(prompt("age", two, "INT", None, "{a} in {b}")).unwrap();
        prompts
    }

    fn run(sql: &str, settings: &Settings) -> Result<String, String> {
        let mut statement = DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
        let desugared = |statement: &mut Statement| {
            desugar(statement, settings, &prompts(), &mut columns).map_err(|error| error.strip_backtrace())
        };
        desugared(&mut statement)?;
        let once = statement.to_string();
        desugared(&mut statement)?;
        assert_eq!(statement.to_string(), once, "a second pass must change nothing");
        Ok(once)
    }

    #[track_caller]
    fn check(before: &str, after: &str) {
        let before = format!("SELECT {before} AS x FROM t");
        assert_eq!(run(&before, &Settings::default()), Ok(format!("SELECT {after} AS x FROM t")));
    }

    #[track_caller]
    fn check_error(before: &str, message: &str) {
        let error = run(&format!("SELECT {before} AS x FROM t"), &Settings::default()).unwrap_err();
        assert_eq!(error, format!("Error during planning: {message}"));
    }

    #[test]
    fn folds_options() {
        check("ai_complete('p', s)", "ai_complete('p', s)");
        check("ai_complete('p', s, model => 'm')", "ai_complete('p', s, ai_options('model', 'm'))");
        check(
            "AI_Complete('p', Model := 'm', max_tokens => 10 + 5)",
            "AI_Complete('p', ai_options('model', 'm', 'max_tokens', 10 + 5))",
        );
        check("ai_gen('p', seed => $1)", "ai_gen('p', ai_options('seed', $1))");
        check("ai_score('p', s, min => 1, max => 5)", "ai_score('p', s, ai_options('min', 1, 'max', 5))");
        check(
            "upper(ai_complete('p', ai_translate(s, target => 'de', seed => 1), seed => 2))",
            "upper(ai_complete('p', ai_translate(s, 'de', ai_options('seed', 1)), ai_options('seed', 2)))",
        );
        check("upper(s)", "upper(s)");
    }

    #[test]
    fn options_of_aggregates_stand_before_their_order() {
        check(
            "ai_agg(DISTINCT s, 'p', seed => 1 ORDER BY a DESC) FILTER (WHERE b > 1)",
            "ai_agg(DISTINCT s, 'p', ai_options('seed', 1) ORDER BY a DESC) FILTER (WHERE b > 1)",
        );
        check("ai_top_k(s, k => 3, instruction => 'p')", "ai_top_k(s, 'p', 3)");
        check("ai_summarize_agg(t.*)", "ai_summarize_agg({'a': t.a, 'b': t.b})");
    }

    #[test]
    fn places_positional_arguments() {
        check("ai_classify(s, labels => ['a', 'b'])", "ai_classify(s, ['a', 'b'])");
        check("ai_classify(labels => ['a'], input => s)", "ai_classify(s, ['a'])");
        check("ai_filter(instruction => 'p', input => s)", "ai_filter('p', s)");
        check("ai_count_tokens(s, model => 'm')", "ai_count_tokens(s, 'm')");
        check_error("ai_classify(s, ['a'], labels => ['b'])", "ai_classify: labels is given twice");
        check_error("ai_classify(labels => ['b'])", "ai_classify: input must be given");
        check_error("ai_filter(input => s)", "ai_filter: instruction must be given");
    }

    #[test]
    fn folds_fields() {
        check("ai_extract(s, ['a', 'b'])", "ai_extract(s, ai_fields('a', NULL, 'b', NULL))");
        check("ai_extract(s, {a: 'who?'})", "ai_extract(s, ai_fields('a', 'who?'))");
        check("ai_extract(s, fields => named_struct('a', 'q'))", "ai_extract(s, ai_fields('a', 'q'))");
        check("ai_extract(s, 'STRUCT(a INT)')", "ai_extract(s, 'STRUCT(a INT)')");
    }

    #[test]
    fn expands_wildcards() {
        check("LLM('p', t.*)", "ai_complete('p', t.a, t.b, ai_options('mode', 'fields'))");
        check("llm('p {a}', a)", "ai_complete('p {a}', a, ai_options('mode', 'fields'))");
        check("LLM('p', a, mode => 'template')", "ai_complete('p', a, ai_options('mode', 'template'))");
        check("ai_filter('p', *)", "ai_filter('p', a, b)");
        check("ai_sentiment(t.*)", "ai_sentiment({'a': t.a, 'b': t.b})");
        check("ai_complete(prompt('{0}{1}', t.*))", "ai_complete(prompt('{0}{1}', t.a, t.b))");
    }

    #[test]
    fn expands_prompts() {
        let ticket = "named_struct('ticket', ai_argument(s, 'refund', 'ticket', 'VARCHAR'))";
        let current = format!("ai_filter('Is {{ticket}} so?', {ticket}, ai_options('mode', 'template', 'model', 'q'))");
        check("refund(s)", &current);
        check("Refund(ticket => s)", &current);
        check("refund(s, prompt_version => 2)", &current);
        check(
            "NOT refund(s, model => 'm', temperature => 1, mode => 'fields')",
            &format!(
                "NOT ai_filter('Is {{ticket}} so?', {ticket}, ai_options('model', 'm', 'temperature', 1, 'mode', 'fields'))"
            ),
        );
        check(
            "refund(s, prompt_version => 1)",
            &format!("ai_complete('Why {{ticket}}?', {ticket}, ai_options('mode', 'template'))"),
        );
        check(
            "age(b => 1, a => 2)",
            "ai_complete('{a} in {b}', named_struct('a', ai_argument(2, 'age', 'a', 'INT'), 'b', ai_argument(1, 'age', 'b', 'DOUBLE')), \
             ai_options('mode', 'template', 'return_type', 'INT'))",
        );
    }

    #[test]
    fn refuses_wrong_calls_of_prompts() {
        check_error("refund()", "refund: ticket must be given, as in refund(ticket VARCHAR)");
        check_error("refund(s, s)", "refund: takes 1 argument, as in refund(ticket VARCHAR), and 2 are given");
        check_error("refund(s, ticket => s)", "refund: ticket is given twice");
        check_error("refund(tickt => s)", "refund: there is no argument tickt; did you mean ticket?");
        check_error("refund(s, temprature => 1)", "refund: there is no argument temprature; did you mean temperature?");
        check_error("refund(s, seed => 1, seed => 2)", "ai_filter: seed is given twice");
        check_error("refund(s, prompt_version => 'x')", "refund: prompt_version must be the number of a version, not 'x'");
        check_error(
            "refund(s, prompt_version => 7)",
            "refund: there is no version 7 of this prompt; its versions are 1 to 2, as SELECT * FROM ai_prompts() shows",
        );
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        check_error(
            "ai_complete('p', temprature => 1)",
            "ai_complete: there is no argument temprature; did you mean temperature?",
        );
        check_error("ai_complete('p', seed => 1, SEED => 2)", "ai_complete: seed is given twice");
        check_error("ai_complete('p', ai_options('seed', 2), seed => 1)", "ai_complete: seed is given twice");
        check_error(
            "ai_complete('p', seed => 1, s)",
            "ai_complete: arguments without a name must stand before those with one",
        );
        check_error("ai_sentiment(s, mode => 'fields')", "ai_sentiment: there is no argument mode; did you mean model?");
        check_error(
            "ai_agg(s, 'p') OVER (PARTITION BY a)",
            "ai_agg: cannot be used with OVER; aggregate in a subquery with GROUP BY, and join it",
        );
        check_error("ai_top_k(s, 'p', methd => 'score')", "ai_top_k: there is no argument methd; did you mean method?");
    }

    #[test]
    fn writes_settings_into_calls() {
        let settings =
            Settings { model: Some("q".into()), mode: Mode::Fields, on_error: OnError::Capture, ..Settings::default() };
        let sql = "SELECT ai_complete('p', s) AS x, ai_sentiment(s, model => 'm') AS y FROM t";
        let after = "SELECT ai_complete('p', s, ai_options('model', 'q', 'on_error', 'capture', 'mode', 'fields')) AS x, \
                     ai_sentiment(s, ai_options('model', 'm', 'on_error', 'capture')) AS y FROM t";
        assert_eq!(run(sql, &settings), Ok(after.into()));
    }

    #[test]
    fn a_captured_filter_is_no_condition() {
        let run = |condition: &str| run(&format!("SELECT 1 FROM t WHERE {condition}"), &Settings::default());
        let message = "Error during planning: ai_filter: under on_error => 'capture' a filter is a struct; \
                       as a condition write (ai_filter(…)).value";
        assert_eq!(run("a > 1 AND NOT ai_filter('p', s, on_error => 'capture')"), Err(message.into()));
        assert!(run("(ai_filter('p', s, on_error => 'capture')).value").is_ok());
    }

    #[test]
    fn names_columns_as_they_were_written() {
        let cases = [
            ("SELECT ai_sentiment(t.s) FROM t", "SELECT ai_sentiment(t.s) AS \"ai_sentiment(s)\" FROM t"),
            (
                "SELECT a, Ai_Filter('p', t.s, seed => 1) FROM t",
                "SELECT a, Ai_Filter('p', t.s, ai_options('seed', 1)) AS \"ai_filter('p', s, seed => 1)\" FROM t",
            ),
            (
                "SELECT LLM('p', t.*) FROM t",
                "SELECT ai_complete('p', t.a, t.b, ai_options('mode', 'fields')) AS \"llm('p', t.*)\" FROM t",
            ),
            (
                "SELECT refund(t.s, seed => 1) FROM t",
                "SELECT ai_filter('Is {ticket} so?', named_struct('ticket', ai_argument(t.s, 'refund', 'ticket', 'VARCHAR')), \
                 ai_options('mode', 'template', 'model', 'q', 'seed', 1)) AS \"refund(s, seed => 1)\" FROM t",
            ),
            (
                "SELECT ai_sentiment(t.s), ai_sentiment(u.s) FROM t, u",
                "SELECT ai_sentiment(t.s), ai_sentiment(u.s) FROM t, u",
            ),
        ];
        for (before, after) in cases {
            assert_eq!(run(before, &Settings::default()), Ok(after.into()));
        }
    }

    #[test]
    fn reaches_every_statement() {
        let cases = [
            "EXPLAIN SELECT 1 FROM t WHERE ai_filter('p', s, seed => 1)",
            "EXPLAIN ANALYZE SELECT 1 FROM t WHERE ai_filter('p', s, seed => 1)",
            "CREATE VIEW v AS SELECT 1 FROM t WHERE ai_filter('p', s, seed => 1)",
            "INSERT INTO u SELECT 1 FROM t WHERE ai_filter('p', s, seed => 1)",
            "PREPARE q AS SELECT 1 FROM t WHERE ai_filter('p', s, seed => 1)",
            "COPY (SELECT 1 FROM t WHERE ai_filter('p', s, seed => 1)) TO 'x.csv' STORED AS CSV",
            "SELECT 1 FROM t WHERE EXISTS (SELECT 1 FROM u WHERE ai_filter('p', s, seed => 1))",
            "WITH c AS (SELECT 1 FROM t WHERE ai_filter('p', s, seed => 1)) SELECT * FROM c",
            "SELECT 1 FROM t JOIN u ON ai_filter('p', s, seed => 1)",
            "SELECT 1 FROM t GROUP BY a HAVING ai_filter('p', s, seed => 1)",
            "SELECT 1 FROM t ORDER BY ai_filter('p', s, seed => 1)",
            "SELECT CASE WHEN ai_filter('p', s, seed => 1) THEN 1 END FROM t",
            "SELECT 1 UNION SELECT 2 FROM t WHERE ai_filter('p', s, seed => 1)",
        ];
        for sql in cases {
            let after = run(sql, &Settings::default()).unwrap();
            assert!(after.contains("ai_filter('p', s, ai_options('seed', 1))"), "{after}");
        }
        let ordered = run("SELECT 1 FROM t ORDER BY ai_filter('p', *)", &Settings::default()).unwrap();
        assert_eq!(ordered, "SELECT 1 FROM t ORDER BY ai_filter('p', a, b)");
        let values = run("INSERT INTO t VALUES (ai_complete('p', *))", &Settings::default()).unwrap_err();
        assert!(values.ends_with("a wildcard can be expanded inside a SELECT only; name the columns instead"), "{values}");
    }
}
