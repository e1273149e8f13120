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

use std::collections::BTreeMap;

use super::config::SchedulerConfig;
use super::pool::{KvPool, pages_between};
use super::prefix_tree::{NodeId, PrefixTree};
use super::row::{AnswerState, Ending, Row};
use super::run::Run;
use super::step_builder::StepBuilder;
use super::waiting::{Job, NextRow, WaitingBatch, Work, next_batch};
use crate::backend::{BatchId, Stats};
use crate::constraint::Next;
use crate::device::PoolSpec;
use crate::error::{Error, Result};
use crate::request::{RequestId, TokenId, Usage};
use crate::step::{Allowed, PAGE_TOKENS, PageCopy, PageId, RowSlot, SampleRow, StepPlan, StepResult};

/// Turns batches into step plans and step results into answers. Knows neither device nor model nor threads.
///
/// One step may be in flight: [`plan`](Self::plan), run it, [`harvest`](Self::harvest), and so on.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    end_tokens: Vec<TokenId>,
    pool: KvPool,
    tree: PrefixTree,
    /// In order of arrival.
    batches: Vec<WaitingBatch>,
    /// In order of admission.
    rows: BTreeMap<RowId, Row>,
    next_row: RowId,
    slots: Vec<RowSlot>,
    in_flight: Option<InFlight>,
    finished: Vec<Finished>,
    stats: Stats,
}

/// A row, in order of admission; never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct RowId(u64);

/// The step that was planned last.
#[derive(Debug)]
struct InFlight {
    /// The rows that sampled, in the order of the plan. Some may have been aborted since.
    samples: Vec<RowId>,
    /// The copies, whose sources are locked.
    copies: Vec<PageCopy>,
}

/// A row that came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The tokens of its answer, and why there are no more.
    Answer {
        /// The answer, without the token that ended it.
        tokens: Vec<TokenId>,
        /// Why it ended.
        ending: Ending,
    },
    /// The row can never run.
    Overflow {
        /// Tokens that it needs.
        tokens: usize,
        /// Tokens that there is room for.
        limit: usize,
    },
}

