//! What earlier runs of a call have shown: how its answers turned out and what they cost. A session keeps them, so that the next
//! query with the same call is planned with knowledge instead of guesses.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use crate::cost::Timing;

/// Identity of a call: its digest and its model; with a predicate over the answers, that as well.
pub type StatisticsKey = [u8; 32];

/// Calls that a session remembers; the one used longest ago is forgotten first.
const CALLS_MAX: usize = 1024;

/// Counts over all runs of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallStatistics {
    /// Rows that needed an answer.
    pub rows: u64,
    /// Distinct questions among them, for each window.
    pub distinct: u64,
    /// Requests completed.
    pub calls: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Of these, not computed.
    pub cached_tokens: u64,
    /// Tokens of their answers.
    pub output_tokens: u64,
    /// Rows of which it is known whether they passed a predicate over the answer.
    pub judged: u64,
    /// Of these, those that passed.
    pub passed: u64,
}

impl CallStatistics {
    /// Adds the counts of another run.
    pub fn add(&mut self, other: CallStatistics) {
        // In full, so that a new count cannot be forgotten.
        let CallStatistics { rows, distinct, calls, prompt_tokens, cached_tokens, output_tokens, judged, passed } = other;
        self.rows += rows;
        self.distinct += distinct;
        self.calls += calls;
        self.prompt_tokens += prompt_tokens;
        self.cached_tokens += cached_tokens;
        self.output_tokens += output_tokens;
        self.judged += judged;
        self.passed += passed;
    }

    /// Returns what has been added since the counts were `before`.
    pub fn since(&self, before: CallStatistics) -> CallStatistics {
        CallStatistics {
            rows: self.rows - before.rows,
            distinct: self.distinct - before.distinct,
            calls: self.calls - before.calls,
            prompt_tokens: self.prompt_tokens - before.prompt_tokens,
            cached_tokens: self.cached_tokens - before.cached_tokens,
            output_tokens: self.output_tokens - before.output_tokens,
            judged: self.judged.saturating_sub(before.judged),
            // A selectivity that was estimated may have been too high before.
            passed: self.passed.saturating_sub(before.passed),
        }
    }

    /// Returns the share of judged rows that passed, 0 to 1.
    pub fn selectivity(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.passed as f64 / self.judged as f64)
    }

    /// Returns the mean length of an answer in tokens.
    pub fn output_len(&self) -> Option<f64> {
        (self.calls > 0).then(|| self.output_tokens as f64 / self.calls as f64)
    }

    /// Returns the mean of prompt tokens that a call computed.
    pub fn computed_len(&self) -> Option<f64> {
        (self.calls > 0).then(|| self.prompt_tokens.saturating_sub(self.cached_tokens) as f64 / self.calls as f64)
    }
}

/// The statistics of a session, of a bounded number of calls.
#[derive(Debug, Default)]
pub struct SessionStatistics {
    kept: Mutex<Kept>,
    /// The pace of each model, by name.
    timings: Mutex<HashMap<String, Timing>>,
}

#[derive(Debug, Default)]
struct Kept {
    calls: HashMap<StatisticsKey, CallStatistics>,
    /// Least recently used first.
    by_use: VecDeque<StatisticsKey>,
}

impl SessionStatistics {
    /// Adds a run.
    pub fn add(&self, key: StatisticsKey, run: CallStatistics) {
        let mut kept = self.lock();
        kept.touch(key);
        kept.calls.entry(key).or_default().add(run);
    }

    /// Returns what earlier runs of a call have shown.
    pub fn get(&self, key: &StatisticsKey) -> Option<CallStatistics> {
        self.lock().calls.get(key).copied()
    }

    /// Notes how long a model took to compute so many prompt tokens and to write so many.
    pub fn add_timing(&self, model: &str, computed: u64, output: u64, seconds: f64) {
        if computed + output > 0 && seconds > 0.0 {
            lock(&self.timings).entry(model.to_owned()).or_default().add(computed as f64, output as f64, seconds);
        }
    }

    /// Returns the pace of a model so far.
    pub fn timing(&self, model: &str) -> Timing {
        lock(&self.timings).get(model).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Kept {
    fn touch(&mut self, key: StatisticsKey) {
        self.by_use.retain(|known| *known != key);
        self.by_use.push_back(key);
        if self.by_use.len() > CALLS_MAX
            && let Some(oldest) = self.by_use.pop_front()
        {
            self.calls.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> StatisticsKey {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        key
    }

    #[test]
    fn runs_add_up() {
        let statistics = SessionStatistics::default();
        let run = CallStatistics { calls: 2, output_tokens: 3, judged: 10, passed: 1, ..CallStatistics::default() };
        statistics.add(key(1), run);
        statistics.add(key(1), CallStatistics { passed: 4, ..run });
        let known = statistics.get(&key(1)).unwrap();
        assert_eq!((known.selectivity(), known.output_len()), (Some(0.25), Some(1.5)));
        assert_eq!(statistics.get(&key(2)), None);
    }

    #[test]
    fn the_call_used_longest_ago_is_forgotten() {
        let statistics = SessionStatistics::default();
        for n in 0..CALLS_MAX as u32 {
            statistics.add(key(n), CallStatistics::default());
        }
        statistics.add(key(0), CallStatistics::default());
        statistics.add(key(9999), CallStatistics::default());
        assert!(statistics.get(&key(0)).is_some() && statistics.get(&key(9999)).is_some());
        assert_eq!(statistics.get(&key(1)), None);
    }
}
