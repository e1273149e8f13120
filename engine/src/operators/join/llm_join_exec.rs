//! `LlmJoinExec`: joins its inputs on a condition that asks a model about pairs of rows.

use std::fmt;
use std::sync::{Arc, Mutex};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{JoinType, Result, internal_err};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions, apply_expression_roots,
};
use datafusion::physical_plan::joins::utils::ColumnIndex;
use datafusion::physical_plan::metrics::{
    BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, SpillMetrics,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, InputDistributionRequirements, Partitioning, PlanProperties,
};
use refrain_optimizer::JoinEffort;

use crate::operators::call::PhysicalCall;
use crate::operators::conjunction::OrderReport;
use crate::operators::counters::Counters;
use crate::operators::estimate::CallEstimate;
use crate::operators::job::Job;
use crate::operators::join::candidates::Pairing;
use crate::operators::join::classification::PairHalves;
use crate::operators::join::pairs::{PairJob, StepJob};
use crate::operators::llm_exec::{DETAIL, Shared, Until, output_schema};
use crate::operators::scope::{NodeStats, lock};
use crate::operators::window::RowStore;

/// A column of a pair: one of the left or of the right input.
pub type PairColumn = ColumnIndex;

/// One step of the way of a candidate pair.
#[derive(Clone, Debug)]
pub enum PairStep {
    /// Asks about each pair; the answers become columns behind those of the pair.
    Ask(Vec<Arc<PhysicalCall>>),
    /// Keeps the pairs for which this is TRUE.
    Keep(Arc<dyn PhysicalExpr>),
}

/// The condition of a join and what becomes of its matches.
#[derive(Clone, Debug)]
pub(crate) struct PairPlan {
    pub(crate) join_type: JoinType,
    /// The part of the condition that asks nobody.
    pub(crate) pairing: Pairing,
    /// The columns of a pair that the steps read.
    pub(crate) columns: Vec<PairColumn>,
    /// Their fields.
    pub(crate) pair_schema: SchemaRef,
    pub(crate) steps: Vec<PairStep>,
    /// The question of the only step, where rows may be asked instead of pairs.
    pub(crate) halves: Option<PairHalves>,
    pub(crate) effort: JoinEffort,
    /// Pairs that may be asked about.
    pub(crate) max_pairs: u64,
}

impl PairPlan {
    /// Returns the calls of all steps.
    pub(crate) fn calls(&self) -> impl Iterator<Item = &Arc<PhysicalCall>> {
        self.steps.iter().flat_map(|step| match step {
            PairStep::Ask(calls) => calls.as_slice(),
            PairStep::Keep(_) => &[],
        })
    }

    /// Returns what decides which pairs stay after the step at `place`, which asks about rows of `n_inputs` columns; `None` if the next step
    /// asks as well.
    pub(crate) fn kept_by(&self, place: usize, n_inputs: usize) -> Result<Option<Until>> {
        let (Some(PairStep::Ask(calls)), Some(PairStep::Keep(predicate))) =
            (self.steps.get(place), self.steps.get(place + 1))
        else {
            return Ok(None);
        };
        Until::try_new(Arc::clone(predicate), None, false, n_inputs, calls).map(Some)
    }

    /// Returns the place and the calls of the first step that chooses the order of its predicates.
    fn ordered_step(&self) -> Option<(usize, &[Arc<PhysicalCall>])> {
        let mut n_columns = self.pair_schema.fields().len();
        for (place, step) in self.steps.iter().enumerate() {
            let PairStep::Ask(calls) = step else { continue };
            if matches!(self.kept_by(place, n_columns), Ok(Some(until)) if until.chooses_order()) {
                return Some((place, calls.as_slice()));
            }
            n_columns += calls.len();
        }
        None
    }
}

