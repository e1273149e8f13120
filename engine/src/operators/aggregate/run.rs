//! One execution of `LlmAggregateExec`: round by round, what all groups want to know is asked as one batch.
//!
//! Groups are worked off together as long as memory holds their inputs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use datafusion::arrow::array::{
    Array, ArrayRef, Int64Array, ListArray, RecordBatch, RecordBatchOptions, StructArray, UInt64Array, new_null_array,
};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::{cast, take};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err, internal_datafusion_err, internal_err};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, RecordOutput};
use futures::future::try_join_all;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use refrain_optimizer::statistics::CallStatistics;
use refrain_udf::aggregate::{CHUNK_STAGE, COMBINE_STAGE};
use refrain_udf::{OnError, Prompt, PromptLayout, Reduction, outcome_value, row_line};

use super::PhysicalAggregate;
use super::groups::{Groups, Item, groups};
use super::hierarchy::Hierarchy;
use super::measure::{Context, Measure};
use super::reducer::{Ask, Reduced, Reducer, Skipped};
use super::top_k::TopK;
use crate::answers::QueryAnswers;
use crate::operators::ask::{Asker, spawn_asking};
use crate::operators::counters::Counters;
use crate::operators::distinct::Questions;
use crate::operators::llm_exec::Shared;
use crate::operators::memo::{Failure, Outcome};
use crate::operators::scope::{NodeStats, RowError};

/// Failed questions below which `max_error_ratio` does not end a query, so that small tables do not trip it.
const ERROR_RATIO_ROWS_MIN: u64 = 10;

/// One execution of the operator.
pub(super) struct AggregateRun {
    pub(super) schema: SchemaRef,
    pub(super) passed: Vec<usize>,
    pub(super) aggregates: Vec<Arc<PhysicalAggregate>>,
    pub(super) stats: Vec<Arc<NodeStats>>,
    pub(super) shared: Shared,
    pub(super) reservation: MemoryReservation,
    pub(super) counters: AggregateCounters,
    pub(super) baseline: BaselineMetrics,
}

/// What EXPLAIN ANALYZE shows.
pub(super) struct AggregateCounters {
    calls: Counters,
    groups: Count,
    inputs: Count,
    rounds: Count,
}

impl AggregateCounters {
    pub(super) fn new(metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let counter = |name: &'static str| MetricBuilder::new(metrics).counter(name, partition);
        AggregateCounters {
            calls: Counters::new(metrics, partition, &[]),
            groups: counter("groups"),
            inputs: counter("inputs"),
            rounds: counter("rounds"),
        }
    }
}

/// Where an execution stands between two windows.
struct Position {
    run: Arc<AggregateRun>,
    input: SendableRecordBatchStream,
    /// A batch that did not fit beside those of the window before.
    pending: Option<RecordBatch>,
    /// The answers that outlive the query; `None` before something is asked.
    kept: Option<QueryAnswers>,
    /// What the statistics of the session know already of each aggregate.
    remembered: Vec<CallStatistics>,
    ended: bool,
}

impl AggregateRun {
    /// Works off the groups, window by window.
    pub(super) fn run(self, input: SendableRecordBatchStream) -> impl Stream<Item = Result<RecordBatch>> + Send {
        let remembered = vec![CallStatistics::default(); self.aggregates.len()];
        let start = Position { run: Arc::new(self), input, pending: None, kept: None, remembered, ended: false };
        stream::try_unfold(start, |mut position| async move {
            let batches = position.next_window().await;
            if let (Err(_) | Ok(None), Some(kept)) = (&batches, &position.kept) {
                // Whatever ends the query, what it has paid for is on disk by then.
                let flushed = kept.flush().await;
                if batches.is_ok() {
                    flushed?;
                }
            }
            Ok::<_, DataFusionError>(batches?.map(|batches| (stream::iter(batches.into_iter().map(Ok)), position)))
        })
        .try_flatten()
    }
}

