//! Queries watched and killed from outside, and models that are loaded when they are needed.

use std::path::Path;

use futures::{FutureExt, StreamExt};
use refrain::serving::mock::{Gate, MockBackend, MockReply};
use refrain::{Error, Refrain};

use crate::support::{rows, session, session_with};

#[tokio::test]
async fn a_running_query_is_seen_and_killed() {
    let gate = Gate::new();
    let held = gate.clone();
    let (db, oracle) = session_with(&[], MockBackend::new(1).answer(move |_| Some(MockReply::text("x").after(&held)))).await;
    let query = "select ai_complete('p', value) from generate_series(1, 5)";
    let mut run = db.sql(query).await.unwrap().execute().await.unwrap();
    let id = run.query_id();
    let mock = oracle.clone();
    let (ended, killed) = tokio::join!(async { run.next().await }, async {
        mock.0.wait_for_calls(5).await;
        let running = format!(
            "select query_id, state, rows_out, tokens_done from ai_queries() where sql = '{}'",
            query.replace('\'', "''")
        );
        assert_eq!(rows(&db, &running).await.unwrap(), [format!("{id}|running|0|0")]);
        assert_eq!(
            rows(&db, "select function, rows, calls, output_tokens from ai_usage()").await.unwrap(),
            ["ai_complete|5|5|0"]
        );
        rows(&db, &format!("kill query {id}")).await
    });
    killed.unwrap();
    assert!(matches!(ended, Some(Err(Error::Cancelled))), "{ended:?}");
    oracle.0.wait_until_idle().await;
    let state = rows(&db, &format!("select state from ai_queries() where query_id = {id}")).await.unwrap();
    assert_eq!(state, ["cancelled"]);
    assert!(rows(&db, &format!("kill query {id}")).await.is_err());
}

#[tokio::test]
async fn a_statement_that_fills_a_table_is_killed_while_it_starts() {
    let gate = Gate::new();
    let held = gate.clone();
    let (db, oracle) = session_with(&[], MockBackend::new(1).answer(move |_| Some(MockReply::text("x").after(&held)))).await;
    let create = async { rows(&db, "create table kept as select ai_complete('p', value) from generate_series(1, 5)").await };
    let kill = async {
        oracle.0.wait_for_calls(5).await;
        rows(&db, "kill query 1").await.unwrap();
    };
    let (created, ()) = tokio::join!(create, kill);
    assert!(matches!(created, Err(Error::Cancelled)), "{created:?}");
    oracle.0.wait_until_idle().await;
}

#[tokio::test]
async fn system_tables_ask_no_model() {
    let (db, oracle) = session(&[]).await;
    for table in ["ai_usage", "ai_queries", "ai_errors", "ai_models", "ai_prompts", "ai_cache"] {
        rows(&db, &format!("explain select * from {table}()")).await.unwrap();
        rows(&db, &format!("select * from {table}() a, refrain.{table} b")).await.unwrap();
    }
    assert_eq!(oracle.calls(), 0);
}

