//! Joins on an LLM predicate over both sides: every kind against a nested loop, how many pairs are asked about, and in which order.

use std::collections::BTreeSet;

use proptest::prelude::*;
use refrain::Refrain;
use refrain::serving::mock::{MockBackend, MockReply};

use crate::support::{Oracle, rows, session, session_with};

/// A row of a table: its number, a key, and a text; NULLs included.
type Row = (i64, Option<i64>, Option<String>);

const KINDS: &[&str] = &[
    "inner",
    "left",
    "right",
    "full",
    "left semi",
    "left anti",
    "right semi",
    "right anti",
    "exists",
    "not exists",
    "exists or",
    "not in",
];

fn table(first: i64) -> impl Strategy<Value = Vec<Row>> {
    let text = prop_oneof![
        1 => Just(None),
        1 => Just(Some("FAIL".to_owned())),
        8 => "[abc]{0,2}".prop_map(Some),
    ];
    prop::collection::vec((prop::option::weighted(0.8, 0_i64..3), text), 0..7).prop_map(move |rows| {
        rows.into_iter().enumerate().map(|(idx, (key, text))| (first + idx as i64, key, text)).collect()
    })
}

async fn create(db: &Refrain, name: &str, table: &[Row]) {
    rows(db, &format!("create table {name}(n bigint, k bigint, s varchar)")).await.unwrap();
    for (n, k, s) in table {
        let k = k.map_or("null".to_owned(), |k| k.to_string());
        let s = s.as_ref().map_or("null".to_owned(), |s| format!("'{s}'"));
        rows(db, &format!("insert into {name} values ({n}, {k}, {s})")).await.unwrap();
    }
}

/// A join of two tables: on equal keys or not, on a comparison or not, and on what the model says of both texts.
#[derive(Clone, Debug)]
struct Case {
    kind: &'static str,
    on_key: bool,
    on_number: bool,
    left: Vec<Row>,
    right: Vec<Row>,
}

impl Case {
    fn sql(&self) -> String {
        let Case { kind, on_key, on_number, .. } = self;
        let mut on = vec!["ai_filter('ab', a.s, b.s)"];
        if *on_key {
            on.push("a.k = b.k");
        }
        if *on_number {
            on.push("a.n + 100 <= b.n");
        }
        let on = on.join(" and ");
        match *kind {
            "exists" => format!("select a.n from a where exists (select 1 from b where {on})"),
            "not exists" => format!("select a.n from a where not exists (select 1 from b where {on})"),
            "exists or" => format!("select a.n from a where a.n = 2 or exists (select 1 from b where {on})"),
            "not in" => format!("select a.n from a where a.k not in (select b.k from b where {on})"),
            "left semi" | "left anti" => format!("select a.n from a {kind} join b on {on}"),
            "right semi" | "right anti" => format!("select b.n from a {kind} join b on {on}"),
            _ => format!("select a.n, b.n from a {kind} join b on {on}"),
        }
    }

    /// Whether the part of the condition that asks nobody holds.
    fn is_candidate(&self, a: &Row, b: &Row) -> bool {
        let unknown = a.1.is_none() || b.1.is_none();
        let keys = !self.on_key || (!unknown && a.1 == b.1);
        let numbers = !self.on_number || a.0 + 100 <= b.0;
        keys && numbers && (self.kind != "not in" || unknown || a.1 == b.1)
    }

    /// What the model says; failures and pairs of NULLs are no match.
    fn is_match(&self, a: &Row, b: &Row) -> bool {
        let text = format!("{}{}", a.2.as_deref().unwrap_or(""), b.2.as_deref().unwrap_or(""));
        self.is_candidate(a, b) && text.contains("ab") && !text.contains("FAIL")
    }

