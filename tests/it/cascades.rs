//! Cascades: a proxy answers first where the user allows it, and what is missed stays within the targets.

use std::sync::Arc;

use refrain::serving::mock::{MockBackend, MockReply};
use refrain::serving::{Backend, RowFailure};
use refrain::{ModelSource, Refrain};

use crate::support::{Oracle, rows, session_with};

const COUNT: u64 = 3000;
const FILTER: &str = "select i from t where ai_filter('Is it good?', s)";

/// A number below 1000 that looks random, the `n`-th of a row.
fn draw(row: u64, n: u64) -> u64 {
    let mixed = (row * 4 + n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % 1000
}

fn truth(row: u64) -> bool {
    draw(row, 0) < 400
}

fn row_of(prompt: &str) -> Option<u64> {
    prompt.split_once("row-")?.1.split_once('-')?.0.parse().ok()
}

/// The model knows; the proxy is mostly near it, and fails on one row of a hundred.
async fn sessions(settings: &[(&str, &str)]) -> (Refrain, Oracle, Oracle) {
    let model =
        MockBackend::new(1).answer(|prompt| Some(MockReply::text(if truth(row_of(prompt)?) { "Yes" } else { "No" })));
    let proxy = MockBackend::new(2).answer(|prompt| {
        let row = row_of(prompt)?;
        if row % 100 == 0 {
            return Some(MockReply::Fail(RowFailure::Transport("gone".to_owned())));
        }
        let noise = (draw(row, 1) * draw(row, 2) * draw(row, 3)) as f64 / 1e9;
        let yes = if truth(row) { 1.0 - noise } else { noise };
        Some(if yes >= 0.5 { MockReply::probable("Yes", yes) } else { MockReply::probable("No", 1.0 - yes) })
    });
    let (db, model) = session_with(&[], model).await;
    let proxy = Oracle(Arc::new(proxy));
    db.model_catalog().add("small", ModelSource::Backend(Arc::clone(&proxy.0) as Arc<dyn Backend>), true).unwrap();
    rows(&db, "set refrain.model = 'mock'").await.unwrap();
    for (name, value) in settings {
        rows(&db, &format!("set refrain.{name} = '{value}'")).await.unwrap();
    }
    let table = format!("create table t as select value as i, 'row-' || value || '-' as s from generate_series(1, {COUNT})");
    rows(&db, &table).await.unwrap();
    (db, model, proxy)
}

const CHEAP: &[(&str, &str)] = &[("optimization_mode", "minimize_cost"), ("proxy_model", "small")];

#[tokio::test]
async fn half_of_the_calls_and_the_targets_are_kept() {
    let (db, model, proxy) = sessions(CHEAP).await;
    let kept: Vec<u64> = rows(&db, FILTER).await.unwrap().iter().map(|row| row.parse().unwrap()).collect();
    let yes = (1..=COUNT).filter(|row| truth(*row)).count() as f64;
    let right = kept.iter().filter(|row| truth(**row)).count() as f64;
    assert!(right / yes >= 0.9 && right / kept.len() as f64 >= 0.9, "{right} of {yes}, {} kept", kept.len());
    assert_eq!(proxy.calls() as u64, COUNT);
    assert!(model.calls() < COUNT as usize / 2, "{}", model.calls());
    // Nothing is left to chance.
    let (again, ..) = sessions(CHEAP).await;
    assert_eq!(rows(&again, FILTER).await.unwrap().len(), kept.len());
    // Only the model's own answers may serve an exact query.
    rows(&db, "set refrain.optimization_mode = 'exact'").await.unwrap();
    assert_eq!(rows(&db, FILTER).await.unwrap().len() as f64, yes);
}

#[tokio::test]
async fn other_queries_ask_the_model_alone() {
    for (settings, query, calls) in [
        (&[("proxy_model", "small")][..], FILTER.to_owned(), COUNT),
        (&CHEAP[..1], FILTER.to_owned(), COUNT),
        // Too few rows to prove anything.
        (CHEAP, FILTER.replace(" t ", " (select * from t limit 200) "), 200),
        // Asked until there are enough.
        (CHEAP, format!("{FILTER} limit 1"), 2),
        // Another model would only answer twice.
        (CHEAP, FILTER.replace("s)", "s, temperature => 1)"), COUNT),
        (CHEAP, "select ai_classify(s, ['Yes', 'No']) from t".to_owned(), COUNT),
    ] {
        let (db, model, proxy) = sessions(settings).await;
        let plan = rows(&db, &format!("explain {query}")).await.unwrap().join("\n");
        rows(&db, &query).await.unwrap();
        assert_eq!((model.calls() as u64, proxy.calls()), (calls, 0), "{query}\n{plan}");
    }
}

#[tokio::test]
async fn the_plan_and_the_usage_tell() {
    let (db, ..) = sessions(CHEAP).await;
    let plan = rows(&db, &format!("explain {FILTER}")).await.unwrap().join("\n");
    assert!(plan.contains("cascade(proxy=small, recall≥0.9, precision≥0.9, failure≤0.05)"), "{plan}");
    let plan = rows(&db, &format!("explain analyze {FILTER}")).await.unwrap().join("\n");
    for expected in ["cascade_sampled=", "cascade_accepted=", "cascade_rejected="] {
        assert!(plan.contains(expected), "no {expected:?} in\n{plan}");
    }
    let usage = rows(&db, "select model, calls from ai_usage() where calls = 3000").await.unwrap();
    assert_eq!(usage, ["small|3000"]);
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_an_error() {
    let (db, ..) = sessions(&[("optimization_mode", "minimize_cost"), ("proxy_model", "tiny")]).await;
    let error = rows(&db, FILTER).await.unwrap_err().to_string();
    assert!(error.contains("tiny"), "{error}");
}
