//! One question is one call in a query, wherever it stands and also while several operators ask at the same time.

use refrain::Refrain;
use refrain::serving::mock::{Gate, MockBackend, MockReply};

use crate::support::{Oracle, rows, session, session_with};

/// Thirty rows of ten texts.
async fn table(db: &Refrain) {
    rows(db, "create table t as select value as i, 'text ' || (value % 10) as s from generate_series(1, 30)").await.unwrap();
}

/// Checks how many calls a query makes over [`table`], and its first rows.
async fn check(query: &str, calls: usize, expected: &[&str]) {
    let (db, oracle) = session(&[]).await;
    table(&db).await;
    let mut answers = rows(&db, query).await.unwrap();
    answers.truncate(expected.len());
    assert_eq!(answers, expected, "{query}");
    assert_eq!(oracle.calls(), calls, "{query}");
}

#[tokio::test]
async fn a_table_expression_used_twice() {
    let query = "with c as (select i, ai_filter('7', s) as f from t) \
                 select count(*) from c a join c b on a.i = b.i where a.f and b.f";
    check(query, 10, &["3"]).await;
}

#[tokio::test]
async fn branches_of_a_union() {
    check("select ai_complete('p', s) from t union all select ai_complete('p', s) from t where i > 5", 10, &[]).await;
    let query = "select count(*) from (select i from t where ai_filter('7', s) union all select i from t where not ai_filter('7', s))";
    check(query, 10, &["30"]).await;
}

#[tokio::test]
async fn a_subquery_and_the_query_around_it() {
    let query = "select i, (select count(*) from t where ai_filter('7', s)) from t where ai_filter('7', s) order by i";
    check(query, 10, &["7|3", "17|3", "27|3"]).await;
    check("select count(*) from t where i in (select i from t where ai_filter('7', s)) and ai_filter('7', s)", 10, &["3"])
        .await;
}

#[tokio::test]
async fn select_where_group_having_and_order() {
    let query = "select ai_complete('p', s), count(*) from t where ai_complete('p', s) like '%1)' group by ai_complete('p', s) \
                 having ai_complete('p', s) is not null order by ai_complete('p', s)";
    check(query, 10, &["p(text 1)|3"]).await;
}

#[tokio::test]
async fn one_task_under_several_names() {
    check("select ai_filter('7', s) = ai_if('7', s) from t where i < 3", 2, &["true", "true"]).await;
    check(
        "select ai_complete('p', s), ai_gen('p', s), ai_generate('p', s), LLM('p', s) from t where i = 1",
        1,
        &["p(text 1)|p(text 1)|p(text 1)|p(text 1)"],
    )
    .await;
    check(
        "select ai_complete('p', a.s), ai_complete('p', b.s) from (select 'x' as s) a, (select 'x' as s) b",
        1,
        &["p(x)|p(x)"],
    )
    .await;
}

#[tokio::test]
async fn operators_that_ask_at_the_same_time() {
    let gate = Gate::new();
    let held = gate.clone();
    let (db, oracle): (Refrain, Oracle) =
        session_with(&[], MockBackend::new(1).answer(move |_| Some(MockReply::Seeded.after(&held)))).await;
    table(&db).await;
    let query = "select count(a) from (select ai_complete('p', s) as a from t union all select ai_complete('p', s) from t \
                 union all select ai_complete('p', s) from t where i > 3)";
    let running = tokio::spawn({
        let db = db.clone();
        async move { rows(&db, query).await }
    });
    // All of them have been asked, and none is answered: whoever comes next must wait rather than ask.
    oracle.0.wait_for_calls(10).await;
    assert_eq!(oracle.0.in_flight(), 10);
    gate.open();
    assert_eq!(running.await.unwrap().unwrap(), ["87"]);
    assert_eq!(oracle.calls(), 10);
}
