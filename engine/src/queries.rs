//! The queries of a session: those that run, so that they can be watched and killed, and a bounded history of those that ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use datafusion::physical_plan::ExecutionPlan;
use futures::future::AbortHandle;

use crate::api::CancelHandle;
use crate::explain;
use crate::operators::{Ledger, Limits, NodeProgress, NodeStats, QueryScope, RowError};

/// The longest text of a statement that is kept, in bytes.
const SQL_BYTES_MAX: usize = 16 << 10;

/// The longest plan of an ended query that is kept, in bytes of JSON.
const PLAN_BYTES_MAX: usize = 32 << 10;

/// How much of ended queries is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HistoryLimits {
    /// Queries.
    pub(crate) queries: usize,
    /// Failed inputs, over all of these queries.
    pub(crate) errors: usize,
}

/// The queries of a session, or of the sessions of one user, oldest first.
#[derive(Debug, Default)]
pub(crate) struct QueryLog {
    queries: Mutex<VecDeque<Arc<QueryRecord>>>,
    /// Whose queries these are, where that is known.
    user: Option<Arc<str>>,
    /// Numbers begin at 1.
    last_id: AtomicU64,
}

/// One query.
#[derive(Debug)]
pub(crate) struct QueryRecord {
    pub(crate) id: u64,
    pub(crate) session_id: String,
    pub(crate) user: Option<Arc<str>>,
    /// Its text without secrets.
    pub(crate) sql: String,
    pub(crate) started_at: SystemTime,
    started: Instant,
    budget: Limits,
    ledger: Arc<Ledger>,
    rows_out: AtomicU64,
    work: Mutex<Work>,
}

#[derive(Debug)]
enum Work {
    Running {
        scope: Arc<QueryScope>,
        cancel: CancelHandle,
        /// Set once the query is planned.
        plan: Option<Arc<dyn ExecutionPlan>>,
    },
    /// Neither the memo of the query is kept nor its operators, which may hold tables.
    Ended {
        state: QueryState,
        elapsed: Duration,
        nodes: Vec<Arc<NodeStats>>,
        errors: Vec<RowError>,
        /// As JSON.
        plan: Option<String>,
    },
}

/// A query at one moment.
pub(crate) struct Snapshot {
    pub(crate) query: Arc<QueryRecord>,
    pub(crate) state: QueryState,
    pub(crate) elapsed: Duration,
    /// Sums over its calls; `None` if it asks no model.
    pub(crate) spent: Option<NodeProgress>,
}

/// Where a query stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryState {
    Running,
    Finished,
    Failed,
    Cancelled,
}

impl QueryState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            QueryState::Running => "running",
            QueryState::Finished => "finished",
            QueryState::Failed => "failed",
            QueryState::Cancelled => "cancelled",
        }
    }
}

impl QueryLog {
    /// Makes the log of a user, whose sessions may share it.
    pub(crate) fn of_user(user: Arc<str>) -> Self {
        QueryLog { user: Some(user), ..QueryLog::default() }
    }

    /// Enters a query that starts now. `sql` holds no secret any more; `rows` ends the stream of its rows.
    pub(crate) fn begin(
        &self,
        sql: &str,
        session_id: &str,
        rows: AbortHandle,
        budget: Limits,
        limits: HistoryLimits,
    ) -> RunningQuery {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let scope = Arc::new(QueryScope::new(id));
        let cancel = CancelHandle::new(rows, Arc::clone(&scope));
        let record = Arc::new(QueryRecord {
            id,
            session_id: session_id.to_owned(),
            user: self.user.clone(),
            sql: shortened(sql),
            started_at: SystemTime::now(),
            started: Instant::now(),
            budget,
            ledger: Arc::clone(&scope.ledger),
            rows_out: AtomicU64::new(0),
            work: Mutex::new(Work::Running { scope: Arc::clone(&scope), cancel: cancel.clone(), plan: None }),
        });
        let mut queries = self.lock();
        forget(&mut queries, limits);
        queries.push_back(Arc::clone(&record));
        RunningQuery { record, scope, cancel }
    }

