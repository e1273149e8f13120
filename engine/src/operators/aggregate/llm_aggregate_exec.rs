//! `LlmAggregateExec`: asks the model about the inputs of each group until one value is left.

use std::fmt;
use std::sync::{Arc, Mutex};

use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, internal_datafusion_err};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::equivalence::ProjectionMapping;
use datafusion::physical_expr::{PhysicalExpr, expressions::Column};
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions, apply_expression_roots,
};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties, InputDistributionRequirements,
    PlanProperties,
};
use refrain_optimizer::statistics::StatisticsKey;
use refrain_udf::aggregate::CHUNK_STAGE;
use refrain_udf::{LlmAggregate, ResolvedOptions};
use serde_json::{Value, json};

use super::estimate::AggregateEstimate;
use super::run::AggregateRun;
use crate::operators::call::PhysicalCall;
use crate::operators::describe::{actual_json, actual_lines, applied};
use crate::operators::llm_exec::{DETAIL, Shared, call_key};
use crate::operators::scope::NodeStats;

/// One aggregate of an [`LlmAggregateExec`].
#[derive(Clone, Debug)]
pub struct PhysicalAggregate {
    /// What is asked.
    pub aggregate: Arc<LlmAggregate>,
    /// The calls of its stages.
    pub stages: Vec<Arc<PhysicalCall>>,
    /// The column of the operator's input that holds the inputs of each group.
    pub list: Arc<dyn PhysicalExpr>,
    /// How the keys of inputs are ordered; empty where they have none.
    pub order: Vec<SortOptions>,
    /// The column of the values.
    pub output: FieldRef,
    /// The name of the model that is asked.
    pub model: String,
    /// Call options and settings, merged.
    pub options: ResolvedOptions,
}

impl PhysicalAggregate {
    /// Returns the name under which the session keeps statistics of the aggregate: that of the call that reads its inputs.
    pub(crate) fn statistics_key(&self) -> StatisticsKey {
        call_key(&self.stages[CHUNK_STAGE].call, &self.model)
    }
}

impl fmt::Display for PhysicalAggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} model={}", self.aggregate.describe(), self.model)
    }
}