#[tokio::test]
async fn kept_answers_are_listed_and_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let (db, oracle) = session(&[("cache", "session")]).await;
    let query = "select count(distinct ai_complete('p', value)) from generate_series(1, 20)";
    rows(&db, query).await.unwrap();
    let listed = "select tier, function, entries, hits from ai_cache()";
    assert_eq!(rows(&db, listed).await.unwrap(), ["session|ai_complete|20|0"]);
    rows(&db, query).await.unwrap();
    assert_eq!(rows(&db, "select sum(hits) from ai_cache()").await.unwrap(), ["20"]);
    let usage = "select calls, cache_hits, dedup_saved from ai_usage() order by query_id desc limit 1";
    assert_eq!(rows(&db, usage).await.unwrap(), ["0|20|0"]);
    let wrong = rows(&db, "call ai_cache_clear('disk')").await.unwrap_err().to_string();
    assert!(wrong.contains("there is no tier disk of the answer cache"), "{wrong}");
    assert!(rows(&db, "call ai_cache_clear('persistent')").await.is_err(), "there is no folder");
    rows(&db, &format!("set refrain.cache_dir = '{}'", folder.path().display())).await.unwrap();
    rows(&db, "set refrain.cache = 'persistent'").await.unwrap();
    rows(&db, query).await.unwrap();
    let tiers = "select tier, entries from ai_cache() order by tier";
    assert_eq!(rows(&db, tiers).await.unwrap(), ["persistent|20", "session|20"]);
    rows(&db, "call ai_cache_clear('persistent')").await.unwrap();
    assert_eq!(rows(&db, "select tier from ai_cache() where entries > 0").await.unwrap(), ["session"]);
    rows(&db, "call ai_cache_clear()").await.unwrap();
    assert_eq!(rows(&db, "select count(*) from ai_cache() where entries > 0").await.unwrap(), ["0"]);
    assert_eq!(oracle.calls(), 40);
}

#[tokio::test]
async fn a_schema_that_no_answer_can_have_is_found_before_a_call() {
    let (db, oracle) = session(&[]).await;
    for schema in
        [r#"{"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}"#, r##"{"$ref": "#/$defs/nothing"}"##]
    {
        let error = rows(&db, &format!("select ai_complete('p', 'x', return_type => '{schema}')")).await.unwrap_err();
        assert!(matches!(error, Error::Sql(_)) && error.to_string().starts_with("ai_complete: "), "{error}");
    }
    assert_eq!(oracle.calls(), 0);
}

async fn state(db: &Refrain, model: &str) -> String {
    rows(db, &format!("select state from ai_models() where name = '{model}'")).await.unwrap().remove(0)
}

#[tokio::test]
async fn models_are_loaded_once_and_only_when_they_are_asked() {
    let db = Refrain::builder().build().await.unwrap();
    assert_eq!(rows(&db, "select 1").await.unwrap(), ["1"]);
    rows(&db, "explain select ai_sentiment('fine')").await.unwrap();
    assert_eq!(state(&db, "mini").await, "not loaded");
    let ask = "select ai_sentiment('a wonderful film')";
    let (a, b) = tokio::join!(rows(&db, ask), rows(&db, ask));
    assert_eq!((a.unwrap(), b.unwrap()), (vec!["positive".to_owned()], vec!["positive".to_owned()]));
    assert_eq!(state(&db, "mini").await, "loaded");
    // One engine has answered both.
    let stats = db.model_catalog().backend("mini").await.unwrap().stats();
    assert_eq!(stats.completed, 2);
    let facts = db.models().remove(0).loaded.unwrap();
    assert!(facts.weight_bytes > 1 << 20, "{facts:?}");
}

#[tokio::test]
async fn unloading_waits_for_queries_and_the_next_call_loads_again() {
    let db = Refrain::builder().build().await.unwrap();
    rows(&db, "load model mini").await.unwrap();
    assert_eq!(state(&db, "mini").await, "loaded");
    let used = db.model_catalog().backend("mini").await.unwrap();
    let mut unload = Box::pin(rows(&db, "unload model mini"));
    assert!(unload.as_mut().now_or_never().is_none());
    assert_eq!(state(&db, "mini").await, "loaded");
    drop(used);
    unload.await.unwrap();
    assert_eq!(state(&db, "mini").await, "not loaded");
    rows(&db, "unload model mini").await.unwrap();
    assert_eq!(rows(&db, "select ai_sentiment('a wonderful film')").await.unwrap(), ["positive"]);
    assert_eq!(state(&db, "mini").await, "loaded");
}

#[tokio::test]
async fn a_query_dropped_while_its_model_loads_leaves_the_load_to_others() {
    let db = Refrain::builder().build().await.unwrap();
    let mut run = db.sql("select ai_sentiment('a wonderful film')").await.unwrap().execute().await.unwrap();
    assert!(run.next().now_or_never().is_none());
    drop(run);
    assert_eq!(rows(&db, "select ai_sentiment('a wonderful film')").await.unwrap(), ["positive"]);
}

#[tokio::test]
async fn a_model_from_files_is_described_before_it_is_loaded() {
    let db = Refrain::builder().build().await.unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../serving/models/mini-draft");
    let folder = folder.display();
    rows(&db, &format!("create model draft from '{folder}' with (max_context = 512)")).await.unwrap();
    let described = "select state, max_context, digest is not null from ai_models() where name = 'draft'";
    assert_eq!(rows(&db, described).await.unwrap(), ["not loaded|512|true"]);
    let shown = rows(&db, "show models").await.unwrap();
    assert!(shown[0].starts_with("draft|local|completion|"), "{shown:?}");
    let context = rows(&db, "describe model draft").await.unwrap();
    assert!(context.contains(&"max_context|512".to_owned()), "{context:?}");
    rows(&db, "load model draft").await.unwrap();
    let backend = db.model_catalog().backend("draft").await.unwrap();
    assert_eq!(backend.capabilities().max_context, 512);
    let too_long = rows(&db, &format!("create or replace model draft from '{folder}' with (max_context = 10000000)")).await;
    assert!(too_long.unwrap_err().to_string().contains("is more than the model's own limit"));
    let empty = tempfile::tempdir().unwrap();
    let wrong = rows(&db, &format!("create model wrong from '{}'", empty.path().display())).await.unwrap_err();
    assert!(wrong.to_string().contains("neither *.safetensors nor a *.gguf"), "{wrong}");
}

#[tokio::test]
async fn two_models_serve_in_turn_and_one_is_unloaded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../serving/models/mini-draft");
    let db = Refrain::builder().build().await.unwrap();
    rows(&db, &format!("create model draft from '{}'", folder.display())).await.unwrap();
    let ask =
        |model| format!("select ai_classify('a wonderful film', ['good', 'bad'], model => '{model}') in ('good', 'bad')");
    let (draft, mini) = (ask("draft"), ask("mini"));
    let (a, b) = tokio::join!(rows(&db, &draft), rows(&db, &mini));
    assert_eq!((a.unwrap(), b.unwrap()), (vec!["true".to_owned()], vec!["true".to_owned()]));
    rows(&db, "unload model draft").await.unwrap();
    assert_eq!((state(&db, "draft").await, state(&db, "mini").await), ("not loaded".to_owned(), "loaded".to_owned()));
    assert_eq!(rows(&db, &mini).await.unwrap(), ["true"]);
    assert_eq!(rows(&db, &draft).await.unwrap(), ["true"]);
}

