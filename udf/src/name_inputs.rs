//! `NameInputs`: keeps the labels of inputs as the user wrote them.
//!
//! Later rules merge projections and so replace a column by the expression behind it; its name, which is the label in the
//! prompt, would be lost. This analyzer rule runs first and stores the labels in each call's options:
//!
//! `ai_filter('positive', t.body)` becomes `ai_filter('positive', t.body, ai_options('refrain.labels', '["body"]'))`.
//!
//! Names and types of plan columns do not change, since the stored option is no part of a call's name.

use std::sync::{Arc, LazyLock};

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan, ScalarUDF, lit};
use datafusion::optimizer::AnalyzerRule;

use crate::inputs::{inputs, labels};
use crate::placeholder::{
    AI_OPTIONS, Carrier, LABELS_OPTION, is_ai_options, placeholder, prompt_args,
};

/// Stores the labels of a call's inputs in the call.
#[derive(Debug, Default)]
pub struct NameInputs;

impl AnalyzerRule for NameInputs {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let named = plan.transform_up_with_subqueries(|plan| {
            let schema = merge_schema(&plan.inputs());
            plan.map_expressions(|expr| expr.transform_up(|expr| name_call(expr, &schema)))
        })?;
        Ok(named.data)
    }

    fn name(&self) -> &str {
        "name_inputs"
    }
}

fn name_call(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(mut call) = expr else {
        return Ok(Transformed::no(expr));
    };
    let Some(called) = placeholder(&call) else {
        return Ok(Transformed::no(Expr::ScalarFunction(call)));
    };
    let has_options = call.args.last().is_some_and(is_ai_options);
    if has_options && is_named(call.args.last()) {
        return Ok(Transformed::no(Expr::ScalarFunction(call)));
    }
    let positional = &call.args[..call.args.len() - usize::from(has_options)];
    let content = match positional {
        _ if !called.function.takes_instruction() => &positional[..positional.len().min(1)],
        [first, rest @ ..] => match prompt_args(first) {
            Some([_, inputs @ ..]) => inputs,
            _ => rest,
        },
        [] => &[],
    };
    let labels = labels(&inputs(content, schema));
    if labels.is_empty() {
        return Ok(Transformed::no(Expr::ScalarFunction(call)));
    }
    let stored = [
        lit(LABELS_OPTION),
        lit(serde_json::Value::from(labels).to_string()),
    ];
    match call.args.last_mut() {
        Some(Expr::ScalarFunction(options)) if has_options => options.args.extend(stored),
        _ => call.args.push(options_call(stored.to_vec())),
    }
    Ok(Transformed::yes(Expr::ScalarFunction(call)))
}

fn is_named(options: Option<&Expr>) -> bool {
    let Some(Expr::ScalarFunction(options)) = options else {
        return false;
    };
    options.args.iter().step_by(2).any(|key| {
        matches!(key, Expr::Literal(key, _) if key.try_as_str().flatten() == Some(LABELS_OPTION))
    })
}

/// Returns a call of `ai_options`.
fn options_call(args: Vec<Expr>) -> Expr {
    static OPTIONS: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(Carrier::udf(AI_OPTIONS)));
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&OPTIONS), args))
}
