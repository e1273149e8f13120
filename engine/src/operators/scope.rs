//! What the operators of one query have in common: the memo, the ledger of its budget, the counters and the failed rows.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime};

use refrain_optimizer::cascade::Report;
use refrain_optimizer::filter_order::Passed;
use refrain_optimizer::statistics::CallStatistics;
use refrain_udf::Layout;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::answers::Key;
use crate::operators::budget::Ledger;
use crate::operators::memo::Memo;

/// Failed rows that are kept with their inputs; further ones are counted only.
const ROW_ERRORS_KEPT: usize = 1000;

/// Shared by all [`LlmExec`](super::LlmExec)s of one physical plan.
#[derive(Debug, Default)]
pub struct QueryScope {
    /// The number of the query in its session; 0 where nobody counts.
    pub query_id: u64,
    /// One value for each distinct question.
    pub memo: Arc<Memo>,
    /// What the query has spent of its budget.
    pub ledger: Arc<Ledger>,
    /// How the prompts of each call begin, by identity of the call: the same in all operators, so that a question stays one.
    layouts: Mutex<HashMap<Key, Layout>>,
    nodes: Mutex<Vec<Arc<NodeStats>>>,
    errors: Mutex<VecDeque<RowError>>,
    prompts_kept: AtomicU64,
    cancelled: watch::Sender<bool>,
}

/// A failed input.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowError {
    /// The node that asked, as in [`NodeStats::id`].
    pub node_id: u32,
    /// The function, such as `ai_filter`.
    pub function: String,
    /// The name of the model.
    pub model: String,
    /// Why: `overflow`, `schema`, `refused`, `rate_limit` or `transport`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The inputs as they stood in the prompt.
    pub inputs: String,
    /// The whole prompt as text.
    pub rendered_prompt: Option<Arc<str>>,
    /// What the model wrote, if it did.
    pub output_text: Option<Arc<str>>,
    /// How often the backend tried.
    pub attempts: u32,
    /// Rows that had these inputs.
    pub rows: u64,
    /// When the failure was noted.
    pub failed_at: SystemTime,
}

/// Counters of one call of one operator, read while it runs.
#[derive(Debug, Default)]
pub struct NodeStats {
    /// Unique in the query.
    pub id: u32,
    /// The function, such as `ai_filter`.
    pub function: String,
    /// The name of the model.
    pub model: String,
    /// Identity of the model; set when it is first asked.
    pub model_digest: OnceLock<String>,
    /// Rows that needed an answer.
    pub rows: AtomicU64,
    /// Distinct questions among them, for each window.
    pub distinct: AtomicU64,
    /// Questions whose answer the query knew already.
    pub memo_hits: AtomicU64,
    /// Questions whose answer an earlier query or run had left in a cache or checkpoint.
    pub cache_hits: AtomicU64,
    /// Requests submitted.
    pub calls: AtomicU64,
    /// Requests completed.
    pub calls_done: AtomicU64,
    /// Prompt tokens of submitted requests.
    pub tokens_total: AtomicU64,
    /// Prompt tokens of completed requests.
    pub prompt_tokens: AtomicU64,
    /// Of these, not computed.
    pub cached_tokens: AtomicU64,
    /// Tokens of answers.
    pub output_tokens: AtomicU64,
    /// Attempts of requests after their first.
    pub retries: AtomicU64,
    /// Prompts that were cut, since they were too long.
    pub truncated: AtomicU64,
    /// Inputs that were asked about in chunks, since their prompts were too long.
    pub chunked: AtomicU64,
    /// The most rows of a window whose rows the cache keeps for calls that ask later; 0 where it keeps none.
    pub kept_rows: AtomicU64,
    /// Answers that the memo of the query had no room for: equal questions that come later are asked again.
    pub not_kept: AtomicU64,
    /// Rows that failed.
    pub failed_rows: AtomicU64,
    errors: Mutex<BTreeMap<&'static str, u64>>,
    times: Mutex<NodeTimes>,
    judged: Mutex<Passed>,
    cascades: Mutex<Vec<CascadeStats>>,
}

/// What a cascade did with one window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CascadeStats {
    /// The sample and what it has shown.
    pub report: Report,
    /// Questions taken for yes without asking the model.
    pub accepted: u64,
    /// Questions taken for no without asking the model.
    pub rejected: u64,
}

/// When a call of an operator asked, and how long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeTimes {
    /// When it first had something to ask.
    pub started_at: Option<SystemTime>,
    /// When it last had all its answers; `None` while it is asking.
    pub finished_at: Option<SystemTime>,
    /// The time it spent asking, summed over windows.
    pub wall: Duration,
    /// Of this, the time that tokens, the order of rows and fields, and requests took to be made before the model was asked.
    pub planning: Duration,
    /// From its first request to the first answer.
    pub first_answer: Option<Duration>,
}