impl Position {
    /// Works off as many groups as memory holds; `None` after the last.
    async fn next_window(&mut self) -> Result<Option<Vec<RecordBatch>>> {
        let batches = self.gather().await?;
        if batches.is_empty() {
            self.run.check_error_ratio()?;
            return Ok(None);
        }
        if self.kept.is_none() {
            self.kept = Some(self.run.shared.answers.open(&self.run.shared.answer_settings).await?);
        }
        let kept = self.kept.as_ref().ok_or_else(|| internal_datafusion_err!("no answers are open"))?;
        let batches: Arc<[RecordBatch]> = batches.into();
        let aggregates = (0..self.run.aggregates.len()).map(|idx| self.run.values(idx, &batches, kept));
        let started = Instant::now();
        let columns = try_join_all(aggregates).await?;
        self.run.counters.calls.update(&self.run.stats);
        self.remember(started.elapsed());
        let batches = batches.iter().enumerate().map(|(idx, batch)| {
            let values = columns.iter().map(|column| Arc::clone(&column[idx]));
            let columns = self.run.passed.iter().map(|idx| Arc::clone(batch.column(*idx))).chain(values).collect();
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&self.run.schema), columns, &options)?;
            Ok(batch.record_output(&self.run.baseline))
        });
        batches.collect::<Result<_>>().map(Some)
    }

    /// Adds what has happened since the last window to the statistics of the session.
    fn remember(&mut self, took: Duration) {
        let AggregateRun { aggregates, stats, shared, .. } = self.run.as_ref();
        let mut work: HashMap<&str, (u64, u64)> = HashMap::new();
        for ((aggregate, stats), before) in aggregates.iter().zip(stats).zip(&mut self.remembered) {
            let now = stats.statistics();
            let run = now.since(*before);
            let (computed, output) = work.entry(&aggregate.model).or_default();
            *computed += run.prompt_tokens.saturating_sub(run.cached_tokens);
            *output += run.output_tokens;
            shared.statistics.add(aggregate.statistics_key(), run);
            *before = now;
        }
        for (model, (computed, output)) in work {
            shared.statistics.add_timing(model, computed, output, took.as_secs_f64());
        }
    }

    /// Reads groups until memory is short or the input ends. Fails if not even one batch fits.
    async fn gather(&mut self) -> Result<Vec<RecordBatch>> {
        self.run.reservation.free();
        let mut batches = vec![];
        while !self.ended {
            let batch = match self.pending.take() {
                Some(batch) => batch,
                None => match self.input.next().await {
                    Some(batch) => batch?,
                    None => {
                        self.ended = true;
                        break;
                    }
                },
            };
            if batch.num_rows() == 0 {
                continue;
            }
            // The inputs as values, and about as much again as text.
            if let Err(error) = self.run.reservation.try_grow(2 * bytes(&batch)) {
                if batches.is_empty() {
                    return Err(error);
                }
                self.pending = Some(batch);
                break;
            }
            batches.push(batch);
        }
        Ok(batches)
    }
}

/// Returns the bytes of the rows of a batch, which may be a part of larger buffers.
fn bytes(batch: &RecordBatch) -> usize {
    let of_column =
        |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size());
    batch.columns().iter().map(of_column).sum()
}

/// The way to ask about the groups of one aggregate.
struct Asking {
    askers: Vec<Asker>,
    measure: Measure,
}

type Reducers = Vec<Box<dyn Reducer>>;

impl AggregateRun {
    /// Returns the values of one aggregate, one column for each batch.
    async fn values(&self, idx: usize, batches: &Arc<[RecordBatch]>, kept: &QueryAnswers) -> Result<Vec<ArrayRef>> {
        let aggregate = &self.aggregates[idx];
        let (mut reducers, groups) = self.reducers(aggregate, batches).await?;
        let n_inputs: usize = groups.iter().flat_map(|groups| &groups.items).map(Vec::len).sum();
        self.counters.groups.add(reducers.len());
        self.counters.inputs.add(n_inputs);
        if n_inputs > 0 {
            let asking = self.asking(idx, kept, &groups).await?;
            reducers = self.reduce(asking, &self.stats[idx], reducers).await?;
        }
        self.columns(idx, reducers, &groups)
    }

