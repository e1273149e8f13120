//! Rows that do not fit into memory wait on disk, and the answers stay the same.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::physical_plan::{ExecutionPlan, collect, displayable};
use datafusion::prelude::SessionContext;
use refrain::Refrain;
use refrain::serving::mock::MockBackend;

use crate::support::{Oracle, rows, session_with, text_rows};

const QUERY: &str = "select count(*), sum(length(x)), min(i), max(i), count(distinct pad) \
    from (select i, pad, ai_complete('p', repeat('x', i % 50)) x from big) where pad is not null";

async fn big() -> (Refrain, Oracle) {
    let (db, oracle) = session_with(&[], MockBackend::new(1)).await;
    rows(&db, "create table big as select value i, repeat('pad', 50) || value pad from generate_series(1, 100000)")
        .await
        .unwrap();
    (db, oracle)
}

/// A task of the session with little memory.
fn task(db: &Refrain, bytes: usize) -> Arc<TaskContext> {
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(GreedyMemoryPool::new(bytes))).build_arc().unwrap();
    let state = SessionStateBuilder::new_from_existing(db.context().state()).with_runtime_env(runtime).build();
    SessionContext::new_with_state(state).task_ctx()
}

async fn plan(db: &Refrain, sql: &str) -> Arc<dyn ExecutionPlan> {
    refrain::sql(db.context(), sql).await.unwrap().create_physical_plan().await.unwrap()
}

fn spilled(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let own = plan.metrics().and_then(|metrics| metrics.spill_count()).unwrap_or(0);
    own + plan.children().into_iter().map(spilled).sum::<usize>()
}

#[tokio::test]
async fn rows_wait_on_disk() {
    let (db, oracle) = big().await;
    let expected = rows(&db, QUERY).await.unwrap();
    assert_eq!(oracle.calls(), 50);
    let query = "select i, pad, ai_complete('p', repeat('x', i % 50)) x from big";
    let plan = plan(&db, query).await;
    let batches = collect(Arc::clone(&plan), task(&db, 6_000_000)).await.unwrap();
    assert!(spilled(&plan) > 0, "6 MB hold 100,000 rows of 150 bytes");
    let n_rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    assert_eq!(n_rows.to_string(), expected[0].split('|').next().unwrap());
    assert_eq!(oracle.calls(), 100, "50 distinct questions, asked once");
}

#[tokio::test]
async fn questions_that_do_not_fit_are_worked_off_in_windows() {
    let (db, oracle) = big().await;
    let plan = plan(&db, "select i, ai_complete('p', i % 20000) x from big").await;
    let batches = collect(Arc::clone(&plan), task(&db, 2_000_000)).await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 100_000);
    assert!(oracle.calls() >= 20_000, "answers that the memo has no room for are asked for again");
}

#[tokio::test]
async fn answers_that_do_not_fit_into_memory_are_asked_for_again() {
    let (db, oracle) = session_with(&[("reorder_window", "1000")], MockBackend::new(1)).await;
    let query = "select value i, ai_complete('p', value % 1000) x from generate_series(1, 4000)";
    let all = format!("select count(*), count(distinct x), sum(length(x)) from ({query})");
    let expected = rows(&db, &all).await.unwrap();
    assert_eq!(oracle.calls(), 1000, "the memo of the query spans windows");
    let plan = plan(&db, query).await;
    let batches = collect(Arc::clone(&plan), task(&db, 1)).await.unwrap();
    assert_eq!(oracle.calls(), 5000, "each window asks for itself");
    let answers: Vec<String> =
        batches.iter().flat_map(text_rows).filter_map(|row| Some(row.split_once('|')?.1.to_owned())).collect();
    let distinct: HashSet<&String> = answers.iter().collect();
    let length: usize = answers.iter().map(String::len).sum();
    assert_eq!([format!("{}|{}|{length}", answers.len(), distinct.len())], *expected);
    let shown = displayable(plan.as_ref()).indent(true).to_string();
    assert!(shown.contains("actual: 4000 answers not kept in memory"), "{shown}");
}

#[tokio::test]
async fn a_hundred_thousand_equal_rows_are_one_call() {
    let (db, oracle) = session_with(&[], MockBackend::new(1)).await;
    let query = "select count(*) from (select ai_complete('p', 'same') x, value from generate_series(1, 100000)) where x = 'p(same)'";
    assert_eq!(rows(&db, query).await.unwrap(), ["100000"]);
    assert_eq!(oracle.calls(), 1);
}

#[tokio::test]
async fn a_window_of_rows_answers_in_their_order() {
    let (db, oracle) = session_with(&[("reorder_window", "7")], MockBackend::new(1)).await;
    let query =
        "select i, ai_complete('p', i % 10) from (select value i from generate_series(1, 100) order by value) order by i";
    let answer = rows(&db, query).await.unwrap();
    let expected: Vec<String> = (1..=100).map(|i| format!("{i}|p({})", i % 10)).collect();
    assert_eq!(answer, expected);
    assert_eq!(oracle.calls(), 10);
}

#[tokio::test]
async fn predicates_in_an_order_of_their_own_see_rows_from_disk() {
    let (db, oracle) = big().await;
    let filter = "where ai_filter('1', a) and ai_filter('2', b)";
    rows(&db, "create table two as select i, pad, cast(i % 40 as varchar) a, cast(i % 50 as varchar) b from big")
        .await
        .unwrap();
    let expected = rows(&db, &format!("select count(*) from two {filter}")).await.unwrap();
    assert!(oracle.calls() <= 90);
    let plan = plan(&db, &format!("select i, pad from two {filter}")).await;
    let batches = collect(Arc::clone(&plan), task(&db, 6_000_000)).await.unwrap();
    assert!(spilled(&plan) > 0);
    let n_rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    assert_eq!(n_rows.to_string(), expected[0]);
}
