//! From `LlmNode` to `LlmExec`: resolves models and options, and estimates costs where a plan is to be explained.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::Schema;
use datafusion::catalog::Session;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, internal_datafusion_err, plan_err};
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, LogicalPlanBuilder, UserDefinedLogicalNode};
use datafusion::physical_expr::{PhysicalExpr, expressions::Column};
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, collect, execute_stream};
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use refrain_optimizer::cascade::Targets;
use refrain_optimizer::statistics::SessionStatistics;
use refrain_optimizer::{LlmAggregateNode, LlmJoinNode, LlmNode, NodeAggregate, NodeCall};
use refrain_serving::remote::MessageTokenizer;
use refrain_serving::{Sampling, Tokenizer, constraint};
use refrain_udf::{Cache, Function, LlmCall, OnError, ResolvedOptions, Settings, Shape};

use crate::answers::{AnswerCache, AnswerSettings};
use crate::devices::DeviceOptions;
use crate::model_options::ModelType;
use crate::models::ModelCatalog;
use crate::operators::{
    AggregateEstimate, Budget, CallEstimate, CascadeCall, Context, InputRows, Limits, LlmAggregateExec, LlmExec,
    LlmJoinExec, ModelFacts, PhysicalAggregate, PhysicalCall, QueryScope, Shared, Until, call_key, estimate_aggregate,
    estimate_calls, output_schema, sample_aggregate, sample_answers,
};
use crate::sample::{self, SAMPLE_ROWS};
use crate::without_answers::{asks, without_answers};

/// Plans queries with LLM calls; everything else is DataFusion's.
#[derive(Debug)]
pub(crate) struct LlmQueryPlanner {
    models: Arc<ModelCatalog>,
}

impl LlmQueryPlanner {
    /// Plans over the models of a session.
    pub(crate) fn new(models: Arc<ModelCatalog>) -> Self {
        LlmQueryPlanner { models }
    }
}

#[async_trait]
impl QueryPlanner for LlmQueryPlanner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        self.models.set_device(device_options(&settings(session)));
        let is_explained = matches!(plan, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
        let costs = session.config().get_extension::<EstimateCosts>().map(|costs| *costs);
        let explained = costs.or(is_explained.then(EstimateCosts::default));
        let llm = extension_planner_for(Arc::clone(&self.models), session, explained);
        DefaultPhysicalPlanner::with_extension_planners(vec![llm]).create_physical_plan(plan, session).await
    }
}

/// Marks a session whose plans are to carry estimates.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EstimateCosts {
    /// So many distinct questions of each call are asked for them; nobody is asked without.
    pub(crate) sample: Option<usize>,
    /// So many prompts of each call are kept with them.
    pub(crate) prompts: Option<usize>,
}

/// Returns the planner of `LlmNode`s for programs that compose their query planner themselves. All nodes that it plans share one
/// memo, so a planner must serve one query only.
pub fn extension_planner(models: Arc<ModelCatalog>, session: &dyn Session) -> Arc<dyn ExtensionPlanner + Send + Sync> {
    extension_planner_for(models, session, None)
}

fn extension_planner_for(
    models: Arc<ModelCatalog>,
    session: &dyn Session,
    estimates: Option<EstimateCosts>,
) -> Arc<dyn ExtensionPlanner + Send + Sync> {
    let scope = session.config().get_extension::<QueryScope>().unwrap_or_default();
    Arc::new(LlmPlanner { models, scope, estimates })
}

/// Plans the nodes of one query.
#[derive(Debug)]
pub(crate) struct LlmPlanner {
    pub(crate) models: Arc<ModelCatalog>,
    scope: Arc<QueryScope>,
    /// Set where nodes are to carry estimates.
    pub(crate) estimates: Option<EstimateCosts>,
}