/// Replaces lists of inputs by the values of LLM aggregates: columns are those of the input at `passed`, then the values.
#[derive(Clone, Debug)]
pub struct LlmAggregateExec {
    input: Arc<dyn ExecutionPlan>,
    passed: Vec<usize>,
    aggregates: Vec<Arc<PhysicalAggregate>>,
    shared: Shared,
    estimates: Vec<AggregateEstimate>,
    /// The counters of the last execution, one for each aggregate.
    ran: Arc<Mutex<Vec<Arc<NodeStats>>>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl LlmAggregateExec {
    /// Builds the operator.
    pub fn try_new(
        input: Arc<dyn ExecutionPlan>,
        passed: Vec<usize>,
        aggregates: Vec<Arc<PhysicalAggregate>>,
        shared: Shared,
        estimates: Vec<AggregateEstimate>,
    ) -> Result<Self> {
        let schema = output_schema(&input.schema(), &passed, &aggregates);
        let mapping = ProjectionMapping::try_new(
            passed.iter().enumerate().map(|(to, from)| {
                let name = input.schema().field(*from).name().clone();
                let column = |idx| Arc::new(Column::new(&name, idx)) as Arc<dyn PhysicalExpr>;
                (column(*from), schema.field(to).name().clone())
            }),
            &input.schema(),
        )?;
        let equivalences = input.equivalence_properties().project(&mapping, schema);
        let partitioning = input.output_partitioning().project(&mapping, input.equivalence_properties());
        let properties = Arc::new(PlanProperties::new(equivalences, partitioning, EmissionType::Final, input.boundedness()));
        let (ran, metrics) = (Arc::default(), ExecutionPlanMetricsSet::new());
        Ok(LlmAggregateExec { input, passed, aggregates, shared, estimates, ran, properties, metrics })
    }

    fn ran(&self) -> Vec<Arc<NodeStats>> {
        self.ran.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Returns all that is known of the operator, under names that stay.
    pub(crate) fn to_json(&self) -> Value {
        let ran = self.ran();
        let aggregate = |(idx, aggregate): (usize, &Arc<PhysicalAggregate>)| {
            json!({
                "function": aggregate.aggregate.function.name(),
                "call": aggregate.aggregate.describe(),
                "output": aggregate.output.name(),
                "rewrites": applied(&aggregate.stages),
                "model": aggregate.model,
                "estimate": self.estimates.get(idx).map(AggregateEstimate::to_json),
                "actual": ran.get(idx).map(actual_json),
            })
        };
        let aggregates: Vec<Value> = self.aggregates.iter().enumerate().map(aggregate).collect();
        json!({"operator": self.name(), "aggregates": aggregates})
    }

    /// Returns the aggregates.
    pub fn aggregates(&self) -> &[Arc<PhysicalAggregate>] {
        &self.aggregates
    }

    /// Returns what the aggregates are expected to cost, where that was asked for when the plan was made.
    pub fn estimates(&self) -> &[AggregateEstimate] {
        &self.estimates
    }
}

fn output_schema(input: &Schema, passed: &[usize], aggregates: &[Arc<PhysicalAggregate>]) -> SchemaRef {
    let columns = passed.iter().map(|idx| Arc::clone(&input.fields()[*idx]));
    let fields: Vec<_> = columns.chain(aggregates.iter().map(|aggregate| Arc::clone(&aggregate.output))).collect();
    Arc::new(Schema::new_with_metadata(fields, input.metadata().clone()))
}

impl DisplayAs for LlmAggregateExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        if format == DisplayFormatType::TreeRender {
            for aggregate in &self.aggregates {
                writeln!(f, "{}={}", aggregate.output.name(), aggregate.aggregate.function.name())?;
            }
            return Ok(());
        }
        write!(f, "LlmAggregateExec: ")?;
        for (idx, aggregate) in self.aggregates.iter().enumerate() {
            write!(f, "{}{aggregate}", if idx > 0 { "; " } else { "" })?;
        }
        let ran = self.ran();
        for (idx, aggregate) in self.aggregates.iter().enumerate() {
            let name = if self.aggregates.len() > 1 { format!("{}: ", aggregate.output.name()) } else { String::new() };
            if let Some(estimate) = self.estimates.get(idx) {
                write!(f, "\n{DETAIL}{name}{estimate}")?;
            }
            let rewrites = applied(&aggregate.stages);
            if self.estimates.get(idx).is_some() && !rewrites.is_empty() {
                write!(f, "\n{DETAIL}{name}rewrites: {}", rewrites.join(", "))?;
            }
            for line in ran.get(idx).into_iter().flat_map(|stats| actual_lines(stats, None)) {
                write!(f, "\n{DETAIL}{name}{line}")?;
            }
        }
        // The metrics, which DataFusion appends, on a line of their own.
        if !ran.is_empty() {
            write!(f, "\n{DETAIL}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for LlmAggregateExec {
    fn name(&self) -> &str {
        "LlmAggregateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    // The chunks of all groups are asked together.
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
        apply_expression_roots(self.aggregates.iter().map(|aggregate| &aggregate.list), f)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().ok_or_else(|| internal_datafusion_err!("LlmAggregateExec takes one input"))?;
        let this = Self::clone(&self);
        Ok(Arc::new(match options.children_properties {
            ChildrenPropertiesMode::Keep => LlmAggregateExec { input, metrics: ExecutionPlanMetricsSet::new(), ..this },
            ChildrenPropertiesMode::Recompute => {
                LlmAggregateExec::try_new(input, this.passed, this.aggregates, this.shared, this.estimates)?
            }
        }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, input: &[Arc<Statistics>], _args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        statistics.num_rows = input[0].num_rows;
        statistics.total_byte_size = Precision::Absent;
        Ok(Arc::new(statistics))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let schema = self.schema();
        self.shared.scope.memo.charge_to(context.memory_pool());
        let consumer = MemoryConsumer::new(format!("LlmAggregateExec[{partition}]"));
        let add_node = |aggregate: &Arc<PhysicalAggregate>| {
            self.shared.scope.add_node(aggregate.aggregate.function.name(), &aggregate.model)
        };
        let stats: Vec<Arc<NodeStats>> = self.aggregates.iter().map(add_node).collect();
        self.ran.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone_from(&stats);
        let run = AggregateRun {
            schema: Arc::clone(&schema),
            passed: self.passed.clone(),
            aggregates: self.aggregates.clone(),
            stats,
            shared: self.shared.clone(),
            reservation: consumer.register(context.memory_pool()),
            counters: super::run::AggregateCounters::new(&self.metrics, partition),
            baseline: BaselineMetrics::new(&self.metrics, partition),
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, run.run(input))))
    }
}
