//! The queries of the benchmarks over generated tables: each is planned without a call, and runs.

use std::sync::Arc;

use datafusion::datasource::MemTable;
use refrain::serving::Backend;
use refrain::serving::mock::{MockBackend, MockReply};
use refrain::{ModelSource, Refrain};
use refrain_datasets::catalogue::dataset;
use refrain_datasets::generate::generate;
use refrain_datasets::queries::{Query, QueryKind, Suite, queries};
use refrain_datasets::tpch;

use crate::support::{Oracle, rows, run_setup, session_with};

/// Rows of each table.
const ROWS: usize = 12;

/// A session with the tables of a query, a model that chooses what fits, and one that counts words.
async fn session(query: &Query) -> (Refrain, Oracle, Arc<MockBackend>) {
    let judge = |prompt: &str| prompt.contains("Judge the claim").then(|| MockReply::text("\"REFUTES\""));
    let (db, oracle) = session_with(&[], MockBackend::new(1).answer(judge)).await;
    let vectors = Arc::new(MockBackend::new(2).embedding(32));
    if query.needs_embeddings() {
        db.model_catalog().add("words", ModelSource::Backend(Arc::clone(&vectors) as Arc<dyn Backend>), true).unwrap();
    }
    for table in query.tables.iter().filter_map(|name| dataset(name)) {
        db.context().register_batch(table.name, generate(table, ROWS, 1).unwrap()).unwrap();
    }
    (db, oracle, vectors)
}

#[tokio::test]
async fn each_is_planned_without_a_call_and_runs() {
    for query in queries().iter().filter(|query| query.suite != Suite::TpcH) {
        let (db, oracle, vectors) = session(query).await;
        let sql = run_setup(&db, query).await;
        let plan = rows(&db, &format!("EXPLAIN {sql}")).await.unwrap_or_else(|error| panic!("{}: {error}", query.name));
        assert!(plan.iter().any(|line| line.contains("Llm")), "{}: {plan:?}", query.name);
        assert_eq!((oracle.calls(), vectors.calls()), (0, 0), "{}", query.name);
        let answers = rows(&db, &sql).await.unwrap_or_else(|error| panic!("{}: {error}", query.name));
        assert!(oracle.calls() > 0, "{}", query.name);
        match query.kind {
            QueryKind::Aggregation => assert!(!answers.is_empty(), "{}", query.name),
            QueryKind::Rag => assert_eq!(answers.len(), ROWS, "{}", query.name),
            _ => assert!(answers.len() <= ROWS * ROWS, "{}", query.name),
        }
        if query.name.starts_with("fever") {
            assert!(answers.iter().all(|row| row.ends_with("|REFUTES")), "{}: {answers:?}", query.name);
        }
        assert_eq!(vectors.calls() > 0, query.needs_embeddings(), "{}", query.name);
    }
}

/// A question that repeats the words of a passage finds it.
#[tokio::test]
async fn retrieval_finds_the_nearest_passages() {
    let query = queries().iter().find(|query| query.name == "squad-rag").unwrap();
    let (db, oracle, _) = session(query).await;
    rows(&db, "DROP TABLE squad").await.unwrap();
    let passages = "(1, 'red fox', 'the red fox'), (2, 'blue whale', 'a blue whale'), (3, 'green tree', 'one green tree'), \
                    (4, 'white snow', 'so white snow'), (5, 'black night', 'the black night'), (6, 'red fox runs', 'a fox')";
    rows(&db, &format!("CREATE TABLE squad AS SELECT * FROM (VALUES {passages}) AS v(id, question, context)"))
        .await
        .unwrap();
    assert_eq!(rows(&db, query.sql).await.unwrap().len(), 6);
    let prompt = oracle.prompts().into_iter().find(|prompt| prompt.contains("blue whale\"")).unwrap();
    assert!(prompt.contains("a blue whale"), "{prompt}");
    assert_eq!(prompt.matches("passages\": [").count(), 1, "{prompt}");
}

#[test]
fn tables_of_queries_are_in_the_catalogue() {
    for query in queries().iter().filter(|query| query.suite != Suite::TpcH) {
        assert!(query.tables.iter().all(|name| dataset(name).is_some()), "{}", query.name);
    }
}

/// The scale is that of the smallest data for which most of the queries have an answer.
#[tokio::test]
async fn tpc_h_is_answered_without_a_model() {
    let (db, oracle) = session_with(&[], MockBackend::new(1)).await;
    for name in tpch::TABLES {
        let table = tpch::table(name, 0.01).unwrap();
        let batches = table.batches.collect::<Result<Vec<_>, _>>().unwrap();
        db.context().register_table(name, Arc::new(MemTable::try_new(table.schema, vec![batches]).unwrap())).unwrap();
    }
    let mut answered = 0;
    for query in queries().iter().filter(|query| query.suite == Suite::TpcH) {
        let answers = rows(&db, query.sql).await.unwrap_or_else(|error| panic!("{}: {error}", query.name));
        answered += usize::from(!answers.is_empty());
        let first = match query.name {
            "tpch-q1" => "A|F|",
            "tpch-q13" => "0|50",
            _ => "",
        };
        assert!(first.is_empty() || answers[0].starts_with(first), "{}: {answers:?}", query.name);
    }
    assert!(answered >= 18, "{answered} of 22 have an answer");
    assert_eq!(oracle.calls(), 0);
}
