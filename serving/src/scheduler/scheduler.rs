//! The scheduler: which rows are admitted, and which tokens run in the next step.
//!
//! A row has computed and known tokens, and the scheduler closes the gap. A step takes the rows that are answering first, then
//! the prompts of admitted rows in order of admission, then admits further rows, up to `step_tokens` tokens. A row is admitted
//! when all pages it can ever need are free, so no row is ever preempted.
//!
//! **Sharing.** All prompt tokens but the last are entered in the prefix tree at admission. Whoever comes first to a token of
//! the tree that nobody has computed does so for all: a row starts at the first gap of its path, whichever row entered it. So a
//! row may follow its leader within the same step, and an aborted leader needs no successor. The last prompt token and the
//! answer are the row's own. Hence, with room for everything and rows in depth-first order, the prompt tokens computed are the
//! tokens of the trie of all prompts without their last token, plus one for each row.
//!
//! **Retention.** A node lives while a running row, or the next row of a batch, goes through it. In depth-first order this
//! keeps exactly what will be used again: two rows share no more than any two neighbours between them, so what a later row
//! shares with any earlier row lies on the path that the *next* row shares with its predecessor, and that path is locked from
//! the predecessor's admission on. In other orders answers are the same and less is shared.
//!
//! **One step ahead.** Where passes overlap the host, a step is planned while the one before it runs. What is handed to the
//! device counts as computed, and a row of free text goes on from its sample in flight, by the slot that will hold it. Only the
//! end of a text is learnt one step late: the token that was computed past it is thrown away. Other rows, whose constraint has to
//! see the sample, wait for it. So that they are not left behind by one small step after another, a step without them is planned
//! only as long as there is enough else to do: the step before must have been full.
//!
//! **Masks.** Which tokens a grammar allows takes long to say, and is not needed before the last layer. Such a row is planned with
//! its choice left open, and the grammar is asked by [`bind`](Scheduler::bind), while the pass runs. Then it may turn out that
//! there is no choice: what the device chose for the row means nothing, and the row goes on as if it had not been sampled.
//!
//! Pages and slots are given back, and may have a new holder, while a step in flight still writes to them for a row that has
//! ended or was aborted: passes run in the order of their launch, and whatever the new holder reads, a later pass has written
//! before. Memory itself is another matter: no slab is given back while a step is in flight.

use std::collections::{BTreeMap, VecDeque};

use ahash::AHashMap;

use super::config::SchedulerConfig;
use super::pool::{KvPool, Memory};
use super::prefix_tree::PrefixTree;
use super::row::{AnswerState, Ending, Row};
use super::run::Run;
use super::step_builder::{StepBuilder, allow};
use super::waiting::{Rank, WaitingBatch, Work};
use crate::backend::{BatchId, Stats};
use crate::constraint::Next;
use crate::encoder::unit_vector;
use crate::error::{Error, Result};
use crate::request::{RequestId, TokenId, TokenLogprobs, Usage};
use crate::step::{Allowed, PageCopy, PageId, RowSlot, SampleRow, StepPlan, StepResult, TokenSource};

/// Steps that may be in flight at once. A row is never more than one sample ahead of the host when a step is planned, since its
/// slot holds the last one only.
const IN_FLIGHT_MAX: usize = 2;

/// Turns batches into step plans and step results into answers. Knows neither device nor model nor threads.
///
/// [`plan`](Self::plan) a step, run it, [`bind`](Self::bind) what it leaves open, [`harvest`](Self::harvest) it, and so on; a
/// second step may be planned, and launched after the first, before the first is harvested.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) config: SchedulerConfig,
    pub(super) end_tokens: Vec<TokenId>,
    pub(super) pool: KvPool,
    pub(super) tree: PrefixTree,
    /// In order of arrival.
    pub(super) batches: Vec<WaitingBatch>,
    /// In order of admission.
    pub(super) rows: BTreeMap<RowId, Row>,
    pub(super) next_row: RowId,
    pub(super) slots: Vec<RowSlot>,
    /// In the order of their plans.
    pub(super) in_flight: VecDeque<InFlight>,
    /// Whether the last step had as many tokens as a step may have.
    full: bool,
    pub(super) finished: Vec<Finished>,
    /// Pages that the next row lacked in the last plan.
    pub(super) shortage: usize,
    pub(super) stats: Stats,
}

/// A row, in order of admission; never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RowId(pub(super) u64);

/// A step that was planned and not harvested.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The rows that sampled, in the order of the plan. Some may have ended since.
    samples: Vec<RowId>,
    /// The copies, whose sources are locked.
    copies: Vec<PageCopy>,
}

/// A row that came to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Its batch.
    pub batch: BatchId,
    /// Its name in the batch.
    pub id: RequestId,
    /// How it ended.
    pub outcome: Outcome,
    /// What it cost.
    pub usage: Usage,
}

