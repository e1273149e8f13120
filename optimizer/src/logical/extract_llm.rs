//! LLM calls leave their expressions and become columns of an `LlmNode` below the operator that used them.
//!
//! ```text
//! SELECT i FROM t WHERE i > 1 AND ai_filter('a', s) AND ai_filter('b', s)
//!
//! Projection: t.i
//!   Filter: __llm_2
//!     LlmNode: ai_filter('b', fields=[s]) AS __llm_2
//!       Filter: __llm_1
//!         LlmNode: ai_filter('a', fields=[s]) AS __llm_1
//!           Filter: t.i > 1
//!             TableScan: t
//! ```
//!
//! It runs after DataFusion's own rules: subqueries are joins by then, and unused columns are gone. The placeholders are
//! volatile, so none of those rules has copied a call or pushed it into a scan.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, not_impl_err};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Aggregate, EmptyRelation, Expr, ExprSchemable, Filter, Join, LogicalPlan, LogicalPlanBuilder, Projection, Sort, Values,
    Window,
};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use refrain_udf::{Settings, contains_llm_call, is_llm_call, rewrite_enabled};

use super::ask_above_join::asked_above_join;
use super::join_pairs::join_pairs;
use super::lower::lower;
use super::note::note_calls;
use super::order_llm_filters::{OrderLlmFilters, may_move};
use super::pull_llm_filter_above_aggregate::asked_of_groups;
use super::restore::{restore, restore_at};

/// See the module documentation.
#[derive(Debug)]
pub struct ExtractLlm;

impl OptimizerRule for ExtractLlm {
    fn name(&self) -> &str {
        "extract_llm"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if !plan.expressions().iter().any(contains_llm_call) {
            return Ok(Transformed::no(plan));
        }
        Ok(Transformed::yes(match plan {
            LogicalPlan::Projection(projection) => extract_from_projection(projection, config)?,
            LogicalPlan::Filter(filter) => extract_from_filter(filter, config)?,
            LogicalPlan::Sort(sort) => extract_from_sort(sort, config)?,
            LogicalPlan::Aggregate(aggregate) => extract_from_aggregate(aggregate, config)?,
            LogicalPlan::Window(window) => extract_from_window(window, config)?,
            LogicalPlan::Join(join) => extract_from_join(join, config)?,
            LogicalPlan::Values(values) => extract_from_values(values, config)?,
            other => return not_impl_err!("an LLM function in {}; compute it in a subquery first", other.display()),
        }))
    }
}

fn extract_from_projection(projection: Projection, config: &dyn OptimizerConfig) -> Result<LogicalPlan> {
    let preserver = NamePreserver::new_for_projection();
    let names: Vec<_> = projection.expr.iter().map(|expr| preserver.save(expr)).collect();
    let (exprs, input) = lower(projection.expr, Arc::unwrap_or_clone(projection.input), config)?;
    let exprs = exprs.into_iter().zip(names).map(|(expr, name)| name.restore(expr)).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?))
}

/// Conjuncts without a call go below; each conjunct with one becomes a stage, so that the next sees only its survivors.
fn extract_from_filter(filter: Filter, config: &dyn OptimizerConfig) -> Result<LogicalPlan> {
    let schema = Arc::clone(filter.input.schema());
    let below = Arc::clone(&filter.input);
    let mut input = Arc::unwrap_or_clone(filter.input);
    let (mut asking, cheap): (Vec<_>, Vec<_>) =
        split_conjunction_owned(filter.predicate).into_iter().partition(contains_llm_call);
    if rewrite_enabled(&config.options(), OrderLlmFilters.name()) {
        // Side by side they can choose their order among themselves, and what must stay behind others sees fewer rows.
        let settings = config.options().extensions.get::<Settings>().cloned().unwrap_or_default();
        asking.sort_by_key(|conjunct| !may_move(conjunct, &schema, &settings));
    }
    if let Some(predicate) = conjunction(cheap) {
        input = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?);
    }
    for conjunct in asking {
        let placed_by = asked_above_join(&conjunct, &below).or_else(|| asked_of_groups(&conjunct, &below));
        let (mut lowered, mut with_answers) = lower(vec![conjunct], input, config)?;
        if let Some(rule) = placed_by {
            with_answers = note_calls(with_answers, &|call| call.notes.apply(rule))?.data;
        }
        let predicate = lowered.remove(0);
        input = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(with_answers))?);
    }
    restore(input, &schema)
}

fn extract_from_sort(sort: Sort, config: &dyn OptimizerConfig) -> Result<LogicalPlan> {
    let schema = Arc::clone(sort.input.schema());
    let keys = sort.expr.iter().map(|key| key.expr.clone()).collect();
    let (exprs, input) = lower(keys, Arc::unwrap_or_clone(sort.input), config)?;
    let expr = sort.expr.iter().zip(exprs).map(|(key, expr)| expr.sort(key.asc, key.nulls_first)).collect();
    restore(LogicalPlan::Sort(Sort { expr, input: Arc::new(input), fetch: sort.fetch }), &schema)
}

