//! Answers outlive their query where the settings say so, and are given again only to the same question.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use datafusion::prelude::SessionConfig;
use futures::StreamExt;
use refrain::answers::{AnswerCache, Clock, TierBytes};
use refrain::serving::mock::{Gate, MockBackend, MockReply};
use refrain::serving::{Backend, RowFailure};
use refrain::{ModelSource, Refrain, Tier};
use refrain_udf::Settings;

use crate::support::{Oracle, rows, session, session_with};

const ROWS: &str = "(select value as a, value * 2 as b from generate_series(1, 20))";

fn persistent(folder: &Path) -> [(&'static str, &str); 2] {
    [("cache", "persistent"), ("cache_dir", folder.to_str().unwrap())]
}

/// Runs a query and returns how many calls it made.
async fn calls(db: &Refrain, oracle: &Oracle, sql: &str) -> usize {
    let before = oracle.calls();
    rows(db, sql).await.unwrap();
    oracle.calls() - before
}

fn settings(db: &Refrain) -> Settings {
    db.context().state().config().options().extensions.get::<Settings>().unwrap().clone()
}

#[tokio::test]
async fn a_second_query_in_the_session_costs_nothing() {
    let query = format!("select ai_complete('p', a) from {ROWS}");
    for (cache, again) in [("off", 20), ("query", 20), ("session", 0)] {
        let (db, oracle) = session(&[("cache", cache)]).await;
        assert_eq!(calls(&db, &oracle, &query).await, 20);
        assert_eq!(calls(&db, &oracle, &query).await, again, "cache = '{cache}'");
    }
}

#[tokio::test]
async fn a_later_session_costs_nothing_and_answers_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let query = format!(
        "select ai_complete('p', a), ai_filter('1', a), ai_score('p', a), ai_classify(a, ['x', 'y']), \
         ai_complete('JSON of what there is to say about this row', a, return_type => 'STRUCT(n BIGINT, b VARCHAR)') from {ROWS} order by a"
    );
    let (db, oracle) = session(&persistent(folder.path())).await;
    let first = rows(&db, &query).await.unwrap();
    assert_eq!(oracle.calls(), 100);
    drop(db);
    let (db, oracle) = session(&persistent(folder.path())).await;
    let mut run = db.sql(&query).await.unwrap().execute().await.unwrap();
    run.fetch_all().await.unwrap();
    let usage = run.usage();
    assert_eq!((usage.calls, usage.cache_hits, usage.dedup_saved), (0, 100, 0));
    assert_eq!((rows(&db, &query).await.unwrap(), oracle.calls()), (first, 0));
}

#[tokio::test]
async fn the_order_of_columns_is_not_part_of_the_question() {
    let (db, oracle) = session(&[("cache", "session")]).await;
    let query = |inputs: &str, option: &str| format!("select ai_complete('p', {inputs}{option}) from {ROWS}");
    assert_eq!(calls(&db, &oracle, &query("a, b", "")).await, 20);
    for reorder in ["none", "rows", "ggr", "search"] {
        let option = format!(", reorder => '{reorder}'");
        assert_eq!(calls(&db, &oracle, &query("a, b", &option)).await, 0);
        assert_eq!(calls(&db, &oracle, &query("b, a", &option)).await, 0);
    }
    assert_eq!(
        calls(&db, &oracle, &query("named_struct('a', b, 'b', a)", "")).await,
        20,
        "other values under the same labels"
    );
}

#[tokio::test]
async fn another_question_is_asked() {
    let (db, oracle) = session(&[("cache", "session")]).await;
    let other = [
        "ai_complete('p', a)",
        "ai_complete('q', a)",
        "ai_complete('p', b)",
        "ai_complete('p', named_struct('c', a))",
        "ai_complete('p', a, b)",
        "ai_complete('p', a, max_tokens => 9)",
        "ai_complete('p', a, seed => 9)",
        "ai_complete('p {a}', a)",
        "ai_filter('p', a)",
        "ai_classify(a, ['p', 'q'])",
        "ai_classify(a, ['p', 'r'])",
    ];
    for call in other {
        let query = format!("select {call} from {ROWS}");
        assert_eq!(calls(&db, &oracle, &query).await, 20, "{call} is new");
        assert_eq!(calls(&db, &oracle, &query).await, 0, "{call} is known");
    }
}

#[tokio::test]
async fn another_model_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let query = format!("select ai_complete('p', a) from {ROWS}");
    for (seed, expected) in [(1, 20), (2, 20), (1, 0)] {
        let (db, oracle) = session_with(&persistent(folder.path()), MockBackend::new(seed)).await;
        assert_eq!(calls(&db, &oracle, &query).await, expected, "model {seed}");
    }
}

