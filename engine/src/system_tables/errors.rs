//! `ai_errors([query_id])`: inputs whose call failed.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;

use super::columns::Columns;
use super::table::SystemTable;
use crate::operators::RowError;
use crate::queries::QueryLog;

type Row = (u64, RowError);

pub(super) fn table(queries: &Arc<QueryLog>) -> Result<SystemTable> {
    let queries = Arc::clone(queries);
    let rows = move |wanted: Option<u64>| -> Vec<Row> {
        let mut rows = vec![];
        for query in queries.list().iter().filter(|query| wanted.is_none_or(|id| id == query.id)) {
            rows.extend(query.errors().into_iter().map(|error| (query.id, error)));
        }
        rows
    };
    Ok(SystemTable::try_new("ai_errors", columns, rows)?.of_query())
}

fn columns(rows: &[Row]) -> Result<RecordBatch> {
    Columns::of(rows)
        .count("query_id", |(query, _)| Some(*query))
        .text("function", |(_, error)| Some(error.function.as_str()))
        .text("reason", |(_, error)| Some(error.reason.as_str()))
        .text("message", |(_, error)| Some(error.message.as_str()))
        .text("inputs", |(_, error)| Some(error.inputs.as_str()))
        .count("row_count", |(_, error)| Some(error.rows))
        .finish()
}
