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
    check_plan_with(&[], name, sql).await;
}

async fn check_plan_with(settings: &[(&str, &str)], name: &str, sql: &str) {
    let (db, oracle) = session(settings).await;
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
    check_plan(
        "order_filters_apart",
        "select i from t where ai_filter('a', s) and (ai_filter('b', s) or i = 1) and ai_filter('c', s) \
         and ai_filter('d', s, on_error => 'fail') and ai_filter('e', 10 / i)",
    )
    .await;
    check_plan("case_guard", "select case when i < 3 then ai_complete('lo', s) else 'x' end from t").await;
    check_plan("or_guard", "select i from t where ai_filter('b', s) or i = 1").await;
    check_plan("defer_past_topk", "select i, ai_complete('p', s) from t order by i limit 3").await;
    check_plan("stop_filter_at_limit", "select i from t where ai_filter('a', s) limit 5").await;
    check_plan("sort_below_filter", "select i from t where ai_filter('a', s) order by i limit 3").await;
    check_plan("filter_above_aggregate", "select s, count(*) from t group by s having count(*) > 1 and ai_filter('a', s)")
        .await;
    check_plan("columns_above_join", "select u.j, x from (select i, ai_complete('p', s) x from t) q join u on q.i = u.j")
        .await;
    check_plan("join_one_side", "select t.i from t join u on t.i = u.j and ai_filter('a', u.w)").await;
    check_plan(
        "join_both_sides",
        "select t.i, u.j from t left join u on t.i = u.j and t.i + u.j < 9 and ai_filter('a', t.s, u.w) and ai_filter('b', u.w, t.s)",
    )
    .await;
    check_plan(
        "stop_join_at_match",
        "select i from t where exists (select 1 from u where u.j = t.i and ai_filter('a', t.s, u.w))",
    )
    .await;
    check_plan_with(
        &[("optimization_mode", "minimize_cost")],
        "classify_join",
        "select t.i from t join u on t.i = u.j and ai_filter('a', t.s, u.w)",
    )
    .await;
    check_plan("not_in_as_not_exists", "select i from t where i not in (select j from u where ai_filter('a', t.s, u.w))")
        .await;
    check_plan(
        "aggregates",
        "select i, ai_agg(s, 'p'), ai_top_k(s, 'best', 2), ai_agg(s, 'q' order by i desc) filter (where i > 1), count(*) from t \
         group by i having count(*) > 1",
    )
    .await;
    check_plan("nested", "select ai_complete('q', ai_complete('p', s)) from t").await;
    check_plan("template", "select ai_complete('About {s}: {i}?', s, i) from t").await;
}

#[tokio::test]
async fn plans_of_several_rewrites() {
    check_plan("limit_through_join", "select t.i from t join u on t.i = u.j where ai_filter('a', u.w) limit 3").await;
    check_plan("limit_over_pairs", "select t.i from t join u on ai_filter('a', t.s, u.w) limit 3").await;
    check_plan("order_filters_at_limit", "select i from t where ai_filter('a', s) and ai_filter('b', s) limit 5").await;
    check_plan(
        "join_one_side_through_alias",
        "select q.i from (select i, s from t) q join u on q.i = u.j where ai_filter('a', q.s)",
    )
    .await;
    check_plan_with(
        &[("optimization_mode", "minimize_cost"), ("proxy_model", "mock")],
        "cascade_filters_apart",
        "select i from t where ai_filter('a', s) and ai_filter('b', s)",
    )
    .await;
    check_plan("defer_past_topk_of_groups", "select i, ai_agg(s, 'p') from t group by i order by i limit 3").await;
    check_plan(
        "cte_used_twice",
        "with c as (select i, ai_complete('p', s) x from t) select a.i, b.x from c a join c b on a.x = b.x",
    )
    .await;
}

/// Returns a plan as JSON.
async fn json(db: &refrain::Refrain, explain: &str) -> serde_json::Value {
    serde_json::from_str(&rows(db, explain).await.unwrap().join("\n")).unwrap()
}

