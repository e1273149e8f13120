//! One execution of `LlmAggregateExec`: round by round, what all groups want to know is asked as one batch.
//!
//! Groups are worked off together as long as memory holds their inputs: a part of a batch where not all of it fits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, RecordBatchOptions, StructArray, UInt64Array,
    new_null_array,
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
    /// Groups that did not fit beside those of the window before.
    pending: VecDeque<RecordBatch>,
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
        let pending = VecDeque::new();
        let start = Position { run: Arc::new(self), input, pending, kept: None, remembered, ended: false };
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
        let Some((batches, inputs)) = self.next_groups().await? else {
            self.run.check_error_ratio()?;
            return Ok(None);
        };
        if self.kept.is_none() {
            self.kept = Some(self.run.shared.answers.open(&self.run.shared.answer_settings).await?);
        }
        let kept = self.kept.as_ref().ok_or_else(|| internal_datafusion_err!("no answers are open"))?;
        let aggregates = inputs.into_iter().enumerate().map(|(idx, inputs)| self.run.values(idx, inputs, kept));
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

    /// Reads groups until memory is short or the input ends, and their inputs, aggregate by aggregate; `None` after the last. Fails if a group
    /// does not fit by itself.
    async fn next_groups(&mut self) -> Result<Option<(Arc<[RecordBatch]>, Vec<Vec<Groups>>)>> {
        let mut batches = self.gather().await?;
        loop {
            let n_groups: usize = batches.iter().map(RecordBatch::num_rows).sum();
            if n_groups == 0 {
                return Ok(None);
            }
            let window: Arc<[RecordBatch]> = batches.into();
            let inputs = try_join_all((0..self.run.aggregates.len()).map(|idx| self.run.inputs(idx, &window))).await?;
            let items = inputs.iter().flatten().flat_map(|groups| &groups.items).flatten();
            let text_bytes: usize = items.flat_map(|item| item.fields.iter()).map(|field| field.len()).sum();
            match self.run.reservation.try_resize(window.iter().map(bytes).sum::<usize>() + text_bytes) {
                Ok(()) => return Ok(Some((window, inputs))),
                Err(error) if n_groups == 1 => return Err(self.run.too_large(error)),
                Err(_) => batches = self.put_back(&window, n_groups / 2),
            }
        }
    }

    /// Reads groups until memory is short or the input ends. Fails if not even one of them fits.
    async fn gather(&mut self) -> Result<Vec<RecordBatch>> {
        self.run.reservation.free();
        let mut batches = vec![];
        loop {
            let batch = match self.pending.pop_front() {
                Some(batch) => batch,
                None if self.ended => break,
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
            // The inputs as values, and about as much again as text, which is measured when it is there.
            let grow = |groups: &RecordBatch| self.run.reservation.try_grow(2 * bytes(groups));
            let Err(error) = grow(&batch) else {
                batches.push(batch);
                continue;
            };
            let n_fitting = largest(batch.num_rows(), |n_groups| {
                let fits = grow(&batch.slice(0, n_groups)).is_ok();
                if fits {
                    self.run.reservation.shrink(2 * bytes(&batch.slice(0, n_groups)));
                }
                fits
            });
            if n_fitting == 0 && batches.is_empty() {
                return Err(self.run.too_large(error));
            }
            self.pending.push_front(batch.slice(n_fitting, batch.num_rows() - n_fitting));
            if n_fitting > 0 {
                let fitting = batch.slice(0, n_fitting);
                grow(&fitting)?;
                batches.push(fitting);
            }
            break;
        }
        Ok(batches)
    }

    /// Keeps the first groups of a window and leaves the others to the next.
    fn put_back(&mut self, window: &[RecordBatch], n_groups: usize) -> Vec<RecordBatch> {
        let (mut kept, mut rest) = (vec![], vec![]);
        let mut room = n_groups;
        for batch in window {
            let n_kept = batch.num_rows().min(room);
            room -= n_kept;
            kept.extend((n_kept > 0).then(|| batch.slice(0, n_kept)));
            rest.extend((n_kept < batch.num_rows()).then(|| batch.slice(n_kept, batch.num_rows() - n_kept)));
        }
        rest.into_iter().rev().for_each(|batch| self.pending.push_front(batch));
        kept
    }
}

/// Returns the largest number below `end` that fits, where all below it do; 0 if none.
fn largest(end: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, end);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Returns the bytes of the rows of a batch, which may be a part of larger buffers.
fn bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(column_bytes).sum()
}