#[tokio::test]
async fn what_is_drawn_is_not_cached() {
    let folder = tempfile::tempdir().unwrap();
    let query = format!("select ai_complete('p', a, temperature => 0.5) from {ROWS}");
    let in_memory = [("cache", "session")];
    for settings in [&in_memory[..], &persistent(folder.path())] {
        let (db, oracle) = session(settings).await;
        assert_eq!(calls(&db, &oracle, &query).await, 20);
        assert_eq!(calls(&db, &oracle, &query).await, 20);
    }
}

#[tokio::test]
async fn failures_are_not_cached() {
    let failing = Arc::new(AtomicBool::new(true));
    let script = Arc::clone(&failing);
    let mock = MockBackend::new(1).answer(move |prompt| {
        let fails = script.load(Ordering::Relaxed) && prompt.contains("{\"a\": 7}");
        fails.then(|| MockReply::Fail(RowFailure::Transport("the line is cut".to_owned())))
    });
    let folder = tempfile::tempdir().unwrap();
    let (db, oracle) = session_with(&persistent(folder.path()), mock).await;
    let query = format!("select ai_complete('p', a) from {ROWS} where a in (6, 7)");
    assert_eq!(rows(&db, &query).await.unwrap(), ["p(6)", "NULL"]);
    failing.store(false, Ordering::Relaxed);
    assert_eq!(rows(&db, &query).await.unwrap(), ["p(6)", "p(7)"]);
    assert_eq!(oracle.calls(), 3);
}

#[tokio::test]
async fn a_query_that_failed_rows_end_leaves_its_finished_calls() {
    let folder = tempfile::tempdir().unwrap();
    let text = "case when a <= 12 then 'FAIL ' || a else 'row ' || a end";
    for settings in [&[("cache", "session")][..], &persistent(folder.path())] {
        let (db, oracle) = session(settings).await;
        let error = rows(&db, &format!("select ai_complete('p', {text}) from {ROWS}")).await.unwrap_err().to_string();
        assert!(error.contains("max_error_ratio"), "{error}");
        assert_eq!(oracle.calls(), 20);
        let answered = format!("select ai_complete('p', {text}) from {ROWS} where a > 12");
        assert_eq!(calls(&db, &oracle, &answered).await, 0, "{settings:?}");
        rows(&db, "set refrain.max_error_ratio = 1").await.unwrap();
        let all = format!("select ai_complete('p', {text}) from {ROWS}");
        assert_eq!(calls(&db, &oracle, &all).await, 12, "failed rows are asked again");
    }
}

/// A session whose cache has a clock of its own.
async fn clocked(settings: &[(&str, &str)], now: &Arc<AtomicU64>, bytes: TierBytes) -> (Refrain, Oracle) {
    let clock = Arc::clone(now);
    let cache = AnswerCache::new(bytes, Clock::new(move || clock.load(Ordering::Relaxed)));
    let oracle = Oracle(Arc::new(MockBackend::new(1)));
    let model = ModelSource::Backend(Arc::clone(&oracle.0) as Arc<dyn Backend>);
    let config = SessionConfig::new().with_extension(Arc::new(cache));
    let mut builder = Refrain::builder().config(config).model("mock", model);
    for (key, value) in settings {
        builder = builder.setting(*key, *value);
    }
    (builder.build().await.unwrap(), oracle)
}

#[tokio::test]
async fn stale_answers_are_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let query = format!("select ai_complete('p', a) from {ROWS}");
    let in_memory = [("cache", "session"), ("cache_ttl", "1h")];
    let mut on_disk = persistent(folder.path()).to_vec();
    on_disk.push(("cache_ttl", "1h"));
    for settings in [&in_memory[..], &on_disk] {
        let now = Arc::new(AtomicU64::new(1_000_000));
        let (db, oracle) = clocked(settings, &now, TierBytes::default()).await;
        for (after, expected) in [(0, 20), (3600, 0), (1, 20), (3600, 0)] {
            now.fetch_add(after, Ordering::Relaxed);
            assert_eq!(calls(&db, &oracle, &query).await, expected, "{settings:?}, {after} s later");
        }
    }
}

#[tokio::test]
async fn tiers_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let query = format!("select ai_complete('p', a) from {ROWS}");
    let bytes = TierBytes { session: 2000, persistent: 2000 };
    for settings in [&[("cache", "session")][..], &persistent(folder.path())] {
        let (db, _oracle) = clocked(settings, &Arc::default(), bytes).await;
        rows(&db, &query).await.unwrap();
        let stats = db.answer_cache().stats(&self::settings(&db)).await.unwrap();
        assert!((1..20).contains(&stats[0].entries), "{stats:?}");
    }
}

