//! `LlmExec`: asks the model about its input, window by window, and adds the answers as columns.

use std::fmt;
use std::sync::{Arc, Mutex};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::cast::as_boolean_array;
use datafusion::common::config::ConfigOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ColumnStatistics, Result, Statistics, internal_datafusion_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::equivalence::ProjectionMapping;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{OrderingRequirements, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions, apply_expression_roots,
};
use datafusion::physical_plan::filter_pushdown::{ChildFilterDescription, FilterDescription, FilterPushdownPhase};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet, SpillMetrics};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties, InputDistributionRequirements,
    PlanProperties,
};

use refrain_optimizer::statistics::{SessionStatistics, StatisticsKey};
use refrain_udf::{LayoutChoice, LlmCall};

use crate::answers::{AnswerCache, AnswerSettings};
use crate::models::ModelCatalog;
use crate::operators::budget::Budget;
use crate::operators::call::PhysicalCall;
use crate::operators::conjunction::{Conjunct, OrderReport, conjuncts, over_answer};
use crate::operators::counters::Counters;
use crate::operators::estimate::CallEstimate;
use crate::operators::job::Job;
use crate::operators::layout::CallAbove;
use crate::operators::row_readers::tell_below;
use crate::operators::scope::{NodeStats, QueryScope, lock};
use crate::operators::window::RowStore;

/// Begins a line that belongs to the operator above it; [`explain`](crate::explain) puts it below.
pub(crate) const DETAIL: &str = "· ";

/// Asks the model about each row of its input and adds one column for each call.
#[derive(Clone, Debug)]
pub struct LlmExec {
    input: Arc<dyn ExecutionPlan>,
    calls: Vec<Arc<PhysicalCall>>,
    until: Option<Until>,
    shared: Shared,
    estimates: Option<Vec<CallEstimate>>,
    /// The counters of the last execution, one for each call.
    ran: Arc<Mutex<Vec<Arc<NodeStats>>>>,
    /// In which order predicates were asked, once the operator runs.
    order: Arc<Mutex<OrderReport>>,
    /// The calls of operators above that read the same rows.
    above: Arc<Mutex<Vec<CallAbove>>>,
    /// The order of the input, where a limit takes the first rows that pass.
    input_order: Option<OrderingRequirements>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// A filter over the answers, and how many of its rows somebody wants.
#[derive(Clone, Debug)]
pub struct Until {
    /// Over the operator's output.
    pub predicate: Arc<dyn PhysicalExpr>,
    /// Rows that the limit above wants; `None` where all are wanted.
    pub wanted: Option<usize>,
    /// Whether the operator ends after `wanted` rows.
    pub stops: bool,
    /// The predicate as one for each call, if it is such an AND: the operator chooses their order.
    pub(super) conjuncts: Option<Arc<[Conjunct]>>,
    /// The predicate over the only answer, if it reads nothing else.
    pub(super) over_answer: Option<Conjunct>,
}

impl Until {
    /// Builds a filter over the columns of an operator with `n_inputs` input columns and one answer for each of `calls`.
    pub fn try_new(
        predicate: Arc<dyn PhysicalExpr>,
        wanted: Option<usize>,
        stops: bool,
        n_inputs: usize,
        calls: &[Arc<PhysicalCall>],
    ) -> Result<Self> {
        let conjuncts = conjuncts(&predicate, n_inputs, calls)?;
        let over_answer = if calls.len() == 1 { over_answer(&predicate, n_inputs)? } else { None };
        Ok(Until { predicate, wanted, stops, conjuncts, over_answer })
    }

    /// Returns whether nothing more is wanted after so many rows.
    pub(super) fn is_met(&self, rows_out: usize) -> bool {
        self.stops && self.wanted.is_some_and(|wanted| rows_out >= wanted)
    }

    /// Returns whether the operator chooses the order of its predicates.
    pub(crate) fn chooses_order(&self) -> bool {
        self.conjuncts.is_some()
    }

    /// Returns the rows that pass.
    pub(super) fn passing(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mask = self.predicate.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(filter_record_batch(batch, as_boolean_array(&mask)?)?)
    }
}

/// Returns the name under which the session keeps statistics of a call: what is asked, of which model, and the predicate over
/// the answer where the operator applies one.
pub(super) fn statistics_key(call: &PhysicalCall, predicate: Option<&Arc<dyn PhysicalExpr>>) -> StatisticsKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&call_key(&call.call, &call.model));
    // The truth of an answer is counted wherever it is asked for.
    if let Some(predicate) = predicate.filter(|predicate| predicate.downcast_ref::<Column>().is_none()) {
        hasher.update(predicate.to_string().as_bytes());
        return *hasher.finalize().as_bytes();
    }
    call_key(&call.call, &call.model)
}

/// Returns the name of a call in the statistics of the session.
pub(crate) fn call_key(call: &LlmCall, model: &str) -> StatisticsKey {
    *blake3::Hasher::new().update(&call.digest()).update(model.as_bytes()).finalize().as_bytes()
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
    /// The answers that outlive their query.
    pub answers: Arc<AnswerCache>,
    /// Which of them the query uses.
    pub answer_settings: AnswerSettings,
    /// What the query may spend, and has.
    pub budget: Budget,
    /// Share of failed rows above which the query fails.
    pub max_error_ratio: f64,
    /// Whether prompts share the keys and values of common prefixes.
    pub prefix_cache: bool,
    /// How urgent the calls are; more is sooner.
    pub priority: i32,
    /// Whether prompts begin with the instruction or with the data.
    pub layout: LayoutChoice,
    /// What earlier queries of the session have shown of their calls.
    pub statistics: Arc<SessionStatistics>,
}