    /// A nested loop.
    fn expected(&self) -> Vec<String> {
        let Case { left, right, .. } = self;
        let left_matched = |a: &&Row| right.iter().any(|b| self.is_match(a, b));
        let right_matched = |b: &&Row| left.iter().any(|a| self.is_match(a, b));
        let numbers = |rows: Vec<&Row>| rows.into_iter().map(|row| row.0.to_string()).collect::<Vec<_>>();
        let mut pairs = vec![];
        for a in left {
            pairs.extend(right.iter().filter(|b| self.is_match(a, b)).map(|b| format!("{}|{}", a.0, b.0)));
        }
        let left_alone = || left.iter().filter(|a| !left_matched(a)).map(|a| format!("{}|NULL", a.0));
        let right_alone = || right.iter().filter(|b| !right_matched(b)).map(|b| format!("NULL|{}", b.0));
        let mut expected = match self.kind {
            "inner" => pairs,
            "left" => pairs.into_iter().chain(left_alone()).collect(),
            "right" => pairs.into_iter().chain(right_alone()).collect(),
            "full" => pairs.into_iter().chain(left_alone()).chain(right_alone()).collect(),
            "left semi" | "exists" => numbers(left.iter().filter(left_matched).collect()),
            "left anti" | "not exists" | "not in" => numbers(left.iter().filter(|a| !left_matched(a)).collect()),
            "exists or" => numbers(left.iter().filter(|a| a.0 == 2 || left_matched(a)).collect()),
            "right semi" => numbers(right.iter().filter(right_matched).collect()),
            _ => numbers(right.iter().filter(|b| !right_matched(b)).collect()),
        };
        expected.sort();
        expected
    }

    /// The distinct texts of candidates; a pair of NULLs is not asked about.
    fn questions(&self) -> usize {
        let pairs = self.left.iter().flat_map(|a| self.right.iter().map(move |b| (a, b)));
        let asked = pairs.filter(|(a, b)| self.is_candidate(a, b) && (a.2.is_some() || b.2.is_some()));
        asked.map(|(a, b)| (&a.2, &b.2)).collect::<BTreeSet<_>>().len()
    }

    async fn check(&self, settings: &[(&str, &str)], asks_once: bool) {
        let (db, oracle) = session(&[settings, &[("max_error_ratio", "1")]].concat()).await;
        rows(&db, "set datafusion.execution.batch_size = 3").await.unwrap();
        create(&db, "a", &self.left).await;
        create(&db, "b", &self.right).await;
        let mut answer = rows(&db, &self.sql()).await.unwrap_or_else(|error| panic!("{}: {error}", self.sql()));
        answer.sort();
        assert_eq!(answer, self.expected(), "{} with {settings:?} over {:?} and {:?}", self.sql(), self.left, self.right);
        let pairs = matches!(self.kind, "inner" | "left" | "right" | "full");
        if pairs && asks_once {
            assert_eq!(oracle.calls(), self.questions(), "calls of {}", self.sql());
        } else if asks_once {
            assert!(oracle.calls() <= self.questions(), "{} calls of {}", oracle.calls(), self.sql());
        }
    }
}

#[test]
fn every_kind_agrees_with_a_nested_loop() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let case = (prop::sample::select(KINDS), any::<bool>(), any::<bool>(), table(1), table(101))
        .prop_map(|(kind, on_key, on_number, left, right)| Case { kind, on_key, on_number, left, right });
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(case in case)| {
        runtime.block_on(async {
            case.check(&[], true).await;
            case.check(&[("disabled_rewrites", "all")], true).await;
            case.check(&[("reorder", "none"), ("dedup", "off"), ("cache", "off"), ("reorder_window", "2")], false).await;
        });
    });
}

#[tokio::test]
async fn too_many_pairs_are_refused_before_anything_is_asked() {
    for (on, kind) in [("", "inner"), ("a.n + 100 <= b.n and ", "left"), ("", "full")] {
        let (db, oracle) = session(&[("max_join_pairs", "20")]).await;
        rows(&db, "create table a as select value n, 'x' s from generate_series(1, 7) t(value)").await.unwrap();
        rows(&db, "create table b as select value + 100 n, 'y' s from generate_series(1, 7) t(value)").await.unwrap();
        let query = format!("select a.n from a {kind} join b on {on}ai_filter('ab', a.s, b.s)");
        let error = rows(&db, &query).await.unwrap_err().to_string();
        assert!(error.contains("refrain.max_join_pairs = 20") && error.contains("add an equality"), "{error}");
        assert_eq!(oracle.calls(), 0);
        rows(&db, "set refrain.max_join_pairs = 0").await.unwrap();
        assert!(rows(&db, &query).await.is_ok());
    }
}

