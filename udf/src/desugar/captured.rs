//! A filter that captures its errors is a struct, and no condition.

use datafusion::sql::sqlparser::ast::{Expr, FunctionArg, FunctionArgExpr, FunctionArguments};

use super::syntax::{literal, simple_name};
use crate::function::{self, Function};
use crate::options::{Keyword, OnError};

/// Returns the name of a filter that is a condition by itself but captures its errors.
pub(super) fn captured_filter(condition: &Expr) -> Option<String> {
    match condition {
        Expr::BinaryOp { left, right, .. } => captured_filter(left).or_else(|| captured_filter(right)),
        Expr::UnaryOp { expr, .. } | Expr::Nested(expr) => captured_filter(expr),
        Expr::Function(function) => {
            let name = simple_name(function).filter(|name| function::find(name) == Some(Function::Filter))?;
            let FunctionArguments::List(list) = &function.args else {
                return None;
            };
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Function(options))) = list.args.last()? else {
                return None;
            };
            let FunctionArguments::List(pairs) = &options.args else {
                return None;
            };
            let is_capture = |pair: &[FunctionArg]| match pair {
                [key, value] => literal(key) == Some("on_error") && literal(value) == Some(OnError::Capture.name()),
                _ => false,
            };
            pairs.args.chunks(2).any(is_capture).then_some(name)
        }
        _ => None,
    }
}
