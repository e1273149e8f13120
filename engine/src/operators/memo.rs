//! The memo of a query: one call and one value for each distinct question, across operators and windows.
//!
//! An operator claims the keys of its questions. Those it is first to claim it asks; those that another operator is asking it
//! waits for; the rest is known. A claim that is dropped unanswered, because its operator was cancelled, is free again.
//!
//! Answers are charged to the memory pool of the query. One that the pool has no room for reaches its own rows and those who wait
//! for it, and is free to be asked again by others. It is not written to disk: to ask a local model again may cost as little as to
//! read it back, and where answers are dear the cache and the checkpoint keep them in a file.

use std::collections::hash_map::Entry as MapEntry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use datafusion::common::ScalarValue;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use tokio::sync::Notify;

use crate::answers::Key;
use crate::operators::scope::NodeStats;

/// What an answer takes in the table, its text aside. The table doubles when it is full to seven eighths, so about half of it is
/// free on the way.
pub(super) const ANSWER_BYTES: usize = size_of::<(Key, Entry)>() * 3 / 2;

/// What became of a question: a value, or why there is none.
pub(super) type Outcome = Result<ScalarValue, Failure>;

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A name from sql.md §6, such as `overflow`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The prompt, of the first failures of a query.
    pub prompt: Option<Arc<str>>,
    /// What the model wrote, if it did.
    pub output: Option<Arc<str>>,
    /// How often the backend tried.
    pub attempts: u32,
}

/// Hashes a key by its first bytes: it is a digest already.
#[derive(Debug, Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut first = [0; 8];
        let len = bytes.len().min(8);
        first[..len].copy_from_slice(&bytes[..len]);
        self.0 = u64::from_le_bytes(first);
    }

    // The length of a key, which is that of all.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

type ByDigest = BuildHasherDefault<DigestHasher>;
type Entries = std::collections::HashMap<Key, Entry, ByDigest>;

/// The questions that a query has asked.
#[derive(Debug, Default)]
pub struct Memo {
    entries: Mutex<Entries>,
    changed: Notify,
    /// What known answers take; not counted where nobody has said of which pool.
    memory: OnceLock<MemoryReservation>,
}

#[derive(Debug)]
enum Entry {
    Asked {
        /// Whether another operator waits for the answer.
        is_awaited: bool,
    },
    Known(Outcome),
}

/// What a claim found.
#[derive(Debug)]
pub enum Claim {
    /// The claimer must ask, and publish the outcome.
    Mine,
    /// Another operator is asking.
    Theirs,
    /// The answer is known.
    Known(Outcome),
}

/// The keys that an operator has claimed and not yet answered; frees them when dropped.
#[derive(Debug)]
pub struct Claims {
    memo: Arc<Memo>,
    /// Where it is counted what the memo has no room for.
    stats: Arc<NodeStats>,
    open: std::collections::HashSet<Key, ByDigest>,
}

impl Memo {
    /// Charges answers to a memory pool from now on: the first that is named.
    pub fn charge_to(&self, pool: &Arc<dyn MemoryPool>) {
        self.memory.get_or_init(|| MemoryConsumer::new("answers of the query").register(pool));
    }

    /// Starts claiming for one call of an operator.
    pub fn claims(self: &Arc<Self>, stats: &Arc<NodeStats>) -> Claims {
        Claims { memo: Arc::clone(self), stats: Arc::clone(stats), open: Default::default() }
    }

    /// Waits for a question that another operator is asking. `None` if that operator gave up: claim it again.
    pub async fn wait(&self, key: &Key) -> Option<Outcome> {
        loop {
            let changed = self.changed.notified();
            match self.lock().get(key) {
                Some(Entry::Known(outcome)) => return Some(outcome.clone()),
                Some(Entry::Asked { .. }) => {}
                None => return None,
            }
            changed.await;
        }
    }

