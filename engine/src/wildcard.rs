//! `t.*` inside a call becomes the columns of `t`, before planning: `LLM('…', t.*)` is `LLM('…', t.a, t.b)`.
//!
//! The syntax tree does not know the columns, so each wildcard is looked up by planning `SELECT t.* FROM …` over the `FROM` clause and
//! the common table expressions around it. Nothing is run.

use std::ops::ControlFlow;

use datafusion::common::{Result, plan_err};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{CopyToSource, DFParser, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, Query, Select, VisitMut, VisitorMut,
    With,
};
use refrain_udf::NamedPrompts;
use refrain_udf::desugar::{desugar, wildcard_arguments};
use refrain_udf::is_llm_function_name;

/// Wildcards in one statement; more are taken for an endless expansion.
const WILDCARDS_MAX: usize = 256;

/// Brings a statement into the form that DataFusion plans: wildcards of LLM calls expanded, named arguments folded.
pub(crate) async fn desugared(context: &SessionContext, mut statement: DataFusionStatement) -> Result<DataFusionStatement> {
    for _ in 0..WILDCARDS_MAX {
        let mut find = Find::default();
        let _ = visit(&mut statement, &mut find);
        let Some(probe) = find.found else {
            fold(context, &mut statement)?;
            return Ok(statement);
        };
        let columns = columns(context, &probe).await?;
        let _ = visit(&mut statement, &mut Replace { columns: Some(columns) });
    }
    plan_err!("more than {WILDCARDS_MAX} wildcards in calls of LLM functions")
}

/// Folds named arguments. Wildcards that are left cannot be looked up.
fn fold(context: &SessionContext, statement: &mut DataFusionStatement) -> Result<()> {
    let state = context.state();
    let prompts = state.config().get_extension::<NamedPrompts>().unwrap_or_default();
    desugar(statement, &crate::planner::settings(&state), &prompts, &mut |_, _| {
        plan_err!("the columns of a wildcard in a call cannot be told here; name them")
    })
}

fn visit<V: VisitorMut>(statement: &mut DataFusionStatement, visitor: &mut V) -> ControlFlow<V::Break> {
    match statement {
        DataFusionStatement::Statement(statement) => statement.visit(visitor),
        DataFusionStatement::Explain(explain) => visit(&mut explain.statement, visitor),
        DataFusionStatement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => query.visit(visitor),
            CopyToSource::Relation(_) => ControlFlow::Continue(()),
        },
        _ => ControlFlow::Continue(()),
    }
}

/// Returns the columns that a query yields, with their qualifiers.
async fn columns(context: &SessionContext, probe: &str) -> Result<Vec<Expr>> {
    let Some(mut statement) = DFParser::parse_sql(probe)?.pop_front() else {
        return plan_err!("cannot look up columns with {probe}");
    };
    fold(context, &mut statement)?;
    let plan = context.state().statement_to_plan(statement).await?;
    let quoted = |name: &str| Ident::with_quote('"', name);
    let columns = plan.schema().iter().map(|(qualifier, field)| match qualifier {
        Some(qualifier) => {
            let mut parts: Vec<Ident> = qualifier.to_vec().iter().map(|part| quoted(part)).collect();
            parts.push(quoted(field.name()));
            Expr::CompoundIdentifier(parts)
        }
        None => Expr::Identifier(quoted(field.name())),
    });
    Ok(columns.collect())
}

/// Finds the first wildcard of an LLM call and the query that lists its columns.
#[derive(Default)]
struct Find {
    ctes: Vec<Option<With>>,
    from: Vec<String>,
    found: Option<String>,
}

impl VisitorMut for Find {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        self.ctes.push(query.with.clone());
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.ctes.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        let tables: Vec<String> = select.from.iter().map(ToString::to_string).collect();
        self.from.push(tables.join(", "));
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, _select: &mut Select) -> ControlFlow<()> {
        self.from.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let Some((_, wildcard)) = llm_call_with_wildcard(expr) else { return ControlFlow::Continue(()) };
        let Some(from) = self.from.last().filter(|from| !from.is_empty()) else { return ControlFlow::Continue(()) };
        let wanted = wildcard.map_or_else(|| "*".to_owned(), |table| format!("{table}.*"));
        self.found = Some(format!("{}SELECT {wanted} FROM {from}", self.with_clause()));
        ControlFlow::Break(())
    }
}

impl Find {
    /// The common table expressions in scope, outer ones first. One that holds a wildcard itself is being looked at, or comes
    /// later; it cannot be read here.
    fn with_clause(&self) -> String {
        let ctes = self.ctes.iter().flatten().flat_map(|with| &with.cte_tables);
        let known: Vec<String> = ctes.filter(|cte| !has_wildcard(&cte.query)).map(ToString::to_string).collect();
        let recursive = if self.ctes.iter().flatten().any(|with| with.recursive) { "RECURSIVE " } else { "" };
        if known.is_empty() { String::new() } else { format!("WITH {recursive}{} ", known.join(", ")) }
    }
}

fn has_wildcard(query: &Query) -> bool {
    let mut find = Find::default();
    let _ = query.clone().visit(&mut find);
    find.found.is_some()
}

/// Puts columns in the place of the first wildcard.
struct Replace {
    columns: Option<Vec<Expr>>,
}

impl VisitorMut for Replace {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let Some((position, _)) = llm_call_with_wildcard(expr) else { return ControlFlow::Continue(()) };
        if let (Expr::Function(Function { name, args: FunctionArguments::List(list), .. }), Some(columns)) =
            (expr, self.columns.take())
        {
            let columns = wildcard_arguments(&name.to_string(), columns)
                .into_iter()
                .map(|column| FunctionArg::Unnamed(FunctionArgExpr::Expr(column)));
            list.args.splice(position..=position, columns);
        }
        ControlFlow::Break(())
    }
}

/// Returns the position of the first wildcard among the arguments, and the table it names.
fn llm_call_with_wildcard(expr: &Expr) -> Option<(usize, Option<ObjectName>)> {
    let Expr::Function(Function { name, args: FunctionArguments::List(list), .. }) = expr else { return None };
    if !is_llm_function_name(&name.to_string()) {
        return None;
    }
    list.args.iter().enumerate().find_map(|(position, arg)| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Wildcard) => Some((position, None)),
        FunctionArg::Unnamed(FunctionArgExpr::QualifiedWildcard(table)) => Some((position, Some(table.clone()))),
        _ => None,
    })
}
