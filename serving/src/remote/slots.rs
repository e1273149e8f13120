//! A bounded number of requests on their way; whoever ranks first gets the next free place.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backend::BatchId;
use crate::lock::lock;
use crate::request::Batch;

/// The places of one service.
#[derive(Debug)]
pub(super) struct Slots {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// One entry for each batch that waits; a batch waits for one place at a time.
    waiting: BTreeMap<Rank, oneshot::Sender<Slot>>,
}

/// The order in which batches get places: higher priority, then earlier deadline, then earlier submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    priority: Reverse<i32>,
    without_deadline: bool,
    deadline: Option<Instant>,
    id: BatchId,
}

impl Rank {
    pub(super) fn new(batch: &Batch, id: BatchId) -> Self {
        let deadline = batch.deadline.map(Instant::from_std);
        Rank { priority: Reverse(batch.priority), without_deadline: deadline.is_none(), deadline, id }
    }
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot(Option<Arc<Slots>>);

impl Slots {
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Slots { state: Mutex::new(State { free: count, waiting: BTreeMap::new() }) })
    }

    /// Waits for a place. Dropping the future leaves the queue.
    pub(super) async fn acquire(self: &Arc<Self>, rank: Rank) -> Slot {
        let receiver = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Slot(Some(Arc::clone(self)));
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.insert(rank, sender);
            receiver
        };
        let _queued = Queued { slots: self, rank };
        receiver.await.expect("the queue keeps the sender until it is used, or until this wait is given up")
    }

    fn release(self: Arc<Self>) {
        loop {
            let next = self.lock().waiting.pop_first();
            let Some((_, sender)) = next else { break };
            match sender.send(Slot(Some(Arc::clone(&self)))) {
                Ok(()) => return,
                // That batch has stopped waiting; the place goes on, not back.
                Err(mut slot) => slot.0 = None,
            }
        }
        self.lock().free += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Leaves the queue when a wait ends, in whatever way.
struct Queued<'a> {
    slots: &'a Slots,
    rank: Rank,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.slots.lock().waiting.remove(&self.rank);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slots) = self.0.take() {
            slots.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    fn rank(priority: i32, deadline: Option<u64>, id: u64) -> Rank {
        let deadline = deadline.map(|seconds| std::time::Instant::now() + Duration::from_secs(seconds));
        Rank::new(&Batch { priority, deadline, ..Batch::default() }, BatchId(id))
    }

    #[test]
    fn ranks() {
        let order = [rank(2, None, 9), rank(1, Some(5), 8), rank(1, Some(50), 7), rank(1, None, 3), rank(1, None, 4)];
        assert!(order.is_sorted());
    }

    #[test]
    fn the_first_in_rank_gets_the_next_place() {
        let slots = Slots::new(1);
        let first = slots.acquire(rank(0, None, 1)).now_or_never().unwrap();
        let mut low = Box::pin(slots.acquire(rank(0, None, 2)));
        let mut gone = Box::pin(slots.acquire(rank(9, None, 3)));
        let mut high = Box::pin(slots.acquire(rank(5, None, 4)));
        assert!(low.as_mut().now_or_never().is_none());
        assert!(gone.as_mut().now_or_never().is_none());
        assert!(high.as_mut().now_or_never().is_none());
        drop(gone);
        assert_eq!(slots.lock().waiting.len(), 2);
        drop(first);
        assert!(low.as_mut().now_or_never().is_none());
        let place = high.as_mut().now_or_never().unwrap();
        drop(place);
        let place = low.as_mut().now_or_never().unwrap();
        // A place that was handed over but never taken is given on as well.
        let mut unread = Box::pin(slots.acquire(rank(0, None, 5)));
        assert!(unread.as_mut().now_or_never().is_none());
        drop(place);
        drop(unread);
        assert!(slots.acquire(rank(0, None, 6)).now_or_never().is_some());
    }
}