/// The end of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The tokens of its answer, and why there are no more.
    Answer {
        /// The answer, without the token that ended it.
        tokens: Vec<TokenId>,
        /// Bytes that follow them: of a token in whose middle a stop string began, what comes before that.
        rest: Vec<u8>,
        /// The probabilities of the tokens, if they were asked for.
        logprobs: Vec<TokenLogprobs>,
        /// Why it ended.
        ending: Ending,
    },
    /// The vector that was asked for, of unit length.
    Vector(Vec<f32>),
    /// The row can never run.
    Overflow {
        /// Tokens that it needs.
        tokens: usize,
        /// Tokens that there is room for.
        limit: usize,
    },
}

/// What a sampled token means for its row: whether it ends the answer, and what may come next. Or, without a token, what may come
/// next where that was left open. Pure computing on one row, so decisions may be made in any order and on several threads.
#[derive(Debug)]
pub struct Decision<'a> {
    row: RowId,
    answer: &'a mut AnswerState,
    sampled: Option<(TokenId, Option<TokenLogprobs>)>,
    end_tokens: &'a [TokenId],
    ending: Option<Ending>,
}

impl Decision<'_> {
    /// Makes the decision; to be called once.
    pub fn make(&mut self) {
        match self.sampled.take() {
            Some((token, logprobs)) => self.ending = self.answer.take(token, logprobs, self.end_tokens),
            None => self.answer.bind(),
        }
    }

    /// Returns the lane of the row's constraint; decisions of one lane are better made one after the other.
    pub fn lane(&self) -> usize {
        self.answer.constraint.lane()
    }
}