#[async_trait]
impl ExtensionPlanner for LlmPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let planning = Planning { planner, session, context, settings: settings(session) };
        if let (Some(node), [left, right]) = (LlmJoinNode::from_node(node), physical_inputs) {
            return self.plan_join(node, [left, right], &planning).await.map(Some);
        }
        let ([logical], [input]) = (logical_inputs, physical_inputs) else {
            return Ok(None);
        };
        if let Some(node) = LlmAggregateNode::from_node(node) {
            return self.plan_aggregates(planner, node, logical, input, session, context).await.map(Some);
        }
        let Some(node) = LlmNode::from_node(node) else {
            return Ok(None);
        };
        let mut calls = Vec::with_capacity(node.calls.len());
        for node_call in &node.calls {
            let mut call = self.call(node_call, logical.schema(), &planning)?;
            if node.until.is_none() {
                call.cascade = self.cascade(&call, &planning.settings)?;
            }
            calls.push(Arc::new(call));
        }
        let until = match &node.until {
            Some(until) => {
                let schema = with_answers(logical.schema(), &output_schema(&input.schema(), &calls))?;
                let predicate = planning.physical(&until.predicate, &schema)?;
                Some(Until::try_new(predicate, until.wanted, until.stops, input.schema().fields().len(), &calls)?)
            }
            None => None,
        };
        let shared = self.shared(&planning.settings, reorder_window(&calls), session)?;
        let estimates = match self.estimates {
            Some(costs) if !reads_subquery(&node.calls)? => {
                Some(self.estimate(node, &calls, until.as_ref(), &shared, Some(input), session, costs).await?)
            }
            _ => None,
        };
        Ok(Some(Arc::new(LlmExec::try_new(Arc::clone(input), calls, until, shared, estimates)?)))
    }
}

/// What planning a node needs to know.
pub(crate) struct Planning<'a> {
    planner: &'a dyn PhysicalPlanner,
    pub(crate) session: &'a dyn Session,
    context: &'a PhysicalPlanningContext,
    pub(crate) settings: Settings,
}

impl Planning<'_> {
    /// Plans an expression over columns of `schema`.
    pub(crate) fn physical(&self, expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
        self.planner.create_physical_expr(expr, schema, self.session, self.context)
    }
}

impl LlmPlanner {
    /// Settles model and options of a call over columns of `schema`.
    pub(crate) fn call(&self, node_call: &NodeCall, schema: &DFSchema, planning: &Planning<'_>) -> Result<PhysicalCall> {
        let settings = &planning.settings;
        let mut options = node_call.call.options.resolve(settings);
        if node_call.call.function == Function::Embed {
            // Nothing is drawn and nothing is written.
            (options.sampling, options.max_tokens) = (Sampling::GREEDY, 1);
        }
        node_call.call.function.check_overflow(node_call.call.function.name(), options.on_overflow)?;
        let (named, wanted) = match node_call.call.function {
            Function::Embed => {
                (node_call.call.options.model.as_deref().or(settings.embedding_model.as_deref()), ModelType::Embedding)
            }
            _ => (options.model.as_deref(), ModelType::Completion),
        };
        let model = self.models.resolve(named, wanted)?;
        self.models.check_host(&model, settings.allowed_hosts.as_deref())?;
        check_form(&node_call.call)?;
        if matches!(node_call.call.task.shape, Shape::Regex(_)) && !self.models.takes_regex(&model)? {
            return plan_err!(
                "{}: option regex cannot be asked of the service of model {model:?} by its structured_output; create the model with \
                 structured_output = 'guided' or 'structured_outputs' if the service knows one of them, or with 'prompt' to have \
                 answers checked only",
                node_call.call.function.name()
            );
        }
        Ok(PhysicalCall {
            inputs: node_call.call.inputs.iter().map(|input| planning.physical(input, schema)).collect::<Result<_>>()?,
            guard: node_call.guard.as_ref().map(|guard| planning.physical(guard, schema)).transpose()?,
            output: Arc::clone(&node_call.output),
            model,
            call: Arc::new(node_call.call.clone()),
            options,
            cascade: None,
            notes: node_call.notes.clone(),
        })
    }

    /// Lets a proxy answer first, where the session allows weaker answers and names one: whether a row passes can be tested on a
    /// sample, and drawn answers have no one answer to compare with.
    fn cascade(&self, call: &PhysicalCall, settings: &Settings) -> Result<Option<CascadeCall>> {
        let (true, Some(proxy)) = (settings.allows_cascades(), &settings.proxy_model) else { return Ok(None) };
        let Some(asks) = call.call.as_probability().filter(|_| call.options.sampling.temperature == 0.0) else {
            return Ok(None);
        };
        let model = self.models.resolve(Some(proxy), ModelType::Completion)?;
        if model == call.model {
            return Ok(None);
        }
        self.models.check_host(&model, settings.allowed_hosts.as_deref())?;
        let targets = Targets {
            recall: settings.recall_target,
            precision: settings.precision_target,
            failure_probability: settings.failure_probability,
        };
        // A failure of the proxy is none of the row's: the model is asked.
        let options = ResolvedOptions { on_error: OnError::Null, model: Some(model.clone()), ..call.options.clone() };
        let proxy = PhysicalCall { call: Arc::new(asks), model, options, ..call.clone() };
        Ok(Some(CascadeCall { proxy: Arc::new(proxy), targets }))
    }

