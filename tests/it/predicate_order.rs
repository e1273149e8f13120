//! LLM predicates of one AND are asked in the order that costs least, whatever order was written, with the answers of SQL's AND.

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use refrain::serving::RowFailure;
use refrain::serving::mock::{MockBackend, MockReply};

use crate::support::{Oracle, rows, session, session_with};

/// A model that says yes to an instruction `under N` for every row whose hash by that instruction is below `N` in a hundred.
async fn sieve() -> (refrain::Refrain, Oracle) {
    let mock = MockBackend::new(1).answer(|prompt| {
        let threshold = prompt.rsplit_once("under ")?.1.split_once(' ')?.0.trim_end_matches('.').parse::<u64>().ok()?;
        let row = prompt.rsplit_once("{\"i\": ")?.1.split_once('}')?.0.parse::<u64>().ok()?;
        let hash = (row + threshold * 7919).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        Some(MockReply::text(if hash % 100 < threshold { "Yes" } else { "No" }))
    });
    session_with(&[], mock).await
}

/// Runs a filter of these predicates over so many rows and returns the rows and the calls.
async fn run(order: &[u32], n_rows: usize, setting: &str) -> (Vec<String>, usize) {
    let (db, oracle) = sieve().await;
    rows(&db, &format!("set refrain.disabled_rewrites = '{setting}'")).await.unwrap();
    let predicates: Vec<String> = order.iter().map(|n| format!("ai_filter('under {n} of 100', i)")).collect();
    let query =
        format!("select i from (select value as i from generate_series(1, {n_rows})) where {}", predicates.join(" and "));
    // Without ORDER BY, partitions come in any order.
    let mut answers = rows(&db, &query).await.unwrap();
    answers.sort();
    (answers, oracle.calls())
}

#[tokio::test]
async fn a_bad_written_order_costs_near_the_best() {
    for (best, worst) in [(&[5, 95][..], &[95, 5][..]), (&[2, 50, 90], &[90, 50, 2])] {
        let (expected, best) = run(best, 3000, "order_llm_filters").await;
        let (answers, calls) = run(worst, 3000, "none").await;
        assert_eq!(answers, expected);
        assert!(calls as f64 <= best as f64 * 1.05, "{calls} calls; the best order makes {best}");
        let (answers, written) = run(worst, 3000, "order_llm_filters").await;
        assert_eq!(answers, expected);
        assert!(written as f64 > best as f64 * 1.5, "{written} calls as written");
        println!("{worst:?} % pass, 3000 rows: {calls} calls; {written} as written, {best} in the best order");
    }
}

#[tokio::test]
async fn a_good_written_order_loses_little() {
    for n_rows in [20, 150, 400, 3000] {
        let (expected, best) = run(&[5, 95], n_rows, "order_llm_filters").await;
        let (answers, calls) = run(&[5, 95], n_rows, "none").await;
        assert_eq!(answers, expected);
        assert!(calls as f64 <= best as f64 * 1.04 + 1.0, "{calls} calls for {n_rows} rows; as written {best}");
    }
}

#[tokio::test]
async fn the_second_query_starts_with_what_the_first_has_shown() {
    let (db, oracle) = sieve().await;
    let query = |from: usize| {
        format!(
            "select count(*) from (select value as i from generate_series({from}, {})) where ai_filter('under 95 of 100', i) \
             and ai_filter('under 5 of 100', i)",
            from + 59
        )
    };
    rows(&db, &query(1)).await.unwrap();
    let first = oracle.calls();
    rows(&db, &query(1001)).await.unwrap();
    let second = oracle.calls() - first;
    assert!(second < first && second <= 70, "{first} calls, then {second}");
}

#[tokio::test]
async fn one_question_for_many_rows_is_asked_before_a_selective_one() {
    let (db, oracle) = session(&[]).await;
    rows(&db, "create table t as select value as i, value % 3 as film from generate_series(1, 300)").await.unwrap();
    let found = rows(&db, "select count(*) from t where ai_filter('7', i) and ai_filter('1', film)").await.unwrap();
    assert_eq!(found, ["19"]);
    // Three films, and then a hundred rows of one of them; the first rows find that out.
    assert!(oracle.calls() <= 3 + 100 + 30, "{} calls", oracle.calls());
}

#[tokio::test]
async fn analyze_shows_the_order_and_what_passed() {
    let (db, _) = sieve().await;
    let query = "explain analyze select i from (select value as i from generate_series(1, 1000)) \
                 where ai_filter('under 95 of 100', i) and ai_filter('under 5 of 100', i)";
    let plan = rows(&db, query).await.unwrap().join("\n");
    let order = plan.split_once("asked in the order ").expect(&plan).1;
    let [first, second] = ["ai_filter('under 5 of 100', fields=[i]) (", "ai_filter('under 95 of 100', fields=[i]) ("];
    assert!(order.starts_with(first) && order.split_once("), ").unwrap().1.starts_with(second), "{plan}");
}

#[tokio::test]
async fn a_limit_stops_all_predicates() {
    let (db, oracle) = sieve().await;
    let query = "select i from (select value as i from generate_series(1, 5000)) where ai_filter('under 90 of 100', i) \
                 and ai_filter('under 50 of 100', i) limit 5";
    assert_eq!(rows(&db, query).await.unwrap().len(), 5);
    assert!(oracle.calls() <= 60, "{} calls", oracle.calls());
}