#[tokio::test]
async fn a_semi_join_counts_the_pairs_that_it_asks_about() {
    let (db, _oracle) = session(&[("max_join_pairs", "20")]).await;
    rows(&db, "create table a as select value n, 'a' s from generate_series(1, 7) t(value)").await.unwrap();
    rows(&db, "create table b as select value n, 'b' || value s from generate_series(1, 7) t(value)").await.unwrap();
    // 49 candidates, of which the first of each row matches.
    let found = rows(&db, "select n from a where exists (select 1 from b where ai_filter('ab', a.s, b.s))").await.unwrap();
    assert_eq!(found.len(), 7);
    let error =
        rows(&db, "select n from a where exists (select 1 from b where ai_filter('zz', a.s, b.s))").await.unwrap_err();
    assert!(error.to_string().contains("max_join_pairs"), "{error}");
}

/// Seven rows, of which each has its only match at place `at` of a hundred candidates.
async fn calls_until(at: usize, settings: &[(&str, &str)]) -> usize {
    let mock = MockBackend::new(1).answer(move |prompt| {
        let number = prompt.rsplit_once("\"n\": ")?.1.split(['}', ',']).next()?.trim().parse::<usize>().ok()?;
        Some(MockReply::text(if number == at { "Yes" } else { "No" }))
    });
    let (db, oracle) = session_with(settings, mock).await;
    rows(&db, "create table a as select 'row ' || value s from generate_series(1, 7) t(value)").await.unwrap();
    rows(&db, "create table b as select value n from generate_series(1, 100) t(value)").await.unwrap();
    let query = "select s from a where exists (select 1 from b where ai_filter('same', a.s, b.n))";
    assert_eq!(rows(&db, query).await.unwrap().len(), usize::from(at <= 100) * 7);
    oracle.calls()
}

#[tokio::test]
async fn a_row_is_asked_about_until_it_has_a_match() {
    for at in [1, 2, 3, 10, 64, 65, 100, 101] {
        let calls = calls_until(at, &[]).await;
        let needed = 7 * at.min(100);
        assert!(calls <= 2 * needed, "{calls} calls where {needed} are needed");
    }
    assert_eq!(calls_until(1, &[("disabled_rewrites", "stop_join_at_match")]).await, 700);
}

#[tokio::test]
async fn the_prompts_of_one_row_stand_together_and_begin_with_it() {
    let (db, oracle) = session(&[]).await;
    let long = "a long description that all candidates of a row have in front of them, ".repeat(4);
    for sql in
        ["select 1 from a join b on ai_filter('same', a.s, b.w)", "select 1 from b join a on ai_filter('same', b.w, a.s)"]
    {
        for (table, column, count) in [("a", "s", 5), ("b", "w", 40)] {
            let text = if column == "s" { long.as_str() } else { "short " };
            rows(&db, &format!("drop table if exists {table}")).await.unwrap();
            rows(
                &db,
                &format!(
                    "create table {table} as select '{text}' || value {column} from generate_series(1, {count}) t(value)"
                ),
            )
            .await
            .unwrap();
        }
        let before = oracle.prompts().len();
        rows(&db, sql).await.unwrap();
        let prompts = oracle.prompts().split_off(before);
        assert_eq!(prompts.len(), 200);
        let mut runs = 0;
        let mut last = String::new();
        for prompt in &prompts {
            let data = prompt.split_once("Given the following data:\n").unwrap().1;
            assert!(data.starts_with("{\"s\""), "the long text comes first: {data}");
            let row = data.split_once("\", ").unwrap().0.to_owned();
            runs += usize::from(row != last);
            last = row;
        }
        assert!(runs <= 5, "the candidates of a row are apart: {runs} runs");
    }
}

