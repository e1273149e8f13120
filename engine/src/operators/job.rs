//! One execution of `LlmExec`: window by window, rows become questions, questions become answers, and answers stand beside rows.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use datafusion::arrow::compute::take;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_datafusion_err};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::{BaselineMetrics, RecordOutput};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use refrain_optimizer::filter_order::UNKNOWN_SELECTIVITY;
use refrain_optimizer::statistics::{CallStatistics, StatisticsKey};
use refrain_serving::step::PAGE_TOKENS;
use refrain_udf::{Layout, LayoutChoice, OnError, PromptLayout, Shape};

use crate::answers::QueryAnswers;
use crate::operators::ask::{Asker, spawn_asking, spawn_asking_until};
use crate::operators::call::PhysicalCall;
use crate::operators::cascade::Proxy;
use crate::operators::conjunction::{Answered, Ask, Conjunct, Conjunction, OrderReport};
use crate::operators::counters::Counters;
use crate::operators::distinct::{NO_QUESTION, Questions};
use crate::operators::enough::Enough;
use crate::operators::layout::{CallAbove, LayoutCosts, ROWS_LOOKED_AT, RowReaders, chosen, over_the_same_rows};
use crate::operators::llm_exec::{Shared, Until, statistics_key};
use crate::operators::memo::Outcome;
use crate::operators::morsels::next_morsel;
use crate::operators::scope::{NodeStats, RowError};
use crate::operators::window::{Filled, RowStore, StoredBatches, Window, WindowLimit, rows_with_question};

/// Failed rows below which `max_error_ratio` does not end a query, so that small tables do not trip it.
const ERROR_RATIO_ROWS_MIN: u64 = 10;

/// The share of the cache that may hold rows for calls that ask later: an operator above may gather the rows of two windows, and
/// what runs needs room as well.
const KEPT_SHARE: f64 = 0.25;
/// Where the cache keeps fewer rows than these, windows would be too small to be worth it.
const KEPT_ROWS_MIN: usize = 32;

/// One execution of the operator.
pub(crate) struct Job {
    pub(crate) schema: SchemaRef,
    pub(crate) calls: Vec<Arc<PhysicalCall>>,
    pub(crate) stats: Vec<Arc<NodeStats>>,
    pub(crate) until: Option<Until>,
    /// The predicates that decide which rows stay, one for each call, where their order is ours to choose.
    pub(crate) conjuncts: Option<Arc<[Conjunct]>>,
    /// The predicate that decides which rows stay, where it reads the only answer and nothing else.
    pub(crate) over_answer: Option<Conjunct>,
    pub(crate) shared: Shared,
    pub(crate) store: RowStore,
    pub(crate) counters: Counters,
    pub(crate) baseline: BaselineMetrics,
    pub(crate) order: Arc<Mutex<OrderReport>>,
    /// The calls of operators above that read the same rows.
    pub(crate) above: Vec<CallAbove>,
}

/// Where an execution stands between two windows.
struct Position {
    job: Arc<Job>,
    input: SendableRecordBatchStream,
    /// Rows of the last batch that did not fit into the window.
    pending: Option<RecordBatch>,
    askers: Vec<Asker>,
    /// Calls that share their rows, each group of at least two; the others ask by themselves.
    together: Vec<Vec<usize>>,
    /// The most rows of a window, where the cache is to keep them for calls that ask later.
    kept_rows: usize,
    /// The answers that outlive the query; `None` before something is asked.
    kept: Option<QueryAnswers>,
    /// The predicates over the answers, where their order is ours to choose.
    conjunction: Option<Conjunction>,
    /// What the statistics of the session know already of each call.
    remembered: Vec<CallStatistics>,
    window: u32,
    questions_asked: usize,
    rows_out: usize,
    /// Rows of the block that a limit above still wants to pass, where blocks are handed over.
    block_missing: Option<usize>,
    ended: bool,
    /// Whether rows may follow the end of `input`.
    more: bool,
}

/// An execution whose rows are handed over block by block, for operators whose next questions depend on the answers.
pub(crate) struct Blocks(Box<Position>);