/// Returns the LLM operators of a plan, top first.
fn operators(plan: &serde_json::Value) -> Vec<&serde_json::Value> {
    let own = (plan["operator"] == "LlmExec").then_some(plan);
    let below = plan["children"].as_array().into_iter().flatten().flat_map(operators);
    own.into_iter().chain(below).collect()
}

#[tokio::test]
async fn json_has_stable_names() {
    let (db, oracle) = silent().await;
    for form in ["explain format json", "explain (format json)", "explain (verbose, format 'json')"] {
        let plan = json(&db, &format!("{form} select ai_filter('good', review), film from r")).await;
        let call = &operators(&plan)[0]["calls"][0];
        assert_eq!((&call["function"], &call["model"]), (&"ai_filter".into(), &"mock".into()));
        let estimate = &call["estimate"];
        assert_eq!((&estimate["rows"], &estimate["distinct"], &estimate["exact"]), (&60.into(), &60.into(), &true.into()));
        assert_eq!((&estimate["layout"], &estimate["selectivity_basis"]), (&"instruction_first".into(), &"assumed".into()));
        assert!(call["actual"].is_null());
    }
    assert_eq!(oracle.calls(), 0);
}

#[tokio::test]
async fn estimates_stand_beside_what_happened() {
    let (db, _) = session(&[]).await;
    rows(&db, "create table r as select value % 40 as n, 'review of ' || (value % 40) as s from generate_series(1, 200)")
        .await
        .unwrap();
    let query = "select ai_filter('1', s), n from r";
    let plan = json(&db, &format!("explain (analyze, format json) {query}")).await;
    let call = &operators(&plan)[0]["calls"][0];
    for count in ["rows", "distinct", "prompt_tokens"] {
        assert_eq!(call["estimate"][count], call["actual"][count], "{count} in {call}");
    }
    let computed = |of: &str| call[of]["computed_tokens"].as_f64().unwrap();
    assert!((computed("estimate") / computed("actual") - 1.0).abs() < 0.05, "{call}");
    assert!(["tokens_per_second", "seconds_to_first_answer"].iter().all(|pace| call["actual"][pace].is_number()), "{call}");
    let text = rows(&db, &format!("explain analyze {query}")).await.unwrap().join("\n");
    for expected in [
        "\n      rows=200 distinct=40 calls≤40",
        "\n      actual: rows=200 distinct=40 calls=40",
        " tok/s, first answer after ",
        "estimate off by: calls +0.0 %",
        "\n      metrics=[",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    // The first run has shown how many rows pass, and how long the model takes.
    let text = rows(&db, &format!("explain {query}")).await.unwrap().join("\n");
    assert!(text.contains("passes≈32 % (from an earlier run)") && text.contains("time≈"), "{text}");
}

#[tokio::test]
async fn rows_behind_a_filter_are_estimated_by_what_it_lets_pass() {
    let (db, oracle) = silent().await;
    let query = "select ai_classify(review, ['a', 'b']) from r where ai_filter('good', review)";
    let plan = json(&db, &format!("explain format json {query}")).await;
    let estimate = &operators(&plan)[0]["calls"][0]["estimate"];
    assert_eq!((&estimate["rows"], &estimate["exact"]), (&30.into(), &false.into()));
    let text = rows(&db, &format!("explain {query}")).await.unwrap().join("\n");
    assert!(text.contains("rows≈30 distinct≈30"), "{text}");
    let nested = rows(&db, "explain select ai_complete('q', ai_complete('p', review)) from r").await.unwrap().join("\n");
    assert!(nested.contains("not estimated: it reads the answers of a call below"), "{nested}");
    assert_eq!(oracle.calls(), 0);
}

#[tokio::test]
async fn a_sample_asks_some_questions_and_tells_how_sure_it_is() {
    let (db, oracle) = session(&[]).await;
    rows(&db, "create table r as select 'review ' || value as s from generate_series(1, 1000)").await.unwrap();
    let text = rows(&db, "explain (sample 50) select count(*) from r where ai_filter('1', s)").await.unwrap().join("\n");
    assert_eq!(oracle.calls(), 50);
    assert!(text.contains("% (sampled, ") && text.contains("output≈"), "{text}");
    let plan = json(&db, "explain (sample 50, format json) select count(*) from r where ai_filter('1', s)").await;
    let estimate = &operators(&plan)[0]["calls"][0]["estimate"];
    let interval = &estimate["selectivity_interval"];
    // 271 of the numbers up to a thousand hold a 1, and `1000` is one of them.
    let truth = 0.272;
    assert!(interval["low"].as_f64().unwrap() < truth && truth < interval["high"].as_f64().unwrap(), "{estimate}");
    rows(&db, "set refrain.max_calls = 10").await.unwrap();
    let error = rows(&db, "explain (sample 50) select count(*) from r where ai_filter('2', s)").await.unwrap_err();
    assert!(error.to_string().contains("refrain.max_calls"), "{error}");
    for (wrong, message) in [
        ("explain (sample 0) select 1", "above 0"),
        ("explain (sample 5, analyze) select 1", "use one of them"),
        ("explain (sample 5, color) select 1", "known: SAMPLE, FORMAT, ANALYZE, VERBOSE"),
    ] {
        let error = rows(&db, wrong).await.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[tokio::test]
async fn what_is_refused_is_said_with_its_reason() {
    let (db, _) = silent().await;
    let explain = async |query: &str| rows(&db, &format!("explain {query}")).await.unwrap().join("\n");
    let template =
        explain("select ai_complete('About {film}: what does this review of it say? {review}', film, review) from r").await;
    assert!(template.contains("refused: reordering of fields (a template keeps the order of the user)"), "{template}");
    assert!(template.contains("warning: {film} varies and stands before static text"), "{template}");
    let drawn = explain("select ai_complete('p', review, temperature => 0.5) from r").await;
    assert!(drawn.contains("refused: dedup (answers are drawn at temperature 0.5)"), "{drawn}");
    let pair = explain("select ai_complete('p', film), ai_complete('q', film) from r").await;
    assert!(pair.contains("refused: data first for calls over the same rows (computes "), "{pair}");
}

/// Two tables of 60 rows, of which every second row of `r` has a partner in `s`.
async fn with_partners(settings: &[(&str, &str)]) -> refrain::Refrain {
    let (db, _) = session(settings).await;
    rows(&db, "create table r as select value as i, 'review ' || value as review from generate_series(1, 60) t(value)")
        .await
        .unwrap();
    rows(&db, "create table s as select value * 2 as j, value % 3 as kind from generate_series(1, 60) t(value)")
        .await
        .unwrap();
    db
}

#[tokio::test]
async fn every_rewrite_is_named() {
    let db = with_partners(&[]).await;
    for (query, rewrites) in [
        ("select i from r, s where i = j and ai_filter('1', review)", "ask_above_join"),
        (
            "select review from r group by review having count(*) > 0 and ai_filter('1', review)",
            "pull_llm_filter_above_aggregate",
        ),
        ("select i, ai_complete('p', review) from r order by i limit 3", "defer_llm_past_topk"),
        ("select i, ai_agg(review, 'p') from r group by i order by i limit 3", "defer_llm_past_topk"),
        ("select i from r where ai_filter('1', review) limit 3", "stop_llm_filter_at_limit"),
        (
            "select i from r where ai_filter('1', review) order by i limit 3",
            "sort_below_llm_filter, stop_llm_filter_at_limit",
        ),
        (
            "select i from r join s on i = j and ai_filter('1', review, kind) and ai_filter('2', review, kind)",
            "order_llm_filters",
        ),
        ("select i from r where ai_filter('1', review) and ai_filter('2', review)", "order_llm_filters"),
        (
            "select i from r, s where i = j and ai_filter('1', review) and ai_filter('2', review) limit 3",
            "ask_above_join, order_llm_filters, stop_llm_filter_at_limit",
        ),
        ("select j, x from (select i, ai_complete('p', review) x from r) q join s on q.i = j", "ask_columns_above_join"),
        ("select kind, ai_complete('p', kind) from s", "dedup"),
        (
            "select i from r where exists (select 1 from s where i = j and ai_filter('1', review, kind))",
            "stop_join_at_match",
        ),
    ] {
        let plan = rows(&db, &format!("explain {query}")).await.unwrap().join("\n");
        assert!(plan.contains(&format!("rewrites: {rewrites}\n")) || plan.ends_with(rewrites), "no {rewrites} in\n{plan}");
        let json = json(&db, &format!("explain format json {query}")).await.to_string();
        assert!(rewrites.split(", ").all(|rewrite| json.contains(&format!("\"{rewrite}\""))), "no {rewrites} in\n{json}");
    }
    rows(&db, "set refrain.disabled_rewrites = 'all'").await.unwrap();
    let plan =
        rows(&db, "explain select i from r, s where i = j and ai_filter('1', review) limit 3").await.unwrap().join("\n");
    assert!(!plan.contains("rewrites:"), "{plan}");
}

#[tokio::test]
async fn a_rewrite_that_does_not_fit_is_refused_with_its_reason() {
    let db = with_partners(&[]).await;
    for (query, refused) in [
        (
            "select i, j from r left join s on i = j where ai_filter('1', review)",
            vec!["ask_above_join (the join is not inner but Left)"],
        ),
        (
            "select i, j from r join s on i < j where ai_filter('1', review)",
            vec!["ask_above_join (the join has no equal keys and may multiply rows)"],
        ),
        (
            "select j, x from s left join (select i, ai_complete('p', review) x from r) q on q.i = j",
            vec!["ask_columns_above_join (the join is not inner but Left)"],
        ),
        (
            "select i, x from (select i, ai_complete('p', review) x from r) q join s on q.i = j and q.x <> 'w' || kind",
            vec!["ask_columns_above_join (the join compares its answers)"],
        ),
        (
            "select i from r where ai_filter('1', review) order by ai_score('good', review) limit 3",
            vec!["top_k (every row is scored)", "stop_llm_filter_at_limit (the sort above it needs every row)"],
        ),
        ("select i from r order by ai_score('good', review) desc limit 3", vec!["top_k (every row is scored)"]),
        (
            "select kind, count(*) from s where ai_filter('1', kind, j) group by kind limit 3",
            vec!["stop_llm_filter_at_limit (the aggregate above it needs every row)"],
        ),
    ] {
        let plan = rows(&db, &format!("explain {query}")).await.unwrap().join("\n");
        assert_eq!(plan.matches("refused: ").count(), refused.len(), "{plan}");
        for refused in refused {
            assert!(plan.contains(&format!("refused: {refused}\n")) || plan.ends_with(refused), "no {refused} in\n{plan}");
        }
    }
    let db = with_partners(&[("optimization_mode", "minimize_cost"), ("proxy_model", "mock")]).await;
    let two = "explain select i from r where ai_filter('1', review) and ai_filter('2', review)";
    let plan = rows(&db, two).await.unwrap().join("\n");
    assert!(plan.contains("refused: order_llm_filters (a proxy answers for each predicate on its own)"), "{plan}");
}

#[tokio::test]
async fn distinct_questions_of_a_long_table_are_not_scaled_with_its_rows() {
    let (db, _) = silent().await;
    rows(&db, "create table long as select value % 100 as few, value % 20000 as many from generate_series(1, 40000)")
        .await
        .unwrap();
    let distinct = async |column: &str| {
        let plan = json(&db, &format!("explain format json select ai_filter('p', {column}) from long")).await;
        operators(&plan)[0]["calls"][0]["estimate"]["distinct"].as_f64().unwrap()
    };
    assert_eq!(distinct("few").await, 100.0);
    let many = distinct("many").await;
    assert!((many - 20_000.0).abs() < 2_000.0, "{many}");
}