#[tokio::test]
async fn failed_pairs_are_counted_and_keep_the_row_of_an_anti_join() {
    let (db, _oracle) = session(&[]).await;
    create(&db, "a", &[(1, None, Some("a".into())), (2, None, Some("FAIL".into()))]).await;
    create(&db, "b", &[(101, None, Some("b".into())), (102, None, Some("c".into()))]).await;
    let query = "select n from a where not exists (select 1 from b where ai_filter('ab', a.s, b.s))";
    assert_eq!(rows(&db, query).await.unwrap(), ["2"]);
    let usage = rows(&db, "select errors, rows, calls from ai_usage() order by query_id desc limit 1").await.unwrap();
    assert_eq!(usage, ["2|3|3"]);
}

/// The model and what it was asked, after a join of `n` by `m` rows of which all pairs match.
async fn limited(limit: usize) -> (usize, Oracle) {
    let (db, oracle) = session(&[]).await;
    rows(&db, "create table a as select 'x' || value s from generate_series(1, 60) t(value)").await.unwrap();
    rows(&db, "create table b as select 'y' || value w from generate_series(1, 60) t(value)").await.unwrap();
    let found = rows(&db, &format!("select a.s from a join b on ai_filter('x', a.s, b.w) limit {limit}")).await.unwrap();
    (found.len(), oracle)
}

#[tokio::test]
async fn a_limit_above_a_join_stops_it() {
    for limit in [1, 5, 100] {
        let (found, oracle) = limited(limit).await;
        assert_eq!(found, limit);
        assert!(oracle.calls() <= 2 * limit, "{} calls for {limit} rows", oracle.calls());
    }
}

/// Eight thousand rows, of which eight have one candidate each.
#[tokio::test]
async fn candidates_are_listed_as_far_as_they_are_needed() {
    let near = "a.n > b.n - 2 and a.n < b.n + 2 and ai_filter('x', a.s, b.s)";
    let exists = format!("select n from a where exists (select 1 from b where {near})");
    for (query, n_rows, candidates) in [
        (exists.clone(), 8, 8),
        (exists.replace("where exists", "where not exists"), 7992, 8),
        (format!("{exists} limit 1"), 1, 5),
        (format!("select a.n from a join b on {near} limit 1"), 1, 5),
        (format!("select a.n from a join b on {near} limit 7"), 7, 8),
        (format!("select a.n from a left join b on {near}"), 8000, 8),
    ] {
        let (db, _oracle) = session(&[]).await;
        rows(
            &db,
            "create table a as select value n, 'x in a text that stands in front' s from generate_series(1, 8000) t(value)",
        )
        .await
        .unwrap();
        rows(&db, "create table b(n bigint, s varchar)").await.unwrap();
        rows(&db, "insert into b values (1, 'b'), (4000, 'c'), (7999, 'd')").await.unwrap();
        assert_eq!(rows(&db, &query).await.unwrap().len(), n_rows, "{query}");
        let plan = rows(&db, &format!("explain analyze {query}")).await.unwrap().join("\n");
        assert!(plan.contains(&format!("candidates={candidates}")), "no candidates={candidates} for {query} in\n{plan}");
    }
}

#[tokio::test]
async fn explain_shows_the_join_and_its_estimate_and_asks_nobody() {
    let (db, oracle) = session(&[]).await;
    create(&db, "a", &[(1, None, Some("a".into())), (2, Some(1), Some("c".into()))]).await;
    create(&db, "b", &[(101, Some(1), Some("b".into()))]).await;
    let plan = rows(&db, "explain select a.n, b.n from a left join b on a.k = b.k and ai_filter('ab', a.s, b.s)")
        .await
        .unwrap()
        .join("\n");
    for expected in [
        "LlmJoinNode: Left, on=[a.k = b.k], ask ai_filter('ab'",
        "LlmJoinExec: Left, on=[",
        "rows=1 distinct=1 calls≤1",
        "max_pairs=1000000",
    ] {
        assert!(plan.contains(expected), "no {expected:?} in\n{plan}");
    }
    assert_eq!(oracle.calls(), 0);
    let plan = rows(&db, "explain analyze select a.n, b.n from a left join b on ai_filter('ab', a.s, b.s)")
        .await
        .unwrap()
        .join("\n");
    for expected in ["candidates=2", "pairs=2", "calls=2", "output_rows=2"] {
        assert!(plan.contains(expected), "no {expected:?} in\n{plan}");
    }
}
