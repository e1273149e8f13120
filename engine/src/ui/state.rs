//! The server, its models and its queries as JSON. Times are in seconds, moments in milliseconds since 1970.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use refrain_serving::Stats;
use serde_json::{Value, json};

use crate::flight::{Session, Shared};
use crate::loading::Loading;
use crate::operators::{NodeProgress, NodeStats, RowError};
use crate::queries::{QueryRecord, QueryState, Snapshot};

/// Ended queries that are listed.
const ENDED: usize = 50;

/// Failed rows of one query that are shown.
const ERRORS: usize = 200;

/// Returns the server, its models, and the queries of a session's user, newest first.
pub(super) fn all(shared: &Shared, session: &Session) -> Value {
    let (running, waiting) = shared.admission.counts();
    let models = shared.sessions.base().model_catalog();
    json!({
        "now": millis(SystemTime::now()),
        "server": {
            "running": running,
            "waiting": waiting,
            "sessions": shared.sessions.count(),
            "is_draining": shared.is_draining(),
        },
        "models": models.loaded_stats().iter().map(model).collect::<Vec<_>>(),
        "loading": models.loading().iter().map(load).collect::<Vec<_>>(),
        "queries": queries(session),
    })
}

fn model((name, stats): &(String, Stats)) -> Value {
    json!({
        "name": name,
        "steps": stats.steps,
        "computed_tokens": stats.computed_tokens,
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
        "output_tokens": stats.output_tokens,
        "completed": stats.completed,
        "cancelled": stats.cancelled,
        "pending": stats.pending,
        "kv_pages_used": stats.pages_used,
        "kv_pages_total": stats.pages_total,
    })
}

fn load((name, loading): &(String, Loading)) -> Value {
    json!({"name": name, "bytes": loading.done, "bytes_total": loading.total, "elapsed_s": loading.elapsed.as_secs_f64()})
}

/// Returns all that run, and those that ended last.
fn queries(session: &Session) -> Vec<Value> {
    let mut room = ENDED;
    let mut listed = vec![];
    for found in session.db.query_log().list().into_iter().rev() {
        let is_running = found.state() == QueryState::Running;
        if is_running || room > 0 {
            listed.push(query(found));
            room -= usize::from(!is_running);
        }
    }
    listed
}

/// Returns a query and how far it is.
pub(super) fn query(query: Arc<QueryRecord>) -> Value {
    let now = Snapshot::of(query);
    let spent = now.spent.as_ref().map(|spent: &NodeProgress| {
        json!({
            "rows": spent.rows,
            "calls": spent.calls,
            "calls_done": spent.calls_done,
            "prompt_tokens": spent.prompt_tokens,
            "cached_tokens": spent.cached_tokens,
            "output_tokens": spent.output_tokens,
            "errors": spent.errors,
        })
    });
    json!({
        "id": now.query.id,
        "session": now.query.session_id,
        "user": now.query.user,
        "sql": now.query.sql,
        "state": now.state.name(),
        "started_at": millis(now.query.started_at),
        "elapsed_s": now.elapsed.as_secs_f64(),
        "progress": now.progress(),
        "eta_s": now.eta_s(),
        "prefix_hit": now.prefix_hit_ratio(),
        "rows_out": now.query.rows_out(),
        "budget_spent": now.query.budget_spent(),
        "spent": spent,
    })
}

/// Returns a query with its plan, its calls and its failed rows.
pub(super) fn query_in_full(found: Arc<QueryRecord>) -> Value {
    let (plan, nodes, errors) = (found.plan(), found.nodes(), found.errors());
    json!({
        "query": query(found),
        // It was written as JSON.
        "plan": plan.and_then(|plan| serde_json::from_str::<Value>(&plan).ok()),
        "calls": nodes.iter().map(|node| call(node)).collect::<Vec<_>>(),
        "errors": errors.iter().take(ERRORS).map(failed_row).collect::<Vec<_>>(),
        "errors_kept": errors.len(),
    })
}

fn call(node: &NodeStats) -> Value {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    json!({
        "function": node.function,
        "model": node.model,
        "rows": read(&node.rows),
        "distinct": read(&node.distinct),
        "calls": read(&node.calls),
        "cache_hits": read(&node.cache_hits),
        "prompt_tokens": read(&node.prompt_tokens),
        "cached_tokens": read(&node.cached_tokens),
        "output_tokens": read(&node.output_tokens),
        "errors": node.errors(),
        "wall_s": node.times().wall.as_secs_f64(),
    })
}

fn failed_row(error: &RowError) -> Value {
    json!({
        "function": error.function,
        "model": error.model,
        "reason": error.reason,
        "message": error.message,
        "inputs": error.inputs,
        "prompt": error.rendered_prompt,
        "output": error.output_text,
        "attempts": error.attempts,
        "rows": error.rows,
    })
}

fn millis(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