    /// Returns what the operators of the query share.
    pub(crate) fn shared(
        &self,
        settings: &Settings,
        reorder_window: Option<usize>,
        session: &dyn Session,
    ) -> Result<Shared> {
        Ok(Shared {
            models: Arc::clone(&self.models),
            scope: Arc::clone(&self.scope),
            reorder_window,
            memo: settings.cache != Cache::Off,
            answers: session.config().get_extension::<AnswerCache>().unwrap_or_default(),
            answer_settings: AnswerSettings::new(settings)?,
            budget: Budget { limits: Limits::of(settings), ledger: Arc::clone(&self.scope.ledger) },
            max_error_ratio: settings.max_error_ratio,
            prefix_cache: settings.prefix_cache,
            priority: settings.priority.rank(),
            layout: settings.layout,
            statistics: session.config().get_extension::<SessionStatistics>().unwrap_or_default(),
        })
    }

    /// Plans the aggregates of a node.
    async fn plan_aggregates(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &LlmAggregateNode,
        logical: &LogicalPlan,
        input: &Arc<dyn ExecutionPlan>,
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let settings = settings(session);
        let mut aggregates = vec![];
        for NodeAggregate { aggregate, list, order, output, notes } in &node.aggregates {
            let options = aggregate.options.resolve(&settings);
            aggregate.function.check_overflow(aggregate.function.name(), options.on_overflow)?;
            let model = self.models.resolve(options.model.as_deref(), ModelType::Completion)?;
            self.models.check_host(&model, settings.allowed_hosts.as_deref())?;
            let stage = |call: &LlmCall| {
                check_form(call)?;
                // The operator hands over texts, so nothing is evaluated.
                let input = |label: usize| Arc::new(Column::new("input", label)) as Arc<dyn PhysicalExpr>;
                Ok(Arc::new(PhysicalCall {
                    inputs: (0..call.inputs.len()).map(input).collect(),
                    guard: None,
                    output: Arc::clone(output),
                    model: model.clone(),
                    call: Arc::new(call.clone()),
                    options: options.clone(),
                    cascade: None,
                    notes: notes.clone(),
                }))
            };
            let sort = |(asc, nulls_first): &(bool, bool)| SortOptions { descending: !asc, nulls_first: *nulls_first };
            aggregates.push(Arc::new(PhysicalAggregate {
                stages: aggregate.stages.iter().map(stage).collect::<Result<_>>()?,
                list: planner.create_physical_expr(list, logical.schema(), session, context)?,
                order: order.iter().map(sort).collect(),
                output: Arc::clone(output),
                aggregate: Arc::new(aggregate.clone()),
                model,
                options,
            }));
        }
        let shared = self.shared(&settings, None, session)?;
        let estimates = match self.estimates {
            Some(costs) if !asks_a_model(logical)? => {
                self.estimate_aggregates(&aggregates, &shared, logical, session, costs).await?
            }
            _ => vec![],
        };
        let passed = node.passed_columns();
        Ok(Arc::new(LlmAggregateExec::try_new(Arc::clone(input), passed, aggregates, shared, estimates)?))
    }

