//! Batches with rows that have not been admitted, and which of them comes next.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::prefix_tree::NodeId;
use super::stop::StopStrings;
use crate::backend::BatchId;
use crate::constraint::Constraint;
use crate::request::{Request, TokenId};

/// Opens the constraint of one request; compiled once for each shape and called when a row is admitted.
pub type OpenConstraint = Arc<dyn Fn() -> Box<dyn Constraint> + Send + Sync>;

/// A request and its constraint.
#[derive(Clone)]
pub struct Job {
    /// The request.
    pub request: Request,
    /// What its answer must look like.
    pub constraint: OpenConstraint,
    /// What ends its answer.
    pub stop: Option<Arc<StopStrings>>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("request", &self.request).finish_non_exhaustive()
    }
}

/// The jobs of one batch; see [`Batch`](crate::Batch) for the fields.
#[derive(Clone, Debug)]
pub struct Work {
    /// The jobs, depth first by shared prefix.
    pub jobs: Vec<Job>,
    /// Whether the jobs share keys and values with each other and with other batches.
    pub share_prefixes: bool,
    /// Leading prompt tokens of each job that are worth keeping.
    pub keep_prefix: u32,
    /// Higher ones are admitted first.
    pub priority: i32,
    /// Among equal priorities, earlier ones are admitted first.
    pub deadline: Option<Instant>,
}

impl Default for Work {
    fn default() -> Self {
        Work { jobs: vec![], share_prefixes: true, keep_prefix: 0, priority: 0, deadline: None }
    }
}

/// How urgent a batch is: the least rank comes first. Higher priorities, then earlier deadlines, then none.
pub type Rank = (Reverse<i32>, bool, Option<Instant>);

/// A batch from its arrival to the end of its last row.
#[derive(Debug)]
pub(super) struct WaitingBatch {
    pub(super) id: BatchId,
    pub(super) share_prefixes: bool,
    pub(super) keep_prefix: usize,
    /// Jobs after the next one.
    rest: VecDeque<Job>,
    pub(super) next: Option<NextRow>,
    /// Rows that were admitted and have not ended.
    pub(super) running: usize,
    pub(super) rank: Rank,
}

/// The next job of a batch.
#[derive(Debug)]
pub(super) struct NextRow {
    pub(super) job: Job,
    /// The prompt in one piece.
    pub(super) prompt: Vec<TokenId>,
    /// What is in the tree of its prefix. The lock keeps it there until the row is admitted.
    pub(super) locked: Option<NodeId>,
}

impl WaitingBatch {
    /// Takes a batch in; its first row becomes the next one.
    pub(super) fn new(id: BatchId, work: Work) -> Self {
        let Work { jobs, share_prefixes, keep_prefix, priority, deadline } = work;
        let rank = (Reverse(priority), deadline.is_none(), deadline);
        let keep_prefix = keep_prefix as usize;
        let mut batch = WaitingBatch { id, share_prefixes, keep_prefix, rest: jobs.into(), next: None, running: 0, rank };
        batch.next = batch.pull();
        batch
    }

    /// Takes the next row and makes the one after it the next.
    pub(super) fn advance(&mut self) -> Option<NextRow> {
        let following = self.pull();
        std::mem::replace(&mut self.next, following)
    }

    /// Returns the number of rows that have not been admitted.
    pub(super) fn waiting(&self) -> usize {
        self.rest.len() + usize::from(self.next.is_some())
    }

    fn pull(&mut self) -> Option<NextRow> {
        let job = self.rest.pop_front()?;
        let prompt = job.request.prompt.concat();
        Some(NextRow { job, prompt, locked: None })
    }
}

/// Returns the batch whose next row is admitted next: by priority, then deadline. Batches that are equal in both take turns,
/// the one with the fewest running rows first, so that a long batch does not hold up a short one; then by arrival.
pub(super) fn next_batch(batches: &[WaitingBatch]) -> Option<usize> {
    let waiting = batches.iter().enumerate().filter(|(_, batch)| batch.next.is_some());
    waiting.min_by_key(|(arrival, batch)| (batch.rank, batch.running, *arrival)).map(|(index, _)| index)
}