    /// Reads the inputs of all groups.
    async fn reducers(
        &self,
        aggregate: &Arc<PhysicalAggregate>,
        batches: &Arc<[RecordBatch]>,
    ) -> Result<(Reducers, Vec<Groups>)> {
        let (aggregate, batches) = (Arc::clone(aggregate), Arc::clone(batches));
        blocking(move || {
            let mut all = vec![];
            for batch in batches.iter() {
                let lists = aggregate.list.evaluate(batch)?.into_array(batch.num_rows())?;
                all.push(groups(&lists, &aggregate.order, aggregate.aggregate.distinct)?);
            }
            let new_reducer = new_reducer(&aggregate);
            let reducers = all.iter().flat_map(|groups| &groups.items).map(|items| new_reducer(items.clone()));
            Ok((reducers.collect(), all))
        })
        .await
    }

    /// Loads the model and lays out the prompts of all stages.
    async fn asking(&self, idx: usize, kept: &QueryAnswers, groups: &[Groups]) -> Result<Asking> {
        let (aggregate, stats) = (&self.aggregates[idx], &self.stats[idx]);
        let backend = self.shared.models.backend(&aggregate.model).await?;
        let capabilities = backend.capabilities();
        stats.model_digest.get_or_init(|| capabilities.model_digest.clone());
        let context = Context { max_tokens: capabilities.max_context, token_scale: capabilities.token_scale };
        let mut layouts = vec![];
        for stage in &aggregate.stages {
            layouts.push(Arc::new(PromptLayout::new(&stage.call, backend.tokenizer().as_ref())?));
        }
        let mut measure = Measure::new(&aggregate.stages, &layouts, context, backend.tokenizer());
        if let Reduction::Hierarchy { .. } = aggregate.aggregate.reduction {
            let labels = aggregate.aggregate.labels.clone();
            let items = groups.iter().flat_map(|groups| &groups.items).flatten();
            let line = |item: &Item| Arc::from(row_line(&labels, item.fields.iter().map(|field| field.as_ref())));
            let lines: Vec<Arc<str>> = items.map(line).collect();
            measure = blocking(move || {
                measure.learn(lines);
                Ok(measure)
            })
            .await?;
        }
        let stages = aggregate.stages.iter().zip(layouts);
        let asker = |(stage, layout)| Asker::new(&self.shared, stage, Arc::clone(&backend), layout, stats, kept);
        Ok(Asking { askers: stages.map(asker).collect(), measure })
    }

    /// Asks round by round until no group wants to know more.
    async fn reduce(&self, asking: Asking, stats: &Arc<NodeStats>, mut reducers: Reducers) -> Result<Reducers> {
        let Asking { askers, measure } = asking;
        let measure = Arc::new(measure);
        loop {
            let measure = Arc::clone(&measure);
            let asks: Vec<Vec<Ask>>;
            (reducers, asks) = blocking(move || {
                let asks = reducers.iter_mut().map(|reducer| reducer.ask(&measure)).collect();
                Ok((reducers, asks))
            })
            .await?;
            if asks.iter().all(Vec::is_empty) {
                return Ok(reducers);
            }
            self.counters.rounds.add(1);
            let outcomes = self.ask(&askers, stats, &asks).await?;
            for ((reducer, asks), outcomes) in reducers.iter_mut().zip(&asks).zip(outcomes) {
                if !asks.is_empty() {
                    reducer.tell(outcomes);
                }
            }
        }
    }