impl Blocks {
    /// Starts an execution without rows.
    pub(crate) fn new(job: Job) -> Self {
        let nothing = RecordBatchStreamAdapter::new(Arc::clone(job.store.schema()), stream::empty());
        Blocks(Box::new(Position { more: true, ..Position::start(job, Box::pin(nothing)) }))
    }

    /// Asks about all rows of a block and returns them with their answers, in order. Where a limit wants only the first `missing` rows
    /// that pass `predicate`, answers of rows behind them may be missing.
    pub(crate) async fn ask(
        &mut self,
        block: SendableRecordBatchStream,
        limit: Option<(usize, &Arc<dyn PhysicalExpr>)>,
    ) -> Result<Vec<RecordBatch>> {
        (self.0.input, self.0.ended) = (block, false);
        self.0.block_missing = limit.map(|(missing, _)| missing);
        let mut answered = vec![];
        while let Some(rows) = self.0.next_window().await? {
            let rows: Vec<RecordBatch> = rows.try_collect().await?;
            if let (Some(missing), Some((_, predicate))) = (&mut self.0.block_missing, limit) {
                for batch in &rows {
                    *missing = missing.saturating_sub(n_passing(predicate, batch)?);
                }
            }
            answered.extend(rows);
        }
        Ok(answered)
    }

    /// Fails if too many rows have failed. For the end: the share in a single block may be far from that of all.
    pub(crate) fn check_error_ratio(&self) -> Result<()> {
        self.0.job.check_error_ratio()
    }

    /// Makes sure that what was paid for is kept.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        match &self.0.kept {
            Some(kept) => kept.flush().await,
            None => Ok(()),
        }
    }
}

impl Position {
    fn start(job: Job, input: SendableRecordBatchStream) -> Self {
        Position {
            conjunction: job.conjunction(),
            remembered: vec![CallStatistics::default(); job.calls.len()],
            job: Arc::new(job),
            input,
            pending: None,
            askers: vec![],
            together: vec![],
            kept_rows: usize::MAX,
            kept: None,
            window: 0,
            questions_asked: 0,
            rows_out: 0,
            block_missing: None,
            ended: false,
            more: false,
        }
    }
}

impl Job {
    /// Works off the input, window by window.
    pub(crate) fn run(self, input: SendableRecordBatchStream) -> impl Stream<Item = Result<RecordBatch>> + Send {
        stream::try_unfold(Position::start(self, input), |mut position| async move {
            let rows = position.next_window().await;
            if let (Err(_) | Ok(None), Some(kept)) = (&rows, &position.kept) {
                // Whatever ends the query, what it has paid for is on disk by then.
                let flushed = kept.flush().await;
                if rows.is_ok() {
                    flushed?;
                }
            }
            let rows = rows?;
            Ok::<_, DataFusionError>(rows.map(|rows| (rows, position)))
        })
        .try_flatten()
    }

    /// Returns the predicates over the answers, if their order is ours to choose, with what the session knows of them.
    fn conjunction(&self) -> Option<Conjunction> {
        let (conjuncts, report) = (self.conjuncts.clone()?, Arc::clone(&self.order));
        let guesses: Vec<Option<f64>> = conjuncts.iter().map(|conjunct| self.known_selectivity(conjunct.call)).collect();
        Some(Conjunction::new(conjuncts, &guesses, report))
    }

    /// Returns the share of rows that passed the predicate over a call in earlier queries of the session, if there were any.
    fn known_selectivity(&self, call: usize) -> Option<f64> {
        self.shared.statistics.get(&self.statistics_key(call)).and_then(|known| known.selectivity())
    }

    fn statistics_key(&self, call: usize) -> StatisticsKey {
        let conjuncts = self.conjuncts.as_deref().unwrap_or_default();
        let over_answer = conjuncts.iter().find(|conjunct| conjunct.call == call);
        statistics_key(&self.calls[call], over_answer.map(|conjunct| &conjunct.predicate))
    }

    /// Returns how much the next window may hold, after `rows_out` rows have come of the questions asked. Below a limit it is a morsel.
    fn limit(&self, questions_asked: usize, rows_out: usize) -> WindowLimit {
        let rows = self.shared.reorder_window.unwrap_or(usize::MAX);
        let questions = match &self.until {
            Some(Until { wanted: Some(wanted), .. }) => next_morsel(*wanted, rows_out, questions_asked),
            _ => usize::MAX,
        };
        WindowLimit { rows, questions }
    }
}

