//! `NameInputs`: keeps the labels of inputs as the user wrote them.
//!
//! Later rules merge projections and so replace a column by the expression behind it; its name, which is the label in the
//! prompt, would be lost. This analyzer rule runs before them and stores the labels in each call's options:
//!
//! `ai_filter('positive', t.body)` becomes `ai_filter('positive', t.body, ai_options('refrain.labels', '["body"]'))`.
//!
//! Names and types of plan columns do not change, since the stored option is no part of a call's name.

use std::sync::{Arc, LazyLock};

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::config::ConfigOptions;
use datafusion::logical_expr::expr::{AggregateFunction, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan, ScalarUDF, lit};
use datafusion::optimizer::AnalyzerRule;

use crate::aggregate::is_ai_aggregate;
use crate::inputs::{inputs, labels};
use crate::placeholder::{AI_OPTIONS, Carrier, LABELS_OPTION, is_ai_options, placeholder, prompt_args};

/// Stores the labels of a call's inputs in the call.
#[derive(Debug, Default)]
pub struct NameInputs;

impl AnalyzerRule for NameInputs {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let named = plan.transform_up_with_subqueries(|plan| {
            let schema = merge_schema(&plan.inputs());
            // The name of an aggregate spells out the options inside its FILTER clause.
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let named = expr.transform_up(|expr| name_call(expr, &schema))?;
                Ok(named.update_data(|expr| name.restore(expr)))
            })
        })?;
        Ok(named.data)
    }

    fn name(&self) -> &str {
        "name_inputs"
    }
}

fn name_call(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let mut call = match expr {
        Expr::ScalarFunction(call) => call,
        Expr::AggregateFunction(aggregate) => return Ok(name_aggregate(aggregate, schema)),
        other => return Ok(Transformed::no(other)),
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
    store(labels, &mut call.args);
    Ok(Transformed::yes(Expr::ScalarFunction(call)))
}

fn name_aggregate(mut aggregate: AggregateFunction, schema: &DFSchema) -> Transformed<Expr> {
    let args = &mut aggregate.params.args;
    if !is_ai_aggregate(&aggregate.func) || args.is_empty() || is_named(args.last().filter(|last| is_ai_options(last))) {
        return Transformed::no(Expr::AggregateFunction(aggregate));
    }
    store(labels(&inputs(&args[..1], schema)), args);
    Transformed::yes(Expr::AggregateFunction(aggregate))
}

/// Puts labels into the options of a call, which stand last.
fn store(labels: Vec<String>, args: &mut Vec<Expr>) {
    let stored = [lit(LABELS_OPTION), lit(serde_json::Value::from(labels).to_string())];
    match args.last_mut() {
        Some(last) if is_ai_options(last) => {
            if let Expr::ScalarFunction(options) = last {
                options.args.extend(stored);
            }
        }
        _ => args.push(options_call(stored.to_vec())),
    }
}

fn is_named(options: Option<&Expr>) -> bool {
    let Some(Expr::ScalarFunction(options)) = options else {
        return false;
    };
    options
        .args
        .iter()
        .step_by(2)
        .any(|key| matches!(key, Expr::Literal(key, _) if key.try_as_str().flatten() == Some(LABELS_OPTION)))
}

/// Returns a call of `ai_options`.
pub(crate) fn options_call(args: Vec<Expr>) -> Expr {
    static OPTIONS: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| Arc::new(Carrier::udf(AI_OPTIONS)));
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&OPTIONS), args))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{calls, plan, session};

    #[track_caller]
    fn check(got: Result<Vec<crate::LlmCall>, String>, expected: &[&str]) {
        let shown: Vec<String> = got.unwrap().iter().map(|call| call.describe()).collect();
        assert_eq!(shown, expected);
    }

    #[tokio::test]
    async fn labels_outlive_merged_projections() {
        let merged = "SELECT ai_filter('p', x) FROM (SELECT upper(body) AS x FROM t)";
        check(calls(merged).await, &["ai_filter('p', fields=[x])"]);
        let star = "SELECT ai_filter('p', x.s) FROM (SELECT address AS s FROM t) AS x";
        check(calls(star).await, &["ai_filter('p', fields=[city, zip])"]);
        let subquery =
            "SELECT 1 FROM t WHERE EXISTS (SELECT 1 FROM (SELECT upper(body) AS y FROM t) WHERE ai_filter('p', y))";
        check(calls(subquery).await, &["ai_filter('p', fields=[y])"]);
        let join = "SELECT ai_filter('p', a.body, b.body) FROM t AS a JOIN t AS b ON a.price = b.price";
        check(calls(join).await, &["ai_filter('p', fields=[a.body, b.body])"]);
    }

    #[tokio::test]
    async fn runs_twice_and_keeps_the_names_of_columns() {
        let ctx = session().await;
        let sql = "SELECT upper(ai_translate(t.body, 'de', seed => 1)), ai_sentiment(body), ai_sentiment(t.title) FROM t \
                   ORDER BY ai_sentiment(body)";
        let before = plan(&ctx, sql).await.unwrap();
        let names = |plan: &LogicalPlan| plan.schema().field_names();
        assert_eq!(
            names(&before),
            ["upper(ai_translate(t.body, 'de', seed => 1))", "ai_sentiment(body)", "ai_sentiment(title)"]
        );
        let options = ConfigOptions::default();
        let once = NameInputs.analyze(before.clone(), &options).unwrap();
        assert_eq!(names(&once), names(&before));
        assert_ne!(once, before);
        let twice = NameInputs.analyze(once.clone(), &options).unwrap();
        assert_eq!(twice, once);
    }
}
