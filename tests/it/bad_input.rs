//! What goes wrong in the hands of users: a clear error, and nothing lost.

use std::fs;

use datafusion::arrow::array::Array;
use refrain::serving::mock::MockBackend;

use crate::support::{rows, session, session_with};

async fn check(sql: &str, expected: &str) {
    let (db, oracle) = session(&[]).await;
    let error = rows(&db, sql).await.expect_err(sql).to_string();
    assert!(error.contains(expected), "{sql}: {error}");
    assert!(!error.contains("panicked") && !error.contains("Internal error"), "{sql}: {error}");
    assert_eq!(oracle.calls(), 0, "{sql}");
    assert_eq!(rows(&db, "select ai_complete('p', 'still here')").await.unwrap(), ["p(still here)"]);
}

#[tokio::test]
async fn unknown_names() {
    check(
        "select ai_complete('p', x, model => 'nobody') from (select 1 x)",
        "model \"nobody\" is unknown; known models: mini, mock",
    )
    .await;
    check("select ai_filtr('p', x) from (select 1 x)", "ai_filter").await;
    check("select ai_complete('p', nobody) from (select 1 x)", "nobody").await;
    check("select ai_complete('p', x) from 'no_such_file.parquet'", "no_such_file.parquet").await;
    check("select ai_complete('p', x", "").await;
}

#[tokio::test]
async fn arguments() {
    check("select ai_classify(x, []) from (select 'v' x)", "label").await;
    check("select ai_classify(x) from (select 'v' x)", "ai_classify").await;
    check("select ai_complete('p', x, temperature => 'hot') from (select 'v' x)", "temperature").await;
    check("select ai_complete(null, x) from (select 'v' x)", "ai_complete").await;
    check("select ai_complete('p', arrow_cast(x, 'Binary')) from (select 'v' x)", "inary").await;
    check("select ai_extract(x, 'STRUCT(') from (select 'v' x)", "ai_extract").await;
}

#[tokio::test]
async fn weights_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let (db, _oracle) = session(&[]).await;
    let create = format!("create model broken from '{}'", folder.path().display());
    let error = rows(&db, &create).await.unwrap_err().to_string();
    assert!(error.contains("neither *.safetensors nor a *.gguf"), "{error}");
    fs::write(folder.path().join("model.safetensors"), "not a tensor").unwrap();
    fs::write(folder.path().join("config.json"), "{").unwrap();
    let error = rows(&db, &create).await.unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    let error = rows(&db, "select ai_complete('p', 'x', model => 'broken')").await.unwrap_err().to_string();
    assert!(error.contains("\"broken\" is unknown"), "{error}");
    assert_eq!(rows(&db, "select ai_complete('p', 'x', model => 'mock')").await.unwrap(), ["p(x)"]);
}

#[tokio::test]
async fn invalid_utf8_in_a_csv_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.csv");
    fs::write(&file, b"a,b\n1,fine\n2,\xff\xfe broken\n").unwrap();
    let (db, oracle) = session(&[]).await;
    let error = rows(&db, &format!("select ai_complete('p', b) from '{}'", file.display())).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("utf-8"), "{error}");
    assert_eq!(oracle.calls(), 0);
}

#[tokio::test]
async fn labels_that_are_prefixes_of_each_other() {
    let db = refrain::Refrain::builder().build().await.unwrap();
    let query = "select distinct ai_classify(x, ['good', 'good enough', 'good enough for me', 'no']) in \
        ('good', 'good enough', 'good enough for me', 'no') from (values ('great'), ('fine'), ('bad'), ('')) as v(x)";
    assert_eq!(rows(&db, query).await.unwrap(), ["true"]);
}

#[tokio::test]
async fn zero_rows_and_one_row() {
    let (db, oracle) = session(&[]).await;
    rows(&db, "create table none_yet(x varchar)").await.unwrap();
    let mut run =
        db.sql("select ai_filter('p', x), ai_complete('p', x) from none_yet").await.unwrap().execute().await.unwrap();
    assert_eq!(run.schema().fields().len(), 2);
    assert_eq!(run.fetch_all().await.unwrap().iter().map(|batch| batch.num_rows()).sum::<usize>(), 0);
    assert_eq!(rows(&db, "select count(*) from none_yet where ai_filter('p', x)").await.unwrap(), ["0"]);
    assert_eq!(oracle.calls(), 0);
    assert_eq!(rows(&db, "select ai_complete('p', 'x')").await.unwrap(), ["p(x)"]);
}

#[tokio::test]
async fn every_type_of_column_can_be_asked_about() {
    let (db, _oracle) = session(&[]).await;
    let query = "select ai_complete('p', a, b, c, d, e, f, g) from (select true a, cast(1.5 as float) b, cast(2.25 as decimal(10, 2)) c, \
        date '2024-02-29' d, timestamp '2024-02-29T12:00:00' e, [1, 2] f, named_struct('k', 'v') g)";
    let answer = rows(&db, query).await.unwrap();
    assert!(answer[0].contains("2024-02-29") && answer[0].contains("2.25") && answer[0].contains("[1,2]"), "{answer:?}");
}

#[tokio::test]
async fn deeply_nested_and_very_wide_queries_do_not_crash() {
    let (db, _oracle) = session(&[]).await;
    let nested = (0..40).fold("'x'".to_owned(), |inner, _| format!("ai_complete('p', {inner})"));
    let error = rows(&db, &format!("select {nested}")).await.unwrap_err().to_string();
    assert!(error.contains("nested more than"), "{error}");
    let wide: Vec<String> = (0..200).map(|n| format!("ai_complete('p{n}', 'x')")).collect();
    assert_eq!(rows(&db, &format!("select {}", wide.join(", "))).await.unwrap().len(), 1);
}

#[tokio::test]
async fn overflow_is_counted_by_rows() {
    let (db, _oracle) = session_with(&[], MockBackend::new(1).max_context(400)).await;
    let query = "select ai_complete('p', t) from (select case when value <= 3 then repeat('x', 1000) else 'y' end t from generate_series(1, 9))";
    let mut run = db.sql(query).await.unwrap().execute().await.unwrap();
    let batches = run.fetch_all().await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.column(0).null_count()).sum::<usize>(), 3);
    assert_eq!(run.usage().errors.get("overflow"), Some(&3));
    assert_eq!(run.row_errors()[0].rows, 3);
}