#[tokio::test]
async fn a_load_that_failed_is_tried_again() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../serving/models/mini-draft");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let db = Refrain::builder().build().await.unwrap();
    rows(&db, &format!("create model draft from '{}'", folder.path().display())).await.unwrap();
    let (weights, away) = (folder.path().join("model.gguf"), folder.path().join("away"));
    std::fs::rename(&weights, &away).unwrap();
    let error = rows(&db, "select ai_complete('p', 'x', max_tokens => 2)").await.unwrap_err();
    assert!(matches!(error, Error::Model(_)), "{error:?}");
    assert_eq!(state(&db, "draft").await, "not loaded");
    std::fs::rename(&away, &weights).unwrap();
    assert_eq!(rows(&db, "select ai_complete('p', 'x', max_tokens => 2) is not null").await.unwrap(), ["true"]);
}

#[tokio::test]
async fn a_statement_knows_its_columns_before_it_runs() {
    let db = Refrain::builder().build().await.unwrap();
    for sql in ["show models", "describe model mini", "show secrets", "select * from ai_queries()"] {
        let query = db.sql(sql).await.unwrap();
        let planned = query.schema();
        assert!(!planned.fields().is_empty(), "{sql}");
        assert_eq!(query.execute().await.unwrap().schema(), planned, "{sql}");
    }
}