/// How far a query is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// One entry for each call of each operator.
    pub nodes: Vec<NodeProgress>,
}

/// How far one call of one operator is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NodeProgress {
    /// The function, such as `ai_filter`.
    pub function: String,
    /// Rows seen that need an answer.
    pub rows: u64,
    /// Distinct questions among them.
    pub distinct: u64,
    /// Questions answered by a cache or checkpoint.
    pub cache_hits: u64,
    /// Requests submitted.
    pub calls: u64,
    /// Requests completed.
    pub calls_done: u64,
    /// Prompt tokens of completed requests.
    pub prompt_tokens: u64,
    /// Of these, not computed.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Prompt tokens of submitted requests.
    pub tokens_total: u64,
    /// Prompt tokens of completed requests; `tokens_done / tokens_total` is the share that is done.
    pub tokens_done: u64,
    /// Rows that failed.
    pub errors: u64,
}

/// What a query cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct QueryUsage {
    /// Rows that needed an answer, over all calls.
    pub rows: u64,
    /// Distinct questions among them.
    pub distinct: u64,
    /// Requests that the backend has completed.
    pub calls: u64,
    /// Questions answered by a cache or checkpoint, which cost nothing.
    pub cache_hits: u64,
    /// Rows that were answered without a request or a cached answer of their own.
    pub dedup_saved: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Of these, not computed.
    pub cached_tokens: u64,
    /// Tokens of all answers.
    pub output_tokens: u64,
    /// Prompts that were cut, since they were too long.
    pub truncated: u64,
    /// Inputs that were asked about in chunks, since their prompts were too long.
    pub chunked: u64,
    /// Failed rows by reason.
    pub errors: BTreeMap<String, u64>,
    /// Failed rows.
    pub failed_rows: u64,
    /// The time that tokens, orders of rows and fields, and requests took to be made before a model was asked, summed over calls.
    pub planning: Duration,
}

impl QueryScope {
    /// Starts a query of this number.
    pub fn new(query_id: u64) -> Self {
        QueryScope { query_id, ..QueryScope::default() }
    }

    /// Stops the model calls of the query, also while nobody reads its rows.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Waits until the query is cancelled.
    pub async fn cancelled(&self) {
        // The sender is ours, so the wait cannot fail.
        let _ = self.cancelled.subscribe().wait_for(|cancelled| *cancelled).await;
    }

    /// Returns the layout of a call: the one that some operator of the query has chosen, else `wanted`.
    pub(super) fn layout(&self, call: Key, wanted: Layout) -> Layout {
        *lock(&self.layouts).entry(call).or_insert(wanted)
    }

    /// Adds counters for one call of one operator.
    pub fn add_node(&self, function: &str, model: &str) -> Arc<NodeStats> {
        let mut nodes = lock(&self.nodes);
        let stats = Arc::new(NodeStats {
            id: nodes.len() as u32,
            function: function.to_owned(),
            model: model.to_owned(),
            ..NodeStats::default()
        });
        nodes.push(Arc::clone(&stats));
        stats
    }

    /// Returns the counters of all calls so far.
    pub fn nodes(&self) -> Vec<Arc<NodeStats>> {
        lock(&self.nodes).clone()
    }

    /// Returns whether the prompt of one more failure is to be kept: of as many as failed inputs are.
    pub(super) fn keeps_prompt(&self) -> bool {
        self.prompts_kept.fetch_add(1, Ordering::Relaxed) < ROW_ERRORS_KEPT as u64
    }

    /// Keeps a failed input, as long as there is room.
    pub fn add_error(&self, error: RowError) {
        let mut errors = lock(&self.errors);
        if errors.len() < ROW_ERRORS_KEPT {
            errors.push_back(error);
        }
    }

    /// Returns the failed inputs, at most a thousand.
    pub fn row_errors(&self) -> Vec<RowError> {
        lock(&self.errors).iter().cloned().collect()
    }

    /// Returns how far each call is.
    pub fn progress(&self) -> Progress {
        Progress::of(&lock(&self.nodes))
    }

    /// Returns what the query has cost so far.
    pub fn usage(&self) -> QueryUsage {
        QueryUsage::of(&lock(&self.nodes))
    }
}

impl RowError {
    /// Returns what lists show of it: function, reason, message and inputs.
    #[cfg(any(feature = "cli", feature = "flight"))]
    pub(crate) fn listed(self) -> [String; 4] {
        [self.function, self.reason, self.message, self.inputs]
    }
}