fn extract_from_aggregate(aggregate: Aggregate, config: &dyn OptimizerConfig) -> Result<LogicalPlan> {
    let schema = Arc::clone(&aggregate.schema);
    let n_groups = aggregate.group_expr.len();
    let exprs = aggregate.group_expr.into_iter().chain(aggregate.aggr_expr).collect();
    let (mut groups, input) = lower(exprs, Arc::unwrap_or_clone(aggregate.input), config)?;
    let aggregates = groups.split_off(n_groups);
    let plan = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(input), groups, aggregates)?);
    restore_at(plan, 0..schema.fields().len(), &schema)
}

fn extract_from_window(window: Window, config: &dyn OptimizerConfig) -> Result<LogicalPlan> {
    let n_inputs = window.input.schema().fields().len();
    let n_windows = window.window_expr.len();
    let schema = Arc::clone(&window.schema);
    let (exprs, input) = lower(window.window_expr, Arc::unwrap_or_clone(window.input), config)?;
    let plan = LogicalPlan::Window(Window::try_new(exprs, Arc::new(input))?);
    let n_columns = plan.schema().fields().len();
    restore_at(plan, (0..n_inputs).chain(n_columns - n_windows..n_columns), &schema)
}

/// Calls over one side are made on that side; those over both make it a join of pairs. Both for any kind of join.
fn extract_from_join(join: Join, config: &dyn OptimizerConfig) -> Result<LogicalPlan> {
    let schema = Arc::clone(&join.schema);
    let (left_keys, right_keys): (Vec<_>, Vec<_>) = join.on.into_iter().unzip();
    let conjuncts = join.filter.map(split_conjunction_owned).unwrap_or_default();
    let (asking, mut on): (Vec<_>, Vec<_>) = conjuncts.into_iter().partition(contains_llm_call);
    let (mut left_on, mut right_on, mut of_pairs) = (vec![], vec![], vec![]);
    for conjunct in asking {
        if calls_read_only(&conjunct, join.left.schema())? {
            left_on.push(conjunct);
        } else if calls_read_only(&conjunct, join.right.schema())? {
            right_on.push(conjunct);
        } else {
            of_pairs.push(conjunct);
        }
    }
    let (left_keys, left_on, left) = lower_side(left_keys, left_on, Arc::unwrap_or_clone(join.left), config)?;
    let (right_keys, right_on, right) = lower_side(right_keys, right_on, Arc::unwrap_or_clone(join.right), config)?;
    on.extend(left_on.into_iter().chain(right_on));
    let join = Join::try_new(
        Arc::new(left),
        Arc::new(right),
        left_keys.into_iter().zip(right_keys).collect(),
        conjunction(on),
        join.join_type,
        join.join_constraint,
        join.null_equality,
        join.null_aware,
    )?;
    let joined = if of_pairs.is_empty() { LogicalPlan::Join(join) } else { join_pairs(join, of_pairs, config)? };
    restore(joined, &schema)
}

/// Lowers the join keys and the one-sided predicates of one side of a join.
fn lower_side(
    keys: Vec<Expr>,
    predicates: Vec<Expr>,
    input: LogicalPlan,
    config: &dyn OptimizerConfig,
) -> Result<(Vec<Expr>, Vec<Expr>, LogicalPlan)> {
    let n_keys = keys.len();
    let (mut keys, input) = lower(keys.into_iter().chain(predicates).collect(), input, config)?;
    let predicates = keys.split_off(n_keys);
    Ok((keys, predicates, input))
}

/// Returns whether every call of the conjunct, and every condition that may guard one, reads columns of `schema` alone. The rest of
/// the conjunct may compare across sides: `a.kind = ai_classify(b.text, …)`.
fn calls_read_only(conjunct: &Expr, schema: &DFSchema) -> Result<bool> {
    let mut only = true;
    conjunct.apply(|expr| {
        let guards =
            matches!(expr, Expr::BinaryExpr(binary) if binary.op.is_logic_operator()) || matches!(expr, Expr::Case(_));
        if is_llm_call(expr) || (guards && contains_llm_call(expr)) {
            only &= expr.column_refs().iter().all(|column| schema.has_column(column));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(only)
}

/// `VALUES` has expressions but no input to put a node on: each row becomes a projection over one empty row.
fn extract_from_values(values: Values, config: &dyn OptimizerConfig) -> Result<LogicalPlan> {
    let Values { schema, values } = values;
    let mut union: Option<LogicalPlanBuilder> = None;
    for row in values {
        let one_row =
            LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: true, schema: Arc::new(DFSchema::empty()) });
        let (exprs, input) = lower(row, one_row, config)?;
        let columns = exprs
            .into_iter()
            .zip(schema.fields())
            .map(|(expr, field)| Ok(expr.cast_to(field.data_type(), input.schema())?.alias(field.name())));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let projected = LogicalPlanBuilder::from(input).project(columns)?;
        union = Some(match union {
            Some(rows) => rows.union(projected.build()?)?,
            None => projected,
        });
    }
    match union {
        Some(rows) => restore_at(rows.build()?, 0..schema.fields().len(), &schema),
        None => Ok(LogicalPlan::Values(Values { schema, values: vec![] })),
    }
}
