//! The queries of a session: those that run, so that they can be watched and killed, and a bounded history of those that ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use crate::api::CancelHandle;
use crate::operators::{NodeStats, QueryScope, RowError};

/// The longest text of a statement that is kept, in bytes.
const SQL_BYTES_MAX: usize = 16 << 10;

/// How much of ended queries is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HistoryLimits {
    /// Queries.
    pub(crate) queries: usize,
    /// Failed inputs, over all of these queries.
    pub(crate) errors: usize,
}

/// The queries of a session, oldest first.
#[derive(Debug, Default)]
pub(crate) struct QueryLog {
    queries: Mutex<VecDeque<Arc<QueryRecord>>>,
    /// Numbers begin at 1.
    last_id: AtomicU64,
}

/// One query.
#[derive(Debug)]
pub(crate) struct QueryRecord {
    pub(crate) id: u64,
    pub(crate) session_id: String,
    /// Its text without secrets.
    pub(crate) sql: String,
    pub(crate) started_at: SystemTime,
    started: Instant,
    rows_out: AtomicU64,
    work: Mutex<Work>,
}

#[derive(Debug)]
enum Work {
    Running {
        scope: Arc<QueryScope>,
        cancel: CancelHandle,
    },
    /// The memo of the query is not kept.
    Ended {
        state: QueryState,
        elapsed: Duration,
        nodes: Vec<Arc<NodeStats>>,
        errors: Vec<RowError>,
    },
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
    /// Enters a query that starts now. `sql` holds no secret any more.
    pub(crate) fn begin(
        &self,
        sql: &str,
        session_id: &str,
        scope: &Arc<QueryScope>,
        cancel: CancelHandle,
        limits: HistoryLimits,
    ) -> RunningQuery {
        let record = Arc::new(QueryRecord {
            id: self.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            session_id: session_id.to_owned(),
            sql: shortened(sql),
            started_at: SystemTime::now(),
            started: Instant::now(),
            rows_out: AtomicU64::new(0),
            work: Mutex::new(Work::Running { scope: Arc::clone(scope), cancel }),
        });
        let mut queries = self.lock();
        forget(&mut queries, limits);
        queries.push_back(Arc::clone(&record));
        RunningQuery { record }
    }

    /// Returns all queries that are remembered, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<QueryRecord>> {
        self.lock().iter().cloned().collect()
    }

    /// Cancels a query. Returns whether it was running.
    pub(crate) fn kill(&self, id: u64) -> bool {
        let cancel = self.lock().iter().find(|query| query.id == id).and_then(|query| query.cancel_handle());
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

    /// Returns how long the query has run, or ran.
    pub(crate) fn elapsed(&self) -> Duration {
        match &*lock(&self.work) {
            Work::Running { .. } => self.started.elapsed(),
            Work::Ended { elapsed, .. } => *elapsed,
        }
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

    fn cancel_handle(&self) -> Option<CancelHandle> {
        match &*lock(&self.work) {
            Work::Running { cancel, .. } => Some(cancel.clone()),
            Work::Ended { .. } => None,
        }
    }

    fn end(&self, state: QueryState) {
        let mut work = lock(&self.work);
        if let Work::Running { scope, .. } = &*work {
            let (nodes, errors) = (scope.nodes(), scope.row_errors());
            *work = Work::Ended { state, elapsed: self.started.elapsed(), nodes, errors };
        }
    }
}

/// The entry of a query that runs. Dropped before its end, the query counts as cancelled.
#[derive(Debug)]
pub(crate) struct RunningQuery {
    record: Arc<QueryRecord>,
}

impl RunningQuery {
    /// Returns the number of the query.
    pub(crate) fn id(&self) -> u64 {
        self.record.id
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
    use futures::future::AbortHandle;

    use super::*;

    fn begin(log: &QueryLog, sql: &str, limits: HistoryLimits) -> (RunningQuery, Arc<QueryScope>) {
        let scope = Arc::new(QueryScope::default());
        let cancel = CancelHandle::new(AbortHandle::new_pair().0, Arc::clone(&scope));
        (log.begin(sql, "s", &scope, cancel, limits), scope)
    }

    fn texts(log: &QueryLog) -> Vec<String> {
        log.list().iter().map(|query| format!("{} {}", query.sql, query.state().name())).collect()
    }

    #[test]
    fn running_queries_are_kept_and_the_oldest_ended_are_forgotten() {
        let (log, limits) = (QueryLog::default(), HistoryLimits { queries: 1, errors: 10 });
        let (a, _) = begin(&log, "a", limits);
        for name in ["b", "c"] {
            let (query, _) = begin(&log, name, limits);
            query.end(QueryState::Finished);
        }
        drop(begin(&log, "d", limits));
        assert_eq!(texts(&log), ["a running", "c finished", "d cancelled"]);
        a.end(QueryState::Failed);
        let (e, _) = begin(&log, "e", HistoryLimits { queries: 0, errors: 0 });
        assert_eq!(texts(&log), ["e running"]);
        assert_eq!(e.id(), 5);
    }

    #[test]
    fn failed_inputs_of_the_oldest_are_forgotten_first() {
        let (log, limits) = (QueryLog::default(), HistoryLimits { queries: 9, errors: 3 });
        for _ in 0..2 {
            let (query, scope) = begin(&log, "q", limits);
            for _ in 0..2 {
                scope.add_error(RowError::default());
            }
            query.end(QueryState::Finished);
        }
        begin(&log, "next", limits).0.end(QueryState::Finished);
        assert_eq!(log.list().iter().map(|query| query.errors().len()).collect::<Vec<_>>(), [1, 2, 0]);
    }

    #[test]
    fn only_running_queries_can_be_killed() {
        let (log, limits) = (QueryLog::default(), HistoryLimits { queries: 9, errors: 9 });
        let (query, _scope) = begin(&log, "a", limits);
        assert!(log.kill(query.id()));
        query.end(QueryState::Cancelled);
        assert!(!log.kill(query.id()) && !log.kill(99));
    }

    #[test]
    fn long_statements_are_cut() {
        let kept = shortened(&"é".repeat(SQL_BYTES_MAX));
        assert!(kept.len() <= SQL_BYTES_MAX + 3 && kept.ends_with('…'));
    }
}
