//! From `LlmJoinNode` to `LlmJoinExec`: settles the steps of a pair, and for EXPLAIN whether rows are asked instead of pairs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::{DFSchema, JoinSide, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use refrain_optimizer::classify_join::{CLASSIFY_JOIN, Halves, halves};
use refrain_optimizer::{JoinCondition, JoinStep, LlmJoinNode, LlmNode, NodeCall};
use refrain_udf::Settings;

use crate::operators::{
    CallEstimate, Classification, Half, LlmJoinExec, PairColumn, PairFilter, PairHalves, PairPlan, PairStep, Pairing,
    PhysicalCall, Shared, Until, is_worth_classifying, output_schema,
};
use crate::planner::{EstimateCosts, LlmPlanner, Planning, reads_subquery, reorder_window, with_answers};
use crate::sample;
use crate::without_answers::without_answers;

/// What EXPLAIN says of a join before it runs: the calls' estimates, and how it asks instead of about pairs or why it does not.
#[derive(Default)]
struct Expected {
    calls: Vec<CallEstimate>,
    classification: Option<Result<String, String>>,
}

/// A node as it was planned so far.
struct PlannedJoin<'a> {
    node: &'a LlmJoinNode,
    inputs: [&'a Arc<dyn ExecutionPlan>; 2],
    /// The calls of the first step, as in the node and settled.
    asked: &'a [NodeCall],
    calls: &'a [Arc<PhysicalCall>],
    /// What decides which pairs stay after it, if it asks several predicates in an order of its own.
    until: Option<&'a Until>,
    halves: &'a Result<PairHalves, &'static str>,
}

impl LlmPlanner {
    /// Plans a join on a condition that asks about pairs. No proxy answers there: a sample of the first pairs is none of all pairs.
    pub(crate) async fn plan_join(
        &self,
        node: &LlmJoinNode,
        inputs: [&Arc<dyn ExecutionPlan>; 2],
        planning: &Planning<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let JoinCondition { on, null_equality, filter, steps } = &node.condition;
        let key = |(left, right): &(Expr, Expr)| {
            Ok((planning.physical(left, node.left.schema())?, planning.physical(right, node.right.schema())?))
        };
        let on = on.iter().map(key).collect::<Result<_>>()?;
        let pair = node.pair_schema()?;
        let filter = match filter {
            Some(filter) => {
                let read: BTreeSet<usize> =
                    filter.column_refs().into_iter().filter_map(|column| pair.maybe_index_of_column(column)).collect();
                let (columns, schema) = pair_columns(node, &pair, read)?;
                let predicate = planning.physical(filter, &schema)?;
                Some(PairFilter { predicate, columns, schema: Arc::clone(schema.inner()) })
            }
            None => None,
        };
        let (columns, mut schema) = pair_columns(node, &pair, node.columns_read()?)?;
        let pair_schema = Arc::clone(schema.inner());
        let mut physical_steps = vec![];
        for step in steps {
            physical_steps.push(match step {
                JoinStep::Keep(predicate) => PairStep::Keep(planning.physical(predicate, &schema)?),
                JoinStep::Ask(calls) => {
                    let settled = calls.iter().map(|call| self.call(call, &schema, planning).map(Arc::new));
                    let calls = settled.collect::<Result<Vec<_>>>()?;
                    schema = with_answers(&schema, &output_schema(schema.as_arrow(), &calls))?;
                    PairStep::Ask(calls)
                }
            });
        }
        let halves = pair_halves(node, &physical_steps, planning)?;
        let plan = PairPlan {
            join_type: node.join_type,
            pairing: Pairing { on, null_equality: *null_equality, filter },
            columns,
            pair_schema,
            steps: physical_steps,
            halves: halves.as_ref().ok().filter(|_| node.effort.may_classify).cloned(),
            effort: node.effort,
            max_pairs: Some(planning.settings.max_join_pairs).filter(|pairs| *pairs > 0).unwrap_or(u64::MAX),
        };
        let shared = self.shared(&planning.settings, reorder_window(plan.calls()), planning.session)?;
        let expected = match (self.estimates, steps.first(), plan.steps.first()) {
            (Some(costs), Some(JoinStep::Ask(asked)), Some(PairStep::Ask(calls))) if !reads_subquery(asked)? => {
                let until = plan.kept_by(0, plan.pair_schema.fields().len())?.filter(Until::chooses_order);
                let join = PlannedJoin { node, inputs, asked, calls, until: until.as_ref(), halves: &halves };
                Some(self.expect(&join, &shared, planning, costs).await?)
            }
            _ => None,
        };
        let (estimates, classification) =
            expected.map_or((None, None), |Expected { calls, classification }| (Some(calls), classification));
        let schema = Arc::clone(UserDefinedLogicalNodeCore::schema(node).inner());
        Ok(Arc::new(LlmJoinExec::new(inputs.map(Arc::clone), schema, plan, shared, estimates, classification)))
    }

