//! `ai_queries()`: the queries that run, and those that ended lately.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;

use super::columns::Columns;
use super::table::SystemTable;
use crate::queries::{QueryLog, Snapshot};

pub(super) fn table(queries: &Arc<QueryLog>) -> Result<SystemTable> {
    let queries = Arc::clone(queries);
    SystemTable::try_new("ai_queries", columns, move |_| queries.list().into_iter().map(Snapshot::of).collect())
}

fn columns(rows: &[Snapshot]) -> Result<RecordBatch> {
    Columns::of(rows)
        .count("query_id", |row: &Snapshot| Some(row.query.id))
        .text("session_id", |row| Some(row.query.session_id.as_str()))
        .text("user", |row| row.query.user.as_deref())
        .text("sql", |row| Some(row.query.sql.as_str()))
        .text("state", |row| Some(row.state.name()))
        .time("started_at", |row| Some(row.query.started_at))
        .number("elapsed_s", |row| Some(row.elapsed.as_secs_f64()))
        .count("tokens_done", |row| row.spent.as_ref().map(|spent| spent.tokens_done))
        .count("tokens_total_est", |row| row.spent.as_ref().map(|spent| spent.tokens_total))
        .number("progress", Snapshot::progress)
        .number("eta_s", Snapshot::eta_s)
        .number("prefix_hit_ratio", Snapshot::prefix_hit_ratio)
        .count("rows_out", |row| Some(row.query.rows_out()))
        .count("errors", |row| row.spent.as_ref().map(|spent| spent.errors))
        .number("budget_spent", |row| row.query.budget_spent())
        .finish()
}