    /// Asks the questions of one round, those of each stage as one batch, and returns the outcomes in their places.
    async fn ask(&self, askers: &[Asker], stats: &NodeStats, asks: &[Vec<Ask>]) -> Result<Vec<Vec<Outcome>>> {
        let mut batches = vec![];
        for (stage, asker) in askers.iter().enumerate() {
            let places = asks.iter().enumerate().flat_map(|(group, asks)| (0..asks.len()).map(move |ask| (group, ask)));
            let mut places: Vec<(usize, usize)> = places.filter(|(group, ask)| asks[*group][*ask].stage == stage).collect();
            if places.is_empty() {
                continue;
            }
            // Prompts that begin alike are neighbours, so that they find their prefix where it was just computed.
            places.sort_by_key(|(group, ask)| &asks[*group][*ask].inputs);
            let mut questions = Questions::new(asker.call.inputs.len(), asker.call.options.dedups(), 0);
            places.iter().for_each(|(group, ask)| questions.push_texts(asks[*group][*ask].inputs.iter().map(AsRef::as_ref)));
            stats.rows.fetch_add(places.len() as u64, Ordering::Relaxed);
            stats.distinct.fetch_add(questions.len() as u64, Ordering::Relaxed);
            let questions = Arc::new(questions);
            let all = (0..questions.len() as u32).collect();
            let task = spawn_asking(vec![asker.clone()], Arc::clone(&questions), all);
            batches.push(async move {
                let joined = task.join().await.map_err(|e| internal_datafusion_err!("asking the model failed: {e}"))?;
                let outcomes = joined?.pop().unwrap_or_default();
                Ok::<_, DataFusionError>((places, questions, outcomes))
            });
        }
        let mut told: Vec<Vec<Option<Outcome>>> = asks.iter().map(|asks| vec![None; asks.len()]).collect();
        for (places, questions, outcomes) in try_join_all(batches).await? {
            for ((group, ask), question) in places.into_iter().zip(&questions.of_row) {
                told[group][ask] = Some(outcomes[*question as usize].clone());
            }
        }
        let all = told.into_iter().map(|outcomes| outcomes.into_iter().collect::<Option<Vec<_>>>());
        all.collect::<Option<_>>().ok_or_else(|| internal_datafusion_err!("a question of a group was never answered"))
    }

    /// Returns the values as one column for each batch, and counts what failed.
    fn columns(&self, idx: usize, reducers: Reducers, groups: &[Groups]) -> Result<Vec<ArrayRef>> {
        let aggregate = &self.aggregates[idx];
        let mut reducers = reducers.into_iter();
        let mut columns = Vec::with_capacity(groups.len());
        for groups in groups {
            let mut values = Vec::with_capacity(groups.items.len());
            for (items, reducer) in groups.items.iter().zip(&mut reducers) {
                let (reduced, skipped) = reducer.finish();
                for Skipped { text, failure } in skipped {
                    self.note_failure(idx, &failure, &text)?;
                }
                values.push(match reduced {
                    Reduced::Empty => ScalarValue::try_from(aggregate.output.data_type())?,
                    Reduced::Value(value) => valued(aggregate, Ok(value)),
                    Reduced::Ranked(best) => {
                        let positions = best.iter().map(|item| items[*item].position);
                        valued(aggregate, Ok(ranked(positions, &groups.values, &aggregate.aggregate.value_type)?))
                    }
                    Reduced::Failed(failure) => {
                        self.note_failure(idx, &failure, &format!("a group of {} inputs", items.len()))?;
                        valued(aggregate, Err(&format!("{}: {}", failure.reason, failure.message)))
                    }
                });
            }
            let column = match values.is_empty() {
                true => new_null_array(aggregate.output.data_type(), 0),
                false => ScalarValue::iter_to_array(values)?,
            };
            columns.push(match column.data_type() == aggregate.output.data_type() {
                true => column,
                false => cast(&column, aggregate.output.data_type())?,
            });
        }
        Ok(columns)
    }