impl Scheduler {
    /// Makes a scheduler for a pool of pages. A sampled token of `end_tokens` ends an answer.
    ///
    /// Fails if a budget of the configuration is zero.
    pub fn new(config: SchedulerConfig, pool: PoolSpec, end_tokens: Vec<TokenId>) -> Result<Self> {
        config.validate()?;
        Ok(Scheduler {
            config,
            end_tokens,
            pool: KvPool::new(pool),
            tree: PrefixTree::new(),
            batches: Vec::new(),
            rows: BTreeMap::new(),
            next_row: RowId::default(),
            slots: (0..config.max_rows).rev().map(RowSlot).collect(),
            in_flight: None,
            finished: Vec::new(),
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

    /// Returns the next step, or `None` if no row needs one. The last step must have been harvested.
    pub fn plan(&mut self) -> Option<StepPlan> {
        debug_assert!(self.in_flight.is_none(), "one step in flight");
        let mut builder = StepBuilder::new(self.config.step_tokens as usize);
        let mut samples = Vec::new();
        let (decoding, prefilling): (Vec<RowId>, Vec<RowId>) =
            self.rows.keys().partition(|id| self.rows.get(id).is_some_and(Row::is_decoding));
        for id in decoding.into_iter().chain(prefilling) {
            self.schedule(id, &mut builder, &mut samples);
        }
        while builder.room() > 0 {
            let Some(id) = self.admit() else { break };
            self.schedule(id, &mut builder, &mut samples);
        }
        let plan = builder.finish();
        if plan.is_empty() {
            return None;
        }
        self.stats.steps += 1;
        self.stats.computed_tokens += plan.tokens.len() as u64;
        self.in_flight = Some(InFlight { samples, copies: plan.copies.clone() });
        Some(plan)
    }

    /// Takes the result of the step planned last.
    ///
    /// Fails if the device did not answer every sample of the plan.
    pub fn harvest(&mut self, result: &StepResult) -> Result<()> {
        let Some(InFlight { samples, copies }) = self.in_flight.take() else { return Ok(()) };
        for copy in copies {
            self.pool.unlock(copy.from);
        }
        if result.sampled.len() != samples.len() {
            let (got, wanted) = (result.sampled.len(), samples.len());
            return Err(Error::Device(format!("the device chose {got} tokens of {wanted}")));
        }
        for (id, token) in samples.into_iter().zip(&result.sampled) {
            let Some(row) = self.rows.get_mut(&id) else { continue };
            if let Some(ending) = row.answer.take(*token, &self.end_tokens) {
                self.finish(id, ending);
            }
        }
        Ok(())
    }

    /// Returns the rows that came to their end since the last call.
    pub fn take_finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.finished)
    }

    /// Returns whether any row waits or runs.
    pub fn is_idle(&self) -> bool {
        self.batches.is_empty()
    }

    /// Returns counters since the start, and what is in use now.
    pub fn stats(&self) -> Stats {
        let pending: usize = self.batches.iter().map(|batch| batch.waiting() + batch.running).sum();
        Stats {
            pending: pending as u64,
            pages_used: self.pool.used() as u64,
            pages_total: self.pool.total() as u64,
            ..self.stats
        }
    }

    /// Gives a row as much of the step as it needs and there is room for.
    fn schedule(&mut self, id: RowId, builder: &mut StepBuilder, samples: &mut Vec<RowId>) {
        if builder.room() == 0 {
            return;
        }
        let row = self.rows.get_mut(&id).expect("only running rows are scheduled");
        let known = row.answer.tokens.len();
        let start = row.computed(&self.tree);
        let end = known.min(start + builder.room());
        for node in self.tree.path_after(row.leaf, start) {
            let node_end = self.tree.end(node);
            let before = self.tree.parent(node);
            let copy_from = (self.tree.run(node).split_tokens() > 0).then(|| self.tree.run(before).last_page());
            let run = self.tree.run_mut(node);
            compute_run(run, node_end.min(end), copy_from, &row.answer.tokens, builder, &mut self.pool);
        }
        let copy_from = (row.tail.split_tokens() > 0).then(|| self.tree.run(row.leaf).last_page());
        compute_run(&mut row.tail, end, copy_from, &row.answer.tokens, builder, &mut self.pool);
        builder.end_row(&row.table, end - 1);
        row.computed_prompt += end.min(row.answer.prompt).saturating_sub(start);
        if end == known {
            let AnswerState { ref allowed, sampling, draws, .. } = row.answer;
            let sample = SampleRow { token: 0, slot: row.slot, allowed: Allowed::All, sampling, draw: draws, top_logits: 0 };
            builder.sample(allowed, sample);
            samples.push(id);
        }
    }

    /// Admits the next row that needs the device. Rows that end without it are finished on the way.
    fn admit(&mut self) -> Option<RowId> {
        while !self.slots.is_empty() {
            let index = next_batch(&self.batches)?;
            let started = match self.answer_limit(index) {
                Ok(limit) if !self.make_room(index, limit) => return None,
                Ok(limit) => self.start(index, limit),
                Err(overflow) => {
                    self.take_next(index, |_, next| Started::Ended(next.job.request.id, overflow, Usage::default()))
                }
            };
            match started {
                Started::Runs(id) => return Some(id),
                Started::Ended(id, outcome, usage) => self.conclude(self.batches[index].id, id, outcome, usage),
            }
        }
        None
    }

    /// Returns how long the answer of a batch's next row may be, or why the row can never run.
    fn answer_limit(&self, index: usize) -> Result<usize, Outcome> {
        let next = self.batches[index].next.as_ref().expect("a batch is chosen for its next row");
        let prompt = next.prompt.len();
        if prompt + 1 > self.config.max_context {
            return Err(Outcome::Overflow { tokens: prompt + 1, limit: self.config.max_context });
        }
        let limit = (next.job.request.max_tokens as usize).min(self.config.max_context - prompt);
        let (tokens, room) = (row_end(prompt, limit), self.pool.total() * PAGE_TOKENS);
        if tokens > room { Err(Outcome::Overflow { tokens, limit: room }) } else { Ok(limit) }
    }

    /// Makes all pages free that a batch's next row can ever need, and returns whether it could.
    fn make_room(&mut self, index: usize, limit: usize) -> bool {
        self.lock_next(index);
        let need = self.pages_needed(index, limit);
        if need <= self.pool.free() {
            return true;
        }
        if need <= self.pool.free() + self.tree.evictable_pages(&self.pool) {
            self.tree.evict(need, &mut self.pool);
            return true;
        }
        if !self.rows.is_empty() {
            return false;
        }
        // Nothing runs, so nothing will ever be freed: prefixes kept for waiting rows are in the way, this row's own among them
        // (a shared prefix takes more pages than a private one where its pages are split). Without them the row fits.
        for batch in 0..self.batches.len() {
            self.unlock_next(batch);
        }
        self.tree.evict(self.pool.total(), &mut self.pool);
        true
    }

    /// Returns how many pages a batch's next row takes from the pool.
    fn pages_needed(&self, index: usize, limit: usize) -> usize {
        let next = self.batches[index].next.as_ref().expect("a batch is chosen for its next row");
        let (shared, end) = (self.shared_len(next.prompt.len()), row_end(next.prompt.len(), limit));
        let node = next.locked.unwrap_or(NodeId::ROOT);
        let (run, matched) = (self.tree.run(node), self.tree.end(node));
        if matched == shared {
            return run.follow_cost(shared, end);
        }
        // A new node is continued by the tail: the page on their border is counted once.
        let border = usize::from(!shared.is_multiple_of(PAGE_TOKENS) && shared < end);
        run.follow_cost(matched, shared) + pages_between(shared, end) - border
    }

    /// Starts the next row of a batch, for which there is room, unless its constraint leaves nothing to ask.
    fn start(&mut self, index: usize, limit: usize) -> Started {
        self.take_next(index, |scheduler, next| {
            let Job { request, constraint } = &next.job;
            let mut answer = AnswerState {
                id: request.id,
                prompt: next.prompt.len(),
                tokens: std::mem::take(&mut next.prompt),
                limit,
                constraint: constraint(),
                sampling: request.sampling,
                draws: 0,
                allowed: Next::Free,
            };
            match answer.advance() {
                Some(ending) => {
                    let usage = answer.usage();
                    Started::Ended(answer.id, answer.outcome(ending), usage)
                }
                None => Started::Runs(scheduler.place(index, answer, next.locked)),
            }
        })
    }

    /// Takes the next row of a batch out and lets `start` begin or end it.
    ///
    /// What the row after it shares with the tree is locked before this row's own lock is given back, so that nothing which is
    /// needed again is freed in between.
    fn take_next(&mut self, index: usize, start: impl FnOnce(&mut Self, &mut NextRow) -> Started) -> Started {
        let mut next = self.batches[index].advance().expect("a batch is chosen for its next row");
        self.batches[index].running += 1;
        let started = start(self, &mut next);
        self.lock_next(index);
        if let Some(node) = next.locked {
            self.tree.unlock(node, &mut self.pool);
        }
        started
    }

    /// Enters a row in the tree and takes all pages it can ever need.
    fn place(&mut self, index: usize, answer: AnswerState, matched: Option<NodeId>) -> RowId {
        let batch = &self.batches[index];
        let shared = self.shared_len(answer.prompt);
        let matched = matched.unwrap_or(NodeId::ROOT);
        let leaf = self.tree.insert(matched, &answer.tokens[..shared], &mut self.pool);
        self.tree.lock(leaf);
        let end = row_end(answer.prompt, answer.limit);
        let tail = self.tree.run_mut(leaf).follow(shared, end, &mut self.pool);
        self.tree.keep(leaf, batch.keep_prefix, &mut self.pool);
        let mut table = self.tree.table(leaf);
        tail.extend_table(&mut table);
        let slot = self.slots.pop().expect("a row is admitted when a slot is free");
        self.stats.prompt_tokens += answer.prompt as u64;
        let id = self.next_row;
        self.next_row = RowId(id.0 + 1);
        self.rows.insert(id, Row { batch: batch.id, slot, answer, leaf, tail, table, computed_prompt: 0 });
        id
    }

    /// Gives back everything a row holds.
    fn release(&mut self, id: RowId) -> Row {
        let mut row = self.rows.remove(&id).expect("a row ends once");
        self.tree.run_mut(row.leaf).unfollow(std::mem::take(&mut row.tail), &mut self.pool);
        self.tree.unlock(row.leaf, &mut self.pool);
        self.slots.push(row.slot);
        row
    }

    /// Ends a running row.
    fn finish(&mut self, id: RowId, ending: Ending) {
        let row = self.release(id);
        let usage = row.usage();
        self.conclude(row.batch, row.answer.id, row.answer.outcome(ending), usage);
    }

    /// Reports the end of a row, and forgets its batch with the last one.
    fn conclude(&mut self, batch: BatchId, id: RequestId, outcome: Outcome, usage: Usage) {
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

    /// Locks what is in the tree of the prefix of a batch's next row, in place of what was locked for it before.
    fn lock_next(&mut self, index: usize) {
        let prefix_cache = self.config.prefix_cache;
        let Some(next) = self.batches[index].next.as_mut().filter(|_| prefix_cache) else { return };
        let node = self.tree.reach(&next.prompt[..next.prompt.len() - 1], &mut self.pool);
        self.tree.lock(node);
        if let Some(before) = next.locked.replace(node) {
            self.tree.unlock(before, &mut self.pool);
        }
    }

    /// Gives back the lock of a batch's next row.
    fn unlock_next(&mut self, index: usize) {
        if let Some(node) = self.batches[index].next.as_mut().and_then(|next| next.locked.take()) {
            self.tree.unlock(node, &mut self.pool);
        }
    }

    /// Returns how many tokens of a prompt are shared through the tree: all but the last, which every row computes to be
    /// sampled from.
    fn shared_len(&self, prompt: usize) -> usize {
        if self.config.prefix_cache { prompt - 1 } else { 0 }
    }
}

/// What became of the next row of a batch.
#[derive(Debug)]
enum Started {
    Runs(RowId),
    Ended(RequestId, Outcome, Usage),
}

/// Returns the end of the positions that a row can ever compute: the last token of its answer is never computed.
fn row_end(prompt: usize, limit: usize) -> usize {
    prompt - 1 + limit
}

/// Computes a run's tokens up to the position `end`, after filling the page that it shares in part with the run before.
fn compute_run(
    run: &mut Run,
    end: usize,
    copy_from: Option<PageId>,
    tokens: &[TokenId],
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
        builder.compute(tokens[position], position, run.page_at(position));
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