    /// Returns all queries that are remembered, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<QueryRecord>> {
        self.lock().iter().cloned().collect()
    }

    /// Finds a query that is remembered.
    pub(crate) fn find(&self, id: u64) -> Option<Arc<QueryRecord>> {
        self.lock().iter().find(|query| query.id == id).cloned()
    }

    /// Returns the last query of a session.
    #[cfg(feature = "flight")]
    pub(crate) fn last_of(&self, session_id: &str) -> Option<Arc<QueryRecord>> {
        self.lock().iter().rev().find(|query| query.session_id == session_id).cloned()
    }

    /// Cancels a query. Returns whether it was running.
    pub(crate) fn kill(&self, id: u64) -> bool {
        let cancel = self.find(id).and_then(|query| query.cancel_handle());
        cancel.as_ref().inspect(|cancel| cancel.cancel()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<QueryRecord>>> {
        lock(&self.queries)
    }
}

/// Forgets the oldest ended queries above the limit, and the failed inputs of the oldest above theirs.
fn forget(queries: &mut VecDeque<Arc<QueryRecord>>, limits: HistoryLimits) {
    let ended = queries.iter().filter(|query| query.state() != QueryState::Running).count();
    let mut surplus = ended.saturating_sub(limits.queries);
    queries.retain(|query| {
        let forgotten = surplus > 0 && query.state() != QueryState::Running;
        surplus -= usize::from(forgotten);
        !forgotten
    });
    let mut room = limits.errors;
    for query in queries.iter().rev() {
        if let Work::Ended { errors, .. } = &mut *lock(&query.work) {
            errors.truncate(room);
            room -= errors.len();
        }
    }
}

impl QueryRecord {
    pub(crate) fn state(&self) -> QueryState {
        match &*lock(&self.work) {
            Work::Running { .. } => QueryState::Running,
            Work::Ended { state, .. } => *state,
        }
    }

    /// Whether it has not ended.
    #[cfg(feature = "flight")]
    pub(crate) fn is_running(&self) -> bool {
        self.state() == QueryState::Running
    }

    /// Returns how long the query has run, or ran.
    pub(crate) fn elapsed(&self) -> Duration {
        match &*lock(&self.work) {
            Work::Running { .. } => self.started.elapsed(),
            Work::Ended { elapsed, .. } => *elapsed,
        }
    }

    /// Returns the share that is spent of the limit nearest to its end; `None` without limits.
    pub(crate) fn budget_spent(&self) -> Option<f64> {
        let spent = self.ledger.spent();
        let share = |spent: u64, limit: Option<u64>| limit.map(|limit| spent as f64 / limit as f64);
        let shares = [
            share(spent.calls, self.budget.calls),
            share(spent.input_tokens, self.budget.input_tokens),
            share(spent.output_tokens, self.budget.output_tokens),
            self.budget.time.map(|limit| self.elapsed().as_secs_f64() / limit.as_secs_f64()),
        ];
        shares.into_iter().flatten().reduce(f64::max)
    }

    /// Returns how many rows the query has given.
    pub(crate) fn rows_out(&self) -> u64 {
        self.rows_out.load(Ordering::Relaxed)
    }

    /// Returns the counters of its calls.
    pub(crate) fn nodes(&self) -> Vec<Arc<NodeStats>> {
        match &*lock(&self.work) {
            Work::Running { scope, .. } => scope.nodes(),
            Work::Ended { nodes, .. } => nodes.clone(),
        }
    }

    /// Returns its failed inputs, as many as are remembered.
    pub(crate) fn errors(&self) -> Vec<RowError> {
        match &*lock(&self.work) {
            Work::Running { scope, .. } => scope.row_errors(),
            Work::Ended { errors, .. } => errors.clone(),
        }
    }

    /// Returns its plan as JSON, with what it has done so far; `None` before it is planned, and where it is too long to be kept.
    pub(crate) fn plan(&self) -> Option<String> {
        match &*lock(&self.work) {
            Work::Running { plan, .. } => plan.as_ref().map(|plan| explain::to_json(plan).to_string()),
            Work::Ended { plan, .. } => plan.clone(),
        }
    }

    fn cancel_handle(&self) -> Option<CancelHandle> {
        match &*lock(&self.work) {
            Work::Running { cancel, .. } => Some(cancel.clone()),
            Work::Ended { .. } => None,
        }
    }

    fn end(&self, state: QueryState) {
        let mut work = lock(&self.work);
        if let Work::Running { scope, plan, .. } = &*work {
            let (nodes, errors) = (scope.nodes(), scope.row_errors());
            let plan = plan.as_ref().map(|plan| explain::to_json(plan).to_string());
            let plan = plan.filter(|plan| plan.len() <= PLAN_BYTES_MAX);
            *work = Work::Ended { state, elapsed: self.started.elapsed(), nodes, errors, plan };
        }
    }
}

impl Snapshot {
    /// Looks at a query now.
    pub(crate) fn of(query: Arc<QueryRecord>) -> Self {
        // The state first, so that a query that ends in between is shown as running with all it has done.
        let (state, elapsed) = (query.state(), query.elapsed());
        let spent = query.nodes().iter().map(|node| NodeStats::progress(node)).reduce(sum);
        Snapshot { query, state, elapsed, spent }
    }

    /// Returns the share of submitted prompt tokens that is done. Rows that were not read yet are not known.
    pub(crate) fn progress(&self) -> Option<f64> {
        match self.state {
            QueryState::Finished => Some(1.0),
            _ => self.spent.as_ref().and_then(|spent| share(spent.tokens_done, spent.tokens_total)),
        }
    }

    /// Returns the seconds that a running query still takes at its pace so far.
    pub(crate) fn eta_s(&self) -> Option<f64> {
        let progress = self.progress().filter(|progress| *progress > 0.0)?;
        (self.state == QueryState::Running).then(|| self.elapsed.as_secs_f64() * (1.0 - progress).max(0.0) / progress)
    }

    /// Returns the share of prompt tokens that was not computed.
    pub(crate) fn prefix_hit_ratio(&self) -> Option<f64> {
        let spent = self.spent.as_ref()?;
        share(spent.cached_tokens, spent.prompt_tokens)
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| (part as f64 / whole as f64).min(1.0))
}

fn sum(mut total: NodeProgress, node: NodeProgress) -> NodeProgress {
    total.rows += node.rows;
    total.calls += node.calls;
    total.calls_done += node.calls_done;
    total.tokens_done += node.tokens_done;
    total.tokens_total += node.tokens_total;
    total.prompt_tokens += node.prompt_tokens;
    total.cached_tokens += node.cached_tokens;
    total.output_tokens += node.output_tokens;
    total.errors += node.errors;
    total
}

/// The entry of a query that runs. Dropped before its end, the query counts as cancelled.
#[derive(Debug)]
pub(crate) struct RunningQuery {
    record: Arc<QueryRecord>,
    /// What its operators have in common.
    pub(crate) scope: Arc<QueryScope>,
    /// Cancels it from elsewhere.
    pub(crate) cancel: CancelHandle,
}

impl RunningQuery {
    /// Returns the number of the query.
    pub(crate) fn id(&self) -> u64 {
        self.record.id
    }

    /// Returns the plan that runs as JSON, with what it has done so far.
    pub(crate) fn plan(&self) -> Option<String> {
        self.record.plan()
    }

    /// Notes the plan that runs.
    pub(crate) fn planned(&self, planned: &Arc<dyn ExecutionPlan>) {
        if let Work::Running { plan, .. } = &mut *lock(&self.record.work) {
            *plan = Some(Arc::clone(planned));
        }
    }

    /// Counts rows that were given.
    pub(crate) fn add_rows(&self, rows: usize) {
        self.record.rows_out.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Notes how the query has ended. The first word counts.
    pub(crate) fn end(&self, state: QueryState) {
        self.record.end(state);
    }
}

impl Drop for RunningQuery {
    fn drop(&mut self) {
        self.record.end(QueryState::Cancelled);
    }
}

fn shortened(sql: &str) -> String {
    match sql.len() > SQL_BYTES_MAX {
        true => format!("{}…", &sql[..sql.floor_char_boundary(SQL_BYTES_MAX)]),
        false => sql.to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(log: &QueryLog, sql: &str, limits: HistoryLimits) -> RunningQuery {
        log.begin(sql, "s", AbortHandle::new_pair().0, Limits::default(), limits)
    }

    fn failed_input() -> RowError {
        RowError {
            node_id: 0,
            function: String::new(),
            model: String::new(),
            reason: String::new(),
            message: String::new(),
            inputs: String::new(),
            rendered_prompt: None,
            output_text: None,
            attempts: 1,
            rows: 1,
            failed_at: SystemTime::now(),
        }
    }

    fn texts(log: &QueryLog) -> Vec<String> {
        log.list().iter().map(|query| format!("{} {}", query.sql, query.state().name())).collect()
    }

    #[test]
    fn running_queries_are_kept_and_the_oldest_ended_are_forgotten() {
        let (log, limits) = (QueryLog::default(), HistoryLimits { queries: 1, errors: 10 });
        let a = begin(&log, "a", limits);
        for name in ["b", "c"] {
            begin(&log, name, limits).end(QueryState::Finished);
        }
        drop(begin(&log, "d", limits));
        assert_eq!(texts(&log), ["a running", "c finished", "d cancelled"]);
        a.end(QueryState::Failed);
        let e = begin(&log, "e", HistoryLimits { queries: 0, errors: 0 });
        assert_eq!(texts(&log), ["e running"]);
        assert_eq!(e.id(), 5);
    }

    #[test]
    fn failed_inputs_of_the_oldest_are_forgotten_first() {
        let (log, limits) = (QueryLog::default(), HistoryLimits { queries: 9, errors: 3 });
        for _ in 0..2 {
            let query = begin(&log, "q", limits);
            for _ in 0..2 {
                query.scope.add_error(failed_input());
            }
            query.end(QueryState::Finished);
        }
        begin(&log, "next", limits).end(QueryState::Finished);
        assert_eq!(log.list().iter().map(|query| query.errors().len()).collect::<Vec<_>>(), [1, 2, 0]);
    }

    #[test]
    fn only_running_queries_can_be_killed() {
        let (log, limits) = (QueryLog::default(), HistoryLimits { queries: 9, errors: 9 });
        let query = begin(&log, "a", limits);
        assert!(log.kill(query.id()));
        query.end(QueryState::Cancelled);
        assert!(!log.kill(query.id()) && !log.kill(99));
    }

    #[test]
    fn the_budget_is_that_of_the_limit_nearest_to_its_end() {
        let log = QueryLog::default();
        let budget =
            |limits| log.begin("q", "s", AbortHandle::new_pair().0, limits, HistoryLimits { queries: 9, errors: 9 });
        assert_eq!(budget(Limits::default()).record.budget_spent(), None);
        let limits = Limits { calls: Some(10), time: Some(Duration::from_secs(3600)), ..Limits::default() };
        let spent = budget(limits).record.budget_spent().unwrap();
        assert!(spent > 0.0 && spent < 0.1, "{spent}");
    }

    #[test]
    fn long_statements_are_cut() {
        let kept = shortened(&"é".repeat(SQL_BYTES_MAX));
        assert!(kept.len() <= SQL_BYTES_MAX + 3 && kept.ends_with('…'));
    }
}
