//! `ai_queries()`: the queries that run, and those that ended lately.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;

use super::columns::Columns;
use super::table::SystemTable;
use crate::operators::{NodeProgress, NodeStats};
use crate::queries::{QueryLog, QueryRecord, QueryState};

/// A query at one moment.
struct Row {
    query: Arc<QueryRecord>,
    state: QueryState,
    elapsed: Duration,
    /// Sums over its calls; `None` if it asks no model.
    spent: Option<NodeProgress>,
}

pub(super) fn table(queries: &Arc<QueryLog>) -> Result<SystemTable> {
    let queries = Arc::clone(queries);
    SystemTable::try_new("ai_queries", columns, move |_| queries.list().into_iter().map(Row::of).collect())
}

fn columns(rows: &[Row]) -> Result<RecordBatch> {
    Columns::of(rows)
        .count("query_id", |row: &Row| Some(row.query.id))
        .text("session_id", |row| Some(row.query.session_id.as_str()))
        .text("user", |row| row.query.user.as_deref())
        .text("sql", |row| Some(row.query.sql.as_str()))
        .text("state", |row| Some(row.state.name()))
        .time("started_at", |row| Some(row.query.started_at))
        .number("elapsed_s", |row| Some(row.elapsed.as_secs_f64()))
        .count("tokens_done", |row| row.spent.as_ref().map(|spent| spent.tokens_done))
        .count("tokens_total_est", |row| row.spent.as_ref().map(|spent| spent.tokens_total))
        .number("progress", Row::progress)
        .number("eta_s", Row::eta_s)
        .number("prefix_hit_ratio", |row| {
            let spent = row.spent.as_ref()?;
            share(spent.cached_tokens, spent.prompt_tokens)
        })
        .count("rows_out", |row| Some(row.query.rows_out()))
        .count("errors", |row| row.spent.as_ref().map(|spent| spent.errors))
        .number("budget_spent", |row| row.query.budget_spent())
        .finish()
}

impl Row {
    fn of(query: Arc<QueryRecord>) -> Self {
        // The state first, so that a query that ends in between is shown as running with all it has done.
        let (state, elapsed) = (query.state(), query.elapsed());
        let spent = query.nodes().iter().map(|node| NodeStats::progress(node)).reduce(sum);
        Row { query, state, elapsed, spent }
    }

    /// The share of submitted prompt tokens that is done. Rows that were not read yet are not known.
    fn progress(&self) -> Option<f64> {
        match self.state {
            QueryState::Finished => Some(1.0),
            _ => self.spent.as_ref().and_then(|spent| share(spent.tokens_done, spent.tokens_total)),
        }
    }

    fn eta_s(&self) -> Option<f64> {
        let progress = self.progress().filter(|progress| *progress > 0.0)?;
        (self.state == QueryState::Running).then(|| self.elapsed.as_secs_f64() * (1.0 - progress).max(0.0) / progress)
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| (part as f64 / whole as f64).min(1.0))
}

fn sum(mut total: NodeProgress, node: NodeProgress) -> NodeProgress {
    total.tokens_done += node.tokens_done;
    total.tokens_total += node.tokens_total;
    total.prompt_tokens += node.prompt_tokens;
    total.cached_tokens += node.cached_tokens;
    total.errors += node.errors;
    total
}