impl Position {
    /// Works off one window; `None` after the last.
    async fn next_window(&mut self) -> Result<Option<SendableRecordBatchStream>> {
        let job = Arc::clone(&self.job);
        let satisfied = job.until.as_ref().is_some_and(|until| until.is_met(self.rows_out));
        if self.ended || satisfied {
            return Ok(None);
        }
        let mut window = Window::new(&job.calls, self.window);
        let limit = job.limit(self.questions_asked, self.rows_out);
        if self.askers.is_empty() && job.may_keep_rows()? {
            // How many rows the cache is to keep is decided once some have been seen.
            let look = limit.rows.min(ROWS_LOOKED_AT);
            self.fill(&mut window, WindowLimit { rows: look, ..limit }).await?;
            self.look_at(&mut window).await?;
            let rows = limit.rows.min(self.kept_rows);
            if !self.ended && (look..rows).contains(&window.rows()) {
                self.fill(&mut window, WindowLimit { rows, ..limit }).await?;
            }
        } else {
            self.fill(&mut window, WindowLimit { rows: limit.rows.min(self.kept_rows), ..limit }).await?;
        }
        self.window += 1;
        job.store.leave_room(&window);
        let batches = window.take_batches();
        let answers = self.answer(window).await?;
        let rows = job.rows(batches, answers);
        match &job.until {
            None => Ok(Some(rows)),
            Some(until) if until.wanted.is_none() => Ok(Some(job.passing(until.clone(), rows))),
            // Below a limit windows are small; the survivors are counted before more is asked.
            Some(_) => Ok(Some(self.keep(rows).await?)),
        }
    }

    /// Fills a window with what is left of the last batch and with the batches that follow.
    async fn fill(&mut self, window: &mut Window, limit: WindowLimit) -> Result<()> {
        let (job, pending) = (Arc::clone(&self.job), self.pending.take());
        match job.store.fill(window, &job.calls, limit, pending, &mut self.input).await? {
            Filled::InputEnded => self.ended = true,
            Filled::Full(rest) => self.pending = rest,
        }
        Ok(())
    }

    /// Lays out the prompts by the rows that a window has so far.
    async fn look_at(&mut self, window: &mut Window) -> Result<()> {
        let questions: Vec<Arc<Questions>> = std::mem::take(&mut window.questions).into_iter().map(Arc::new).collect();
        self.open(&questions).await?;
        let taken_back: Option<Vec<Questions>> = questions.into_iter().map(Arc::into_inner).collect();
        window.questions = taken_back.ok_or_else(|| internal_datafusion_err!("questions are still looked at"))?;
        Ok(())
    }

    /// Loads the models and lays out the prompts, unless that is done or there is nothing to ask.
    async fn open(&mut self, questions: &[Arc<Questions>]) -> Result<()> {
        if !self.askers.is_empty() || questions.iter().all(|questions| questions.len() == 0) {
            return Ok(());
        }
        let kept = self.job.shared.answers.open(&self.job.shared.answer_settings).await?;
        self.askers = self.job.askers(&kept).await?;
        self.kept = Some(kept);
        (self.together, self.kept_rows) = self.job.lay_out(&mut self.askers, questions).await?;
        Ok(())
    }

