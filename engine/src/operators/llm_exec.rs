//! `LlmExec`: asks the model about its input, window by window, and adds the answers as columns.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use datafusion::arrow::compute::{filter_record_batch, take};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::cast::as_boolean_array;
use datafusion::common::config::ConfigOptions;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ColumnStatistics, DataFusionError, Result, ScalarValue, Statistics, internal_datafusion_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::equivalence::ProjectionMapping;
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions, apply_expression_roots,
};
use datafusion::physical_plan::filter_pushdown::{ChildFilterDescription, FilterDescription, FilterPushdownPhase};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, RecordOutput, SpillMetrics,
};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties, InputDistributionRequirements,
    PlanProperties,
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use refrain_udf::{OnError, PromptLayout};

use crate::models::ModelCatalog;
use crate::operators::ask::Asker;
use crate::operators::call::PhysicalCall;
use crate::operators::distinct::{NO_QUESTION, Questions};
use crate::operators::estimate::CallEstimate;
use crate::operators::memo::Outcome;
use crate::operators::scope::{NodeStats, QueryScope, RowError};
use crate::operators::window::{Filled, RowStore, StoredBatches, Window, WindowLimit, rows_with_question};

/// Failed rows below which `max_error_ratio` does not end a query, so that small tables do not trip it.
const ERROR_RATIO_ROWS_MIN: u64 = 10;

/// Asks the model about each row of its input and adds one column for each call.
#[derive(Clone, Debug)]
pub struct LlmExec {
    input: Arc<dyn ExecutionPlan>,
    calls: Vec<Arc<PhysicalCall>>,
    until: Option<Until>,
    shared: Shared,
    estimates: Vec<CallEstimate>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// A filter that asks only as long as somebody wants its rows.
#[derive(Clone, Debug)]
pub struct Until {
    /// Over the operator's output.
    pub predicate: Arc<dyn PhysicalExpr>,
    /// Rows that the limit above wants.
    pub wanted: usize,
    /// Whether the operator ends after `wanted` rows.
    pub stops: bool,
}

/// What all operators of a query share, and the settings that are not those of a call.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Where models are found.
    pub models: Arc<ModelCatalog>,
    /// Memo and counters of the query.
    pub scope: Arc<QueryScope>,
    /// Rows considered together; as many as memory allows if not set.
    pub reorder_window: Option<usize>,
    /// Whether operators of the query answer each other's questions.
    pub memo: bool,
    /// Share of failed rows above which the query fails.
    pub max_error_ratio: f64,
    /// Whether prompts share the keys and values of common prefixes.
    pub prefix_cache: bool,
}

impl LlmExec {
    /// Builds the operator. `until` may read the answers; its columns are those of the input followed by one for each call.
    pub fn try_new(
        input: Arc<dyn ExecutionPlan>,
        calls: Vec<Arc<PhysicalCall>>,
        until: Option<Until>,
        shared: Shared,
        estimates: Vec<CallEstimate>,
    ) -> Result<Self> {
        let schema = output_schema(&input.schema(), &calls);
        // Input columns keep their places, so orderings and constants of the input hold for the output.
        let indices: Vec<usize> = (0..input.schema().fields().len()).collect();
        let mapping = ProjectionMapping::from_indices(&indices, &input.schema())?;
        let equivalences = input.equivalence_properties().project(&mapping, schema);
        let partitioning = input.output_partitioning().project(&mapping, input.equivalence_properties());
        let emission = if until.is_some() { EmissionType::Incremental } else { EmissionType::Final };
        let properties = Arc::new(PlanProperties::new(equivalences, partitioning, emission, input.boundedness()));
        Ok(LlmExec { input, calls, until, shared, estimates, properties, metrics: ExecutionPlanMetricsSet::new() })
    }

    /// Returns the calls.
    pub fn calls(&self) -> &[Arc<PhysicalCall>] {
        &self.calls
    }

    /// Returns what the calls are expected to cost, where that was asked for when the plan was made.
    pub fn estimates(&self) -> &[CallEstimate] {
        &self.estimates
    }
}

