//! What tools ask before a person asks anything.

use arrow_flight::FlightInfo;
use arrow_flight::sql::{
    CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys,
    CommandGetTables, CommandGetXdbcTypeInfo, SqlInfo,
};
use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::UInt32Type;

use super::harness::{Client, Server, fetch};
use crate::support::text_rows;

async fn tables(client: &mut Client, command: CommandGetTables) -> Vec<String> {
    let info = client.get_tables(command).await.unwrap();
    fetch(client, &info).await.unwrap().iter().flat_map(text_rows).collect()
}

#[tokio::test]
async fn tables_are_found_by_pattern_and_type() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for sql in [
        "create table films (id int, title varchar)",
        "create view old_films as select * from films",
        "create temporary table mine (a int)",
    ] {
        client.execute_update(sql.to_owned(), None).await.unwrap();
    }
    let all = CommandGetTables { db_schema_filter_pattern: Some("p%".into()), ..Default::default() };
    let found = tables(&mut client, all).await;
    assert_eq!(found, ["datafusion|public|films|TABLE", "datafusion|public|old_films|VIEW"]);
    let films = CommandGetTables { table_name_filter_pattern: Some("%ine".into()), ..Default::default() };
    assert_eq!(tables(&mut client, films).await, ["datafusion|temp|mine|LOCAL TEMPORARY"]);
    let views = CommandGetTables { table_types: vec!["VIEW".into()], ..Default::default() };
    assert_eq!(tables(&mut client, views).await, ["datafusion|public|old_films|VIEW"]);
    let nowhere = CommandGetTables { catalog: Some(String::new()), ..Default::default() };
    assert!(tables(&mut client, nowhere).await.is_empty(), "no table is without a catalog");
    let system = CommandGetTables { db_schema_filter_pattern: Some("refrain".into()), ..Default::default() };
    assert!(tables(&mut client, system).await.contains(&"datafusion|refrain|ai_queries|SYSTEM TABLE".to_owned()));

    let with_schema =
        CommandGetTables { table_name_filter_pattern: Some("films".into()), include_schema: true, ..Default::default() };
    let info = client.get_tables(with_schema).await.unwrap();
    let batches = fetch(&mut client, &info).await.unwrap();
    let schema = batches[0].column_by_name("table_schema").unwrap().as_binary::<i32>().value(0).to_vec();
    let schema = datafusion::arrow::datatypes::Schema::try_from(arrow_flight::IpcMessage(schema.into())).unwrap();
    assert_eq!(schema.field(1).name(), "title");
    assert_eq!(schema.field(1).data_type(), &datafusion::arrow::datatypes::DataType::Utf8);
}

#[tokio::test]
async fn catalogs_and_schemas_are_listed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client.get_catalogs().await.unwrap();
    let found = fetch(&mut client, &info).await.unwrap();
    assert_eq!(found.iter().flat_map(text_rows).collect::<Vec<_>>(), ["datafusion"]);
    let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
    let found: Vec<String> = fetch(&mut client, &info).await.unwrap().iter().flat_map(text_rows).collect();
    for schema in ["information_schema", "public", "refrain", "temp"] {
        assert!(found.contains(&format!("datafusion|{schema}")), "{found:?}");
    }
    let info = client.get_table_types().await.unwrap();
    let found: Vec<String> = fetch(&mut client, &info).await.unwrap().iter().flat_map(text_rows).collect();
    assert_eq!(found, ["LOCAL TEMPORARY", "SYSTEM TABLE", "TABLE", "VIEW"]);
}

#[tokio::test]
async fn keys_are_none_with_the_columns_of_keys() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let columns = |info: FlightInfo, batches: Vec<RecordBatch>| {
        (batches.iter().map(RecordBatch::num_rows).sum::<usize>(), info.try_decode_schema().unwrap().fields().len())
    };
    let table = "t".to_owned();
    let info = client.get_primary_keys(CommandGetPrimaryKeys { table: table.clone(), ..Default::default() }).await.unwrap();
    let found = fetch(&mut client, &info).await.unwrap();
    assert_eq!(columns(info, found), (0, 6));
    let exported = CommandGetExportedKeys { table: table.clone(), ..Default::default() };
    let imported = CommandGetImportedKeys { table: table.clone(), ..Default::default() };
    let cross = CommandGetCrossReference { pk_table: table.clone(), fk_table: table, ..Default::default() };
    let infos = [
        client.get_exported_keys(exported).await.unwrap(),
        client.get_imported_keys(imported).await.unwrap(),
        client.get_cross_reference(cross).await.unwrap(),
    ];
    for info in infos {
        let found = fetch(&mut client, &info).await.unwrap();
        assert_eq!(columns(info, found), (0, 13));
    }
}

#[tokio::test]
async fn what_the_server_can_do_is_told_whole_or_by_code() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client.get_sql_info(vec![]).await.unwrap();
    let all = fetch(&mut client, &info).await.unwrap();
    let codes: Vec<u32> = all[0].column(0).as_primitive::<UInt32Type>().values().to_vec();
    let known = (0..=11).chain(100..=101).chain(500..=576).filter(|code| ![6, 7].contains(code));
    assert_eq!(codes, known.collect::<Vec<_>>(), "all but the versions of Substrait, which is not known");
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.unwrap();
    let named = fetch(&mut client, &info).await.unwrap();
    assert_eq!(named[0].num_rows(), 1);
    assert!(text_rows(&named[0])[0].contains("Refrain"));
    let info = client.get_sql_info(vec![SqlInfo::SqlStringFunctions]).await.unwrap();
    let functions = text_rows(&fetch(&mut client, &info).await.unwrap()[0]).concat();
    assert!(functions.contains("ai_filter") && functions.contains("upper"), "{functions}");
}

#[tokio::test]
async fn types_are_listed_whole_or_by_number() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    assert_eq!(fetch(&mut client, &info).await.unwrap()[0].num_rows(), 14);
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: Some(12) }).await.unwrap();
    let found = fetch(&mut client, &info).await.unwrap();
    assert!(text_rows(&found[0])[0].starts_with("VARCHAR|12"));
}
