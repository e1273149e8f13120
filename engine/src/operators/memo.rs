//! The memo of a query: one call and one value for each distinct question, across operators and windows.
//!
//! An operator claims the keys of its questions. Those it is first to claim it asks; those that another operator is asking it
//! waits for; the rest is known. A claim that is dropped unanswered, because its operator was cancelled, is free again.

use std::collections::hash_map::Entry as MapEntry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};

use datafusion::common::ScalarValue;
use tokio::sync::Notify;

use crate::answers::Key;

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
}

#[derive(Debug)]
enum Entry {
    Asked,
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
    open: std::collections::HashSet<Key, ByDigest>,
}

impl Memo {
    /// Starts claiming for one operator.
    pub fn claims(self: &Arc<Self>) -> Claims {
        Claims { memo: Arc::clone(self), open: Default::default() }
    }

    /// Waits for a question that another operator is asking. `None` if that operator gave up: claim it again.
    pub async fn wait(&self, key: &Key) -> Option<Outcome> {
        loop {
            let changed = self.changed.notified();
            match self.lock().get(key) {
                Some(Entry::Known(outcome)) => return Some(outcome.clone()),
                Some(Entry::Asked) => {}
                None => return None,
            }
            changed.await;
        }
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
            MapEntry::Occupied(entry) => match entry.get() {
                Entry::Known(outcome) => Claim::Known(outcome.clone()),
                Entry::Asked => Claim::Theirs,
            },
            MapEntry::Vacant(entry) => {
                entry.insert(Entry::Asked);
                self.open.insert(key);
                Claim::Mine
            }
        };
        keys.map(claim).collect()
    }

    /// Makes the outcomes of claimed questions known to all.
    pub fn publish(&mut self, outcomes: impl IntoIterator<Item = (Key, Outcome)>) {
        let mut entries = self.memo.lock();
        for (key, outcome) in outcomes {
            self.open.remove(&key);
            entries.insert(key, Entry::Known(outcome));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        [n; 32]
    }

    fn claim(claims: &mut Claims, n: u8) -> Claim {
        claims.claim([key(n)].into_iter()).remove(0)
    }

    #[test]
    fn the_first_claim_asks_and_the_rest_know() {
        let memo = Arc::new(Memo::default());
        let (mut first, mut second) = (memo.claims(), memo.claims());
        assert!(matches!(claim(&mut first, 1), Claim::Mine));
        assert!(matches!(claim(&mut second, 1), Claim::Theirs));
        first.publish([(key(1), Ok(ScalarValue::from(true)))]);
        assert!(matches!(claim(&mut second, 1), Claim::Known(Ok(ScalarValue::Boolean(Some(true))))));
    }

    #[tokio::test]
    async fn a_dropped_claim_is_free_again() {
        let memo = Arc::new(Memo::default());
        let mut first = memo.claims();
        assert!(matches!(claim(&mut first, 1), Claim::Mine));
        let waiting = Arc::clone(&memo);
        let waiter = tokio::spawn(async move { waiting.wait(&key(1)).await });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiter.await.unwrap(), None);
        assert!(matches!(claim(&mut memo.claims(), 1), Claim::Mine));
    }
}
