//! The answers that a session keeps in memory, least recently used ones dropped first.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::RandomState;
use datafusion::common::HashMap;

use super::cache::{CacheStats, Tier};
use super::kept::{Kept, Key, Provenance};

/// What an entry takes beside its answer: keys, stamps and nodes of the maps.
const ENTRY_BYTES: usize = 200;

/// Answers by question, bounded in bytes.
#[derive(Debug, Default)]
pub(super) struct SessionTier {
    entries: HashMap<Key, Entry, RandomState>,
    /// The keys by their last use.
    by_use: BTreeMap<u64, Key>,
    groups: HashMap<Arc<Provenance>, u64, RandomState>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    kept: Kept,
    group: Arc<Provenance>,
    created_at: u64,
    last_use: u64,
}

impl SessionTier {
    /// Returns an answer that was made at `oldest` or later, and counts the hit.
    pub(super) fn get(&mut self, key: &Key, oldest: u64) -> Option<Kept> {
        let entry = self.entries.get_mut(key).filter(|entry| entry.created_at >= oldest)?;
        self.by_use.remove(&entry.last_use);
        self.uses += 1;
        entry.last_use = self.uses;
        self.by_use.insert(self.uses, *key);
        *self.groups.entry(Arc::clone(&entry.group)).or_default() += 1;
        Some(entry.kept.clone())
    }

    /// Keeps an answer, and drops those that were not used for longest as far as `bytes_max` demands.
    pub(super) fn insert(&mut self, key: Key, kept: Kept, group: Arc<Provenance>, created_at: u64, bytes_max: usize) {
        self.remove(&key);
        self.uses += 1;
        self.bytes += ENTRY_BYTES + kept.bytes();
        self.by_use.insert(self.uses, key);
        self.entries.insert(key, Entry { kept, group, created_at, last_use: self.uses });
        while self.bytes > bytes_max {
            let Some((_, key)) = self.by_use.first_key_value() else { break };
            self.remove(&key.clone());
        }
    }

    /// Forgets all answers, and returns how many there were.
    pub(super) fn clear(&mut self) -> u64 {
        std::mem::take(self).entries.len() as u64
    }

    /// Returns what is kept, by group.
    pub(super) fn stats(&self) -> Vec<CacheStats> {
        let mut stats: BTreeMap<&Provenance, CacheStats> = BTreeMap::new();
        for entry in self.entries.values() {
            let hits = self.groups.get(&entry.group).copied().unwrap_or(0);
            let group = stats.entry(&entry.group).or_insert_with(|| CacheStats::new(Tier::Session, &entry.group, hits));
            group.add(entry.kept.bytes() as u64, entry.created_at);
        }
        stats.into_values().collect()
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.last_use);
            self.bytes -= ENTRY_BYTES + entry.kept.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Kept {
        Kept::Text(text.into())
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let group = Arc::new(Provenance::default());
        let mut tier = SessionTier::default();
        let room_for_two = 2 * (ENTRY_BYTES + 1);
        for n in 1..=2 {
            tier.insert([n; 32], text("a"), Arc::clone(&group), 0, room_for_two);
        }
        assert_eq!(tier.get(&[1; 32], 0), Some(text("a")));
        tier.insert([3; 32], text("b"), Arc::clone(&group), 0, room_for_two);
        assert_eq!((tier.get(&[2; 32], 0), tier.get(&[1; 32], 0)), (None, Some(text("a"))));
        tier.insert([4; 32], text("longer than all room"), group, 0, ENTRY_BYTES);
        assert_eq!((tier.entries.len(), tier.by_use.len(), tier.bytes), (0, 0, 0));
    }

    #[test]
    fn stale_answers_are_not_given() {
        let mut tier = SessionTier::default();
        tier.insert([1; 32], text("a"), Arc::default(), 10, 1000);
        assert_eq!((tier.get(&[1; 32], 11), tier.get(&[1; 32], 10)), (None, Some(text("a"))));
        let stats = tier.stats();
        assert_eq!((stats[0].entries, stats[0].hits, stats[0].bytes, stats[0].oldest), (1, 1, 1, 10));
        assert_eq!((tier.clear(), tier.stats()), (1, vec![]));
    }
}
