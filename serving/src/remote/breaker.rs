//! Whether the service is up. Ten thousand rows must not each find out for themselves that it is not.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::config::RemoteConfig;
use crate::error::{Error, Result};
use crate::lock::lock;

/// Counts requests that failed for good with none answered in between.
#[derive(Debug)]
pub(super) struct Breaker {
    limit: u32,
    down_for: Duration,
    host: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    last: Option<(Instant, String)>,
    /// Whether any request was ever answered.
    answered: bool,
}

impl Breaker {
    pub(super) fn new(config: &RemoteConfig, host: String) -> Self {
        Breaker { limit: config.failures_in_a_row, down_for: config.down_for, host, state: Mutex::default() }
    }

    /// Notes an answer.
    pub(super) fn success(&self) {
        *self.lock() = State { answered: true, ..State::default() };
    }

    /// Notes a request that failed for good.
    pub(super) fn failure(&self, message: &str, now: Instant) {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        state.last = Some((now, message.to_string()));
    }

    /// Fails while the service counts as down. After a while one more failure decides anew.
    pub(super) fn check(&self, now: Instant) -> Result<()> {
        let mut state = self.lock();
        let Some((since, last)) = state.last.as_ref().filter(|_| state.failures >= self.limit) else {
            return Ok(());
        };
        if now.saturating_duration_since(*since) >= self.down_for {
            state.failures = self.limit - 1;
            return Ok(());
        }
        Err(Error::Http(format!(
            "the remote model at {} does not answer: {} requests in a row failed, the last one because {last}; \
             check that it is up and reachable, then run the query again",
            self.host, state.failures
        )))
    }

    /// Returns whether any request was ever answered.
    pub(super) fn has_answered(&self) -> bool {
        self.lock().answered
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_tries_again_later() {
        let mut config = RemoteConfig::new("", "");
        (config.failures_in_a_row, config.down_for) = (2, Duration::from_secs(30));
        let (breaker, now) = (Breaker::new(&config, "host".to_string()), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        breaker.failure("a", now);
        breaker.success();
        breaker.failure("b", now);
        assert!(breaker.check(now).is_ok());
        breaker.failure("nobody listens", now);
        let error = breaker.check(after(29)).unwrap_err().to_string();
        assert!(error.contains("2 requests in a row failed, the last one because nobody listens"), "{error}");
        assert!(breaker.check(after(30)).is_ok());
        assert!(breaker.check(after(30)).is_ok());
        breaker.failure("c", after(31));
        assert!(breaker.check(after(32)).is_err());
        breaker.success();
        assert!(breaker.check(after(32)).is_ok() && breaker.has_answered());
    }
}