/// Returns the columns of the input followed by one for each call.
pub(crate) fn output_schema(input: &Schema, calls: &[Arc<PhysicalCall>]) -> SchemaRef {
    let answers = calls.iter().map(|call| Arc::clone(&call.output));
    let fields: Vec<_> = input.fields().iter().cloned().chain(answers).collect();
    Arc::new(Schema::new_with_metadata(fields, input.metadata().clone()))
}

impl DisplayAs for LlmExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        if format == DisplayFormatType::TreeRender {
            for call in &self.calls {
                writeln!(f, "{}={}", call.output.name(), call.function_name())?;
            }
            return Ok(());
        }
        write!(f, "LlmExec: {}", if self.until.is_some() { "filter " } else { "map " })?;
        for (idx, call) in self.calls.iter().enumerate() {
            write!(f, "{}{call}", if idx > 0 { "; " } else { "" })?;
            if let Some(estimate) = self.estimates.get(idx) {
                write!(f, ", {estimate}")?;
            }
        }
        if let Some(until) = &self.until {
            write!(f, ", keep={}, {}={}", until.predicate, if until.stops { "fetch" } else { "wanted" }, until.wanted)?;
        }
        Ok(())
    }
}

impl ExecutionPlan for LlmExec {
    fn name(&self) -> &str {
        "LlmExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    // Dedup and reordering see the whole input.
    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        apply_expression_roots(self.calls.iter().flat_map(|call| call.inputs.iter().chain(&call.guard)), f)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().ok_or_else(|| internal_datafusion_err!("LlmExec takes one input"))?;
        let this = Self::clone(&self);
        Ok(Arc::new(match options.children_properties {
            ChildrenPropertiesMode::Keep => LlmExec { input, metrics: ExecutionPlanMetricsSet::new(), ..this },
            ChildrenPropertiesMode::Recompute => {
                LlmExec::try_new(input, this.calls, this.until, this.shared, this.estimates)?
            }
        }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn supports_limit_pushdown(&self) -> bool {
        self.until.is_none()
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        match self.until {
            Some(_) => CardinalityEffect::LowerEqual,
            None => CardinalityEffect::Equal,
        }
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, input: &[Arc<Statistics>], _args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = input[0].as_ref().clone();
        statistics.total_byte_size = Precision::Absent;
        if self.until.is_some() {
            statistics.num_rows = statistics.num_rows.to_inexact();
        }
        statistics.column_statistics.extend(self.calls.iter().map(|_| ColumnStatistics::new_unknown()));
        Ok(Arc::new(statistics))
    }

    fn gather_filters_for_pushdown(
        &self,
        _phase: FilterPushdownPhase,
        parent_filters: Vec<Arc<dyn PhysicalExpr>>,
        _config: &ConfigOptions,
    ) -> Result<FilterDescription> {
        // DataFusion finds columns of the child by name, so names must be unique. A node that counts its rows must see them all.
        let schema = self.input.schema();
        let names: std::collections::HashSet<_> = schema.fields().iter().map(|field| field.name()).collect();
        let may_pass = names.len() == schema.fields().len() && self.until.is_none();
        let child = if may_pass {
            let allowed = (0..schema.fields().len()).collect();
            ChildFilterDescription::from_child_with_allowed_indices(&parent_filters, allowed, &self.input)?
        } else {
            ChildFilterDescription::all_unsupported(&parent_filters)
        };
        Ok(FilterDescription::new().with_child(child))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let schema = self.schema();
        let spills = SpillMetrics::new(&self.metrics, partition);
        let job = Job {
            schema: Arc::clone(&schema),
            calls: self.calls.clone(),
            stats: self.calls.iter().map(|call| self.shared.scope.add_node(call.function_name())).collect(),
            until: self.until.clone(),
            shared: self.shared.clone(),
            store: RowStore::new(&context, partition, self.input.schema(), spills),
            counters: Counters::new(&self.metrics, partition),
            baseline: BaselineMetrics::new(&self.metrics, partition),
        };
        let batches = job.run(input);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

/// One execution of the operator.
struct Job {
    schema: SchemaRef,
    calls: Vec<Arc<PhysicalCall>>,
    stats: Vec<Arc<NodeStats>>,
    until: Option<Until>,
    shared: Shared,
    store: RowStore,
    counters: Counters,
    baseline: BaselineMetrics,
}

/// Where an execution stands between two windows.
struct Position {
    job: Arc<Job>,
    input: SendableRecordBatchStream,
    /// Rows of the last batch that did not fit into the window.
    pending: Option<RecordBatch>,
    askers: Vec<Asker>,
    window: u32,
    questions_asked: usize,
    rows_out: usize,
    ended: bool,
}

impl Job {
    fn run(self, input: SendableRecordBatchStream) -> impl Stream<Item = Result<RecordBatch>> + Send {
        let start = Position {
            job: Arc::new(self),
            input,
            pending: None,
            askers: vec![],
            window: 0,
            questions_asked: 0,
            rows_out: 0,
            ended: false,
        };
        stream::try_unfold(start, |mut position| async move {
            let rows = position.next_window().await?;
            Ok::<_, DataFusionError>(rows.map(|rows| (rows, position)))
        })
        .try_flatten()
    }

    /// Returns how much the next window may hold. Below a limit the first holds twice what is wanted, each next one as many
    /// questions as were asked before, so that at most twice the calls are made that a row at a time would make.
    fn limit(&self, questions_asked: usize) -> WindowLimit {
        let rows = self.shared.reorder_window.unwrap_or(usize::MAX);
        let questions = match &self.until {
            Some(until) => questions_asked.max(until.wanted.saturating_mul(2)).max(1),
            None => usize::MAX,
        };
        WindowLimit { rows, questions }
    }
}

impl Position {
    /// Works off one window; `None` after the last.
    async fn next_window(&mut self) -> Result<Option<SendableRecordBatchStream>> {
        let job = Arc::clone(&self.job);
        let satisfied = job.until.as_ref().is_some_and(|until| until.stops && self.rows_out >= until.wanted);
        if self.ended || satisfied {
            return Ok(None);
        }
        let limit = job.limit(self.questions_asked);
        let pending = self.pending.take();
        let (mut window, filled) = job.store.fill(&job.calls, self.window, limit, pending, &mut self.input).await?;
        match filled {
            Filled::InputEnded => self.ended = true,
            Filled::Full(rest) => self.pending = rest,
        }
        self.window += 1;
        let batches = window.take_batches();
        let answers = self.answer(window).await?;
        let rows = job.rows(batches, answers);
        if job.until.is_none() {
            return Ok(Some(rows));
        }
        // Below a limit windows are small; the survivors are counted before more is asked.
        let kept = self.keep(rows).await?;
        Ok(Some(kept))
    }

    /// Asks all questions of the window and returns one answer column's worth of values for each call.
    async fn answer(&mut self, window: Window) -> Result<Vec<Answers>> {
        if self.askers.is_empty() && window.questions.iter().any(|questions| questions.len() > 0) {
            self.askers = self.job.askers().await?;
        }
        self.questions_asked += window.questions.iter().map(Questions::len).max().unwrap_or(0);
        let mut tasks = vec![];
        for (idx, questions) in window.questions.into_iter().enumerate() {
            let stats = &self.job.stats[idx];
            stats.rows.fetch_add(rows_with_question(&questions), Ordering::Relaxed);
            stats.distinct.fetch_add(questions.len() as u64, Ordering::Relaxed);
            let questions = Arc::new(questions);
            // A task of its own, so that another operator that waits for one of these answers does not depend on who polls us.
            let task = (questions.len() > 0).then(|| {
                let (asker, questions) = (self.askers[idx].clone(), Arc::clone(&questions));
                let scope = Arc::clone(&self.job.shared.scope);
                SpawnedTask::spawn(async move {
                    tokio::select! {
                        outcomes = asker.ask(questions) => outcomes,
                        () = scope.cancelled() => Err(DataFusionError::External(Box::new(crate::Error::Cancelled))),
                    }
                })
            });
            tasks.push((questions, task));
        }
        let mut answers = vec![];
        for (idx, (questions, task)) in tasks.into_iter().enumerate() {
            let outcomes = match task {
                Some(task) => task.join().await.map_err(|e| internal_datafusion_err!("asking the model failed: {e}"))??,
                None => vec![],
            };
            answers.push(self.job.settle(idx, &questions, outcomes)?);
        }
        self.job.counters.update(&self.job.stats);
        if self.ended {
            self.job.check_error_ratio()?;
        }
        Ok(answers)
    }

    /// Applies the filter to the rows of a window and cuts them at the limit.
    async fn keep(&mut self, mut rows: SendableRecordBatchStream) -> Result<SendableRecordBatchStream> {
        let until = self.job.until.clone().ok_or_else(|| internal_datafusion_err!("no filter to apply"))?;
        let mut kept = vec![];
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let mask = until.predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
            let mut batch = filter_record_batch(&batch, as_boolean_array(&mask)?)?;
            if until.stops {
                batch = batch.slice(0, batch.num_rows().min(until.wanted - self.rows_out));
            }
            self.rows_out += batch.num_rows();
            if batch.num_rows() > 0 {
                kept.push(Ok(batch));
            }
            if until.stops && self.rows_out >= until.wanted {
                break;
            }
        }
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.job.schema), stream::iter(kept))))
    }
}

