//! Vectors in SQL: how often a model is asked, what planning knows, and a real encoder from a folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use refrain::serving::Backend;
use refrain::serving::mock::MockBackend;
use refrain::{ModelSource, Refrain};

use crate::support::{rows, session_with};

/// A session whose models are a mock that writes text and a mock that counts words.
async fn session() -> (Refrain, Arc<MockBackend>) {
    let (db, _) = session_with(&[], MockBackend::new(1)).await;
    let vectors = Arc::new(MockBackend::new(2).embedding(32));
    db.model_catalog().add("words", ModelSource::Backend(Arc::clone(&vectors) as Arc<dyn Backend>), true).unwrap();
    (db, vectors)
}

#[tokio::test]
async fn each_distinct_text_is_embedded_once_a_query() {
    let (db, vectors) = session().await;
    rows(&db, "CREATE TABLE t AS SELECT value AS i, 'text ' || (value % 10) AS s FROM generate_series(1, 1000)")
        .await
        .unwrap();
    let check = async |sql: &str, calls: u64| {
        let before = vectors.calls();
        rows(&db, sql).await.unwrap();
        assert_eq!(vectors.calls() - before, calls, "{sql}");
    };
    check("SELECT ai_embed(s) FROM t", 10).await;
    check("SELECT ai_embed(s), ai_similarity(s, 'text 1'), ai_similarity('text 2', s) FROM t", 10).await;
    check("SELECT i FROM t, (SELECT ai_embed('a question') AS q) ORDER BY ai_similarity(ai_embed(s), q) DESC LIMIT 5", 11)
        .await;
    // A guard, a limit, and what needs no model.
    check("SELECT CASE WHEN i % 10 < 3 THEN ai_embed(s) END FROM t", 3).await;
    check("SELECT ai_embed(s) FROM (SELECT * FROM t ORDER BY i) LIMIT 4", 4).await;
    check("SELECT ai_similarity([1.0, i], [i, 2.0]) FROM t", 0).await;
    check("EXPLAIN SELECT ai_embed(s) FROM t WHERE ai_similarity(s, 'x') > 0.5", 0).await;
}

#[tokio::test]
async fn prompts_are_the_texts_alone() {
    let (db, vectors) = session().await;
    rows(&db, "SELECT ai_embed('say [SEP] <|end|>')").await.unwrap();
    assert_eq!(vectors.prompts(), ["<|begin|><|system|><|user|>say [SEP] <|end|><|assistant|>"]);
}

#[tokio::test]
async fn types_are_known_when_a_statement_is_planned() {
    let (db, vectors) = session().await;
    let query = db.sql("SELECT ai_embed('x') AS v, ai_similarity('x', 'y') AS s").await.unwrap().execute().await.unwrap();
    let types: Vec<_> = query.schema().fields().iter().map(|field| field.data_type().clone()).collect();
    assert_eq!(types, [DataType::new_fixed_size_list(DataType::Float32, 32, true), DataType::Float64]);
    drop(query);
    let plan = rows(&db, "EXPLAIN SELECT ai_embed(s) FROM (VALUES ('a'), ('b'), ('a')) AS t(s)").await.unwrap().join("\n");
    assert!(plan.contains("ai_embed([s]) model=words"), "{plan}");
    assert!(plan.contains("distinct=2 calls≤2"), "{plan}");
    assert_eq!(vectors.calls(), 0);
}

#[tokio::test]
async fn several_models_are_named_where_one_must_be_chosen() {
    let (db, _) = session().await;
    let other = Arc::new(MockBackend::new(3).embedding(5));
    db.model_catalog().add("other", ModelSource::Backend(other as Arc<dyn Backend>), true).unwrap();
    let error = rows(&db, "SELECT ai_embed('x')").await.unwrap_err().to_string();
    assert!(
        error.contains("several models could answer (other, words); choose one with SET refrain.embedding_model"),
        "{error}"
    );
    rows(&db, "SET refrain.embedding_model = 'other'").await.unwrap();
    assert_eq!(rows(&db, "SELECT array_length(ai_embed('x'))").await.unwrap(), ["5"]);
    assert_eq!(rows(&db, "SELECT array_length(ai_embed('x', model => 'words'))").await.unwrap(), ["32"]);
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../serving/tests/fixtures/embeddings").join(name)
}

#[tokio::test]
async fn a_folder_becomes_a_model_of_its_type() {
    let (db, _) = session_with(&[], MockBackend::new(1)).await;
    let path = fixture("bert");
    let create = |options: &str| format!("CREATE OR REPLACE MODEL tiny FROM '{}' {options}", path.display());
    rows(&db, &create("")).await.unwrap();
    rows(&db, &create("WITH (type = 'embedding')")).await.unwrap();
    let listed = rows(&db, "SELECT type, dimensions, state FROM ai_models() WHERE name = 'tiny'").await.unwrap();
    assert_eq!(listed, ["embedding|32|not loaded"]);
    let found = rows(&db, "SELECT s FROM (VALUES ('a b'), ('c d')) AS t(s) ORDER BY ai_similarity(s, 'a b') DESC LIMIT 1");
    assert_eq!(found.await.unwrap(), ["a b"]);
    let held = "SELECT state, held_bytes > 0 FROM ai_models() WHERE name = 'tiny'";
    assert_eq!(rows(&db, held).await.unwrap(), ["loaded|true"]);
    let error = rows(&db, &create("WITH (type = 'completion')")).await.unwrap_err().to_string();
    assert!(error.contains("is a model of type 'embedding'"), "{error}");
    let long = rows(&db, "SELECT ai_embed(repeat('a ', 1000), on_error => 'capture')['error']").await.unwrap();
    assert!(long[0].starts_with("overflow: the request needs 1002 tokens"), "{long:?}");
}