/// Joins its inputs on a condition that asks a model about pairs of rows.
#[derive(Clone, Debug)]
pub struct LlmJoinExec {
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    plan: PairPlan,
    shared: Shared,
    estimates: Option<Vec<CallEstimate>>,
    /// What rows are or will be asked instead of pairs, or why not; `None` where nobody has asked.
    classification: Arc<Mutex<Option<Result<String, String>>>>,
    /// The counters of the last execution, one for each call.
    ran: Arc<Mutex<Vec<Arc<NodeStats>>>>,
    /// In which order the predicates of a step were asked, once the operator runs.
    order: Arc<Mutex<OrderReport>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl LlmJoinExec {
    /// Builds the operator. `schema` is that of the output; `estimates` are those of the calls of the first step, for
    /// a plan that is to be explained, and empty where nothing can be said. So is `classification`: what rows are expected to be asked
    /// instead of pairs, or why not.
    pub(crate) fn new(
        [left, right]: [Arc<dyn ExecutionPlan>; 2],
        schema: SchemaRef,
        plan: PairPlan,
        shared: Shared,
        estimates: Option<Vec<CallEstimate>>,
        classification: Option<Result<String, String>>,
    ) -> Self {
        let equivalences = EquivalenceProperties::new(schema);
        let partitioning = Partitioning::UnknownPartitioning(1);
        let properties =
            Arc::new(PlanProperties::new(equivalences, partitioning, EmissionType::Incremental, Boundedness::Bounded));
        let (ran, order, metrics) = (Arc::default(), Arc::default(), ExecutionPlanMetricsSet::new());
        let classification = Arc::new(Mutex::new(classification));
        LlmJoinExec { left, right, plan, shared, estimates, classification, ran, order, properties, metrics }
    }

    /// Returns the calls of all steps.
    pub fn calls(&self) -> impl Iterator<Item = &Arc<PhysicalCall>> {
        self.plan.calls()
    }

    /// Returns what the calls of the first step are expected to cost, where that was asked for when the plan was made.
    pub fn estimates(&self) -> &[CallEstimate] {
        self.estimates.as_deref().unwrap_or_default()
    }

    /// Returns whether somebody asked for estimates.
    pub(in crate::operators) fn is_estimated(&self) -> bool {
        self.estimates.is_some()
    }

    /// Returns the counters of the calls, once the operator has been run.
    pub(in crate::operators) fn ran(&self) -> Vec<Arc<NodeStats>> {
        lock(&self.ran).clone()
    }

    /// Returns what rows are or will be asked instead of pairs, or why not; `None` where that was not looked at.
    pub(in crate::operators) fn classification(&self) -> Option<Result<String, String>> {
        lock(&self.classification).clone()
    }

    /// Returns what becomes of rows with and without a match.
    pub(in crate::operators) fn join_type(&self) -> JoinType {
        self.plan.join_type
    }

    /// Returns how much is asked.
    pub(in crate::operators) fn effort(&self) -> JoinEffort {
        self.plan.effort
    }

    /// Returns whether the order of predicates is the operator's to choose.
    pub(in crate::operators) fn orders_predicates(&self) -> bool {
        self.plan.ordered_step().is_some()
    }

    /// Returns the order in which predicates were asked, as a line.
    pub(in crate::operators) fn order_line(&self) -> Option<String> {
        self.plan.ordered_step().and_then(|(_, calls)| lock(&self.order).line(calls))
    }

    /// Returns the order in which predicates were asked.
    pub(in crate::operators) fn order_json(&self) -> serde_json::Value {
        self.plan.ordered_step().map_or(serde_json::Value::Null, |(_, calls)| lock(&self.order).to_json(calls))
    }

    /// Returns how many pairs may be asked about; `None` without limit.
    pub(in crate::operators) fn max_pairs(&self) -> Option<u64> {
        Some(self.plan.max_pairs).filter(|pairs| *pairs < u64::MAX)
    }

    /// Prepares the steps to run.
    fn steps(&self, partition: usize, context: &Arc<TaskContext>) -> Result<Vec<StepJob>> {
        let mut schema = Arc::clone(&self.plan.pair_schema);
        let mut steps = vec![];
        let mut ran = vec![];
        let ordered = self.plan.ordered_step().map(|(place, _)| place);
        for (place, step) in self.plan.steps.iter().enumerate() {
            steps.push(match step {
                PairStep::Keep(predicate) => StepJob::Keep(Arc::clone(predicate)),
                PairStep::Ask(calls) => {
                    let output = output_schema(&schema, calls);
                    let until = self.plan.kept_by(place, schema.fields().len())?;
                    let spills = SpillMetrics::new(&self.metrics, partition);
                    let scope = &self.shared.scope;
                    let stats: Vec<_> = calls.iter().map(|call| scope.add_node(call.function_name(), &call.model)).collect();
                    ran.extend(stats.iter().cloned());
                    let job = Job {
                        schema: Arc::clone(&output),
                        calls: calls.clone(),
                        stats,
                        until: None,
                        conjuncts: until.as_ref().and_then(|until| until.conjuncts.clone()),
                        over_answer: until.and_then(|until| until.over_answer),
                        shared: self.shared.clone(),
                        store: RowStore::new(context, partition, schema, spills),
                        counters: Counters::new(&self.metrics, partition, calls),
                        // The rows of this operator are those of the join, not the pairs.
                        baseline: BaselineMetrics::new(&ExecutionPlanMetricsSet::new(), partition),
                        order: if Some(place) == ordered { Arc::clone(&self.order) } else { Arc::default() },
                        above: vec![],
                    };
                    schema = output;
                    StepJob::Ask(Box::new(job))
                }
            });
        }
        *lock(&self.ran) = ran;
        Ok(steps)
    }
}

impl DisplayAs for LlmJoinExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let PairPlan { join_type, pairing, steps, effort, .. } = &self.plan;
        if format == DisplayFormatType::TreeRender {
            writeln!(f, "join_type={join_type}")?;
            for call in self.calls() {
                writeln!(f, "{}={}", call.output.name(), call.function_name())?;
            }
            return Ok(());
        }
        write!(f, "LlmJoinExec: {join_type}")?;
        if !pairing.on.is_empty() {
            let keys: Vec<String> = pairing.on.iter().map(|(left, right)| format!("{left} = {right}")).collect();
            write!(f, ", on=[{}]", keys.join(", "))?;
        }
        if let Some(filter) = &pairing.filter {
            write!(f, ", filter={}", filter.predicate)?;
        }
        for step in steps {
            match step {
                PairStep::Ask(calls) => {
                    for call in calls {
                        write!(f, ", ask {call}")?;
                    }
                }
                PairStep::Keep(predicate) => write!(f, ", keep={predicate}")?,
            }
        }
        write!(f, "{effort}")?;
        if let Some(max_pairs) = self.max_pairs() {
            write!(f, ", max_pairs={max_pairs}")?;
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

impl ExecutionPlan for LlmJoinExec {
    fn name(&self) -> &str {
        "LlmJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left, &self.right]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition, Distribution::SinglePartition])
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false, false]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let PairPlan { pairing, steps, .. } = &self.plan;
        let keys = pairing.on.iter().flat_map(|(left, right)| [left, right]);
        let filter = pairing.filter.iter().map(|filter| &filter.predicate);
        let asked = self.calls().flat_map(|call| call.inputs.iter().chain(&call.guard));
        let kept = steps.iter().filter_map(|step| match step {
            PairStep::Ask(_) => None,
            PairStep::Keep(predicate) => Some(predicate),
        });
        apply_expression_roots(keys.chain(filter).chain(asked).chain(kept), f)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok(children) = <[_; 2]>::try_from(children) else { return internal_err!("LlmJoinExec takes two inputs") };
        let classification = self.classification();
        let LlmJoinExec { plan, shared, estimates, .. } = Self::clone(&self);
        Ok(Arc::new(LlmJoinExec::new(children, self.schema(), plan, shared, estimates, classification)))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.shared.scope.memo.charge_to(context.memory_pool());
        let memory =
            |name: &str| MemoryConsumer::new(format!("LlmJoinExec[{partition}] {name}")).register(context.memory_pool());
        let job = PairJob {
            schema: self.schema(),
            inputs: [Arc::clone(&self.left), Arc::clone(&self.right)],
            memory: [memory("left"), memory("right"), memory("pairs")],
            plan: self.plan.clone(),
            steps: self.steps(partition, &context)?,
            spills: SpillMetrics::new(&self.metrics, partition),
            classification: Arc::clone(&self.classification),
            candidates: MetricBuilder::new(&self.metrics).counter("candidates", partition),
            pairs: MetricBuilder::new(&self.metrics).counter("pairs", partition),
            baseline: BaselineMetrics::new(&self.metrics, partition),
            context,
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), job.run())))
    }
}