    /// Estimates the first step: as if it were asked of all pairs, or as a classification where that is what the operator will do.
    async fn expect(
        &self,
        join: &PlannedJoin<'_>,
        shared: &Shared,
        planning: &Planning<'_>,
        costs: EstimateCosts,
    ) -> Result<Expected> {
        let node = join.node;
        let pairs = LlmNode::try_new(project(node.candidates()?, &node.columns_read()?)?, join.asked.to_vec(), None)?;
        let until = join.until;
        let estimate = async |costs| self.estimate(&pairs, join.calls, until, shared, None, planning.session, costs).await;
        let forbidden = forbidden(&planning.settings);
        let halves = match (join.halves, forbidden) {
            (Ok(halves), _) => halves,
            (Err(reason), None) => {
                return Ok(Expected { calls: estimate(costs).await?, classification: Some(Err((*reason).to_owned())) });
            }
            (Err(_), Some(_)) => return Ok(Expected { calls: estimate(costs).await?, classification: None }),
        };
        // Without a sample of answers until it is known which question is asked.
        let of_pairs = estimate(EstimateCosts { sample: None, ..costs }).await?;
        let found = self.classification(join, halves, &of_pairs, shared, planning).await?;
        match (found, forbidden) {
            (Ok((rows, call, shown)), None) => {
                let input = Some(join.inputs[usize::from(call.asked == JoinSide::Right)]);
                let call = [Arc::clone(&call.call)];
                let calls = self.estimate(&rows, &call, None, shared, input, planning.session, costs).await?;
                Ok(Expected { calls, classification: Some(Ok(shown)) })
            }
            (found, forbidden) => {
                let calls = if costs.sample.is_some() { estimate(costs).await? } else { of_pairs };
                // What would not be done anyway needs no leave.
                let reason = match (found, forbidden) {
                    (Ok((.., shown)), Some(why)) => Some(format!("{shown}; {why}")),
                    (Err(reason), None) => Some(reason),
                    _ => None,
                };
                Ok(Expected { calls, classification: reason.map(Err) })
            }
        }
    }

    /// Returns the rows that would be asked which values match, the question, and both in words. The inner error is why none would be.
    async fn classification(
        &self,
        join: &PlannedJoin<'_>,
        halves: &PairHalves,
        of_pairs: &[CallEstimate],
        shared: &Shared,
        planning: &Planning<'_>,
    ) -> Result<Result<(LlmNode, Classification, String), String>> {
        let node = join.node;
        let [left, right] =
            [self.draw(&node.left, join.asked, planning).await?, self.draw(&node.right, join.asked, planning).await?];
        let (Some(left), Some(right)) = (left, right) else {
            return Ok(Err("its values are answers of a call below".to_owned()));
        };
        let tokenizer = self.models.tokenizer_of(&halves.call.model)?;
        let classification = match halves.classification(node.join_type, [&[left], &[right]], tokenizer.as_ref())? {
            Ok(classification) => classification,
            Err(reason) => return Ok(Err(reason)),
        };
        let (rows, input) = match classification.asked {
            JoinSide::Right => (&node.right, join.inputs[1]),
            _ => (&node.left, join.inputs[0]),
        };
        let call = &classification.call;
        let asked = NodeCall {
            call: call.call.as_ref().clone(),
            guard: None,
            output: Arc::clone(&call.output),
            notes: call.notes.clone(),
        };
        let rows = LlmNode::try_new(rows.clone(), vec![asked], None)?;
        let calls = [Arc::clone(call)];
        let of_rows =
            self.estimate(&rows, &calls, None, shared, Some(input), planning.session, EstimateCosts::default()).await?;
        if let ([rows], [pairs]) = (of_rows.as_slice(), of_pairs)
            && let Err(reason) = is_worth_classifying(rows.rows, pairs.rows)
        {
            return Ok(Err(reason));
        }
        let shown = classification.to_string();
        Ok(Ok((rows, classification, shown)))
    }