fn column_bytes(column: &ArrayRef) -> usize {
    if let Some(lists) = column.as_list_opt::<i32>() {
        let offsets = lists.value_offsets();
        let (first, last) = (offsets[0] as usize, offsets[lists.len()] as usize);
        return size_of_val(offsets) + column_bytes(&lists.values().slice(first, last - first));
    }
    if let Some(parts) = column.as_struct_opt() {
        return parts.columns().iter().map(column_bytes).sum();
    }
    column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
}

/// The way to ask about the groups of one aggregate.
struct Asking {
    askers: Vec<Asker>,
    measure: Measure,
}

type Reducers = Vec<Box<dyn Reducer>>;

/// Groups whose texts have been handed over.
struct Reading {
    /// Where the inputs of each group stand in `values`, in order.
    positions: Vec<Vec<usize>>,
    values: ArrayRef,
}

impl AggregateRun {
    /// Returns the values of one aggregate, one column for each batch of groups.
    async fn values(&self, idx: usize, inputs: Vec<Groups>, kept: &QueryAnswers) -> Result<Vec<ArrayRef>> {
        let n_inputs: usize = inputs.iter().flat_map(|groups| &groups.items).map(Vec::len).sum();
        self.counters.groups.add(inputs.iter().map(|groups| groups.items.len()).sum());
        self.counters.inputs.add(n_inputs);
        let asking = match n_inputs {
            0 => None,
            _ => Some(self.asking(idx, kept, &inputs).await?),
        };
        let (mut reducers, groups) = self.reducers(idx, inputs);
        if let Some(asking) = asking {
            reducers = self.reduce(asking, &self.stats[idx], reducers).await?;
        }
        self.columns(idx, reducers, &groups)
    }

    /// Reads the inputs of all groups of one aggregate.
    async fn inputs(&self, idx: usize, batches: &Arc<[RecordBatch]>) -> Result<Vec<Groups>> {
        let (aggregate, batches) = (Arc::clone(&self.aggregates[idx]), Arc::clone(batches));
        blocking(move || {
            let read = |batch: &RecordBatch| {
                let lists = aggregate.list.evaluate(batch)?.into_array(batch.num_rows())?;
                groups(&lists, &aggregate.order, aggregate.aggregate.distinct)
            };
            batches.iter().map(read).collect()
        })
        .await
    }

    /// Hands the texts over to reducers, so that they are gone when their last prompt has been made.
    fn reducers(&self, idx: usize, inputs: Vec<Groups>) -> (Reducers, Vec<Reading>) {
        let new_reducer = new_reducer(&self.aggregates[idx]);
        let (mut reducers, mut groups): (Reducers, Vec<Reading>) = (vec![], vec![]);
        for Groups { items, values } in inputs {
            let positions = items.iter().map(|items| items.iter().map(|item| item.position).collect());
            groups.push(Reading { positions: positions.collect(), values });
            reducers.extend(items.into_iter().map(&new_reducer));
        }
        (reducers, groups)
    }

    /// Says which group is too large for the memory of the query.
    fn too_large(&self, error: DataFusionError) -> DataFusionError {
        let names: Vec<&str> = self.aggregates.iter().map(|aggregate| aggregate.aggregate.function.name()).collect();
        error.context(format!(
            "the inputs of one group of {} must fit into memory; filter them first, group by more, or allow more memory",
            names.join(", ")
        ))
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
    fn columns(&self, idx: usize, reducers: Reducers, groups: &[Reading]) -> Result<Vec<ArrayRef>> {
        let aggregate = &self.aggregates[idx];
        let mut reducers = reducers.into_iter();
        let mut columns = Vec::with_capacity(groups.len());
        for groups in groups {
            let mut values = Vec::with_capacity(groups.positions.len());
            for (inputs, reducer) in groups.positions.iter().zip(&mut reducers) {
                let (reduced, skipped) = reducer.finish();
                for Skipped { text, failure } in skipped {
                    self.note_failure(idx, &failure, &text)?;
                }
                values.push(match reduced {
                    Reduced::Empty => ScalarValue::try_from(aggregate.output.data_type())?,
                    Reduced::Value(value) => valued(aggregate, Ok(value)),
                    Reduced::Ranked(best) => {
                        let positions = best.iter().map(|item| inputs[*item]);
                        valued(aggregate, Ok(ranked(positions, &groups.values, &aggregate.aggregate.value_type)?))
                    }
                    Reduced::Failed(failure) => {
                        self.note_failure(idx, &failure, &format!("a group of {} inputs", inputs.len()))?;
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
