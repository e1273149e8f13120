//! Small pieces of syntax: what an expression is, and how one is made.

use datafusion::sql::sqlparser::ast::{
    Expr, Function as SqlFunction, FunctionArg, FunctionArgExpr, FunctionArgOperator, FunctionArgumentList,
    FunctionArguments, Ident, ObjectName, ObjectNamePart, Value,
};

/// Returns the name of a function as the planner looks it up; `None` if it is qualified.
pub(super) fn simple_name(function: &SqlFunction) -> Option<String> {
    match function.name.0.as_slice() {
        [ObjectNamePart::Identifier(name)] if name.quote_style.is_none() => Some(name.value.to_lowercase()),
        [ObjectNamePart::Identifier(name)] => Some(name.value.clone()),
        _ => None,
    }
}

/// Returns the name as that of a function.
pub(super) fn function_name(name: &str) -> ObjectName {
    ObjectName::from(vec![Ident::new(name)])
}

pub(super) fn is_call_of(values: &[Expr], name: &str) -> bool {
    matches!(values, [Expr::Function(function)] if simple_name(function).as_deref() == Some(name))
}

pub(super) fn is_text(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(value) if matches!(value.value, Value::SingleQuotedString(_)))
}

pub(super) fn literal(arg: &FunctionArg) -> Option<&str> {
    match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) => match &value.value {
            Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn text(text: &str) -> Expr {
    Expr::value(Value::SingleQuotedString(text.to_string()))
}

pub(super) fn unnamed(expr: Expr) -> FunctionArg {
    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))
}

pub(super) fn named(name: &str, expr: Expr) -> FunctionArg {
    let (name, arg) = (Ident::new(name), FunctionArgExpr::Expr(expr));
    FunctionArg::Named { name, arg, operator: FunctionArgOperator::RightArrow }
}

pub(super) fn call(name: &str, args: Vec<FunctionArg>) -> Expr {
    Expr::Function(SqlFunction {
        name: function_name(name),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
