//! A query that nobody waits for stops its model calls.

use futures::StreamExt;
use refrain::serving::Error as ServingError;
use refrain::serving::mock::{Gate, MockBackend, MockReply};
use refrain::{Error, ModelSource, Refrain};

use crate::support::{rows, session_with};

const QUERY: &str = "select ai_complete('p', value) from generate_series(1, 100)";

/// A model that answers nothing before the gate opens.
fn held(gate: &Gate) -> MockBackend {
    let gate = gate.clone();
    MockBackend::new(1).answer(move |_| Some(MockReply::text("late").after(&gate)))
}

#[tokio::test]
async fn dropping_the_rows_cancels_the_calls() {
    let gate = Gate::new();
    let (db, oracle) = session_with(&[], held(&gate)).await;
    let mut run = db.sql(QUERY).await.unwrap().execute().await.unwrap();
    let polled = tokio::select! { row = run.next() => row.is_some(), () = oracle.0.wait_for_calls(100) => false };
    assert!(!polled, "rows before any answer");
    assert_eq!(oracle.0.in_flight(), 100);
    drop(run);
    oracle.0.wait_until_idle().await;
    assert_eq!(oracle.0.in_flight(), 0);
}

/// A limit takes the first rows that pass, and once these are known nobody waits for the others of their morsel.
#[tokio::test]
async fn a_limit_that_is_met_cancels_what_still_runs() {
    let gate = Gate::new();
    let held = gate.clone();
    let mock = MockBackend::new(1).answer(move |prompt| {
        let number = prompt.rsplit_once("{\"i\": ")?.1.split_once('}')?.0.parse::<usize>().ok()?;
        let reply = MockReply::text(if number == 3 { "No" } else { "Yes" });
        Some(if number > 6 && !prompt.contains("ungated") { reply.after(&held) } else { reply })
    });
    let (db, oracle) = session_with(&[], mock).await;
    for (query, taken, asked) in [
        ("ai_filter('p', i) limit 5", vec!["1", "2", "4", "5", "6"], 10),
        ("not ai_filter('q', i) limit 1", vec!["3"], 4),
        ("ai_filter('r', i) limit 2 offset 2", vec!["4", "5"], 8),
        // Eight rows are asked the first predicate, and the seven that pass the second.
        ("ai_filter('ungated', i) and ai_filter('s', i) limit 5", vec!["1", "2", "4", "5", "6"], 15),
    ] {
        let before = oracle.calls();
        let query = format!("select i from (select value as i from generate_series(1, 4000)) where {query}");
        assert_eq!(rows(&db, &query).await.unwrap(), taken, "{query}");
        // The morsel was submitted; nothing more was, and nothing of it runs any longer.
        oracle.0.wait_until_idle().await;
        assert_eq!((oracle.0.in_flight(), oracle.calls() - before), (0, asked), "{query}");
    }
    // What was cancelled may be asked again, also by the same session.
    gate.open();
    assert_eq!(
        rows(&db, "select count(*) from (select value as i from generate_series(1, 20)) where ai_filter('p', i)")
            .await
            .unwrap(),
        ["19"]
    );
}

/// As for filters: the matches of the first pairs are known, and nobody waits for the others of their block.
#[tokio::test]
async fn a_limit_above_a_join_cancels_what_still_runs() {
    for (on, taken, asked) in [
        ("ai_filter('p', a.s, b.i)", ["1", "3", "4"], 6),
        ("ai_filter('p', a.s, b.i) is not null and a.s <> 'y'", ["1", "2", "3"], 6),
        // The five of six that pass the first predicate are asked the second.
        ("ai_filter('ungated', a.s, b.i) and ai_filter('p', a.s, b.i)", ["1", "3", "4"], 11),
    ] {
        for kind in ["join", "left join"] {
            let gate = Gate::new();
            let mock = MockBackend::new(1).answer(move |prompt| {
                let number = prompt.rsplit_once("\"i\": ")?.1.split([',', '}']).next()?.parse::<usize>().ok()?;
                let reply = MockReply::text(if number == 2 { "No" } else { "Yes" });
                Some(if number > 4 && !prompt.contains("ungated") { reply.after(&gate) } else { reply })
            });
            let (db, oracle) = session_with(&[], mock).await;
            rows(&db, "create table a as select 'x' as s").await.unwrap();
            rows(&db, "create table b as select value as i from generate_series(1, 20)").await.unwrap();
            let query = format!("select b.i from a {kind} b on {on} limit 3");
            assert_eq!(rows(&db, &query).await.unwrap(), taken, "{query}");
            oracle.0.wait_until_idle().await;
            assert_eq!((oracle.0.in_flight(), oracle.calls()), (0, asked), "{query}");
        }
    }
}