/// Makes decisions one after the other.
#[cfg(test)]
pub(super) fn decide(decisions: &mut [Decision<'_>]) {
    decisions.iter_mut().for_each(Decision::make);
}

impl Scheduler {
    /// Makes a scheduler for a pool that has its memory, or is [in slabs](KvPool::in_slabs). A sampled token of `end_tokens` ends an answer.
    ///
    /// Fails if a budget of the configuration is zero.
    pub fn new(config: SchedulerConfig, pool: KvPool, end_tokens: Vec<TokenId>) -> Result<Self> {
        config.validate()?;
        Ok(Scheduler {
            config,
            end_tokens,
            pool,
            tree: PrefixTree::new(),
            batches: Vec::new(),
            rows: BTreeMap::new(),
            next_row: RowId::default(),
            slots: (0..config.max_rows).rev().map(RowSlot).collect(),
            in_flight: VecDeque::new(),
            full: false,
            finished: Vec::new(),
            shortage: 0,
            stats: Stats::default(),
        })
    }

    /// Takes a batch in. Its rows come back through [`take_finished`](Self::take_finished), each once.
    ///
    /// Fails if a prompt is empty, since there is nothing to sample from.
    pub fn add(&mut self, id: BatchId, work: Work) -> Result<()> {
        if let Some(job) = work.jobs.iter().find(|job| job.request.prompt_len() == 0) {
            return Err(Error::Invalid(format!("the prompt of request {} is empty", job.request.id.0)));
        }
        let batch = WaitingBatch::new(id, work);
        if batch.waiting() > 0 {
            self.batches.push(batch);
            self.lock_next(self.batches.len() - 1);
        }
        Ok(())
    }

    /// Drops the rows of a batch that have not finished, and returns how many these were.
    pub fn abort(&mut self, id: BatchId) -> usize {
        let Some(index) = self.batches.iter().position(|batch| batch.id == id) else { return 0 };
        self.unlock_next(index);
        let batch = self.batches.remove(index);
        let aborted = batch.waiting() + batch.running;
        let running: Vec<RowId> = self.rows.iter().filter(|(_, row)| row.batch == id).map(|(row_id, _)| *row_id).collect();
        for row_id in running {
            self.release(row_id);
        }
        self.stats.cancelled += aborted as u64;
        aborted
    }

    /// Returns the next step, or `None` if no row needs one, can have its pages, or should go on before the step in flight is
    /// harvested. At most one may be.
    pub fn plan(&mut self, memory: &mut impl Memory) -> Option<StepPlan> {
        debug_assert!(self.in_flight.len() < IN_FLIGHT_MAX, "the step before the last is harvested first");
        self.shortage = 0;
        if !self.full && self.rows.values().any(Row::is_held_up) {
            return None;
        }
        let mut builder = StepBuilder::new(self.config.step_tokens as usize);
        let mut samples = Vec::new();
        let ready = self.rows.iter().filter(|(_, row)| row.is_ready());
        let (decoding, prefilling): (Vec<_>, Vec<_>) = ready.partition(|(_, row)| row.is_decoding());
        let ready: Vec<RowId> = decoding.into_iter().chain(prefilling).map(|(id, _)| *id).collect();
        for id in ready {
            self.schedule(id, &mut builder, &mut samples);
        }
        while builder.room() > 0 {
            let Some(id) = self.admit(memory) else { break };
            self.schedule(id, &mut builder, &mut samples);
        }
        self.full = builder.room() == 0;
        let plan = builder.finish();
        if plan.is_empty() {
            return None;
        }
        self.stats.steps += 1;
        self.stats.computed_tokens += plan.tokens.len() as u64;
        self.in_flight.push_back(InFlight { samples, copies: plan.copies.clone() });
        Some(plan)
    }

    /// Says which tokens are allowed where the last plan leaves that open, and lets `decide` [make](Decision::make) the decision of
    /// each such row.
    pub fn bind(&mut self, plan: &mut StepPlan, decide: impl FnOnce(&mut [Decision<'_>])) {
        let Some(InFlight { samples, .. }) = self.in_flight.back() else { return };
        debug_assert_eq!(samples.len(), plan.sample.len(), "it is the last plan that is bound");
        let open =
            samples.iter().copied().zip(0..).filter(|(_, index): &(_, usize)| plan.sample[*index].allowed == Allowed::Open);
        let open: BTreeMap<RowId, usize> = open.collect();
        let end_tokens = self.end_tokens.as_slice();
        let rows = self.rows.iter_mut().filter(|(id, _)| open.contains_key(id));
        let decisions =
            rows.map(|(id, row)| Decision { row: *id, answer: &mut row.answer, sampled: None, end_tokens, ending: None });
        let mut decisions: Vec<_> = decisions.collect();
        decide(&mut decisions);
        for Decision { row, answer, .. } in decisions {
            plan.sample[open[&row]].allowed = allow(plan, answer.allowed.as_ref());
        }
    }

    /// Takes the result of the oldest step in flight, and lets `decide` [make](Decision::make) the decision of each sampled row.
    ///
    /// Fails if the device did not answer every sample of the plan.
    pub fn harvest(&mut self, result: &StepResult, decide: impl FnOnce(&mut [Decision<'_>])) -> Result<()> {
        let Some(InFlight { samples, copies }) = self.in_flight.pop_front() else { return Ok(()) };
        for copy in copies {
            self.pool.unlock(copy.from);
        }
        if result.sampled.len() != samples.len() {
            let (got, wanted) = (result.sampled.len(), samples.len());
            return Err(Error::Device(format!("the device chose {got} tokens of {wanted}")));
        }
        let samples: AHashMap<RowId, usize> = samples.into_iter().zip(0..).collect();
        let end_tokens = self.end_tokens.as_slice();
        let mut decisions = Vec::with_capacity(samples.len());
        let mut vectors = Vec::new();
        for (id, row) in &mut self.rows {
            let Some(&index) = samples.get(id) else { continue };
            row.unseen -= 1;
            if let Some(Next::Hidden { dimensions }) = row.answer.allowed {
                let Some(state) = result.hidden.get(index).filter(|state| !state.is_empty()) else {
                    return Err(Error::Device("the device gave no state where one was asked for".to_string()));
                };
                vectors.push((*id, unit_vector(state.clone(), dimensions)));
                continue;
            }
            let sampled = Some((result.sampled[index], result.logprobs.get(index).cloned().flatten()));
            decisions.push(Decision { row: *id, answer: &mut row.answer, sampled, end_tokens, ending: None });
        }
        decide(&mut decisions);
        // In an order that does not depend on who decided first.
        decisions.sort_unstable_by_key(|decision| decision.row);
        let ended: Vec<_> = decisions.iter().filter_map(|decision| Some((decision.row, decision.ending?))).collect();
        for (row, vector) in vectors {
            self.finish_vector(row, vector);
        }
        for (row, ending) in ended {
            self.finish(row, ending);
        }
        Ok(())
    }

    /// Returns the rows that came to their end since the last call.
    pub fn take_finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.finished)
    }

    /// Returns whether no row waits or runs. A step may still be in flight for rows that have ended.
    pub fn is_idle(&self) -> bool {
        self.batches.is_empty()
    }

    /// Returns how urgent the most urgent batch is.
    pub fn rank(&self) -> Option<Rank> {
        self.batches.iter().map(|batch| batch.rank).min()
    }

    /// Returns how many pages the next row lacked in the last plan.
    pub fn shortage(&self) -> usize {
        self.shortage
    }

    /// Returns how many rows are running.
    pub fn running_rows(&self) -> usize {
        self.rows.len()
    }

    /// Returns the pages.
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// Returns counters since the start, and what is in use now.
    pub fn stats(&self) -> Stats {
        let pending: usize = self.batches.iter().map(|batch| batch.waiting() + batch.running).sum();
        Stats {
            pending: pending as u64,
            pages_used: self.pool.used() as u64,
            pages_total: self.pool.limit() as u64,
            ..self.stats
        }
    }

    /// Gives a row as much of the step as it needs and there is room for.
    fn schedule(&mut self, id: RowId, builder: &mut StepBuilder, samples: &mut Vec<RowId>) {
        if builder.room() == 0 {
            return;
        }
        let row = self.rows.get_mut(&id).expect("only running rows are scheduled");
        debug_assert!(row.unseen < IN_FLIGHT_MAX, "the slot holds the only sample that is not known");
        let known = row.answer.tokens.len() + row.unseen;
        let start = row.computed(&self.tree);
        let (slot, tokens) = (row.slot, &row.answer.tokens);
        let source =
            |position: usize| tokens.get(position).map_or(TokenSource::Device(slot), |token| TokenSource::Host(*token));
        let end = known.min(start + builder.room());
        for node in self.tree.path_after(row.leaf, start) {
            let node_end = self.tree.end(node);
            let before = self.tree.parent(node);
            let copy_from = (self.tree.run(node).split_tokens() > 0).then(|| self.tree.run(before).last_page());
            let run = self.tree.run_mut(node);
            compute_run(run, node_end.min(end), copy_from, source, builder, &mut self.pool);
        }
        let copy_from = (row.tail.split_tokens() > 0).then(|| self.tree.run(row.leaf).last_page());
        compute_run(&mut row.tail, end, copy_from, source, builder, &mut self.pool);
        builder.end_row(&row.table, end - 1);
        row.computed_prompt += end.min(row.answer.prompt).saturating_sub(start);
        if end == known {
            let AnswerState { ref allowed, sampling, draws, top_logprobs, .. } = row.answer;
            let sample = SampleRow {
                token: 0,
                slot: row.slot,
                allowed: Allowed::All,
                sampling,
                draw: draws + row.unseen as u32,
                top_logits: 0,
                logprobs: top_logprobs,
            };
            builder.sample(allowed.as_ref(), sample);
            samples.push(id);
            row.unseen += 1;
        }
    }

    /// Gives back everything a row holds.
    fn release(&mut self, id: RowId) -> Row {
        let mut row = self.rows.remove(&id).expect("a row ends once");
        self.tree.run_mut(row.leaf).unfollow(std::mem::take(&mut row.tail), &mut self.pool);
        self.tree.unlock(row.leaf, &mut self.pool);
        self.slots.push(row.slot);
        row
    }

    /// Ends a running row with its vector.
    fn finish_vector(&mut self, id: RowId, vector: Vec<f32>) {
        let row = self.release(id);
        let usage = row.usage();
        self.conclude(row.batch, row.answer.id, Outcome::Vector(vector), usage);
    }

    /// Ends a running row.
    fn finish(&mut self, id: RowId, ending: Ending) {
        let row = self.release(id);
        let usage = row.usage();
        self.conclude(row.batch, row.answer.id, row.answer.outcome(ending), usage);
    }

    /// Reports the end of a row, and forgets its batch with the last one.
    pub(super) fn conclude(&mut self, batch: BatchId, id: RequestId, outcome: Outcome, usage: Usage) {
        self.stats.cached_tokens += u64::from(usage.cached);
        self.stats.output_tokens += u64::from(usage.output);
        self.stats.completed += 1;
        self.finished.push(Finished { batch, id, outcome, usage });
        let index = self.batches.iter().position(|waiting| waiting.id == batch).expect("a batch lives as long as its rows");
        self.batches[index].running -= 1;
        if self.batches[index].running + self.batches[index].waiting() == 0 {
            self.batches.remove(index);
        }
    }
}

/// Computes a run's tokens up to the position `end`, after filling the page that it shares in part with the run before.
fn compute_run(
    run: &mut Run,
    end: usize,
    copy_from: Option<PageId>,
    source: impl Fn(usize) -> TokenSource,
    builder: &mut StepBuilder,
    pool: &mut KvPool,
) {
    let start = run.start + run.computed;
    if start >= end {
        return;
    }
    if let Some(from) = copy_from {
        builder.split_page(from, run.pages[0], run.split_tokens(), pool);
    }
    for position in start..end {
        builder.compute(source(position), position, run.page_at(position));
    }
    run.computed = end - run.start;
}

#[cfg(test)]
impl Scheduler {
    /// Returns what holds pages: the pool, the tree, and the pages of the rows' own tails.
    pub(super) fn parts(&self) -> (&KvPool, &PrefixTree, Vec<PageId>) {
        (&self.pool, &self.tree, self.rows.values().flat_map(|row| row.tail.pages.clone()).collect())
    }

    /// Returns the batches of the running rows.
    pub(super) fn running(&self) -> Vec<BatchId> {
        self.rows.values().map(|row| row.batch).collect()
    }
}