    /// Draws rows of an input; `None` if the question reads answers in it, which nobody knows yet.
    async fn draw(&self, input: &LogicalPlan, asked: &[NodeCall], planning: &Planning<'_>) -> Result<Option<RecordBatch>> {
        let Some(input) = without_answers(input, &|_| None)? else { return Ok(None) };
        if asked.iter().flat_map(|call| &call.call.inputs).any(|expr| input.reads_answer(expr)) {
            return Ok(None);
        }
        let plan = planning.session.create_physical_plan(&input.plan).await?;
        Ok(Some(sample::draw(execute_stream(plan, planning.session.task_ctx())?).await?.rows))
    }
}

/// Returns why the session would not have a join asked as a classification.
fn forbidden(settings: &Settings) -> Option<&'static str> {
    if settings.disabled_rewrites.iter().any(|name| name == CLASSIFY_JOIN) {
        return Some("refrain.disabled_rewrites");
    }
    (!settings.allows_approximate_plans()).then_some("needs refrain.optimization_mode = 'minimize_cost'")
}

/// Takes the question of a join apart. The inner error says why the join must ask about pairs.
fn pair_halves(node: &LlmJoinNode, steps: &[PairStep], planning: &Planning<'_>) -> Result<Result<PairHalves, &'static str>> {
    let (Halves { left, right }, Some(PairStep::Ask(calls))) = (match halves(node)? {
        Ok(halves) => (halves, steps.first()),
        Err(reason) => return Ok(Err(reason)),
    }) else {
        return Ok(Err("the condition is more than one AI predicate"));
    };
    let call = &calls[0];
    if call.options.sampling.temperature != 0.0 {
        return Ok(Err("answers are drawn"));
    }
    let half = |numbers: Vec<usize>, schema: &DFSchema| -> Result<Half> {
        let input = |number: &usize| planning.physical(&call.call.inputs[*number], schema);
        let inputs = numbers.iter().map(input).collect::<Result<Vec<Arc<dyn PhysicalExpr>>>>()?;
        Ok(Half { numbers, inputs })
    };
    let (left, right) = (half(left, node.left.schema())?, half(right, node.right.schema())?);
    Ok(Ok(PairHalves { call: Arc::clone(call), left, right }))
}

/// Returns where the columns of a pair at `positions` come from, and their schema.
fn pair_columns(
    node: &LlmJoinNode,
    pair: &DFSchema,
    positions: impl IntoIterator<Item = usize>,
) -> Result<(Vec<PairColumn>, DFSchema)> {
    let n_left = node.left.schema().fields().len();
    let (mut columns, mut fields) = (vec![], vec![]);
    for position in positions {
        columns.push(match position.checked_sub(n_left) {
            None => PairColumn { index: position, side: JoinSide::Left },
            Some(index) => PairColumn { index, side: JoinSide::Right },
        });
        let (qualifier, field) = pair.qualified_field(position);
        fields.push((qualifier.cloned(), Arc::clone(field)));
    }
    Ok((columns, DFSchema::new_with_metadata(fields, HashMap::new())?))
}

/// Projects a plan to some of its columns.
fn project(plan: LogicalPlan, positions: &[usize]) -> Result<LogicalPlan> {
    let schema = Arc::clone(plan.schema());
    let columns = positions.iter().map(|position| Expr::from(schema.qualified_field(*position)));
    LogicalPlanBuilder::from(plan).project(columns.collect::<Vec<_>>())?.build()
}
