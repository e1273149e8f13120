//! Passages: inputs whose order is free for each row. The model sees all of them, and rows that hold one in common share it.

use std::collections::BTreeSet;

use proptest::prelude::*;
use refrain::Refrain;
use refrain::serving::mock::MockBackend;

use crate::support::{Oracle, real_table, rows, session, session_with};

/// Answers with the number of passages it was shown.
const QUERY: &str = "select i, ai_filter('yes', claim, passages => [a, b, c]) from t order by i";

async fn asked(settings: &[(&str, &str)], table: &str, query: &str) -> (Vec<String>, Oracle) {
    let (db, oracle) = session(settings).await;
    rows(&db, table).await.unwrap();
    (rows(&db, query).await.unwrap(), oracle)
}

/// Returns the claim and the passages of a prompt, as they stand in it.
fn shown(prompt: &str) -> (String, Vec<String>) {
    let data = prompt.split_once("Given the following data:\n").unwrap().1;
    let data: serde_json::Value = serde_json::from_str(data.split_once("<|assistant|>").unwrap().0).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("null").to_owned();
    (text(&data["claim"]), data["passages"].as_array().unwrap().iter().map(text).collect())
}

const TABLE: &str = "create table t as select * from (values \
    (1, 'k1 yes', 'shared passage of many words', 'p1', NULL), (2, 'k2', 'p2', 'shared passage of many words', 'p3'), \
    (3, 'k3', 'p4', 'p5', 'shared passage of many words'), (4, 'k4 yes', NULL, NULL, NULL)) as v(i, claim, a, b, c)";

#[tokio::test]
async fn rows_put_what_they_share_first() {
    let (answers, oracle) = asked(&[], TABLE, QUERY).await;
    assert_eq!(answers, ["1|true", "2|false", "3|false", "4|true"]);
    let mut shown: Vec<_> = oracle.prompts().iter().map(|prompt| shown(prompt)).collect();
    shown.sort();
    for (claim, passages) in &shown[..3] {
        assert_eq!(passages[0], "shared passage of many words", "{claim}");
    }
    assert_eq!(shown[0].1, ["shared passage of many words", "p1"], "a NULL is no passage");
    assert_eq!(shown[3], ("k4 yes".to_owned(), vec!["null".to_owned(); 3]));
}

#[tokio::test]
async fn without_reordering_they_stand_as_declared() {
    for strategy in ["none", "rows"] {
        let (answers, oracle) = asked(&[("reorder", strategy)], TABLE, QUERY).await;
        assert_eq!(answers, ["1|true", "2|false", "3|false", "4|true"]);
        let mut shown: Vec<_> = oracle.prompts().iter().map(|prompt| shown(prompt)).collect();
        shown.sort();
        assert_eq!(shown[1].1, ["p2", "shared passage of many words", "p3"], "{strategy}");
    }
}