    /// Gathers the first rows into groups and reduces these with invented answers, after asking some of their questions where that is
    /// wanted.
    async fn estimate_aggregates(
        &self,
        aggregates: &[Arc<PhysicalAggregate>],
        shared: &Shared,
        logical: &LogicalPlan,
        session: &dyn Session,
        costs: EstimateCosts,
    ) -> Result<Vec<AggregateEstimate>> {
        let Some(rows) = grouped_rows(logical)? else { return Ok(vec![]) };
        let physical = session.create_physical_plan(&rows).await?;
        let statistics = StatisticsContext::new().compute(physical.as_ref(), &StatisticsArgs::new())?;
        let first = LogicalPlanBuilder::from(rows).limit(0, Some(SAMPLE_ROWS + 1))?.build()?;
        let first = collect(session.create_physical_plan(&first).await?, session.task_ctx()).await?;
        let is_all = first.iter().map(RecordBatch::num_rows).sum::<usize>() <= SAMPLE_ROWS;
        let scale = match statistics.num_rows {
            Precision::Exact(rows) | Precision::Inexact(rows) if !is_all => (rows as f64 / SAMPLE_ROWS as f64).max(1.0),
            _ => 1.0,
        };
        let plan = session.create_physical_plan(&over_sample(logical)?).await?;
        let groups = collect(plan, session.task_ctx()).await?;
        let mut estimates = vec![];
        for aggregate in aggregates {
            // A model whose context is not known before it is loaded takes every group in one chunk here.
            let max_tokens = self.models.max_context(&aggregate.model)?.unwrap_or(usize::MAX);
            let model = ModelFacts {
                tokenizer: self.models.tokenizer_of(&aggregate.model)?,
                context: Context { max_tokens, token_scale: self.models.token_scale(&aggregate.model)? },
                timing: shared.statistics.timing(&aggregate.model),
            };
            let sampled = match costs.sample {
                Some(count) => sample_aggregate(aggregate, &model, shared, &groups, count).await?,
                None => None,
            };
            let known = shared.statistics.get(&aggregate.statistics_key()).and_then(|known| known.output_len());
            estimates.push(estimate_aggregate(aggregate, &model, &groups, scale, known, sampled.as_ref())?);
        }
        Ok(estimates)
    }

    /// Draws rows of the input and plans prompts for them. What depends on answers of calls below is taken out of the input; a call
    /// that reads such an answer itself has no estimate. `physical` is the input where it is an operator of the query.
    #[expect(clippy::too_many_arguments, reason = "all of it is what the node has become so far")]
    pub(crate) async fn estimate(
        &self,
        node: &LlmNode,
        calls: &[Arc<PhysicalCall>],
        until: Option<&Until>,
        shared: &Shared,
        physical: Option<&Arc<dyn ExecutionPlan>>,
        session: &dyn Session,
        costs: EstimateCosts,
    ) -> Result<Vec<CallEstimate>> {
        let settings = settings(session);
        let known = |call: &LlmCall| {
            let named = call.options.resolve(&settings).model;
            let model = self.models.resolve(named.as_deref(), ModelType::Completion).ok()?;
            shared.statistics.get(&call_key(call, &model))?.selectivity()
        };
        let Some(input) = without_answers(&node.input, &known)? else { return Ok(vec![]) };
        let exprs = node.calls.iter().flat_map(|call| call.call.inputs.iter().chain(&call.guard));
        if exprs.into_iter().any(|expr| input.reads_answer(expr)) {
            return Ok(vec![]);
        }
        let plan = session.create_physical_plan(&input.plan).await?;
        let statistics = StatisticsContext::new().compute(physical.unwrap_or(&plan).as_ref(), &StatisticsArgs::new())?;
        let sample = sample::draw(execute_stream(plan, session.task_ctx())?).await?;
        let rows = match statistics.num_rows {
            _ if sample.ended => sample.read,
            Precision::Exact(rows) | Precision::Inexact(rows) => sample.read.max(rows as u64),
            Precision::Absent => sample.read,
        };
        let mut sampled = vec![];
        for call in calls {
            sampled.push(match costs.sample {
                Some(count) => Some(sample_answers(call, shared, &sample.rows, count).await?),
                None => None,
            });
        }
        let tokenizers = calls.iter().map(|call| self.models.tokenizer_of(&call.model)).collect::<Result<Vec<_>>>()?;
        let (calls, until, shared, share) = (calls.to_vec(), until.cloned(), shared.clone(), input.share);
        let task = SpawnedTask::spawn_blocking(move || {
            let input = InputRows { sample: &sample.rows, rows: rows as f64, share };
            estimate_calls(&calls, until.as_ref(), &shared, &tokenizers, input, &sampled, costs.prompts)
        });
        task.join().await.map_err(|e| internal_datafusion_err!("estimating the costs failed: {e}"))?
    }
}

