//! Admission: which row starts next, and the pages that it will need.
//!
//! A row takes all pages it can ever need when it is admitted: those of its prompt that are not in the prefix tree, and those of
//! the longest answer. Rows are admitted as late as possible, when a step has room for them, so that priorities, cancellation
//! and the prefix tree are as they are then.

use super::pool::{Memory, pages_between};
use super::prefix_tree::NodeId;
use super::row::{AnswerState, Row};
use super::scheduler::{Outcome, RowId, Scheduler};
use super::waiting::{NextRow, WaitingBatch, next_batch};
use crate::request::{OutputShape, RequestId, Usage};
use crate::step::PAGE_TOKENS;

impl Scheduler {
    /// Admits the next row that needs the device. Rows that end without it are finished on the way.
    pub(super) fn admit(&mut self, memory: &mut impl Memory) -> Option<RowId> {
        while !self.slots.is_empty() && memory.may_admit() {
            let index = next_batch(&self.batches)?;
            let started = match self.answer_limit(index) {
                Ok(limit) if !self.make_room(index, limit, memory) => return None,
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
        let limit = match *next.job.request.shape {
            // Nothing is written; one place is what computing the last token takes.
            OutputShape::Embedding { .. } => 1,
            _ => (next.job.request.max_tokens as usize).min(self.config.max_context - prompt),
        };
        let (tokens, room) = (row_end(prompt, limit), self.pool.limit() * PAGE_TOKENS);
        if tokens > room { Err(Outcome::Overflow { tokens, limit: room }) } else { Ok(limit) }
    }

    /// Makes all pages free that a batch's next row can ever need, and returns whether it could.
    fn make_room(&mut self, index: usize, limit: usize, memory: &mut impl Memory) -> bool {
        self.lock_next(index);
        let mut need = self.pages_needed(index, limit);
        if need > self.pool.free() {
            memory.provide(&mut self.pool, need);
        }
        if need <= self.pool.free() {
            return true;
        }
        if need <= self.pool.free() + self.tree.evictable_pages(&self.pool) {
            self.tree.evict(need, &mut self.pool);
            return true;
        }
        if self.rows.is_empty() && self.in_flight.is_empty() {
            // Nothing runs, so nothing will ever be freed: prefixes kept for waiting rows are in the way, this row's own among
            // them (a shared prefix takes more pages than a private one where its pages are split). Without them the row fits,
            // as soon as there is memory.
            self.unlock_waiting();
            self.tree.evict(self.pool.total(), &mut self.pool);
            need = self.pages_needed(index, limit);
            if need > self.pool.free() {
                memory.provide(&mut self.pool, need);
            }
            if need <= self.pool.free() {
                return true;
            }
        }
        self.shortage = need - self.pool.free();
        false
    }

    /// Removes up to `count` slabs from the pool, evicting cached prefixes as far as that takes, and returns them. Where no row
    /// runs, what is locked for waiting rows is evicted as well; it is computed again.
    ///
    /// None while a step is in flight, which may still write to pages that nobody holds any more.
    pub fn give_back(&mut self, count: usize) -> Vec<u32> {
        if !self.in_flight.is_empty() {
            return Vec::new();
        }
        if self.rows.is_empty() {
            self.unlock_waiting();
        }
        let mut slabs = self.pool.shrink(count);
        while slabs.len() < count && self.tree.evict_oldest(&mut self.pool) {
            slabs.extend(self.pool.shrink(count - slabs.len()));
        }
        slabs
    }

    /// As [`give_back`](Self::give_back), without evicting anything.
    pub fn give_back_empty(&mut self, count: usize) -> Vec<u32> {
        if self.in_flight.is_empty() { self.pool.shrink(count) } else { Vec::new() }
    }

    fn unlock_waiting(&mut self) {
        for batch in 0..self.batches.len() {
            self.unlock_next(batch);
        }
    }

    /// Returns how many pages a batch's next row takes from the pool.
    fn pages_needed(&self, index: usize, limit: usize) -> usize {
        let next = self.batches[index].next.as_ref().expect("a batch is chosen for its next row");
        let (shared, end) = (shared_len(&self.batches[index], next.prompt.len()), row_end(next.prompt.len(), limit));
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
            let mut answer = AnswerState::new(&next.job, std::mem::take(&mut next.prompt), limit);
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
        let shared = shared_len(batch, answer.prompt);
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
        self.rows.insert(id, Row { batch: batch.id, slot, answer, leaf, tail, table, computed_prompt: 0, unseen: 0 });
        id
    }

    /// Locks what is in the tree of the prefix of a batch's next row, in place of what was locked for it before.
    pub(super) fn lock_next(&mut self, index: usize) {
        let batch = &mut self.batches[index];
        let Some(next) = batch.next.as_mut().filter(|_| batch.share_prefixes) else { return };
        let node = self.tree.reach(&next.prompt[..next.prompt.len() - 1], &mut self.pool);
        self.tree.lock(node);
        if let Some(before) = next.locked.replace(node) {
            self.tree.unlock(before, &mut self.pool);
        }
    }

    /// Gives back the lock of a batch's next row.
    pub(super) fn unlock_next(&mut self, index: usize) {
        if let Some(node) = self.batches[index].next.as_mut().and_then(|next| next.locked.take()) {
            self.tree.unlock(node, &mut self.pool);
        }
    }
}

/// Returns how many tokens of a prompt are shared through the tree: all but the last, which every row computes to be sampled
/// from.
fn shared_len(batch: &WaitingBatch, prompt: usize) -> usize {
    if batch.share_prefixes { prompt - 1 } else { 0 }
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