    /// Returns whether there is room for an answer, which is taken. What somebody waits for has room in any case.
    fn has_room(&self, outcome: &Outcome, is_awaited: bool) -> bool {
        let Some(memory) = self.memory.get() else { return true };
        let bytes = ANSWER_BYTES + text_bytes(outcome);
        if is_awaited {
            memory.grow(bytes);
            return true;
        }
        memory.try_grow(bytes).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Claims {
    /// Claims questions, and returns what each claim found. A key must be claimed once only.
    pub fn claim(&mut self, keys: impl ExactSizeIterator<Item = Key>) -> Vec<Claim> {
        let mut entries = self.memo.lock();
        entries.reserve(keys.len());
        let claim = |key: Key| match entries.entry(key) {
            MapEntry::Occupied(mut entry) => match entry.get_mut() {
                Entry::Known(outcome) => Claim::Known(outcome.clone()),
                Entry::Asked { is_awaited } => {
                    *is_awaited = true;
                    Claim::Theirs
                }
            },
            MapEntry::Vacant(entry) => {
                entry.insert(Entry::Asked { is_awaited: false });
                self.open.insert(key);
                Claim::Mine
            }
        };
        keys.map(claim).collect()
    }

    /// Makes the outcomes of claimed questions known to all, or only to those who wait if there is no room for them.
    pub fn publish(&mut self, outcomes: impl IntoIterator<Item = (Key, Outcome)>) {
        let mut entries = self.memo.lock();
        for (key, outcome) in outcomes {
            self.open.remove(&key);
            let is_awaited = matches!(entries.get(&key), Some(Entry::Asked { is_awaited: true }));
            if self.memo.has_room(&outcome, is_awaited) {
                entries.insert(key, Entry::Known(outcome));
            } else {
                entries.remove(&key);
                self.stats.not_kept.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(entries);
        self.memo.changed.notify_waiters();
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let mut entries = self.memo.lock();
        for key in &self.open {
            entries.remove(key);
        }
        drop(entries);
        self.memo.changed.notify_waiters();
    }
}

/// Returns what an answer holds besides itself.
fn text_bytes(outcome: &Outcome) -> usize {
    let len = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
    match outcome {
        Ok(value) => value.size().saturating_sub(size_of::<ScalarValue>()),
        Err(Failure { message, prompt, output, .. }) => message.len() + len(prompt) + len(output),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::GreedyMemoryPool;

    use super::*;

    fn key(n: u8) -> Key {
        [n; 32]
    }

    fn claims(memo: &Arc<Memo>) -> Claims {
        memo.claims(&Arc::default())
    }

    fn claim(claims: &mut Claims, n: u8) -> Claim {
        claims.claim([key(n)].into_iter()).remove(0)
    }

    #[test]
    fn the_first_claim_asks_and_the_rest_know() {
        let memo = Arc::new(Memo::default());
        let (mut first, mut second) = (claims(&memo), claims(&memo));
        assert!(matches!(claim(&mut first, 1), Claim::Mine));
        assert!(matches!(claim(&mut second, 1), Claim::Theirs));
        first.publish([(key(1), Ok(ScalarValue::from(true)))]);
        assert!(matches!(claim(&mut second, 1), Claim::Known(Ok(ScalarValue::Boolean(Some(true))))));
    }

    #[tokio::test]
    async fn a_dropped_claim_is_free_again() {
        let memo = Arc::new(Memo::default());
        let mut first = claims(&memo);
        assert!(matches!(claim(&mut first, 1), Claim::Mine));
        let waiting = Arc::clone(&memo);
        let waiter = tokio::spawn(async move { waiting.wait(&key(1)).await });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiter.await.unwrap(), None);
        assert!(matches!(claim(&mut claims(&memo), 1), Claim::Mine));
    }

    #[test]
    fn answers_are_charged_for_as_long_as_the_memo_lives() {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1 << 20));
        let memo = Arc::new(Memo::default());
        memo.charge_to(&pool);
        let mut first = claims(&memo);
        assert!(matches!(claim(&mut first, 1), Claim::Mine));
        assert_eq!(pool.reserved(), 0, "a question takes nothing yet");
        first.publish([(key(1), Ok(ScalarValue::from("a".repeat(1000))))]);
        assert!(pool.reserved() >= ANSWER_BYTES + 1000);
        drop((first, memo));
        assert_eq!(pool.reserved(), 0);
    }

    #[tokio::test]
    async fn without_room_an_answer_reaches_those_who_wait_and_is_asked_again_by_others() {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1));
        let memo = Arc::new(Memo::default());
        memo.charge_to(&pool);
        let stats: Arc<NodeStats> = Arc::default();
        let mut first = memo.claims(&stats);
        for n in [1, 2] {
            assert!(matches!(claim(&mut first, n), Claim::Mine));
        }
        assert!(matches!(claim(&mut claims(&memo), 2), Claim::Theirs));
        for n in [1, 2] {
            first.publish([(key(n), Ok(ScalarValue::from(true)))]);
        }
        assert_eq!(memo.wait(&key(2)).await, Some(Ok(ScalarValue::from(true))), "somebody waited for it");
        assert_eq!(stats.not_kept.load(Ordering::Relaxed), 1);
        assert!(matches!(claim(&mut claims(&memo), 1), Claim::Mine));
    }
}
