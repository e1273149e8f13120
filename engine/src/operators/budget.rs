//! The budget of a query: one ledger for all its operators, asked before each request is submitted.
//!
//! A request is admitted with its exact prompt tokens and with room for the longest answer it may give; what the answer leaves of
//! that room is free again. Once a request is refused nothing more is submitted. Requests that run by then were within the budget
//! and are let finish, so that what they cost is not lost; only `refrain.max_seconds` cuts them off.

use std::future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use datafusion::common::{DataFusionError, Result};
use refrain_udf::Settings;
use tokio::sync::Notify;

use crate::Error;

/// What a query may spend; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Requests.
    pub calls: Option<u64>,
    /// Prompt tokens.
    pub input_tokens: Option<u64>,
    /// Tokens of all answers.
    pub output_tokens: Option<u64>,
    /// Time from the start of the query.
    pub time: Option<Duration>,
}

impl Limits {
    /// Reads them out of the settings, where 0 is no limit.
    pub fn of(settings: &Settings) -> Limits {
        let limit = |value: u64| (value > 0).then_some(value);
        let Settings { max_calls, max_input_tokens, max_output_tokens_total, max_seconds, .. } = settings;
        Limits {
            calls: limit(*max_calls),
            input_tokens: limit(*max_input_tokens),
            output_tokens: limit(*max_output_tokens_total),
            time: Some(*max_seconds).filter(|s| *s > 0.0).and_then(|s| Duration::try_from_secs_f64(s).ok()),
        }
    }
}

/// A limit that was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Calls,
    InputTokens,
    OutputTokens,
    Time,
}

impl Which {
    fn setting(self) -> &'static str {
        match self {
            Which::Calls => "refrain.max_calls",
            Which::InputTokens => "refrain.max_input_tokens",
            Which::OutputTokens => "refrain.max_output_tokens_total",
            Which::Time => "refrain.max_seconds",
        }
    }
}

/// What a query has spent, shared by all its operators.
#[derive(Debug)]
pub struct Ledger {
    started: Instant,
    spent: Mutex<Spent>,
    changed: Notify,
}

/// What a query has spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Requests submitted.
    pub calls: u64,
    /// Their prompt tokens.
    pub input_tokens: u64,
    /// Tokens of the answers so far.
    pub output_tokens: u64,
    /// Tokens that the answers of running requests may still have.
    reserved: u64,
    /// Requests submitted and not yet answered.
    running: u64,
    used_up: Option<Which>,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger { started: Instant::now(), spent: Mutex::default(), changed: Notify::new() }
    }
}

impl Ledger {
    /// Returns what has been spent so far.
    pub fn spent(&self) -> Spent {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The limits of a query and what it has spent of them.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// What may be spent.
    pub limits: Limits,
    /// What has been.
    pub ledger: Arc<Ledger>,
}

/// Whether a request may be submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Granted,
    /// Not now, but perhaps once running requests have ended.
    Wait,
    UsedUp(Which),
}

impl Budget {
    /// Waits until the time of the query is over; for ever if it has no limit.
    pub async fn time_is_up(&self) -> DataFusionError {
        match self.limits.time {
            Some(time) => tokio::time::sleep(time.saturating_sub(self.ledger.started.elapsed())).await,
            None => future::pending().await,
        }
        self.ledger.lock().used_up.get_or_insert(Which::Time);
        self.error(Which::Time)
    }

    fn admission(&self, spent: &Spent, prompt: u64, answer_max: u64) -> Admission {
        let Limits { calls, input_tokens, output_tokens, time } = self.limits;
        let exceeds = |limit: Option<u64>, value: u64| limit.is_some_and(|limit| value > limit);
        if let Some(which) = spent.used_up {
            Admission::UsedUp(which)
        } else if time.is_some_and(|time| self.ledger.started.elapsed() >= time) {
            Admission::UsedUp(Which::Time)
        } else if exceeds(calls, spent.calls + 1) {
            Admission::UsedUp(Which::Calls)
        } else if exceeds(input_tokens, spent.input_tokens + prompt) {
            Admission::UsedUp(Which::InputTokens)
        } else if exceeds(output_tokens, spent.output_tokens + spent.reserved + answer_max) {
            if spent.reserved > 0 { Admission::Wait } else { Admission::UsedUp(Which::OutputTokens) }
        } else {
            Admission::Granted
        }
    }

    /// The error that ends the query: what was spent, what was done about it, what to raise.
    fn error(&self, which: Which) -> DataFusionError {
        let Spent { calls, input_tokens, output_tokens, .. } = self.ledger.spent();
        let Limits { calls: calls_max, input_tokens: input_max, output_tokens: output_max, time } = self.limits;
        let of = |limit: Option<u64>| limit.map_or(String::new(), |limit| format!(" of {limit}"));
        let of_time = time.map_or(String::new(), |time| format!(" of {}", time.as_secs_f64()));
        let setting = which.setting();
        let spent = format!(
            "{calls}{} calls, {input_tokens}{} prompt tokens, {output_tokens}{} answer tokens, {:.1}{of_time} s; \
             nothing more is asked, and finished calls stay where refrain.cache or refrain.checkpoint keeps them; \
             raise {setting}, or set it to 0 for no limit",
            of(calls_max),
            of(input_max),
            of(output_max),
            self.ledger.started.elapsed().as_secs_f64(),
        );
        DataFusionError::External(Box::new(Error::Budget { which: setting.to_owned(), spent }))
    }
}

