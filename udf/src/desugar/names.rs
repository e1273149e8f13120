//! Names of columns that are calls, as they were written.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, Ident, SelectItem, visit_expressions_mut};

use super::syntax::{function_name, simple_name};
use crate::function::{self, COUNT_TOKENS, SIMILARITY};
use crate::named_prompts::NamedPrompts;

/// Gives calls that are columns of their own the name under which they were written, tables left out.
pub(super) fn name_columns(projection: &mut [SelectItem], prompts: &NamedPrompts) {
    let names: Vec<Option<String>> = projection
        .iter()
        .map(|item| match item {
            SelectItem::UnnamedExpr(expr) => header(expr, prompts),
            _ => None,
        })
        .collect();
    for (position, name) in names.iter().enumerate() {
        let Some(name) = name else { continue };
        let is_unique = names.iter().filter(|other| other.as_ref() == Some(name)).count() == 1;
        if is_unique && let SelectItem::UnnamedExpr(expr) = &projection[position] {
            let alias = Ident::with_quote('"', name);
            projection[position] = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
        }
    }
}

/// Returns the name of a column that is a call of ours.
fn header(expr: &Expr, prompts: &NamedPrompts) -> Option<String> {
    let Expr::Function(function) = expr else {
        return None;
    };
    let name = simple_name(function)?;
    let is_ours = function::find(&name).is_some() || [COUNT_TOKENS.name, SIMILARITY.name].contains(&name.as_str());
    if !is_ours && !prompts.contains(&name) {
        return None;
    }
    let mut shown = expr.clone();
    let _: ControlFlow<()> = visit_expressions_mut(&mut shown, |part| {
        if let Expr::CompoundIdentifier(names) = part
            && let Some(last) = names.pop()
        {
            *part = Expr::Identifier(last);
        }
        if let Expr::Function(function) = part
            && let Some(name) = simple_name(function).filter(|name| function::find(name).is_some())
        {
            function.name = function_name(&name);
        }
        ControlFlow::Continue(())
    });
    Some(shown.to_string())
}
