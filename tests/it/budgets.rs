//! Budgets hold for each request, over all calls of a query, and what was paid for within them is not lost.

use futures::StreamExt;
use refrain::serving::Tokenizer;
use refrain::serving::mock::{ByteTokenizer, Gate, MockBackend, MockReply};
use refrain::{Error, QueryUsage, Refrain, Result};

use crate::support::{rows, session, session_with};

const ROWS: &str = "(select value as i from generate_series(101, 200))";

/// Runs a query to its end or error. Returns how many rows came before, and what it cost.
async fn run(db: &Refrain, sql: &str) -> (usize, Result<()>, QueryUsage) {
    let mut run = db.sql(sql).await.unwrap().execute().await.unwrap();
    let mut n_rows = 0;
    while let Some(batch) = run.next().await {
        match batch {
            Ok(batch) => n_rows += batch.num_rows(),
            Err(error) => return (n_rows, Err(error), run.usage()),
        }
    }
    (n_rows, Ok(()), run.usage())
}

#[track_caller]
fn is_used_up(result: Result<()>, setting: &str) -> String {
    match result {
        Err(Error::Budget { which, spent }) if which == setting => spent,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn calls_are_counted_one_by_one() {
    let (db, oracle) = session(&[("max_calls", "10"), ("cache", "session")]).await;
    let query = format!("select ai_complete('p', i) from {ROWS}");
    let (n_rows, result, usage) = run(&db, &query).await;
    let spent = is_used_up(result, "refrain.max_calls");
    assert!(spent.starts_with("10 of 10 calls, ") && spent.contains("raise refrain.max_calls"), "{spent}");
    assert_eq!((n_rows, oracle.calls(), usage.calls), (0, 10, 10));
    // The ten answers were paid for and are kept, so the difference is what is left to pay.
    rows(&db, "set refrain.max_calls = 90").await.unwrap();
    let (n_rows, result, usage) = run(&db, &query).await;
    result.unwrap();
    assert_eq!((n_rows, usage.calls, usage.cache_hits), (100, 90, 10));
    // Cached answers are free.
    rows(&db, "set refrain.max_calls = 1").await.unwrap();
    assert_eq!(run(&db, &query).await.0, 100);
}

#[tokio::test]
async fn all_calls_of_a_query_share_the_budget() {
    let two_calls = format!("select ai_complete('p', i), ai_complete('q', i) from {ROWS}");
    let two_operators = format!("select ai_complete('p', i) from {ROWS} union all select ai_complete('q', i) from {ROWS}");
    let nested = format!("select ai_complete('q', ai_complete('p', i)) from {ROWS}");
    for query in [two_calls, two_operators, nested] {
        let (db, oracle) = session(&[("max_calls", "130")]).await;
        is_used_up(run(&db, &query).await.1, "refrain.max_calls");
        assert_eq!(oracle.calls(), 130, "{query}");
    }
}

#[tokio::test]
async fn prompt_tokens_are_exact() {
    let query = format!("select ai_complete('p', i) from {ROWS}");
    let (db, _oracle) = session(&[]).await;
    // All prompts are equally long.
    let (_, result, usage) = run(&db, &query).await;
    result.unwrap();
    let prompt = usage.prompt_tokens / 100;
    for (limit, calls) in [(prompt * 7, 7), (prompt * 7 - 1, 6), (prompt - 1, 0)] {
        rows(&db, &format!("set refrain.max_input_tokens = {limit}")).await.unwrap();
        let (_, result, usage) = run(&db, &query).await;
        is_used_up(result, "refrain.max_input_tokens");
        assert_eq!((usage.calls, usage.prompt_tokens), (calls, calls * prompt));
    }
    rows(&db, &format!("set refrain.max_input_tokens = {}", prompt * 100)).await.unwrap();
    assert_eq!(run(&db, &query).await.0, 100);
}

#[tokio::test]
async fn answers_stay_within_their_sum() {
    // An answer such as p(101) has six tokens, and may have ten.
    let query = format!("select ai_complete('p', i, max_tokens => 10) from {ROWS}");
    for (limit, answers) in [(9, 0), (10, 1), (16, 2), (64, 10)] {
        let (db, _oracle) = session(&[("max_output_tokens_total", &limit.to_string())]).await;
        let (_, result, usage) = run(&db, &query).await;
        is_used_up(result, "refrain.max_output_tokens_total");
        assert_eq!((usage.calls, usage.output_tokens), (answers, answers * 6), "limit {limit}");
    }
    let (db, _oracle) = session(&[("max_output_tokens_total", "604")]).await;
    let (n_rows, result, usage) = run(&db, &query).await;
    result.unwrap();
    assert_eq!((n_rows, usage.output_tokens), (100, 600), "what answers leave is given back");
}

#[tokio::test]
async fn time_cuts_running_calls_off() {
    let gate = Gate::new();
    let held = gate.clone();
    let mock = MockBackend::new(1).answer(move |_| Some(MockReply::text("late").after(&held)));
    let (db, oracle) = session_with(&[("max_seconds", "0.05")], mock).await;
    let (_, result, _) = run(&db, &format!("select ai_complete('p', i) from {ROWS}")).await;
    let spent = is_used_up(result, "refrain.max_seconds");
    assert!(spent.starts_with("100 calls, ") && spent.contains(" of 0.05 s; "), "{spent}");
    oracle.0.wait_until_idle().await;
    assert_eq!(oracle.0.in_flight(), 0);
    gate.open();
    rows(&db, "set refrain.max_seconds = 0").await.unwrap();
    assert_eq!(rows(&db, "select ai_complete('p', 'x')").await.unwrap(), ["late"]);
}

#[tokio::test]
async fn a_stopped_query_never_looks_complete() {
    let (db, oracle) = session(&[("max_calls", "12"), ("reorder_window", "5")]).await;
    let (n_rows, result, _) = run(&db, &format!("select ai_complete('p', i) from {ROWS}")).await;
    is_used_up(result, "refrain.max_calls");
    assert_eq!((n_rows, oracle.calls()), (10, 12), "rows that were delivered stand");
    for aggregate in ["count(*)", "count(ai_complete('p', i))", "max(ai_complete('q', i))"] {
        let (n_rows, result, _) = run(&db, &format!("select {aggregate} from {ROWS} where ai_complete('p', i) <> ''")).await;
        is_used_up(result, "refrain.max_calls");
        assert_eq!(n_rows, 0, "{aggregate}");
    }
}

#[tokio::test]
async fn a_limit_that_is_met_within_the_budget_is_no_error() {
    let (db, oracle) = session(&[("max_calls", "20")]).await;
    let (n_rows, result, _) = run(&db, &format!("select i from {ROWS} where ai_filter('1', i) limit 5")).await;
    result.unwrap();
    assert_eq!(n_rows, 5);
    assert!(oracle.calls() <= 20);
}

/// Tokens of a prompt of the mock model, whose control tokens are spelled by their names.
fn tokens(prompt: &str) -> usize {
    ByteTokenizer.encode_control(prompt).len()
}

#[tokio::test]
async fn long_inputs_are_asked_about_in_chunks_that_fit() {
    let mock = MockBackend::new(1).max_context(1000);
    let (db, oracle) = session_with(&[("cache", "session"), ("on_overflow", "chunk"), ("max_tokens", "100")], mock).await;
    let table = "select i, repeat('Some hay, \"quoted\". ', 100) || i as body from generate_series(1, 3) as t(i)";
    let query = format!("select i, ai_filter('straw', body) from ({table}) order by i");
    let (_, result, usage) = run(&db, &query).await;
    result.unwrap();
    let (calls, prompts) = (oracle.calls(), oracle.prompts());
    assert_eq!((usage.failed_rows, usage.chunked, usage.rows), (0, 3, 3));
    assert_eq!(usage.calls as usize, calls);
    // The texts differ at their ends only, and repeat themselves: all chunks but the last of each are one question.
    assert_eq!(calls, 4);
    assert!(prompts.iter().all(|prompt| tokens(prompt) <= 900), "each leaves room for the answer");
    // What was answered is not asked again.
    let (_, result, usage) = run(&db, &query).await;
    result.unwrap();
    assert_eq!((usage.calls, usage.cache_hits as usize, oracle.calls()), (0, calls, calls));
    // Where the first chunk decides, the others are not asked about.
    let (_, result, usage) = run(&db, &query.replace("'straw'", "'hay'")).await;
    result.unwrap();
    assert_eq!((usage.calls, usage.chunked), (1, 3));
    // A chunk is a call of the budget.
    rows(&db, "set refrain.max_calls = 3").await.unwrap();
    let (_, result, _) = run(&db, &query.replace("'straw'", "'corn'")).await;
    assert!(result.unwrap_err().to_string().contains("max_calls"));
    let plan = rows(&db, &format!("explain {query}")).await.unwrap().concat();
    assert!(plan.contains(" chunked") && plan.contains("3 into≈"), "{plan}");
}

/// Chunks are summarised, and the summaries again, in chunks while they do not fit.
#[tokio::test]
async fn summaries_of_chunks_are_summarised_until_they_fit() {
    let mock = MockBackend::new(1).max_context(1000).answer(|prompt| {
        let data = prompt.rsplit_once("data:\n")?.1;
        Some(MockReply::text(format!("{:0>60}", data.matches('x').count())))
    });
    let (db, oracle) = session_with(&[("on_overflow", "chunk"), ("max_tokens", "64")], mock).await;
    let query = "select ai_summarize(t) from (values (repeat('x ', 10000)), ('x')) as v(t)";
    let (_, result, usage) = run(&db, query).await;
    result.unwrap();
    assert_eq!((usage.failed_rows, usage.rows), (0, 2));
    // The text, its summaries, and theirs.
    assert!(usage.chunked >= 2, "{usage:?}");
    let longest = oracle.prompts().iter().map(|prompt| tokens(prompt)).max().unwrap();
    assert!(longest <= 936, "{longest}");
}

#[tokio::test]
async fn long_inputs_are_cut_where_that_is_asked_for() {
    let mock = MockBackend::new(1).max_context(600).answer(|prompt| {
        let data = prompt.rsplit_once("data:\n")?.1;
        Some(MockReply::text(data.matches('x').count().to_string()))
    });
    let (db, oracle) = session_with(&[], mock).await;
    let query = |option: &str| {
        format!(
            "select ai_complete('How many?', named_struct('s', repeat('x', value), 'n', value){option}) from (values (3), (5000)) as t(value)"
        )
    };
    let (_, result, usage) = run(&db, &query("")).await;
    result.unwrap();
    assert_eq!((usage.errors.get("overflow"), usage.truncated), (Some(&1), 0));
    let mut query_run =
        db.sql(&query(", on_overflow => 'truncate', max_tokens => 20")).await.unwrap().execute().await.unwrap();
    query_run.fetch_all().await.unwrap();
    let usage = query_run.usage();
    assert_eq!((usage.failed_rows, usage.truncated, usage.calls), (0, 1, 2));
    let prompts = oracle.prompts();
    let longest = prompts.iter().rfind(|prompt| prompt.contains("\"n\": 5000") && prompt.len() < 1000).unwrap();
    assert!(longest.contains("xxx\"") && longest.contains("\"n\": 5000"), "the JSON is whole: {longest}");
}