    /// Asks all questions of the window and returns one answer column's worth of values for each call.
    async fn answer(&mut self, window: Window) -> Result<Vec<Answers>> {
        let questions: Vec<Arc<Questions>> = window.questions.into_iter().map(Arc::new).collect();
        self.open(&questions).await?;
        self.questions_asked += questions.iter().map(|questions| questions.len()).max().unwrap_or(0);
        let started = Instant::now();
        let missing = self.missing();
        let answered = match &mut self.conjunction {
            Some(conjunction) => {
                let asking = Asking { askers: &self.askers, questions: &questions };
                conjunction.answer(&asking, &self.job.calls, &self.job.stats, &questions, missing).await?
            }
            None => match self.job.enough(&questions, missing) {
                Some(enough) if questions[0].len() > 0 => {
                    vec![self.job.ask_until(&self.askers[0], &questions[0], enough).await?]
                }
                _ => self.job.ask_all(&self.askers, &self.together, &questions).await?,
            },
        };
        let settled = questions.iter().zip(answered).enumerate();
        let answers =
            settled.map(|(idx, (questions, answered))| self.job.settle(idx, questions, answered)).collect::<Result<_>>()?;
        self.job.counters.update(&self.job.stats);
        self.remember(started.elapsed());
        if self.ended && !self.more {
            self.job.check_error_ratio()?;
        }
        Ok(answers)
    }

    /// Returns how many rows a limit still wants to pass; `None` without one, or where not all of them reach it.
    fn missing(&self) -> Option<usize> {
        match &self.job.until {
            Some(Until { wanted: Some(wanted), stops: true, .. }) => Some(wanted.saturating_sub(self.rows_out)),
            _ => self.block_missing,
        }
    }

    /// Adds what has happened since the last window to the statistics of the session.
    fn remember(&mut self, took: Duration) {
        let mut work: HashMap<&str, (u64, u64)> = HashMap::new();
        for (idx, before) in self.remembered.iter_mut().enumerate() {
            let stats = &self.job.stats[idx];
            let judged = match &self.conjunction {
                Some(conjunction) => conjunction.passed(idx),
                None => stats.judged(),
            };
            let now = CallStatistics { judged: judged.rows, passed: judged.passed, ..stats.statistics() };
            let run = now.since(*before);
            let (computed, output) = work.entry(&self.job.calls[idx].model).or_default();
            *computed += run.prompt_tokens.saturating_sub(run.cached_tokens);
            *output += run.output_tokens;
            self.job.shared.statistics.add(self.job.statistics_key(idx), run);
            *before = now;
        }
        for (model, (computed, output)) in work {
            self.job.shared.statistics.add_timing(model, computed, output, took.as_secs_f64());
        }
    }

    /// Applies the filter to the rows of a window and cuts them at the limit.
    async fn keep(&mut self, mut rows: SendableRecordBatchStream) -> Result<SendableRecordBatchStream> {
        let until = self.job.until.clone().ok_or_else(|| internal_datafusion_err!("no filter to apply"))?;
        let mut kept = vec![];
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let mut batch = until.passing(&batch)?;
            if until.stops
                && let Some(wanted) = until.wanted
            {
                batch = batch.slice(0, batch.num_rows().min(wanted - self.rows_out));
            }
            self.rows_out += batch.num_rows();
            if batch.num_rows() > 0 {
                kept.push(Ok(batch.record_output(&self.job.baseline)));
            }
            if until.is_met(self.rows_out) {
                break;
            }
        }
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.job.schema), stream::iter(kept))))
    }
}

/// Returns how many rows pass a predicate.
fn n_passing(predicate: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<usize> {
    let mask = predicate.evaluate(batch)?.into_array(batch.num_rows())?;
    Ok(as_boolean_array(&mask)?.true_count())
}

/// The answers of one call over a window.
struct Answers {
    /// One value for each question.
    values: ArrayRef,
    questions: Arc<Questions>,
}

/// Asks the questions of one window.
struct Asking<'a> {
    askers: &'a [Asker],
    questions: &'a [Arc<Questions>],
}

impl Ask for Asking<'_> {
    async fn ask(&self, call: usize, wanted: Vec<u32>) -> Result<Vec<Outcome>> {
        let asker = vec![self.askers[call].clone()];
        joined(spawn_asking(asker, Arc::clone(&self.questions[call]), wanted)).await.map(|mut outcomes| outcomes.remove(0))
    }

    async fn ask_until(&self, call: usize, wanted: Vec<u32>, enough: Enough) -> Result<Vec<Option<Outcome>>> {
        let task = spawn_asking_until(self.askers[call].clone(), Arc::clone(&self.questions[call]), wanted, enough);
        task.join().await.map_err(|e| internal_datafusion_err!("asking the model failed: {e}"))?
    }

    fn head_tokens(&self, call: usize) -> usize {
        self.askers[call].layout.head().len()
    }
}