/// Fails if no answer can have the JSON schema of a call, or if its regular expression is none. Over bytes, since that is the same
/// for every vocabulary, and quick.
fn check_form(call: &LlmCall) -> Result<()> {
    let option = match &call.task.shape {
        Shape::Json { .. } => "",
        Shape::Regex(_) => "option regex: ",
        _ => return Ok(()),
    };
    let bytes: Arc<dyn Tokenizer> = Arc::new(MessageTokenizer);
    match constraint::check(&call.task.output_shape(), &bytes) {
        Ok(()) => Ok(()),
        Err(error) => plan_err!("{}: {option}{error}", call.function.name()),
    }
}

/// Returns the rows that the first aggregation in a plan groups.
fn grouped_rows(plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let mut rows = None;
    plan.apply(|node| {
        if let LogicalPlan::Aggregate(aggregate) = node {
            rows = Some(aggregate.input.as_ref().clone());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(rows)
}

/// Returns a plan whose first aggregation groups only the first rows.
fn over_sample(plan: &LogicalPlan) -> Result<LogicalPlan> {
    let sampled = plan.clone().transform_down(|node| match node {
        LogicalPlan::Aggregate(aggregate) => {
            let rows = LogicalPlanBuilder::from(aggregate.input.as_ref().clone()).limit(0, Some(SAMPLE_ROWS))?.build()?;
            let Aggregate { group_expr, aggr_expr, schema, .. } = aggregate;
            let sampled = Aggregate::try_new_with_schema(Arc::new(rows), group_expr, aggr_expr, schema)?;
            Ok(Transformed::new(LogicalPlan::Aggregate(sampled), true, TreeNodeRecursion::Stop))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(sampled.data)
}

fn asks_a_model(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        found |= asks(node);
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Returns whether inputs or guards read a scalar subquery, which has a value only while the query runs.
pub(crate) fn reads_subquery(calls: &[NodeCall]) -> Result<bool> {
    let is_subquery = |expr: &Expr| Ok(matches!(expr, Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_)));
    let exprs = calls.iter().flat_map(|call| call.call.inputs.iter().chain(&call.guard));
    exprs.into_iter().try_fold(false, |found, expr| Ok(found || expr.exists(is_subquery)?))
}

/// Returns the rows that calls want to be considered together.
pub(crate) fn reorder_window<'a>(calls: impl IntoIterator<Item = &'a Arc<PhysicalCall>>) -> Option<usize> {
    calls.into_iter().filter_map(|call| call.options.reorder_window).min()
}

/// Settings that decide how a model is run; they take effect when it is loaded.
pub(crate) fn device_options(settings: &Settings) -> DeviceOptions {
    DeviceOptions {
        device: settings.device,
        threads: settings.threads.and_then(NonZeroUsize::new),
        kv_cache_bytes: settings.kv_cache_bytes,
        step_tokens: settings.step_tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
        batch_invariant: settings.batch_invariant,
    }
}

/// Returns the settings of a session; the defaults where none were installed.
pub(crate) fn settings(session: &dyn Session) -> Settings {
    session.config().options().extensions.get::<Settings>().cloned().unwrap_or_default()
}

/// The columns of a node's output: those of its input with their qualifiers, then the answers.
pub(crate) fn with_answers(input: &DFSchema, output: &Schema) -> Result<DFSchema> {
    let n_input = input.fields().len();
    let mut fields: Vec<_> = input.iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
    fields.extend(output.fields().iter().skip(n_input).map(|field| (None, Arc::clone(field))));
    DFSchema::new_with_metadata(fields, output.metadata().clone())
}

/// Returns what a plan asks in words, top first, each call with its estimate if it has one.
pub(crate) fn described_calls(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<(String, Option<CallEstimate>)>> {
    let mut found = vec![];
    plan.apply(|node| {
        if let Some(exec) = node.downcast_ref::<LlmExec>() {
            let calls = exec.calls().iter().enumerate();
            found.extend(calls.map(|(idx, call)| (call.to_string(), exec.estimates().get(idx).cloned())));
        }
        if let Some(exec) = node.downcast_ref::<LlmJoinExec>() {
            let calls = exec.calls().enumerate();
            found.extend(calls.map(|(idx, call)| (call.to_string(), exec.estimates().get(idx).cloned())));
        }
        if let Some(exec) = node.downcast_ref::<LlmAggregateExec>() {
            let aggregates = exec.aggregates().iter().enumerate();
            let estimate = |idx: usize| exec.estimates().get(idx).map(AggregateEstimate::as_call);
            found.extend(aggregates.map(|(idx, aggregate)| (aggregate.to_string(), estimate(idx))));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}
