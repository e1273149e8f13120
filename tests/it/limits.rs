//! A filter under a LIMIT asks about a bounded number of rows: at most twice as many as a row at a time would need.

use refrain::serving::mock::{MockBackend, MockReply};

use crate::support::{rows, session_with};

/// A table of 4,000 distinct rows, and a model that says yes to every `every`-th of them.
async fn check(every: usize, limit: usize) {
    let mock = MockBackend::new(1).answer(move |prompt| {
        let number = prompt.rsplit_once("{\"i\": ")?.1.split_once('}')?.0.parse::<usize>().ok()?;
        Some(MockReply::text(if number.is_multiple_of(every) { "Yes" } else { "No" }))
    });
    let (db, oracle) = session_with(&[], mock).await;
    let query =
        format!("select i from (select value as i from generate_series(1, 4000)) where ai_filter('p', i) limit {limit}");
    let found = rows(&db, &query).await.unwrap().len();
    assert_eq!(found, limit.min(4000 / every), "rows at one in {every}, limit {limit}");
    // Rows arrive in order, so a row at a time would stop at the last match it needs.
    let needed = if found < limit { 4000 } else { every * limit };
    let bound = (2 * limit).max(2 * needed).min(4000);
    assert!(oracle.calls() <= bound, "{} calls at one in {every}, limit {limit}; the bound is {bound}", oracle.calls());
}

#[tokio::test]
async fn calls_stay_within_their_bound() {
    for every in [1, 2, 100] {
        for limit in [1, 5, 100] {
            check(every, limit).await;
        }
    }
}

#[tokio::test]
async fn two_filters_under_a_limit_stop_both() {
    let mock = MockBackend::new(1).answer(|prompt| {
        let number = prompt.rsplit_once("{\"i\": ")?.1.split_once('}')?.0.parse::<usize>().ok()?;
        let every = if prompt.contains("second") { 3 } else { 2 };
        Some(MockReply::text(if number.is_multiple_of(every) { "Yes" } else { "No" }))
    });
    let (db, oracle) = session_with(&[], mock).await;
    let query = "select i from (select value as i from generate_series(1, 4000)) where ai_filter('first', i) and ai_filter('second', i) limit 4";
    let answer = rows(&db, query).await.unwrap();
    assert_eq!(answer, ["6", "12", "18", "24"]);
    assert!(oracle.calls() <= 100, "{} calls", oracle.calls());
}

#[tokio::test]
async fn offset_counts_towards_the_limit() {
    let (db, oracle) = session_with(&[], MockBackend::new(1)).await;
    let query = "select i from (select value as i from generate_series(1, 4000)) where ai_filter('1', i) limit 2 offset 3";
    assert_eq!(rows(&db, query).await.unwrap(), ["12", "13"]);
    assert!(oracle.calls() <= 40, "{} calls", oracle.calls());
}

const NUMBERS: &str = "(select value as i from generate_series(1, 50))";

/// Runs a query over [`NUMBERS`] without some rewrites, and returns its rows and calls.
async fn ordered(query: &str, disabled: &str) -> (Vec<String>, usize) {
    let (db, oracle) = session_with(&[("disabled_rewrites", disabled)], MockBackend::new(1)).await;
    let answer = rows(&db, &query.replace("numbers", NUMBERS)).await.unwrap();
    (answer, oracle.calls())
}

#[tokio::test]
async fn a_sort_of_columns_comes_first() {
    for (query, expected, calls) in [
        // The tenth row from the end.
        ("select i from numbers where ai_filter('1', i) order by i desc limit 1", vec!["41"], 16),
        ("select i from numbers where ai_filter('1', i) order by i desc limit 2 offset 1", vec!["31", "21"], 36),
        ("select n from (select i as n from numbers where ai_filter('1', i)) order by n desc limit 1", vec!["41"], 16),
    ] {
        assert_eq!(ordered(query, "none").await, (expected.iter().map(ToString::to_string).collect(), calls), "{query}");
        for disabled in ["sort_below_llm_filter", "stop_llm_filter_at_limit", "all"] {
            assert_eq!(ordered(query, disabled).await.1, 50, "{query} without {disabled}");
            assert_eq!(ordered(query, disabled).await.0, expected, "{query} without {disabled}");
        }
    }
    // The order is that of the whole answer, also where expressions are computed above the limit and rows come in several windows.
    let (computed, calls) =
        ordered("select i + 1 from numbers where ai_filter('1', i) order by i desc limit 12", "none").await;
    let expected: Vec<String> =
        [41, 31, 21, 19, 18, 17, 16, 15, 14, 13, 12, 11].iter().map(|i| (i + 1).to_string()).collect();
    assert_eq!((computed, calls), (expected, 48));
    let two = "select i from numbers where ai_filter('1', i) and ai_filter('2', i) order by i desc limit 1";
    assert_eq!(ordered(two, "none").await.0, ["21"]);
}

/// The key of the order is not read above the sort, and what the limit takes is read by an aggregate.
#[tokio::test]
async fn a_sort_below_a_filter_stays_in_a_subquery() {
    let (db, oracle) = session_with(&[], MockBackend::new(1)).await;
    rows(&db, "create table t as select value as i, 'a' || (value % 7) as s from generate_series(1, 50)").await.unwrap();
    for (query, expected) in [
        ("select max(s), min(s) from (select s from t where ai_filter('a', s) order by i desc limit 2)", "a1|a0"),
        (
            "select max(s) from (select s from t where ai_filter('a', s) and ai_filter('a', s || '!') order by i desc limit 1)",
            "a1",
        ),
        (
            "select max(s) from (select s from t where ai_filter('a', s) and ai_filter('a', (7 / i) || s) order by i desc limit 1)",
            "a1",
        ),
    ] {
        assert_eq!(rows(&db, query).await.unwrap(), [expected], "{query}");
    }
    assert!(oracle.calls() <= 20, "{} calls", oracle.calls());
}

#[tokio::test]
async fn a_sort_of_answers_needs_every_row() {
    let query = "select i from numbers where ai_filter('1', i) order by ai_score('p', i), i limit 1";
    let (answer, calls) = ordered(query, "none").await;
    // Fourteen of the numbers hold a one.
    assert_eq!((answer.len(), calls), (1, 50 + 14));
}