/// The answers of one call over a window.
struct Answers {
    /// One value for each question.
    values: ArrayRef,
    questions: Arc<Questions>,
}

impl Job {
    /// Loads the models and lays out the prompts. Called when there is something to ask, so that plain queries load nothing.
    async fn askers(&self) -> Result<Vec<Asker>> {
        let mut askers = vec![];
        for (call, stats) in self.calls.iter().zip(&self.stats) {
            let backend = self.shared.models.backend(&call.model).await?;
            let layout = Arc::new(PromptLayout::new(&call.call, backend.tokenizer().as_ref())?);
            askers.push(Asker {
                call: Arc::clone(call),
                backend,
                layout,
                scope: Arc::clone(&self.shared.scope),
                stats: Arc::clone(stats),
                share_prefixes: self.shared.prefix_cache,
                memo: self.shared.memo,
            });
        }
        Ok(askers)
    }

    /// Turns outcomes into values, counts what failed, and fails the query if that is too much.
    fn settle(&self, idx: usize, questions: &Arc<Questions>, outcomes: Vec<Outcome>) -> Result<Answers> {
        let (call, stats) = (&self.calls[idx], &self.stats[idx]);
        let mut rows_of = vec![0_u64; questions.len()];
        for question in questions.of_row.iter().filter(|question| **question != NO_QUESTION) {
            rows_of[*question as usize] += 1;
        }
        let mut values = Vec::with_capacity(outcomes.len());
        for (question, outcome) in outcomes.into_iter().enumerate() {
            if let Err(failure) = &outcome {
                // Also a failure that another call of the query came upon first.
                if call.options.on_error == OnError::Fail {
                    return Err(call.failed_row(failure));
                }
                stats.add_failed(failure.reason, rows_of[question]);
                let inputs = (0..call.inputs.len()).map(|input| questions.text(question as u32, input).to_string());
                self.shared.scope.add_error(RowError {
                    function: call.function_name().to_owned(),
                    reason: failure.reason.to_owned(),
                    message: failure.message.clone(),
                    inputs: inputs.collect::<Vec<_>>().join(", "),
                    rows: rows_of[question],
                });
            }
            let outcome = outcome.map_err(|failure| format!("{}: {}", failure.reason, failure.message));
            let outcome = match &outcome {
                Ok(value) => Ok(value.clone()),
                Err(message) => Err(message.as_str()),
            };
            values.push(call.call.value(outcome, call.options.on_error));
        }
        let values = match values.is_empty() {
            true => new_null_array(call.output.data_type(), 0),
            false => ScalarValue::iter_to_array(values)?,
        };
        Ok(Answers { values, questions: Arc::clone(questions) })
    }

