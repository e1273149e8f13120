//! From async callers to the thread that owns a model: what both see, and how a batch is handed over.
//!
//! Nothing here waits for the thread. Commands go through a bounded queue that is never waited for, completions through a channel
//! for each batch that has room for all of them, and counters through locks that are held for a copy or a push.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::backend::{BatchId, CompletionStream, Stats};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::request::{Batch, Completion, Request};

/// The sending end of one batch.
pub(crate) type Completions = mpsc::Sender<Result<Completion>>;

/// What a backend and the thread of its model both see.
#[derive(Debug, Default)]
pub(crate) struct Bridge {
    next_id: AtomicU64,
    stats: Mutex<Stats>,
    cancelled: Mutex<Vec<BatchId>>,
    failure: Mutex<Option<Error>>,
}

impl Bridge {
    /// Lets `send` hand a batch to the thread. An error of it is the stream's only item.
    pub(crate) fn submit(
        &self,
        batch: Batch,
        send: impl FnOnce(BatchId, Batch, Completions) -> Result<()>,
    ) -> CompletionStream {
        let id = BatchId(self.next_id.fetch_add(1, Ordering::Relaxed));
        // Room for every completion and one error, so that the thread never waits for a reader.
        let (completions, receiver) = mpsc::channel(batch.requests.len() + 1);
        if let Err(error) = send(id, batch, completions.clone()) {
            let _ = completions.try_send(Err(error));
        }
        CompletionStream::new(id, receiver)
    }

    /// Notes that a batch is not wanted any more; the thread has to be woken to see it.
    pub(crate) fn cancel(&self, batch: BatchId) {
        lock(&self.cancelled).push(batch);
    }

    pub(crate) fn take_cancelled(&self) -> Vec<BatchId> {
        std::mem::take(&mut *lock(&self.cancelled))
    }

    pub(crate) fn publish(&self, stats: Stats) {
        *lock(&self.stats) = stats;
    }

    pub(crate) fn stats(&self) -> Stats {
        *lock(&self.stats)
    }

    /// Notes why the model ends. Nothing of it waits or runs from here on.
    pub(crate) fn fail(&self, error: Error) {
        *lock(&self.failure) = Some(error);
        let mut stats = lock(&self.stats);
        stats.cancelled += std::mem::take(&mut stats.pending);
        stats.pages_used = 0;
    }

    pub(crate) fn failure(&self) -> Option<Error> {
        lock(&self.failure).clone()
    }
}

/// Fails if a prompt has a token that a vocabulary of `size` has not.
pub(crate) fn check_tokens(request: &Request, size: usize) -> Result<()> {
    let unknown = request.prompt.iter().flat_map(|segment| segment.iter()).find(|token| **token as usize >= size);
    unknown.map_or(Ok(()), |token| {
        Err(Error::Invalid(format!("request {} has token {token}, the vocabulary has {size}", request.id.0)))
    })
}
