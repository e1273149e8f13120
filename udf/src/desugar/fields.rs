//! The fields of `ai_extract` in a form whose type is known before constants are folded.

use datafusion::sql::sqlparser::ast::{
    Expr, Function as SqlFunction, FunctionArg, FunctionArgExpr, FunctionArguments, Value,
};

use super::syntax::{call, is_text, simple_name, text, unnamed};
use crate::placeholder::AI_FIELDS;

/// Turns a list of names or a struct of questions into `ai_fields`, whose type is known before constants are folded.
pub(super) fn fold_fields(fields: &mut Expr) {
    let null = || Expr::value(Value::Null);
    let pairs: Option<Vec<(Expr, Expr)>> = match fields {
        Expr::Array(list) => {
            let names = list.elem.iter().map(|name| is_text(name).then(|| (name.clone(), null())));
            names.collect()
        }
        Expr::Dictionary(entries) => {
            Some(entries.iter().map(|entry| (text(&entry.key.value), entry.value.as_ref().clone())).collect())
        }
        Expr::Function(function) if simple_name(function).as_deref() == Some("named_struct") => pairs_of(function),
        _ => None,
    };
    // What is given twice or is empty is left for the function to refuse.
    if let Some(pairs) = pairs.filter(|pairs| !pairs.is_empty()) {
        let args = pairs.into_iter().flat_map(|(name, question)| [unnamed(name), unnamed(question)]).collect();
        *fields = call(AI_FIELDS, args);
    }
}

fn pairs_of(function: &SqlFunction) -> Option<Vec<(Expr, Expr)>> {
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let pair = |pair: &[FunctionArg]| match pair {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(name)), FunctionArg::Unnamed(FunctionArgExpr::Expr(value))] => {
            Some((name.clone(), value.clone()))
        }
        _ => None,
    };
    list.args.chunks(2).map(pair).collect()
}