    /// Fails if too many rows have failed. Asked at the end of the input: the share in a single window may be far from that of all.
    fn check_error_ratio(&self) -> Result<()> {
        for (call, stats) in self.calls.iter().zip(&self.stats) {
            self.check_error_ratio_of(call, stats)?;
        }
        Ok(())
    }

    fn check_error_ratio_of(&self, call: &PhysicalCall, stats: &NodeStats) -> Result<()> {
        let (failed, rows) = (stats.failed_rows.load(Ordering::Relaxed), stats.rows.load(Ordering::Relaxed));
        if failed >= ERROR_RATIO_ROWS_MIN && failed as f64 > rows as f64 * self.shared.max_error_ratio {
            return Err(DataFusionError::External(Box::new(crate::Error::RowErrors {
                function: call.function_name().to_owned(),
                failed,
                rows,
                limit: self.shared.max_error_ratio,
            })));
        }
        Ok(())
    }

    /// Puts the answers beside the rows, in the order in which the rows came.
    fn rows(self: &Arc<Self>, batches: StoredBatches, answers: Vec<Answers>) -> SendableRecordBatchStream {
        let job = Arc::clone(self);
        let mut offset = 0;
        let with_answers = self.store.read(batches).map(move |batch| {
            let batch = batch?;
            let n_rows = batch.num_rows();
            let mut columns = batch.columns().to_vec();
            for Answers { values, questions } in &answers {
                let of_row = &questions.of_row[offset..offset + n_rows];
                let indices: UInt32Array = of_row.iter().map(|q| (*q != NO_QUESTION).then_some(*q)).collect();
                columns.push(match values.is_empty() {
                    true => new_null_array(values.data_type(), n_rows),
                    false => take(values, &indices, None)?,
                });
            }
            offset += n_rows;
            let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&job.schema), columns, &options)?;
            Ok(batch.record_output(&job.baseline))
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), with_answers))
    }
}

