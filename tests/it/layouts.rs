//! Several calls over one row share its tokens where data comes first; answers and counts are those of the usual layout.

use refrain::Refrain;
use refrain::serving::mock::MockBackend;

use crate::support::{Oracle, rows, session_with, text_rows};

/// Two short calls over a text, and one over another column.
const QUERY: &str = "select ai_complete('one', s), ai_complete('two', s), ai_complete('one', i) from t order by i";

async fn table(layout: &str, words: usize) -> (Refrain, Oracle) {
    let (db, oracle) = session_with(&[("layout", layout)], MockBackend::new(1)).await;
    let text = "lorem ipsum ".repeat(words);
    let create = format!("create table t as select value as i, (value % 40) || ' {text}' as s from generate_series(1, 50)");
    rows(&db, &create).await.unwrap();
    (db, oracle)
}

/// Runs the query and returns its rows, the calls, and the prompt tokens computed.
async fn run(layout: &str, words: usize) -> (Vec<String>, usize, u64) {
    let (db, oracle) = table(layout, words).await;
    let answers = rows(&db, QUERY).await.unwrap();
    let sum = "select sum(prompt_tokens - cached_tokens) from ai_usage()";
    let computed = rows(&db, sum).await.unwrap()[0].parse().unwrap();
    (answers, oracle.calls(), computed)
}

#[tokio::test]
async fn long_rows_are_computed_once() {
    let (expected, calls, instruction_first) = run("instruction_first", 60).await;
    for layout in ["data_first", "auto"] {
        let (answers, calls_too, computed) = run(layout, 60).await;
        assert_eq!((answers, calls_too), (expected.clone(), calls));
        assert!(computed * 13 <= instruction_first * 10, "{layout}: {computed} of {instruction_first} tokens");
    }
}

#[tokio::test]
async fn short_rows_leave_the_instruction_in_front() {
    assert_eq!(run("auto", 0).await, run("instruction_first", 0).await);
    let (db, oracle) = table("auto", 0).await;
    rows(&db, QUERY).await.unwrap();
    assert!(oracle.prompts().iter().all(|prompt| !prompt.contains("<|user|>Given")));
}

#[tokio::test]
async fn the_calls_of_a_row_stand_side_by_side() {
    let (db, oracle) = table("auto", 60).await;
    rows(&db, QUERY).await.unwrap();
    let prompts = oracle.prompts();
    let data = |prompt: &String| Some(prompt.split_once("<|user|>Given")?.1.split_once("\n\n")?.0.to_owned());
    let shared: Vec<String> = prompts.iter().filter_map(data).collect();
    assert_eq!(shared.len(), 80);
    assert!(shared.chunks(2).all(|pair| pair[0] == pair[1]), "{shared:?}");
}

#[tokio::test]
async fn a_question_has_one_layout_in_a_query() {
    let (db, oracle) = table("auto", 60).await;
    let query =
        "select ai_complete('one', s), ai_complete('two', s) from t union all select ai_complete('one', s), null from t";
    rows(&db, query).await.unwrap();
    assert_eq!(oracle.calls(), 80);
}

#[tokio::test]
async fn budgets_and_failed_rows_count_as_ever() {
    let (db, oracle) = table("data_first", 3).await;
    let query = "select ai_complete('one', s), ai_complete('two', s), ai_complete('FAIL', 'FAIL' || s) from t";
    rows(&db, "set refrain.max_error_ratio = 1").await.unwrap();
    rows(&db, query).await.unwrap();
    assert_eq!(oracle.calls(), 120);
    let failed = "select sum(errors), sum(calls) from ai_usage()";
    assert_eq!(rows(&db, failed).await.unwrap(), ["50|120"]);
    rows(&db, "set refrain.max_calls = 30").await.unwrap();
    let error = rows(&db, query).await.unwrap_err().to_string();
    assert!(error.contains("refrain.max_calls"), "{error}");
    assert_eq!(oracle.calls(), 150);
}

#[tokio::test]
async fn an_answer_serves_its_own_layout_only() {
    let (db, oracle) = table("instruction_first", 60).await;
    rows(&db, "set refrain.cache = 'session'").await.unwrap();
    let calls = async |layout: &str| {
        rows(&db, &format!("set refrain.layout = '{layout}'")).await.unwrap();
        let before = oracle.calls();
        rows(&db, "select ai_complete('one', s), ai_complete('two', s) from t").await.unwrap();
        oracle.calls() - before
    };
    assert_eq!(calls("instruction_first").await, 80);
    assert_eq!(calls("instruction_first").await, 0);
    assert_eq!(calls("data_first").await, 80);
    assert_eq!(calls("auto").await, 0);
}

/// Runs a query over thirty texts on the CPU engine. Returns its rows, the calls, and the prompt tokens computed.
async fn on_the_engine(settings: &[(&str, &str)], query: &str) -> (Vec<String>, u64, u64) {
    let db = Refrain::builder().build().await.unwrap();
    rows(&db, "create model noise from 'random:mini' with (max_context = 2048)").await.unwrap();
    for (name, value) in [("model", "noise"), ("max_tokens", "2"), ("kv_cache_bytes", "2GB")].iter().chain(settings) {
        rows(&db, &format!("set refrain.{name} = '{value}'")).await.unwrap();
    }
    let text = "lorem ipsum ".repeat(12);
    let create = format!("create table t as select value as i, value || ' {text}' as s from generate_series(1, 30)");
    rows(&db, &create).await.unwrap();
    let mut run = db.sql(query).await.unwrap().execute().await.unwrap();
    let batches = run.fetch_all().await.unwrap();
    let answers = batches.iter().flat_map(text_rows).collect();
    let usage = run.usage();
    (answers, usage.calls, usage.prompt_tokens - usage.cached_tokens)
}

/// Every row passes, whatever the model says.
const PASSES: &str = "is not null";

#[tokio::test]
async fn operators_share_rows() {
    let queries = [
        // A filter and what is asked about the rows that it leaves.
        format!("select i, ai_complete('go on', s) from t where ai_filter('one', s) {PASSES} order by i"),
        // Behind a limit.
        format!(
            "select i, ai_complete('go on', s) from (select i, s from t where ai_filter('one', s) {PASSES} limit 24) order by i"
        ),
        // Two predicates.
        format!("select i from t where ai_filter('one', s) {PASSES} and ai_filter('two', s) {PASSES} order by i"),
    ];
    for query in queries {
        let (_, calls, instruction_first) = on_the_engine(&[("layout", "instruction_first")], &query).await;
        let (answers, calls_too, computed) = on_the_engine(&[("layout", "data_first")], &query).await;
        assert_eq!(calls_too, calls, "{query}");
        assert!(computed * 13 <= instruction_first * 10, "{query}: {computed} of {instruction_first} tokens");
        let (without_cache, ..) = on_the_engine(&[("layout", "data_first"), ("prefix_cache", "false")], &query).await;
        assert_eq!(answers, without_cache, "{query}");
    }
}

#[tokio::test]
async fn operators_over_other_rows_share_nothing() {
    let query = format!("select i, ai_complete('go on', i) from t where ai_filter('one', s) {PASSES} order by i");
    let (_, calls, instruction_first) = on_the_engine(&[("layout", "instruction_first")], &query).await;
    let (_, calls_too, auto) = on_the_engine(&[("layout", "auto")], &query).await;
    assert_eq!((calls_too, auto), (calls, instruction_first));
}
