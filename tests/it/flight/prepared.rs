//! Prepared statements and their parameters.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::DataType;

use super::harness::{Server, fetch, message, rows};
use crate::support::text_rows;

fn one(name: &str, column: ArrayRef) -> RecordBatch {
    RecordBatch::try_from_iter([(name, column)]).unwrap()
}

#[tokio::test]
async fn preparing_plans_and_asks_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let sql = "select ai_complete('p', body) as a, id + ? as b from (values (1, 'x'), (2, 'y')) as t(id, body)";
    let mut statement = client.prepare(sql.to_owned(), None).await.unwrap();
    assert_eq!(statement.dataset_schema().unwrap().field(0).name(), "a");
    assert_eq!(statement.parameter_schema().unwrap().fields().len(), 1);
    assert_eq!(server.oracle.calls(), 0);
    statement.set_parameters(one("1", Arc::new(Int64Array::from(vec![10])))).unwrap();
    let info = statement.execute().await.unwrap();
    let batches = fetch(&mut client, &info).await.unwrap();
    let mut found: Vec<String> = batches.iter().flat_map(text_rows).collect();
    found.sort();
    assert_eq!(found, ["p(x)|11", "p(y)|12"]);
    statement.close().await.unwrap();
}

#[tokio::test]
async fn several_rows_of_values_are_several_runs() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut statement = client.prepare("select $1 || '!' as a".to_owned(), None).await.unwrap();
    assert_eq!(*statement.parameter_schema().unwrap().field(0).data_type(), DataType::Utf8);
    statement.set_parameters(one("1", Arc::new(StringArray::from(vec!["x", "y"])))).unwrap();
    let info = statement.execute().await.unwrap();
    let batches = fetch(&mut client, &info).await.unwrap();
    assert_eq!(batches.iter().flat_map(text_rows).collect::<Vec<_>>(), ["x!", "y!"]);

    client.execute_update("create table t (a bigint)".to_owned(), None).await.unwrap();
    let mut insert = client.prepare("insert into t values (?)".to_owned(), None).await.unwrap();
    assert!(insert.dataset_schema().unwrap().fields().is_empty(), "no columns: an update");
    insert.set_parameters(one("1", Arc::new(Int64Array::from(vec![4, 5, 6])))).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 3);
    assert_eq!(rows(&mut client, "select sum(a) from t").await.unwrap(), ["15"]);
}

#[tokio::test]
async fn values_must_fit_the_parameters() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut statement = client.prepare("select ? + ?".to_owned(), None).await.unwrap();
    let error = statement.execute().await.unwrap_err();
    assert!(message(error).contains("2 parameters, and 0 values"));
    let mut statement = client.prepare("select ? + ?".to_owned(), None).await.unwrap();
    statement.set_parameters(one("1", Arc::new(Int64Array::from(vec![1])))).unwrap();
    let error = statement.execute().await.unwrap_err();
    assert!(message(error).contains("2 parameters, and 1 values"));
    let error = client.prepare("select ? + $1".to_owned(), None).await.err().unwrap();
    assert!(message(error).contains("either ? or $1"));
}

/// The plan was made for the column's type, and a driver sends its own.
#[tokio::test]
async fn values_take_the_type_of_their_parameter_unless_that_changes_them() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.execute_update("create table t (a int, b varchar)".to_owned(), None).await.unwrap();
    let values = |number: ArrayRef| {
        let text: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
        RecordBatch::try_from_iter([("1", number), ("2", text)]).unwrap()
    };
    let mut insert = client.prepare("insert into t values (?, ?)".to_owned(), None).await.unwrap();
    insert.set_parameters(values(Arc::new(Int64Array::from(vec![4, 5])))).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 2);
    assert_eq!(rows(&mut client, "select * from t order by a").await.unwrap(), ["4|x", "5|NULL"]);
    let mut insert = client.prepare("insert into t values (?, ?)".to_owned(), None).await.unwrap();
    insert.set_parameters(values(Arc::new(Float64Array::from(vec![4.5, 5.0])))).unwrap();
    assert!(message(insert.execute_update().await.unwrap_err()).contains("4.5 of parameter 1 does not fit"));
    let mut query = client.prepare("select a from t where a < ?".to_owned(), None).await.unwrap();
    query.set_parameters(one("1", Arc::new(Float64Array::from(vec![4.5])))).unwrap();
    let info = query.execute().await.unwrap();
    let batches = fetch(&mut client, &info).await.unwrap();
    assert_eq!(batches.iter().flat_map(text_rows).collect::<Vec<_>>(), ["4"]);
}

#[tokio::test]
async fn a_prepared_statement_runs_as_often_as_it_is_executed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut statement = client.prepare("select 'a?b' as q, 1".to_owned(), None).await.unwrap();
    for _ in 0..3 {
        let info = statement.execute().await.unwrap();
        let batches = fetch(&mut client, &info).await.unwrap();
        assert_eq!(batches.iter().flat_map(text_rows).collect::<Vec<_>>(), ["a?b|1"]);
    }
}
