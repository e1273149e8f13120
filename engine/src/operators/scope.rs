//! What the operators of one query have in common: the memo, the counters and the failed rows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::operators::memo::Memo;

/// Failed rows that are kept with their inputs; further ones are counted only.
const ROW_ERRORS_KEPT: usize = 1000;

/// Shared by all [`LlmExec`](super::LlmExec)s of one physical plan.
#[derive(Debug, Default)]
pub struct QueryScope {
    /// One value for each distinct question.
    pub memo: Arc<Memo>,
    nodes: Mutex<Vec<Arc<NodeStats>>>,
    errors: Mutex<VecDeque<RowError>>,
    cancelled: watch::Sender<bool>,
}

/// A failed input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowError {
    /// The function, such as `ai_filter`.
    pub function: String,
    /// Why: `overflow`, `schema`, `refused`, `rate_limit` or `transport`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The inputs as they stood in the prompt.
    pub inputs: String,
    /// Rows that had these inputs.
    pub rows: u64,
}

/// Counters of one call of one operator, read while it runs.
#[derive(Debug, Default)]
pub struct NodeStats {
    /// Unique in the query.
    pub id: u32,
    /// The function, such as `ai_filter`.
    pub function: String,
    /// Rows that needed an answer.
    pub rows: AtomicU64,
    /// Distinct questions among them, for each window.
    pub distinct: AtomicU64,
    /// Questions whose answer the query knew already.
    pub memo_hits: AtomicU64,
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
    /// Rows that failed.
    pub failed_rows: AtomicU64,
    errors: Mutex<BTreeMap<&'static str, u64>>,
}

/// How far a query is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// One entry for each call of each operator.
    pub nodes: Vec<NodeProgress>,
}

/// How far one call of one operator is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeProgress {
    /// The function, such as `ai_filter`.
    pub function: String,
    /// Rows seen that need an answer.
    pub rows: u64,
    /// Distinct questions among them.
    pub distinct: u64,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryUsage {
    /// Rows that needed an answer, over all calls.
    pub rows: u64,
    /// Distinct questions among them.
    pub distinct: u64,
    /// Requests that the backend has completed.
    pub calls: u64,
    /// Rows that were answered without a request of their own.
    pub dedup_saved: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Of these, not computed.
    pub cached_tokens: u64,
    /// Tokens of all answers.
    pub output_tokens: u64,
    /// Failed rows by reason.
    pub errors: BTreeMap<String, u64>,
    /// Failed rows.
    pub failed_rows: u64,
}

impl QueryScope {
    /// Stops the model calls of the query, also while nobody reads its rows.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Waits until the query is cancelled.
    pub async fn cancelled(&self) {
        // The sender is ours, so the wait cannot fail.
        let _ = self.cancelled.subscribe().wait_for(|cancelled| *cancelled).await;
    }

    /// Adds counters for one call of one operator.
    pub fn add_node(&self, function: &str) -> Arc<NodeStats> {
        let mut nodes = lock(&self.nodes);
        let stats = Arc::new(NodeStats { id: nodes.len() as u32, function: function.to_owned(), ..NodeStats::default() });
        nodes.push(Arc::clone(&stats));
        stats
    }

    /// Returns the counters of all calls.
    pub fn nodes(&self) -> Vec<Arc<NodeStats>> {
        lock(&self.nodes).clone()
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
        Progress { nodes: lock(&self.nodes).iter().map(|node| node.progress()).collect() }
    }

    /// Returns what the query has cost so far.
    pub fn usage(&self) -> QueryUsage {
        let mut usage = QueryUsage::default();
        for node in lock(&self.nodes).iter() {
            let NodeProgress {
                function: _,
                rows,
                distinct,
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
            usage.dedup_saved += rows.saturating_sub(calls);
            usage.prompt_tokens += prompt_tokens;
            usage.cached_tokens += cached_tokens;
            usage.output_tokens += output_tokens;
            usage.failed_rows += errors;
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

    /// Returns how far the call is.
    pub fn progress(&self) -> NodeProgress {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let prompt_tokens = read(&self.prompt_tokens);
        NodeProgress {
            function: self.function.clone(),
            rows: read(&self.rows),
            distinct: read(&self.distinct),
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
