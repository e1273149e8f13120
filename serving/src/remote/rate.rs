//! Requests and tokens in a minute: two token buckets, and pauses that the service asks for.
//!
//! A bucket holds what a second allows, at least one request, and fills evenly. A request that needs more tokens than the bucket
//! holds goes when the bucket is full and leaves a debt. Whoever asks first goes first.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::config::RemoteConfig;
use crate::lock::lock;

/// The rates of one service.
#[derive(Debug)]
pub(super) struct RateLimit {
    state: Mutex<State>,
    /// Held by the request that waits next, so that the order of asking is kept.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    capacity: f64,
    available: f64,
    filled_at: Instant,
}

impl RateLimit {
    /// Starts with full buckets.
    pub(super) fn new(config: &RemoteConfig, now: Instant) -> Self {
        let bucket = |per_minute: u32| Bucket::new(f64::from(per_minute), now);
        let requests = config.requests_per_minute.map(bucket);
        let tokens = config.tokens_per_minute.map(bucket);
        RateLimit { state: Mutex::new(State { requests, tokens, paused_until: None }), turn: tokio::sync::Mutex::default() }
    }

    /// Waits until a request of about so many tokens may go.
    pub(super) async fn acquire(&self, tokens: f64) {
        let _turn = self.turn.lock().await;
        loop {
            let taken = self.lock().take(tokens, Instant::now());
            match taken {
                Ok(()) => return,
                Err(wait) => sleep(wait).await,
            }
        }
    }

    /// Corrects an estimate once the service has reported what a request took.
    pub(super) fn settle(&self, estimated: f64, actual: f64) {
        if let Some(bucket) = &mut self.lock().tokens {
            bucket.available = (bucket.available + estimated - actual).min(bucket.capacity);
        }
    }

    /// Holds all requests back until then.
    pub(super) fn pause_until(&self, until: Instant) {
        let mut state = self.lock();
        state.paused_until = state.paused_until.max(Some(until));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Takes one request and so many tokens, or returns how long to wait before asking again.
    fn take(&mut self, tokens: f64, now: Instant) -> Result<(), Duration> {
        let pause = self.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let wait = [(&mut self.requests, 1.0), (&mut self.tokens, tokens)]
            .into_iter()
            .filter_map(|(bucket, amount)| Some(bucket.as_mut()?.wait(amount, now)))
            .fold(pause, Duration::max);
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, amount) in [(&mut self.requests, 1.0), (&mut self.tokens, tokens)] {
            if let Some(bucket) = bucket {
                bucket.available -= amount;
            }
        }
        Ok(())
    }
}

impl Bucket {
    fn new(per_minute: f64, now: Instant) -> Self {
        let per_second = per_minute / 60.0;
        let capacity = per_second.max(1.0);
        Bucket { per_second, capacity, available: capacity, filled_at: now }
    }

    /// Fills the bucket up to now, and returns how long it takes until it holds the amount or is full.
    fn wait(&mut self, amount: f64, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.filled_at);
        self.available = (self.available + elapsed.as_secs_f64() * self.per_second).min(self.capacity);
        self.filled_at = self.filled_at.max(now);
        let missing = amount.min(self.capacity) - self.available;
        // A billionth is lost in rounding, and would be waited for again and again.
        if missing < 1e-9 { Duration::ZERO } else { Duration::from_secs_f64(missing / self.per_second) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(requests: Option<u32>, tokens: Option<u32>, now: Instant) -> RateLimit {
        let mut config = RemoteConfig::new("", "");
        (config.requests_per_minute, config.tokens_per_minute) = (requests, tokens);
        RateLimit::new(&config, now)
    }

    /// Returns at which second each of `amounts` goes, on a clock that only waits move.
    fn schedule(limit: &RateLimit, start: Instant, amounts: &[f64]) -> Vec<f64> {
        let mut now = start;
        let go = |amount: &f64| {
            while let Err(wait) = limit.lock().take(*amount, now) {
                now += wait + Duration::from_nanos(1);
            }
            ((now - start).as_secs_f64() * 1000.0).round() / 1000.0
        };
        amounts.iter().map(go).collect()
    }

    #[test]
    fn requests_are_spread_over_the_minute() {
        let now = Instant::now();
        assert_eq!(schedule(&limit(Some(30), None, now), now, &[0.0; 4]), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(schedule(&limit(Some(120), None, now), now, &[0.0; 4]), [0.0, 0.0, 0.5, 1.0]);
        assert_eq!(schedule(&limit(None, None, now), now, &[1e9; 3]), [0.0; 3]);
    }

    #[test]
    fn tokens_may_be_owed() {
        let now = Instant::now();
        let limited = limit(None, Some(6000), now);
        // 100 a second: 500 leave a debt of 400, after which 50 wait for 450.
        assert_eq!(schedule(&limited, now, &[500.0, 50.0, 50.0]), [0.0, 4.5, 5.0]);
        let limited = limit(None, Some(6000), now);
        assert_eq!(schedule(&limited, now, &[100.0]), [0.0]);
        limited.settle(100.0, 300.0);
        assert_eq!(schedule(&limited, now, &[100.0]), [3.0]);
    }

    #[test]
    fn pauses_hold_everything_back() {
        let now = Instant::now();
        let limited = limit(None, None, now);
        limited.pause_until(now + Duration::from_secs(7));
        limited.pause_until(now + Duration::from_secs(5));
        assert_eq!(schedule(&limited, now, &[1.0, 1.0]), [7.0, 7.0]);
    }
}
