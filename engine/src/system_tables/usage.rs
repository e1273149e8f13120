//! `ai_usage()`: what each call of each query has cost, also while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;

use super::columns::Columns;
use super::table::SystemTable;
use crate::operators::NodeStats;
use crate::queries::{QueryLog, QueryRecord};

type Row = (u64, Arc<NodeStats>);

pub(super) fn table(queries: &Arc<QueryLog>) -> Result<SystemTable> {
    let queries = Arc::clone(queries);
    let rows = move |_| -> Vec<Row> {
        let of_query = |query: &Arc<QueryRecord>| {
            let id = query.id;
            query.nodes().into_iter().map(move |node| (id, node))
        };
        queries.list().iter().flat_map(of_query).collect()
    };
    SystemTable::try_new("ai_usage", columns, rows)
}

fn columns(rows: &[Row]) -> Result<RecordBatch> {
    let read = |counter: &AtomicU64| Some(counter.load(Ordering::Relaxed));
    Columns::of(rows)
        .count("query_id", |(query, _)| Some(*query))
        .count("node_id", |(_, node)| Some(u64::from(node.id)))
        .text("function", |(_, node)| Some(node.function.as_str()))
        .text("model", |(_, node)| Some(node.model.as_str()))
        .text("model_digest", |(_, node)| node.model_digest.get().map(String::as_str))
        .count("rows", |(_, node)| read(&node.rows))
        .count("distinct_rows", |(_, node)| read(&node.distinct))
        .count("calls", |(_, node)| read(&node.calls))
        .count("cache_hits", |(_, node)| read(&node.cache_hits))
        .count("dedup_saved", |(_, node)| {
            let asked = read(&node.calls)? + read(&node.cache_hits)?;
            Some(read(&node.rows)?.saturating_sub(asked))
        })
        .count("prompt_tokens", |(_, node)| read(&node.prompt_tokens))
        .count("cached_tokens", |(_, node)| read(&node.cached_tokens))
        .count("output_tokens", |(_, node)| read(&node.output_tokens))
        .count("errors", |(_, node)| read(&node.failed_rows))
        .count("retries", |(_, node)| read(&node.retries))
        // A pass runs the rows of several operators, and a backend hands over whole answers, never a first token.
        .number("gpu_seconds", |_| None)
        .number("wall_seconds", |(_, node)| Some(node.times().wall.as_secs_f64()))
        .number("ttft_ms_p50", |_| None)
        .number("first_answer_ms", |(_, node)| node.times().first_answer.map(|time| time.as_secs_f64() * 1000.0))
        .time("started_at", |(_, node)| node.times().started_at)
        .time("finished_at", |(_, node)| node.times().finished_at)
        .finish()
}