impl LlmExec {
    /// Builds the operator. `until` may read the answers; its columns are those of the input followed by one for each call.
    /// `estimates` is for a plan that is to be explained, and empty where nothing can be said.
    pub fn try_new(
        input: Arc<dyn ExecutionPlan>,
        calls: Vec<Arc<PhysicalCall>>,
        until: Option<Until>,
        shared: Shared,
        estimates: Option<Vec<CallEstimate>>,
    ) -> Result<Self> {
        let schema = output_schema(&input.schema(), &calls);
        // Input columns keep their places, so orderings and constants of the input hold for the output.
        let indices: Vec<usize> = (0..input.schema().fields().len()).collect();
        let mapping = ProjectionMapping::from_indices(&indices, &input.schema())?;
        let equivalences = input.equivalence_properties().project(&mapping, schema);
        let partitioning = input.output_partitioning().project(&mapping, input.equivalence_properties());
        let emission = if until.is_some() { EmissionType::Incremental } else { EmissionType::Final };
        let properties = Arc::new(PlanProperties::new(equivalences, partitioning, emission, input.boundedness()));
        tell_below(&calls, &input)?;
        let (ran, order, above, metrics) = (Arc::default(), Arc::default(), Arc::default(), ExecutionPlanMetricsSet::new());
        let counts = until.as_ref().is_some_and(|until| until.wanted.is_some());
        let input_order = input.output_ordering().filter(|_| counts).map(|order| order.clone().into());
        Ok(LlmExec { input, calls, until, shared, estimates, ran, order, above, input_order, properties, metrics })
    }

    /// Notes that an operator above asks about the same rows.
    pub(super) fn add_call_above(&self, call: CallAbove) {
        let mut above = lock(&self.above);
        // A plan that is built anew tells of its calls again.
        if !above.iter().any(|known| Arc::ptr_eq(&known.call, &call.call)) {
            above.push(call);
        }
    }

    /// Returns the calls of operators above that read the same rows.
    pub(super) fn calls_above(&self) -> Vec<CallAbove> {
        lock(&self.above).clone()
    }

    /// Returns what the operator reads.
    pub(super) fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }

    /// Returns the calls.
    pub fn calls(&self) -> &[Arc<PhysicalCall>] {
        &self.calls
    }

    /// Returns what the calls are expected to cost, where that was asked for when the plan was made.
    pub fn estimates(&self) -> &[CallEstimate] {
        self.estimates.as_deref().unwrap_or_default()
    }

    /// Returns whether somebody asked for estimates.
    pub(super) fn is_estimated(&self) -> bool {
        self.estimates.is_some()
    }

    /// Returns the counters of the calls, once the operator has been run.
    pub(super) fn ran(&self) -> Vec<Arc<NodeStats>> {
        lock(&self.ran).clone()
    }

    /// Returns the predicate over the answers, where the operator filters.
    pub(super) fn filter(&self) -> Option<String> {
        self.until.as_ref().map(|until| until.predicate.to_string())
    }

    /// Returns whether the order of predicates is the operator's to choose.
    pub(super) fn orders_predicates(&self) -> bool {
        self.until.as_ref().is_some_and(Until::chooses_order)
    }

    /// Returns whether the operator asks for no more rows than a limit wants.
    pub(super) fn stops_at_limit(&self) -> bool {
        self.until.as_ref().is_some_and(|until| until.wanted.is_some())
    }

    /// Returns the order in which predicates were asked, as a line.
    pub(super) fn order_line(&self) -> Option<String> {
        lock(&self.order).line(&self.calls)
    }

    /// Returns the order in which predicates were asked.
    pub(super) fn order_json(&self) -> serde_json::Value {
        lock(&self.order).to_json(&self.calls)
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
        }
        if let Some(until) = &self.until {
            write!(f, ", keep={}", until.predicate)?;
            if let Some(wanted) = until.wanted {
                write!(f, ", {}={wanted}", if until.stops { "fetch" } else { "wanted" })?;
            }
        }
        for line in self.details() {
            write!(f, "\n{DETAIL}{line}")?;
        }
        // The metrics, which DataFusion appends, on a line of their own.
        if !self.ran().is_empty() {
            write!(f, "\n{DETAIL}")?;
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

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![self.input_order.clone()]
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
                let planned = LlmExec::try_new(input, this.calls, this.until, this.shared, this.estimates)?;
                LlmExec { above: this.above, input_order: this.input_order, ..planned }
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
        let counts = self.until.as_ref().is_some_and(|until| until.wanted.is_some());
        let may_pass = names.len() == schema.fields().len() && !counts;
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
        self.shared.scope.memo.charge_to(context.memory_pool());
        let spills = SpillMetrics::new(&self.metrics, partition);
        let stats: Vec<_> =
            self.calls.iter().map(|call| self.shared.scope.add_node(call.function_name(), &call.model)).collect();
        lock(&self.ran).clone_from(&stats);
        let job = Job {
            schema: Arc::clone(&schema),
            calls: self.calls.clone(),
            stats,
            until: self.until.clone(),
            conjuncts: self.until.as_ref().and_then(|until| until.conjuncts.clone()),
            over_answer: self.until.as_ref().and_then(|until| until.over_answer.clone()),
            shared: self.shared.clone(),
            store: RowStore::new(&context, partition, self.input.schema(), spills),
            counters: Counters::new(&self.metrics, partition, &self.calls),
            baseline: BaselineMetrics::new(&self.metrics, partition),
            order: Arc::clone(&self.order),
            above: self.calls_above(),
        };
        let batches = job.run(input);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}
