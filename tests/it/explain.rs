//! What EXPLAIN shows, and that it asks nobody.

use refrain::serving::Error as ServingError;
use refrain::serving::mock::{MockBackend, MockReply};

use crate::support::{Oracle, rows, session, session_with};

/// A session whose model fails whoever asks it.
async fn silent() -> (refrain::Refrain, Oracle) {
    let mock = MockBackend::new(1).answer(|_| Some(MockReply::Error(ServingError::Device("nobody may ask".to_owned()))));
    let (db, oracle) = session_with(&[("reorder", "search")], mock).await;
    rows(&db, "create table r as select value % 3 as film, 'a long description of film ' || (value % 3) as info, 'review ' || value as review \
        from generate_series(1, 60)").await.unwrap();
    (db, oracle)
}

#[tokio::test]
async fn shows_mode_model_schedule_and_estimates() {
    let (db, oracle) = silent().await;
    let plan = rows(&db, "explain select ai_classify(review, ['a', 'b']) from r where film < 2 and ai_filter('Is it good?', review, film, info)").await.unwrap();
    let plan = plan.join("\n");
    for expected in [
        "LlmExec: map ai_classify(",
        "LlmExec: map ai_filter('Is it good?', fields=[review, film, info]) model=mock",
        "order=[",
        "(search)",
        "rows=40 distinct=40 calls≤40",
        "prefix hit est",
        "prefill≈",
    ] {
        assert!(plan.contains(expected), "no {expected:?} in\n{plan}");
    }
    let order = plan.split_once("order=[").unwrap().1.split_once(']').unwrap().0;
    assert!(order.ends_with("review"), "what differs most comes last: {order}");
    assert_eq!(oracle.calls(), 0);
}

#[tokio::test]
async fn planning_and_preparing_ask_nobody() {
    let (db, oracle) = silent().await;
    let query = db.sql("select ai_classify('x', ['a', 'b']), ai_filter('p', 'const')").await.unwrap();
    assert_eq!(query.schema().fields().len(), 2);
    let estimate = query.estimate().await.unwrap();
    assert_eq!(estimate.calls.len(), 2);
    rows(&db, "prepare p as select ai_filter('p', review) from r where film = $1").await.unwrap();
    rows(&db, "create view v as select ai_filter('p', review) from r").await.unwrap();
    assert_eq!(oracle.calls(), 0);
}

#[tokio::test]
async fn analyze_shows_what_happened() {
    let (db, oracle) = session(&[]).await;
    let plan = rows(&db, "explain analyze select ai_complete('p', value % 4) from generate_series(1, 20)")
        .await
        .unwrap()
        .join("\n");
    for expected in ["rows=20", "distinct=4", "calls=4", "prompt_tokens=", "cached_tokens=", "output_tokens=", "errors=0"] {
        assert!(plan.contains(expected), "no {expected:?} in\n{plan}");
    }
    assert_eq!(oracle.calls(), 4);
}

/// Aliases of answer columns count up in a session; plans are compared without their numbers.
fn normalized(plan: &[String]) -> String {
    let plan = plan.join("\n");
    let mut parts = plan.split("__llm_");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("__llm_N");
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out
}

async fn check_plan(name: &str, sql: &str) {
    let (db, oracle) = session(&[]).await;
    rows(&db, "create table t(i int, s varchar)").await.unwrap();
    rows(&db, "create table u(j int, w varchar)").await.unwrap();
    rows(&db, "set datafusion.explain.logical_plan_only = true").await.unwrap();
    let plan = rows(&db, &format!("explain {sql}")).await.unwrap();
    assert_eq!(oracle.calls(), 0);
    insta::with_settings!({ snapshot_path => "../plans", prepend_module_to_snapshot => false, description => sql }, {
        insta::assert_snapshot!(name, normalized(&plan));
    });
}

#[tokio::test]
async fn plans() {
    check_plan("cheap_predicates_first", "select i from t where ai_filter('a', s) and i > 1 and ai_filter('b', s)").await;
    check_plan("order_filters", "select i from t where ai_filter('a', s) and ai_classify(s, ['x', 'y']) = 'x'").await;
    check_plan("case_guard", "select case when i < 3 then ai_complete('lo', s) else 'x' end from t").await;
    check_plan("or_guard", "select i from t where ai_filter('b', s) or i = 1").await;
    check_plan("defer_past_topk", "select i, ai_complete('p', s) from t order by i limit 3").await;
    check_plan("stop_filter_at_limit", "select i from t where ai_filter('a', s) limit 5").await;
    check_plan("filter_above_aggregate", "select s, count(*) from t group by s having count(*) > 1 and ai_filter('a', s)")
        .await;
    check_plan("join_one_side", "select t.i from t join u on t.i = u.j and ai_filter('a', u.w)").await;
    check_plan("nested", "select ai_complete('q', ai_complete('p', s)) from t").await;
    check_plan("template", "select ai_complete('About {s}: {i}?', s, i) from t").await;
}