/// The outcomes of some questions, call by call.
type AskingTask = SpawnedTask<Result<Vec<Vec<Outcome>>>>;

async fn joined(task: AskingTask) -> Result<Vec<Vec<Outcome>>> {
    task.join().await.map_err(|e| internal_datafusion_err!("asking the model failed: {e}"))?
}

impl Job {
    /// Asks all questions of all calls at once.
    async fn ask_all(
        &self,
        askers: &[Asker],
        together: &[Vec<usize>],
        questions: &[Arc<Questions>],
    ) -> Result<Vec<Answered>> {
        for (stats, questions) in self.stats.iter().zip(questions) {
            stats.rows.fetch_add(rows_with_question(questions), Ordering::Relaxed);
            stats.distinct.fetch_add(questions.len() as u64, Ordering::Relaxed);
        }
        let alone = (0..questions.len()).filter(|call| !together.iter().any(|group| group.contains(call)));
        let groups = together.iter().cloned().chain(alone.map(|call| vec![call]));
        let mut tasks = vec![];
        for group in groups.filter(|group| questions[group[0]].len() > 0) {
            // Calls over the same rows have the same questions under the same numbers.
            let questions = &questions[group[0]];
            let members = group.iter().map(|call| askers[*call].clone()).collect();
            tasks.push((spawn_asking(members, Arc::clone(questions), (0..questions.len() as u32).collect()), group));
        }
        let none = |questions: &Arc<Questions>| Answered { outcomes: vec![], rows: questions.rows() };
        let mut answered: Vec<Answered> = questions.iter().map(none).collect();
        for (task, group) in tasks {
            for (call, outcomes) in group.into_iter().zip(joined(task).await?) {
                answered[call].outcomes = outcomes.into_iter().map(Some).collect();
            }
        }
        Ok(answered)
    }

    /// Returns what tells when the limit above is met within a window, where `missing` rows are. `None` without such a limit, or where more
    /// than one answer decides.
    fn enough(&self, questions: &[Arc<Questions>], missing: Option<usize>) -> Option<Enough> {
        let (Some(over_answer), Some(missing)) = (&self.over_answer, missing) else { return None };
        Some(Enough::new(over_answer.clone(), Arc::clone(&self.calls[0]), Arc::clone(&questions[0]), missing))
    }

    /// Asks the questions of the only call until enough rows pass. Those that run by then are cancelled, and have no answer.
    async fn ask_until(&self, asker: &Asker, questions: &Arc<Questions>, enough: Enough) -> Result<Answered> {
        self.stats[0].rows.fetch_add(rows_with_question(questions), Ordering::Relaxed);
        self.stats[0].distinct.fetch_add(questions.len() as u64, Ordering::Relaxed);
        let all = (0..questions.len() as u32).collect();
        let task = spawn_asking_until(asker.clone(), Arc::clone(questions), all, enough);
        let outcomes = task.join().await.map_err(|e| internal_datafusion_err!("asking the model failed: {e}"))??;
        Ok(Answered { outcomes, rows: questions.rows() })
    }

    /// Loads the models and lays out the prompts. Called when there is something to ask, so that plain queries load nothing.
    async fn askers(&self, kept: &QueryAnswers) -> Result<Vec<Asker>> {
        let mut askers = vec![];
        for (call, stats) in self.calls.iter().zip(&self.stats) {
            let mut asker = self.asker(call, Arc::clone(stats), kept).await?;
            if let Some(cascade) = &call.cascade {
                let stats = self.shared.scope.add_node(cascade.proxy.function_name(), &cascade.proxy.model);
                let proxy = self.asker(&cascade.proxy, stats, kept).await?;
                asker.proxy = Some(Arc::new(Proxy::new(proxy, cascade.targets)));
            }
            askers.push(asker);
        }
        Ok(askers)
    }

    async fn asker(&self, call: &Arc<PhysicalCall>, stats: Arc<NodeStats>, kept: &QueryAnswers) -> Result<Asker> {
        let backend = self.shared.models.backend(&call.model).await?;
        let layout = Arc::new(PromptLayout::new(&call.call, backend.tokenizer().as_ref())?);
        stats.model_digest.get_or_init(|| backend.capabilities().model_digest);
        Ok(Asker::new(&self.shared, call, backend, layout, &stats, kept))
    }

