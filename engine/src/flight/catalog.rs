//! What tables there are: catalogs, schemas, tables and their types; keys, of which there are none.

use std::sync::Arc;

use arrow_flight::sql::metadata::{GetCatalogsBuilder, GetDbSchemasBuilder, GetTablesBuilder};
use arrow_flight::sql::{CommandGetCatalogs, CommandGetDbSchemas, CommandGetTables};
use datafusion::arrow::array::{RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::SchemaProvider;
use datafusion::catalog::information_schema::{INFORMATION_SCHEMA, INFORMATION_SCHEMA_TABLES, InformationSchemaProvider};
use datafusion::logical_expr::TableType;
use tonic::Status;

use super::plain::plain_schema;
use super::status::sql;
use crate::Refrain;
use crate::{session_tables, system_tables};

const TABLE: &str = "TABLE";
const VIEW: &str = "VIEW";
const TEMPORARY: &str = "LOCAL TEMPORARY";
const SYSTEM: &str = "SYSTEM TABLE";

/// Lists the catalogs.
pub(super) fn catalogs(db: &Refrain, command: CommandGetCatalogs) -> Result<RecordBatch, Status> {
    let mut builder: GetCatalogsBuilder = command.into_builder();
    for catalog in db.context().catalog_names() {
        builder.append(catalog);
    }
    Ok(builder.build()?)
}

/// Lists the schemas that a command asks for.
pub(super) fn schemas(db: &Refrain, command: CommandGetDbSchemas) -> Result<RecordBatch, Status> {
    let mut builder: GetDbSchemasBuilder = command.into_builder();
    for (catalog, schema) in all_schemas(db) {
        builder.append(catalog, schema);
    }
    Ok(builder.build()?)
}

/// Lists the tables that a command asks for.
pub(super) async fn tables(db: &Refrain, command: CommandGetTables) -> Result<RecordBatch, Status> {
    let only = (command.catalog.clone(), command.include_schema);
    let mut builder: GetTablesBuilder = command.into_builder();
    for (catalog, name) in all_schemas(db) {
        if only.0.as_ref().is_some_and(|only| *only != catalog) {
            continue;
        }
        let Some(schema) = schema(db, &catalog, &name) else { continue };
        let mut tables = match name.as_str() {
            INFORMATION_SCHEMA => INFORMATION_SCHEMA_TABLES.iter().map(|table| (*table).to_owned()).collect(),
            _ => schema.table_names(),
        };
        tables.sort();
        for table in tables {
            // A table may go while they are listed.
            let Some(provider) = schema.table(&table).await.map_err(sql)? else { continue };
            let table_type = match (name.as_str(), provider.table_type()) {
                (INFORMATION_SCHEMA | system_tables::SCHEMA, _) => SYSTEM,
                (_, TableType::View) => VIEW,
                (session_tables::SCHEMA, _) | (_, TableType::Temporary) => TEMPORARY,
                (_, TableType::Base) => TABLE,
            };
            let columns = if only.1 { plain_schema(&provider.schema()) } else { Arc::new(Schema::empty()) };
            builder.append(&catalog, &name, table, table_type, &columns)?;
        }
    }
    Ok(builder.build()?)
}

/// Lists the types of tables.
pub(super) fn table_types() -> Result<RecordBatch, Status> {
    let types = StringArray::from(vec![TEMPORARY, SYSTEM, TABLE, VIEW]);
    RecordBatch::try_new(table_types_schema(), vec![Arc::new(types)]).map_err(sql)
}

/// The columns of [`table_types`].
pub(super) fn table_types_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("table_type", DataType::Utf8, false)]))
}

/// The columns of primary keys.
pub(super) fn primary_keys_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
}

/// The columns of foreign keys, seen from either table or from both.
pub(super) fn foreign_keys_schema() -> SchemaRef {
    let side = |prefix: &str| {
        ["catalog_name", "db_schema_name", "table_name", "column_name"].map(|name| {
            Field::new(format!("{prefix}_{name}"), DataType::Utf8, matches!(name, "catalog_name" | "db_schema_name"))
        })
    };
    let rest = [
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ];
    Arc::new(Schema::new(side("pk").into_iter().chain(side("fk")).chain(rest).collect::<Vec<_>>()))
}

/// Returns all schemas with their catalogs, in order.
fn all_schemas(db: &Refrain) -> Vec<(String, String)> {
    let context = db.context();
    let mut all = vec![];
    for name in context.catalog_names() {
        let schemas = context.catalog(&name).map(|catalog| catalog.schema_names()).unwrap_or_default();
        let schemas = schemas.into_iter().chain([INFORMATION_SCHEMA.to_owned()]);
        all.extend(schemas.map(|schema| (name.clone(), schema)));
    }
    all.sort();
    all.dedup();
    all
}

fn schema(db: &Refrain, catalog: &str, name: &str) -> Option<Arc<dyn SchemaProvider>> {
    if name == INFORMATION_SCHEMA {
        return Some(Arc::new(InformationSchemaProvider::new(Arc::clone(db.context().state().catalog_list()))));
    }
    db.context().catalog(catalog)?.schema(name)
}