/// What EXPLAIN ANALYZE shows, over all calls of the operator.
struct Counters {
    rows: Count,
    distinct: Count,
    calls: Count,
    memo_hits: Count,
    prompt_tokens: Count,
    cached_tokens: Count,
    output_tokens: Count,
    errors: Count,
}

impl Counters {
    fn new(metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let counter = |name: &'static str| MetricBuilder::new(metrics).counter(name, partition);
        Counters {
            rows: counter("rows"),
            distinct: counter("distinct"),
            calls: counter("calls"),
            memo_hits: counter("memo_hits"),
            prompt_tokens: counter("prompt_tokens"),
            cached_tokens: counter("cached_tokens"),
            output_tokens: counter("output_tokens"),
            errors: counter("errors"),
        }
    }

    /// Brings the metrics to the state of the nodes' counters.
    fn update(&self, nodes: &[Arc<NodeStats>]) {
        let sum = |read: fn(&NodeStats) -> &std::sync::atomic::AtomicU64| -> usize {
            nodes.iter().map(|node| read(node).load(Ordering::Relaxed)).sum::<u64>() as usize
        };
        let set = |metric: &Count, value: usize| metric.add(value.saturating_sub(metric.value()));
        set(&self.rows, sum(|n| &n.rows));
        set(&self.distinct, sum(|n| &n.distinct));
        set(&self.calls, sum(|n| &n.calls));
        set(&self.memo_hits, sum(|n| &n.memo_hits));
        set(&self.prompt_tokens, sum(|n| &n.prompt_tokens));
        set(&self.cached_tokens, sum(|n| &n.cached_tokens));
        set(&self.output_tokens, sum(|n| &n.output_tokens));
        set(&self.errors, sum(|n| &n.failed_rows));
    }
}