impl Progress {
    /// Returns how far each call is.
    pub(crate) fn of(nodes: &[Arc<NodeStats>]) -> Self {
        Progress { nodes: nodes.iter().map(|node| node.progress()).collect() }
    }
}

impl QueryUsage {
    /// Sums what calls have cost so far.
    pub(crate) fn of(nodes: &[Arc<NodeStats>]) -> Self {
        let mut usage = QueryUsage::default();
        for node in nodes {
            let NodeProgress {
                function: _,
                rows,
                distinct,
                cache_hits,
                calls,
                calls_done,
                prompt_tokens,
                cached_tokens,
                output_tokens,
                errors,
                ..
            } = node.progress();
            usage.rows += rows;
            usage.distinct += distinct;
            usage.calls += calls_done;
            usage.cache_hits += cache_hits;
            usage.dedup_saved += rows.saturating_sub(calls + cache_hits);
            usage.prompt_tokens += prompt_tokens;
            usage.cached_tokens += cached_tokens;
            usage.output_tokens += output_tokens;
            usage.failed_rows += errors;
            usage.truncated += node.truncated.load(Ordering::Relaxed);
            usage.planning += node.times().planning;
            usage.chunked += node.chunked.load(Ordering::Relaxed);
            for (reason, rows) in lock(&node.errors).iter() {
                *usage.errors.entry((*reason).to_owned()).or_default() += rows;
            }
        }
        usage
    }
}

impl NodeStats {
    /// Counts failed rows.
    pub fn add_failed(&self, reason: &'static str, rows: u64) {
        self.failed_rows.fetch_add(rows, Ordering::Relaxed);
        *lock(&self.errors).entry(reason).or_default() += rows;
    }

    /// Notes for how many rows it is known whether a predicate over the answer is TRUE, and for how many it is.
    pub(super) fn add_judged(&self, rows: u64, passed: u64) {
        let mut judged = lock(&self.judged);
        judged.rows += rows;
        judged.passed += passed;
    }

    /// Returns the rows whose answer was TRUE or not, and those where it was.
    pub(super) fn judged(&self) -> Passed {
        *lock(&self.judged)
    }

    /// Returns what the session remembers of the call, apart from a predicate over its answers.
    pub(super) fn statistics(&self) -> CallStatistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CallStatistics {
            rows: read(&self.rows),
            distinct: read(&self.distinct),
            calls: read(&self.calls_done),
            prompt_tokens: read(&self.prompt_tokens),
            cached_tokens: read(&self.cached_tokens),
            output_tokens: read(&self.output_tokens),
            judged: 0,
            passed: 0,
        }
    }

    /// Returns the failed rows by reason.
    pub fn errors(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.errors).clone()
    }

    /// Notes what a cascade did with a window.
    pub(super) fn add_cascade(&self, cascade: CascadeStats) {
        lock(&self.cascades).push(cascade);
    }

    /// Returns what cascades did, window by window.
    pub fn cascades(&self) -> Vec<CascadeStats> {
        lock(&self.cascades).clone()
    }

    /// Returns when the call asked, and how long it took.
    pub fn times(&self) -> NodeTimes {
        *lock(&self.times)
    }

    /// Notes that the call has something to ask.
    pub(super) fn started(&self) {
        let mut times = lock(&self.times);
        times.started_at.get_or_insert_with(SystemTime::now);
        times.finished_at = None;
    }

    /// Notes the time from a request to its answer, of the first.
    pub(super) fn answered(&self, after: Duration) {
        lock(&self.times).first_answer.get_or_insert(after);
    }

    /// Notes how long requests took to be made.
    pub(super) fn planned(&self, took: Duration) {
        lock(&self.times).planning += took;
    }

    /// Notes that the call has all answers, which took so long.
    pub(super) fn finished(&self, wall: Duration) {
        let mut times = lock(&self.times);
        times.wall += wall;
        times.finished_at = Some(SystemTime::now());
    }

    /// Returns how far the call is.
    pub fn progress(&self) -> NodeProgress {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let prompt_tokens = read(&self.prompt_tokens);
        NodeProgress {
            function: self.function.clone(),
            rows: read(&self.rows),
            distinct: read(&self.distinct),
            cache_hits: read(&self.cache_hits),
            calls: read(&self.calls),
            calls_done: read(&self.calls_done),
            prompt_tokens,
            cached_tokens: read(&self.cached_tokens),
            output_tokens: read(&self.output_tokens),
            tokens_total: read(&self.tokens_total),
            tokens_done: prompt_tokens,
            errors: read(&self.failed_rows),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