#[tokio::test]
async fn the_cache_is_counted_and_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let query = format!("select ai_complete('p', a), ai_filter('1', a) from {ROWS}");
    for (tier, settings) in [(Tier::Session, &[("cache", "session")][..]), (Tier::Persistent, &persistent(folder.path()))] {
        let (db, oracle) = session(settings).await;
        assert_eq!(calls(&db, &oracle, &query).await, 40);
        assert_eq!(calls(&db, &oracle, &query).await, 0);
        let (cache, settings) = (db.answer_cache(), self::settings(&db));
        let stats = cache.stats(&settings).await.unwrap();
        let mut counted: Vec<_> =
            stats.iter().map(|group| (group.tier, group.function.as_str(), group.entries, group.hits)).collect();
        counted.sort_unstable();
        assert_eq!(counted, [(tier, "ai_complete", 20, 20), (tier, "ai_filter", 20, 20)]);
        assert!(stats.iter().all(|group| group.model_digest == "mock-1" && group.oldest <= group.newest));
        assert_eq!(cache.clear(tier, &settings).await.unwrap(), 40);
        assert_eq!(cache.stats(&settings).await.unwrap(), []);
        assert_eq!(calls(&db, &oracle, &query).await, 40);
    }
}

#[tokio::test]
async fn clearing_leaves_files_that_are_not_named() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("run.answers");
    let mut settings = persistent(folder.path()).to_vec();
    settings.push(("checkpoint", checkpoint.to_str().unwrap()));
    let (db, oracle) = session(&settings).await;
    let query = |prompt: &str| format!("select ai_complete('{prompt}', a) from {ROWS}");
    rows(&db, &query("p")).await.unwrap();
    rows(&db, "set refrain.cache = 'session'").await.unwrap();
    rows(&db, &query("q")).await.unwrap();
    let tiers = "select tier, sum(entries) from ai_cache() group by tier order by tier";
    assert_eq!(rows(&db, tiers).await.unwrap(), ["checkpoint|40", "persistent|20", "session|20"]);
    rows(&db, "call ai_cache_clear()").await.unwrap();
    assert_eq!(rows(&db, tiers).await.unwrap(), ["checkpoint|40", "persistent|20"]);
    assert_eq!((calls(&db, &oracle, &query("p")).await, calls(&db, &oracle, &query("q")).await), (0, 0));
    rows(&db, "call ai_cache_clear('checkpoint')").await.unwrap();
    assert_eq!(rows(&db, tiers).await.unwrap(), ["persistent|20"]);
    assert_eq!(calls(&db, &oracle, &query("q")).await, 20);
    rows(&db, "call ai_cache_clear('persistent')").await.unwrap();
    assert_eq!(rows(&db, tiers).await.unwrap(), ["checkpoint|20", "session|20"]);
}

#[tokio::test]
async fn a_cancelled_query_leaves_its_finished_calls() {
    let gate = Gate::new();
    let held = gate.clone();
    let mock =
        MockBackend::new(1).answer(move |prompt| prompt.contains("{\"a\": 1").then(|| MockReply::text("late").after(&held)));
    let folder = tempfile::tempdir().unwrap();
    let (db, oracle) = session_with(&persistent(folder.path()), mock).await;
    // 1 and 10 to 19 are held.
    let query = format!("select ai_complete('p', a) from {ROWS}");
    let mut run = db.sql(&query).await.unwrap().execute().await.unwrap();
    let (cache, settings) = (db.answer_cache(), settings(&db));
    let finished = async {
        loop {
            let stats = cache.stats(&settings).await.unwrap();
            if stats.iter().map(|group| group.entries).sum::<u64>() == 9 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! { row = run.next() => panic!("a row before its answer: {row:?}"), () = finished => {} }
    run.cancel_handle().cancel();
    drop(run);
    gate.open();
    assert_eq!(calls(&db, &oracle, &query).await, 11);
}

#[tokio::test]
async fn files_are_opened_only_to_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let (db, _oracle) = session(&persistent(folder.path())).await;
    rows(&db, "select 1").await.unwrap();
    rows(&db, "explain select ai_complete('p', 'x')").await.unwrap();
    rows(&db, "select ai_complete('p', 'x') where false").await.unwrap();
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (db, _oracle) = session(&[("cache", "persistent")]).await;
    let error = rows(&db, "select ai_complete('p', 'x')").await.unwrap_err().to_string();
    assert_eq!(error, "refrain.cache = 'persistent' needs a directory: SET refrain.cache_dir = '…'");

    let (first, _oracle) = session(&persistent(folder.path())).await;
    rows(&first, "select ai_complete('p', 'x')").await.unwrap();
    let (second, _oracle) = session(&persistent(folder.path())).await;
    let error = rows(&second, "select ai_complete('p', 'x')").await.unwrap_err().to_string();
    assert!(error.contains("another process or session has it open") && error.contains("answers.redb"), "{error}");
    drop(first);
    assert_eq!(rows(&second, "select ai_complete('p', 'x')").await.unwrap(), ["p(x)"], "a failed opening is tried again");
    drop(second);

    std::fs::write(folder.path().join("answers.redb"), "no database").unwrap();
    let (db, oracle) = session(&persistent(folder.path())).await;
    let error = rows(&db, "select ai_complete('p', 'x')").await.unwrap_err().to_string();
    assert!(error.contains("answers.redb") && error.contains("delete it"), "{error}");
    assert_eq!(oracle.calls(), 0);
}