#[tokio::test]
async fn the_handle_cancels_and_the_session_lives() {
    let gate = Gate::new();
    let (db, oracle) = session_with(&[], held(&gate)).await;
    let mut run = db.sql(QUERY).await.unwrap().execute().await.unwrap();
    let handle = run.cancel_handle();
    let mock = oracle.clone();
    let cancel = tokio::spawn(async move {
        mock.0.wait_for_calls(100).await;
        handle.cancel();
    });
    assert!(matches!(run.next().await, Some(Err(Error::Cancelled))));
    assert!(run.next().await.is_none());
    cancel.await.unwrap();
    oracle.0.wait_until_idle().await;
    gate.open();
    assert_eq!(rows(&db, "select ai_complete('p', 'x')").await.unwrap(), ["late"]);
}

#[tokio::test]
async fn a_cancelled_query_leaves_its_questions_to_others() {
    let gate = Gate::new();
    let (db, oracle) = session_with(&[], held(&gate)).await;
    let run = db.sql("select * from (select ai_complete('p', 'x')) union all (select ai_complete('p', 'x'))").await.unwrap();
    let mut run = run.execute().await.unwrap();
    let mock = oracle.clone();
    let open = tokio::spawn(async move {
        mock.0.wait_for_calls(1).await;
        gate.open();
    });
    assert_eq!(run.fetch_all().await.unwrap().iter().map(|batch| batch.num_rows()).sum::<usize>(), 2);
    open.await.unwrap();
    assert_eq!(oracle.calls(), 1, "both sides wait for one answer");
}

#[tokio::test]
async fn a_dead_backend_fails_the_query_and_not_the_session() {
    let mock = MockBackend::new(1).answer(|prompt| {
        prompt.contains("die").then(|| MockReply::Error(ServingError::Device("the device is lost".to_owned())))
    });
    let (db, _oracle) = session_with(&[], mock).await;
    let error = rows(&db, "select ai_complete('p', 'die')").await.unwrap_err();
    assert!(matches!(error, Error::Backend { fatal: true, .. }), "{error:?}");
    assert_eq!(rows(&db, "select 1").await.unwrap(), ["1"]);
}

/// The embedded engine, not the mock: once the stream is dropped it computes nothing more.
#[tokio::test]
async fn the_embedded_engine_falls_idle() {
    let db = Refrain::builder().build().await.unwrap();
    let backend = db.model_catalog().backend("mini").await.unwrap();
    let query = "select ai_complete('Write a long story', value, max_tokens => 200) from generate_series(1, 2000)";
    let mut run = db.sql(query).await.unwrap().execute().await.unwrap();
    // Some step has run once tokens have been computed; the first row would take all of them.
    tokio::select! {
        _ = run.next() => panic!("2,000 stories within a step"),
        () = async { while backend.stats().computed_tokens == 0 { tokio::task::yield_now().await } } => {}
    }
    drop(run);
    while backend.stats().pending > 0 {
        tokio::task::yield_now().await;
    }
    let stats = backend.stats();
    assert!(stats.cancelled > 1900, "{stats:?}");
    let answer = rows(&db, "select ai_sentiment('a wonderful film')").await.unwrap();
    assert_eq!(answer, ["positive"]);
    let after = backend.stats();
    assert!(after.steps - stats.steps < 50, "the cancelled query still ran: {stats:?} {after:?}");
}

#[tokio::test]
async fn models_can_be_given_to_another_session() {
    let db =
        Refrain::builder().model("m", ModelSource::Backend(std::sync::Arc::new(MockBackend::new(3)))).build().await.unwrap();
    let context = datafusion::prelude::SessionContext::new();
    refrain::register(&context, db.model_catalog()).unwrap();
    let frame = refrain::sql(&context, "select ai_classify('x', ['a', 'b'], max_tokens => 5) as kind").await.unwrap();
    let batches = frame.collect().await.unwrap();
    assert_eq!(batches[0].num_rows(), 1);
}
