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

#[tokio::test]
async fn a_sort_needs_every_row() {
    let (db, oracle) = session_with(&[], MockBackend::new(1)).await;
    let query =
        "select i from (select value as i from generate_series(1, 50)) where ai_filter('1', i) order by i desc limit 1";
    assert_eq!(rows(&db, query).await.unwrap(), ["41"]);
    assert_eq!(oracle.calls(), 50);
}