    /// Returns whether rows may be kept in the cache for calls that ask about them later: further predicates, or operators above.
    fn may_keep_rows(&self) -> Result<bool> {
        let (choice, models) = (self.shared.layout, &self.shared.models);
        if choice == LayoutChoice::InstructionFirst || !self.shared.prefix_cache {
            return Ok(false);
        }
        for group in self.row_readers() {
            let model = &self.calls[group.own[0]].model;
            if self.asks_later(&group) && (choice == LayoutChoice::DataFirst || !models.needs_instruction_first(model)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the calls that read the same rows. Predicates over pairs, whose order is learnt, do not share theirs.
    fn row_readers(&self) -> Vec<RowReaders> {
        match self.until.is_none() && self.conjuncts.is_some() {
            true => vec![],
            false => over_the_same_rows(&self.calls, &self.above),
        }
    }

    /// Returns whether the readers of the same rows ask one after the other, not all at once.
    fn asks_later(&self, readers: &RowReaders) -> bool {
        self.until.is_some() || !readers.above.is_empty()
    }

    /// Returns the share of rows that each of the readers is asked about: predicates leave fewer to those after them.
    fn shares(&self, readers: &RowReaders) -> Vec<f64> {
        let passes = |call: usize| self.known_selectivity(call).unwrap_or(UNKNOWN_SELECTIVITY);
        let mut left = 1.0;
        let mut shares = vec![];
        for call in &readers.own {
            shares.push(left);
            left *= if self.until.is_some() { passes(*call) } else { 1.0 };
        }
        shares.extend(readers.above.iter().map(|_| left));
        shares
    }

    /// Decides how prompts begin, now that there are rows to judge by. Returns the calls that ask together, and how many rows a window
    /// may have so that the cache keeps them for calls that ask later.
    async fn lay_out(&self, askers: &mut [Asker], questions: &[Arc<Questions>]) -> Result<(Vec<Vec<usize>>, usize)> {
        let (mut together, mut kept_rows, mut laid_out) = (vec![], usize::MAX, vec![]);
        for mut readers in self.row_readers() {
            let first = readers.own[0];
            let cache_tokens = askers[first].backend.stats().pages_total * PAGE_TOKENS as u64;
            if cache_tokens == 0 || !self.shared.prefix_cache {
                // What another cache than ours keeps is not known.
                readers.above.clear();
            }
            let asks_later = self.asks_later(&readers);
            if (asks_later && cache_tokens == 0) || readers.own.len() + readers.above.len() < 2 {
                continue;
            }
            let own = readers.own.iter().map(|call| Arc::clone(&self.calls[*call]));
            let calls: Vec<Arc<PhysicalCall>> = own.chain(readers.above.iter().cloned()).collect();
            let (tokenizer, questions) = (askers[first].backend.tokenizer(), Arc::clone(&questions[first]));
            let (choice, shares) = (self.shared.layout, self.shares(&readers));
            let needs_instruction_first = self.shared.models.needs_instruction_first(&calls[0].model)?;
            let task = SpawnedTask::spawn_blocking(move || {
                if choice == LayoutChoice::InstructionFirst || (choice == LayoutChoice::Auto && needs_instruction_first) {
                    return Ok((Layout::InstructionFirst, 0));
                }
                let costs = LayoutCosts::of(&calls, &shares, tokenizer.as_ref(), &questions)?;
                let room = (cache_tokens as f64 * KEPT_SHARE / costs.prompt_len.max(1.0)) as usize;
                let is_small = choice == LayoutChoice::Auto && asks_later && room < KEPT_ROWS_MIN;
                Ok((chosen(choice, is_small, || Ok(costs))?, room))
            });
            let task: Result<(Layout, usize)> =
                task.join().await.map_err(|e| internal_datafusion_err!("laying out the prompts failed: {e}"))?;
            let (layout, room) = task?;
            for call in &readers.own {
                self.set_layout(&mut askers[*call], layout)?;
            }
            laid_out.extend(readers.own.iter().copied());
            // A proxy answers for one call, so it asks alone.
            let data_first =
                |call: &&usize| askers[**call].layout.layout() == Layout::DataFirst && askers[**call].proxy.is_none();
            let sharing: Vec<usize> = readers.own.iter().filter(data_first).copied().collect();
            if sharing.is_empty() {
                continue;
            }
            if asks_later && room >= KEPT_ROWS_MIN {
                kept_rows = kept_rows.min(room);
                for call in &sharing {
                    askers[*call].keeps_rows = true;
                    askers[*call].stats.kept_rows.store(room as u64, Ordering::Relaxed);
                }
                for call in &readers.above {
                    self.shared.scope.layout(statistics_key(call, None), layout);
                }
            }
            together.extend((sharing.len() > 1 && self.until.is_none()).then_some(sharing));
        }
        for (call, asker) in askers.iter_mut().enumerate().filter(|(call, _)| !laid_out.contains(call)) {
            let wanted = match self.shared.layout {
                LayoutChoice::DataFirst if Layout::DataFirst.suits(&self.calls[call].call) => Layout::DataFirst,
                _ => Layout::InstructionFirst,
            };
            self.set_layout(asker, wanted)?;
        }
        Ok((together, kept_rows))
    }

    fn set_layout(&self, asker: &mut Asker, wanted: Layout) -> Result<()> {
        let layout = self.shared.scope.layout(statistics_key(&asker.call, None), wanted);
        if layout != asker.layout.layout() {
            asker.layout = Arc::new(PromptLayout::with(&asker.call.call, layout, asker.backend.tokenizer().as_ref())?);
        }
        Ok(())
    }

    /// Turns outcomes into values, counts what failed, and fails the query if that is too much.
    fn settle(&self, idx: usize, questions: &Arc<Questions>, answered: Answered) -> Result<Answers> {
        let (call, stats) = (&self.calls[idx], &self.stats[idx]);
        let Answered { outcomes, rows: rows_of } = answered;
        let mut values = Vec::with_capacity(outcomes.len());
        for (question, outcome) in outcomes.into_iter().enumerate() {
            if let Some(Err(failure)) = &outcome
                && rows_of[question] > 0
            {
                // Also a failure that another call of the query came upon first.
                if call.options.on_error == OnError::Fail {
                    return Err(call.failed_row(failure));
                }
                stats.add_failed(failure.reason, rows_of[question]);
                let inputs = (0..call.inputs.len()).map(|input| questions.text(question as u32, input).to_string());
                self.shared.scope.add_error(RowError {
                    node_id: stats.id,
                    model: call.model.clone(),
                    function: call.function_name().to_owned(),
                    reason: failure.reason.to_owned(),
                    message: failure.message.clone(),
                    inputs: inputs.collect::<Vec<_>>().join(", "),
                    rendered_prompt: failure.prompt.clone(),
                    output_text: failure.output.clone(),
                    attempts: failure.attempts,
                    rows: rows_of[question],
                    failed_at: SystemTime::now(),
                });
            }
            values.push(match &outcome {
                Some(outcome) => call.value_of(outcome),
                None => ScalarValue::try_from(call.output.data_type())?,
            });
        }
        if call.call.task.shape == Shape::Boolean && call.options.on_error != OnError::Capture {
            let rows_where = |truth: Option<bool>| -> u64 {
                let matching = values.iter().zip(&rows_of).filter(|(value, _)| **value == ScalarValue::Boolean(truth));
                matching.map(|(_, rows)| rows).sum()
            };
            let (yes, no) = (rows_where(Some(true)), rows_where(Some(false)));
            stats.add_judged(yes + no, yes);
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
            Ok(match job.until {
                None => batch.record_output(&job.baseline),
                Some(_) => batch,
            })
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), with_answers))
    }

    /// Returns the rows that pass the filter, as they come.
    fn passing(self: &Arc<Self>, until: Until, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let job = Arc::clone(self);
        let passing = rows.map(move |batch| Ok(until.passing(&batch?)?.record_output(&job.baseline)));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), passing))
    }
}