/// The requests that one operator has running. Dropping it gives up what was reserved for them.
#[derive(Debug)]
pub(super) struct Account {
    budget: Budget,
    /// The longest answer of a request.
    answer_max: u64,
    running: u64,
}

impl Account {
    /// Starts an account of requests whose answers have at most `answer_max` tokens.
    pub(super) fn new(budget: &Budget, answer_max: u32) -> Self {
        Account { budget: budget.clone(), answer_max: answer_max.into(), running: 0 }
    }

    /// Takes a request of `prompt` tokens into account if the budget allows it.
    pub(super) fn admit(&mut self, prompt: u64) -> bool {
        let mut spent = self.budget.ledger.lock();
        match self.budget.admission(&spent, prompt, self.answer_max) {
            Admission::Granted => {
                spent.calls += 1;
                spent.input_tokens += prompt;
                spent.reserved += self.answer_max;
                spent.running += 1;
                self.running += 1;
                true
            }
            Admission::Wait => false,
            Admission::UsedUp(which) => {
                spent.used_up = Some(which);
                false
            }
        }
    }

    /// Notes that requests have ended, whose answers have so many tokens.
    pub(super) fn settle(&mut self, requests: u64, answers: u64) {
        self.running = self.running.saturating_sub(requests);
        self.release(requests, answers);
    }

    /// Waits until a request of `prompt` tokens may be admitted. Fails if none will be, once no request of the query runs.
    pub(super) async fn room(&self, prompt: u64) -> Result<()> {
        loop {
            let changed = self.budget.ledger.changed.notified();
            let (admission, running) = {
                let spent = self.budget.ledger.lock();
                (self.budget.admission(&spent, prompt, self.answer_max), spent.running)
            };
            match admission {
                Admission::Granted => return Ok(()),
                Admission::UsedUp(which) if running == 0 => return Err(self.budget.error(which)),
                _ => changed.await,
            }
        }
    }

    fn release(&self, requests: u64, answers: u64) {
        let mut spent = self.budget.ledger.lock();
        spent.running -= requests;
        spent.reserved -= requests * self.answer_max;
        spent.output_tokens += answers;
        drop(spent);
        self.budget.ledger.changed.notify_waiters();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.running > 0 {
            self.release(self.running, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(limits: Limits) -> Budget {
        Budget { limits, ledger: Arc::default() }
    }

    fn which(error: DataFusionError) -> (String, String) {
        match Error::from(error) {
            Error::Budget { which, spent } => (which, spent),
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn each_request_is_counted_before_it_is_submitted() {
        let budget = budget(Limits { calls: Some(2), ..Limits::default() });
        let (mut one, mut other) = (Account::new(&budget, 5), Account::new(&budget, 5));
        assert!(one.admit(10) && other.admit(10));
        assert!(!one.admit(10), "a third call");
        one.settle(1, 1);
        other.settle(1, 2);
        let (which, spent) = which(one.room(10).await.unwrap_err());
        assert_eq!(which, "refrain.max_calls");
        assert!(spent.starts_with("2 of 2 calls, 20 prompt tokens, 3 answer tokens, "), "{spent}");
        assert!(spent.contains("raise refrain.max_calls"), "{spent}");
    }

    #[tokio::test]
    async fn answers_give_back_the_room_they_did_not_need() {
        let budget = budget(Limits { output_tokens: Some(10), ..Limits::default() });
        let mut account = Account::new(&budget, 5);
        assert!(account.admit(1) && account.admit(1));
        assert!(!account.admit(1), "there may be no room");
        account.settle(1, 2);
        assert!(!account.admit(1), "2 and 5 and 5");
        account.settle(1, 3);
        account.room(1).await.unwrap();
        assert!(account.admit(1));
        account.settle(1, 1);
        assert_eq!(which(account.room(1).await.unwrap_err()).0, "refrain.max_output_tokens_total");
    }

    #[tokio::test]
    async fn a_refusal_waits_for_what_runs_elsewhere() {
        let budget = budget(Limits { input_tokens: Some(10), ..Limits::default() });
        let (mut one, mut other) = (Account::new(&budget, 5), Account::new(&budget, 5));
        assert!(one.admit(8) && !other.admit(3));
        let refused = tokio::spawn(async move { other.room(3).await });
        tokio::task::yield_now().await;
        assert!(!refused.is_finished());
        drop(one);
        assert_eq!(which(refused.await.unwrap().unwrap_err()).0, "refrain.max_input_tokens");
        assert_eq!(budget.ledger.spent().reserved, 0);
    }

    #[tokio::test]
    async fn time_runs_from_the_start_of_the_query() {
        let budget = budget(Limits { time: Some(Duration::from_millis(1)), ..Limits::default() });
        assert_eq!(which(budget.time_is_up().await).0, "refrain.max_seconds");
        assert!(!Account::new(&budget, 5).admit(1));
    }
}