    /// Counts a failed input or group; fails the query where the call says so.
    fn note_failure(&self, idx: usize, failure: &Failure, inputs: &str) -> Result<()> {
        let (aggregate, stats) = (&self.aggregates[idx], &self.stats[idx]);
        if aggregate.options.on_error == OnError::Fail {
            return exec_err!(
                "{} failed for a group ({}): {}; set on_error => 'null' to get NULL for such groups",
                aggregate.aggregate.function.name(),
                failure.reason,
                failure.message
            );
        }
        if failure.attempts == 0 {
            // Nothing was asked, so it is not yet counted as a question.
            stats.rows.fetch_add(1, Ordering::Relaxed);
        }
        stats.add_failed(failure.reason, 1);
        self.shared.scope.add_error(RowError {
            node_id: stats.id,
            model: aggregate.model.clone(),
            function: aggregate.aggregate.function.name().to_owned(),
            reason: failure.reason.to_owned(),
            message: failure.message.clone(),
            inputs: inputs.to_owned(),
            rendered_prompt: failure.prompt.clone(),
            output_text: failure.output.clone(),
            attempts: failure.attempts,
            rows: 1,
            failed_at: SystemTime::now(),
        });
        Ok(())
    }

    /// Fails if too many questions have failed.
    fn check_error_ratio(&self) -> Result<()> {
        for (aggregate, stats) in self.aggregates.iter().zip(&self.stats) {
            let (failed, rows) = (stats.failed_rows.load(Ordering::Relaxed), stats.rows.load(Ordering::Relaxed));
            if failed >= ERROR_RATIO_ROWS_MIN && failed as f64 > rows as f64 * self.shared.max_error_ratio {
                return Err(DataFusionError::External(Box::new(crate::Error::RowErrors {
                    function: aggregate.aggregate.function.name().to_owned(),
                    failed,
                    rows,
                    limit: self.shared.max_error_ratio,
                })));
            }
        }
        Ok(())
    }
}

fn valued(aggregate: &PhysicalAggregate, outcome: Result<ScalarValue, &str>) -> ScalarValue {
    outcome_value(&aggregate.aggregate.value_type, outcome, aggregate.options.on_error)
}

/// Returns what makes a reducer of the inputs of a group.
pub(super) fn new_reducer(aggregate: &PhysicalAggregate) -> impl Fn(Vec<Item>) -> Box<dyn Reducer> + use<> {
    let reduction = aggregate.aggregate.reduction;
    let rows_of = |stage: usize| match aggregate.stages.get(stage).map(|stage| &stage.call.prompt) {
        Some(Prompt::Rows { labels }) => labels.clone(),
        _ => vec![],
    };
    let stage_labels = Arc::new([rows_of(CHUNK_STAGE), rows_of(COMBINE_STAGE)]);
    let labels: Arc<[String]> = aggregate.aggregate.labels.clone().into();
    move |items| match reduction {
        Reduction::Hierarchy { overflow } => Box::new(Hierarchy::new(items, Arc::clone(&stage_labels), overflow)),
        Reduction::TopK { k, method } => Box::new(TopK::new(items, k, method, Arc::clone(&labels))),
    }
}

/// Returns the values at `positions` as a list of values with their ranks.
fn ranked(positions: impl Iterator<Item = usize>, values: &ArrayRef, list_type: &DataType) -> Result<ScalarValue> {
    let DataType::List(item) = list_type else {
        return internal_err!("ranked values have the type {list_type}");
    };
    let DataType::Struct(fields) = item.data_type() else {
        return internal_err!("a ranked value has the type {}", item.data_type());
    };
    let positions: UInt64Array = positions.map(|position| position as u64).collect();
    let best = take(values, &positions, None)?;
    let best = if best.data_type() == fields[0].data_type() { best } else { cast(&best, fields[0].data_type())? };
    let ranks: ArrayRef = Arc::new(Int64Array::from_iter_values(1..=best.len() as i64));
    let offsets = OffsetBuffer::from_lengths([best.len()]);
    let rows = StructArray::try_new(fields.clone(), vec![best, ranks], None)?;
    Ok(ScalarValue::List(Arc::new(ListArray::try_new(Arc::clone(item), offsets, Arc::new(rows), None)?)))
}

/// Runs what takes longer than an async task should.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = SpawnedTask::spawn_blocking(work).join().await;
    done.map_err(|e| internal_datafusion_err!("preparing the inputs of an aggregate failed: {e}"))?
}