#[tokio::test]
async fn a_column_of_lists_holds_passages() {
    let table =
        "create table t as select * from (values (1, ['p', 'q']), (2, ['q', 'p', 'r']), (3, NULL), (4, [])) as v(i, l)";
    let (answers, oracle) = asked(&[], table, "select ai_complete('p', passages => l) from t order by i").await;
    assert_eq!(answers.len(), 4);
    assert_eq!(answers[2], "NULL");
    assert_eq!(oracle.calls(), 3, "without any input there is nothing to ask");
    assert!(oracle.prompts().iter().any(|prompt| prompt.contains("{\"passages\": []}")), "{:?}", oracle.prompts());
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_cut_elsewhere() {
    let (db, oracle) = session_with(&[("on_overflow", "truncate")], MockBackend::new(1).max_context(700)).await;
    let query = "select ai_complete('p', repeat('x', 4000), passages => ['p1', 'p2'], max_tokens => 8)";
    rows(&db, query).await.unwrap();
    assert_eq!(oracle.calls(), 1);
    assert!(oracle.prompts()[0].contains("\"passages\": [\"p1\", \"p2\"]"), "{:?}", oracle.prompts());
}

#[tokio::test]
async fn explain_names_them() {
    let (db, _) = session(&[]).await;
    rows(&db, TABLE).await.unwrap();
    let plan = rows(&db, &format!("explain {QUERY}")).await.unwrap().join("\n");
    assert!(plan.contains("passages in any order"), "{plan}");
}

/// Windows keep the order of fields, and begin where the one before them ended.
#[tokio::test]
async fn windows_go_on_where_they_stopped() {
    let table = "create table t as select value as i, 'group ' || (value % 5) || ' of many words' as g, 'row ' || value as r \
                 from generate_series(1, 60)";
    let (answers, oracle) = asked(&[("reorder_window", "12")], table, "select ai_complete('p', r, g) from t").await;
    assert_eq!((answers.len(), oracle.calls()), (60, 60));
    let group = |prompt: &String| Some(prompt.split_once("{\"g\": \"group ")?.1.chars().next().unwrap());
    let groups: Vec<char> = oracle.prompts().iter().map(|prompt| group(prompt).unwrap()).collect();
    for (window, groups) in groups.chunks(12).enumerate().skip(1) {
        let before = &oracle.prompts()[window * 12 - 1];
        assert_eq!(Some(groups[0]), group(before), "window {window}");
        let changes = groups.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 4, "each group of the window stands together: {groups:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Each prompt shows the passages of its row, each as often as the row holds it; answers are those of the declared order.
    #[test]
    fn every_row_shows_its_own(
        table in prop::collection::vec((0..3_u8, prop::collection::vec(prop::option::of(0..4_u8), 3)), 1..12),
        strategy in prop::sample::select(vec!["auto", "search", "tree", "ggr", "none", "rows"]),
    ) {
        let cell = |passage: &Option<u8>| passage.map_or("NULL::varchar".to_owned(), |p| format!("'{}'", format!("p{p} ").repeat(p as usize + 1)));
        let row = |(at, (claim, passages)): (usize, &(u8, Vec<Option<u8>>))| {
            format!("({at}, 'k{claim}', {})", passages.iter().map(cell).collect::<Vec<_>>().join(", "))
        };
        let values: Vec<String> = table.iter().enumerate().map(row).collect();
        let create = format!("create table t as select * from (values {}) as v(i, claim, a, b, c)", values.join(", "));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (answers, oracle) = runtime.block_on(asked(&[("reorder", strategy)], &create, "select ai_complete('p', claim, passages => [a, b, c]) from t order by i"));
        prop_assert_eq!(answers.len(), table.len());
        let expected: BTreeSet<(String, Vec<String>)> = table.iter().map(|(claim, passages)| {
            let mut texts: Vec<String> = passages.iter().flatten().map(|p| format!("p{p} ").repeat(*p as usize + 1)).collect();
            texts.sort();
            (format!("k{claim}"), texts)
        }).collect();
        let shown: BTreeSet<(String, Vec<String>)> = oracle.prompts().iter().map(|prompt| {
            let (claim, mut passages) = shown(prompt);
            passages.retain(|passage| passage != "null");
            passages.sort();
            (claim, passages)
        }).collect();
        prop_assert_eq!(shown, expected);
    }
}

/// The share of prompt tokens that are computed, over retrieved passages, with `passages` and with columns.
#[tokio::test]
async fn sets_share_more_than_columns() {
    let Some(path) = real_table("fever_rag") else {
        println!("skipped: there is no table fever_rag in REFRAIN_DATA or shared/data");
        return;
    };
    let mut computed = vec![];
    for inputs in [
        "claim, passages => [evidence1, evidence2, evidence3, evidence4]",
        "claim, evidence1, evidence2, evidence3, evidence4",
    ] {
        let db = Refrain::builder().setting("device", "cpu").build().await.unwrap();
        let table = format!("(select * from '{}' limit 400)", path.display());
        let plan = format!("explain (format json) select ai_filter('Is the claim supported?', {inputs}) from {table}");
        let plan = rows(&db, &plan).await.unwrap().join("\n");
        let tokens = plan.split_once("\"computed_tokens\": ").unwrap().1.split([',', '\n']).next().unwrap().to_owned();
        computed.push(tokens.parse::<u64>().unwrap());
    }
    assert!(computed[0] < computed[1], "{computed:?}");
}