/// One row with each of three thousand others.
#[tokio::test]
async fn predicates_over_pairs_are_asked_in_the_best_order() {
    let run = async |disabled: &str| {
        let mock = MockBackend::new(1).answer(|prompt| {
            let threshold = prompt.rsplit_once("under ")?.1.split_once(' ')?.0.parse::<u64>().ok()?;
            let row = prompt.rsplit_once("\"i\": ")?.1.split([',', '}']).next()?.parse::<u64>().ok()?;
            Some(MockReply::text(if (row * 37 + threshold) % 100 < threshold { "Yes" } else { "No" }))
        });
        let (db, oracle) = session_with(&[("disabled_rewrites", disabled)], mock).await;
        rows(&db, "create table a as select 'x' as s").await.unwrap();
        rows(&db, "create table b as select value as i from generate_series(1, 3000)").await.unwrap();
        let query =
            "select b.i from a join b on ai_filter('under 95 of 100', a.s, b.i) and ai_filter('under 5 of 100', a.s, b.i)";
        let mut found = rows(&db, query).await.unwrap();
        found.sort();
        let calls = oracle.calls();
        (found, calls, rows(&db, &format!("explain analyze {query}")).await.unwrap().join("\n"))
    };
    let (expected, written, _) = run("order_llm_filters").await;
    let (found, calls, plan) = run("none").await;
    assert_eq!(found, expected);
    assert!(written > 5500 && calls < 3450, "{calls} calls, {written} as written");
    assert!(plan.contains("asked in the order ai_filter('under 5 of 100'"), "{plan}");
}

/// A model whose answer depends on instruction and cell alone: yes, no, or a failure.
fn three_valued() -> MockBackend {
    MockBackend::new(1).answer(|prompt| {
        let instruction = prompt.split_once("query:\n\n")?.1.split_once(' ')?.0.to_owned();
        let data = prompt.rsplit_once(": ")?.1.split_once('}')?.0.to_owned();
        let hash = instruction
            .bytes()
            .chain(data.bytes())
            .fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        Some(match hash % 7 {
            0 => MockReply::Fail(RowFailure::Schema("nonsense".to_owned())),
            1..=3 => MockReply::text("Yes"),
            _ => MockReply::text("No"),
        })
    })
}

/// Predicates over the answers, as SQL with a call in it.
const FORMS: [&str; 4] = ["{}", "not {}", "{} is null", "coalesce({}, true)"];

/// What the search for the order costs where the written one is the best already: little of many queries together, and bounded in
/// each. Which rows are seen first is chance, so the cases are the same in every run.
#[test]
fn finding_the_order_costs_little() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut runner = TestRunner::deterministic();
    let cases = (prop::sample::subsequence(vec![3_u32, 12, 25, 40, 55, 70, 85, 97], 2..=3), 1_usize..1500);
    let (mut written_all, mut calls_all) = (0, 0);
    for _ in 0..24 {
        let (thresholds, n_rows) = cases.new_tree(&mut runner).unwrap().current();
        let (written, calls) = runtime.block_on(async {
            (run(&thresholds, n_rows, "order_llm_filters").await.1, run(&thresholds, n_rows, "none").await.1)
        });
        assert!(
            calls as f64 <= written as f64 * 1.2 + 40.0,
            "{calls} calls, {written} written: {thresholds:?}, {n_rows} rows"
        );
        (written_all, calls_all) = (written_all + written, calls_all + calls);
    }
    assert!(calls_all as f64 <= written_all as f64 * 1.05, "{calls_all} calls; {written_all} in the written order");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_order_answers_as_and_does(
        cells in vec((0_u8..12, any::<bool>(), 0_u8..4), 0..120),
        predicates in vec((0_usize..3, 0_usize..FORMS.len(), any::<bool>()), 2..5),
        limit in (0_usize..8).prop_map(|limit| (limit > 3).then_some(limit)),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (on, off) = runtime.block_on(async {
            let mut answers = vec![];
            for disabled in ["none", "all"] {
                let (db, oracle) = session_with(&[("disabled_rewrites", disabled), ("max_error_ratio", "1")], three_valued()).await;
                rows(&db, "create table t(n int, a varchar, b int)").await.unwrap();
                let cell = |(n, (a, is_null, b)): (usize, &(u8, bool, u8))| {
                    let a = if *is_null && *a < 3 { "null".to_owned() } else { format!("'{a}'") };
                    format!("({n}, {a}, {b})")
                };
                if !cells.is_empty() {
                    let values: Vec<String> = cells.iter().enumerate().map(cell).collect();
                    rows(&db, &format!("insert into t values {}", values.join(", "))).await.unwrap();
                }
                let conjunct = |(instruction, form, over_a): &(usize, usize, bool)| {
                    let call = format!("ai_filter('q{instruction} of it', {})", if *over_a { "a" } else { "b" });
                    FORMS[*form].replace("{}", &call)
                };
                let conjuncts: Vec<String> = predicates.iter().map(conjunct).collect();
                let query = format!("select n from t where {}", conjuncts.join(" and "));
                let all = rows(&db, &query).await.unwrap();
                let calls = oracle.calls();
                let some = match limit {
                    Some(limit) => rows(&db, &format!("{query} limit {limit}")).await.unwrap(),
                    None => all.clone(),
                };
                answers.push((all, some, calls));
            }
            (answers.remove(0), answers.remove(0))
        });
        prop_assert_eq!(&on.0, &off.0);
        prop_assert!(on.2 <= cells.len() * predicates.len());
        // Which rows a limit takes is not said, how many is.
        prop_assert_eq!(on.1.len(), off.1.len());
        prop_assert!(on.1.iter().all(|row| on.0.contains(row)));
    }
}
