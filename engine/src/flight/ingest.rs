//! Tables that clients send: `adbc_ingest` and its like.
//!
//! Rows are gathered before anything is changed, so that a client that goes away half way leaves no half table.

use std::sync::Arc;

use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::MemTable;
use datafusion::common::TableReference;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::prelude::{SessionContext, cast, col, lit};
use datafusion::scalar::ScalarValue;
use futures::{Stream, TryStreamExt};
use tonic::Status;

use super::config::ServerConfig;
use super::sessions::Session;
use super::status::sql;
use crate::session_tables;

/// Rows that a client has sent.
pub(super) struct Received {
    pub(super) schema: SchemaRef,
    pub(super) batches: Vec<RecordBatch>,
}

/// Gathers the rows of a stream, at most so many bytes.
pub(super) async fn receive(
    data: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
    bytes_max: usize,
) -> Result<Received, Status> {
    let data = data.map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut rows = FlightRecordBatchStream::new_from_flight_data(data);
    let (mut batches, mut bytes) = (vec![], 0);
    while let Some(batch) = rows.try_next().await? {
        bytes += batch.get_array_memory_size();
        if bytes > bytes_max {
            let message = format!("the client has sent more than {bytes_max} bytes, as many as the server takes at once");
            return Err(Status::resource_exhausted(message));
        }
        batches.push(batch);
    }
    let schema = rows.schema().cloned().unwrap_or_else(|| Arc::new(Schema::empty()));
    Ok(Received { schema, batches })
}

/// Makes a table of the rows, or adds them to one. Returns how many rows there were.
pub(super) async fn ingest(
    session: &Session,
    command: CommandStatementIngest,
    data: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
    config: &ServerConfig,
) -> Result<i64, Status> {
    if command.transaction_id.is_some() {
        return Err(Status::unimplemented("there are no transactions"));
    }
    let table = target(&command)?;
    let _change = session.changes.begin(config.times.turn).await?;
    let TableDefinitionOptions { if_not_exist, if_exists } = command.table_definition_options.unwrap_or_default();
    let context = session.db.context();
    let exists = context.table_exist(table.clone()).map_err(sql)?;
    let (if_exists, if_not_exist) = (TableExistsOption::try_from(if_exists), TableNotExistOption::try_from(if_not_exist));
    let replaces = match (exists, if_exists, if_not_exist) {
        (false, _, Ok(TableNotExistOption::Fail)) => return Err(Status::not_found(format!("table {table} does not exist"))),
        (true, Ok(TableExistsOption::Fail | TableExistsOption::Unspecified) | Err(_), _) => {
            return Err(Status::already_exists(format!("table {table} already exists; append to it or replace it")));
        }
        (true, Ok(TableExistsOption::Append), _) => false,
        (true, Ok(TableExistsOption::Replace), _) | (false, ..) => true,
    };
    let received = receive(data, config.limits.ingest_bytes).await?;
    let rows: usize = received.batches.iter().map(RecordBatch::num_rows).sum();
    match replaces {
        true => create(context, &table, received)?,
        false => append(context, &table, received).await?,
    }
    Ok(i64::try_from(rows).unwrap_or(i64::MAX))
}

fn target(command: &CommandStatementIngest) -> Result<TableReference, Status> {
    let CommandStatementIngest { table, schema, catalog, temporary, .. } = command.clone();
    if table.is_empty() {
        return Err(Status::invalid_argument("the table to be filled has no name"));
    }
    match (catalog, schema, temporary) {
        (None, None, true) => Ok(TableReference::partial(session_tables::SCHEMA, table)),
        (_, Some(schema), true) if schema != session_tables::SCHEMA => {
            let temp = session_tables::SCHEMA;
            Err(Status::invalid_argument(format!("temporary tables lie in schema {temp}, not in {schema}")))
        }
        (Some(catalog), Some(schema), _) => Ok(TableReference::full(catalog, schema, table)),
        (None, Some(schema), _) => Ok(TableReference::partial(schema, table)),
        (None, None, false) => Ok(TableReference::bare(table)),
        (Some(_), None, _) => Err(Status::invalid_argument("a catalog is named without a schema; name both")),
    }
}

/// Makes the rows a table, in place of what bears the name.
fn create(context: &SessionContext, table: &TableReference, received: Received) -> Result<(), Status> {
    let provider = MemTable::try_new(received.schema, vec![received.batches]).map_err(sql)?;
    context.deregister_table(table.clone()).map_err(sql)?;
    context.register_table(table.clone(), Arc::new(provider)).map_err(sql)?;
    Ok(())
}

/// Adds the rows to a table, columns by name. Columns that were not sent are NULL.
async fn append(context: &SessionContext, table: &TableReference, received: Received) -> Result<(), Status> {
    let wanted = context.table_provider(table.clone()).await.map_err(sql)?.schema();
    if let Some(unknown) = received.schema.fields().iter().find(|field| wanted.field_with_name(field.name()).is_err()) {
        return Err(Status::invalid_argument(format!("table {table} has no column {:?}", unknown.name())));
    }
    let columns = wanted.fields().iter().map(|field| {
        let value = match received.schema.field_with_name(field.name()) {
            Ok(_) => col(datafusion::common::Column::from_name(field.name())),
            Err(_) => lit(ScalarValue::Null),
        };
        cast(value, field.data_type().clone()).alias(field.name())
    });
    let rows = MemTable::try_new(Arc::clone(&received.schema), vec![received.batches]).map_err(sql)?;
    let rows = context.read_table(Arc::new(rows)).map_err(sql)?.select(columns.collect::<Vec<_>>()).map_err(sql)?;
    let options = DataFrameWriteOptions::new().with_insert_operation(InsertOp::Append);
    rows.write_table(&table.to_quoted_string(), options).await.map_err(sql)?;
    Ok(())
}
