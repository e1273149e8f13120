//! What a server knows: tables, columns, functions, models and settings, asked by SQL and by the metadata of Flight SQL.

use std::sync::{Arc, PoisonError};

use arrow_flight::IpcMessage;
use arrow_flight::sql::CommandGetTables;
use async_trait::async_trait;
use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Schema};
use prost::bytes::Bytes;

use super::connection::{Remote, fetch, read};
use crate::cli::catalog::{listing, matches};
use crate::cli::complete::{TableWords, Vocabulary};
use crate::cli::dispatch::version;
use crate::cli::error::{Failure, Outcome};
use crate::cli::place::{Place, Statement};
use crate::flight::shell::{CHANGES, ESTIMATE, FORECAST};
use crate::forecast::Forecast;

const FUNCTIONS: &str = "SELECT DISTINCT routine_name, lower(function_type), syntax_example, description \
    FROM information_schema.routines ORDER BY routine_name";

/// Names of functions.
const CALLED: &str = "SELECT DISTINCT routine_name FROM information_schema.routines ORDER BY 1";

const PROMPTS: &str = "SELECT name FROM ai_prompts() WHERE is_current ORDER BY 1";

const SETTINGS: &str = "SELECT name, value, description FROM information_schema.df_settings ORDER BY name";

const MODELS: &str = "SELECT name, type, location, state, device, max_context, credential FROM ai_models() ORDER BY name";

/// Names that statements may use, apart from tables.
#[derive(Clone)]
pub(super) struct Names {
    functions: Vec<String>,
    prompts: Vec<String>,
    models: Vec<String>,
    settings: Vec<String>,
}

/// A table or view.
struct Table {
    catalog: String,
    schema: String,
    name: String,
    kind: String,
    columns: Vec<String>,
}

impl Remote {
    /// Runs a query and returns its rows as text; NULL is nothing. Fails if it has other than `N` columns.
    async fn texts<const N: usize>(&self, sql: &str) -> Outcome<Vec<[String; N]>> {
        let mut rows = vec![];
        for batch in self.rows(sql).await? {
            let columns = batch.columns().iter().map(|column| cast(column, &DataType::Utf8));
            let columns = columns.collect::<Result<Vec<_>, _>>()?;
            let columns: [_; N] = columns.try_into().map_err(|_| Failure::usage("the server answers with other columns"))?;
            let text = |column: &Arc<dyn Array>, row| {
                let column = column.as_string::<i32>();
                if column.is_null(row) { String::new() } else { column.value(row).to_owned() }
            };
            rows.extend((0..batch.num_rows()).map(|row| std::array::from_fn(|idx| text(&columns[idx], row))));
        }
        Ok(rows)
    }

    /// Returns all tables but those that describe the session itself.
    async fn all_tables(&self) -> Outcome<Vec<Table>> {
        let mut client = self.client();
        let request = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
        let info = client.get_tables(request).await?;
        let mut tables = vec![];
        for batch in fetch(&mut client, &info).await? {
            let [catalogs, schemas, names, kinds, columns] = batch.columns() else {
                return Err(Failure::usage("the server lists tables without their columns"));
            };
            let text = |column: &Arc<dyn Array>, row| column.as_string::<i32>().value(row).to_owned();
            for row in 0..batch.num_rows() {
                let kind = match text(kinds, row).as_str() {
                    "SYSTEM TABLE" => continue,
                    "TABLE" => "base".to_owned(),
                    "LOCAL TEMPORARY" => "temporary".to_owned(),
                    kind => kind.to_lowercase(),
                };
                let columns = Bytes::copy_from_slice(columns.as_binary::<i32>().value(row));
                let columns = Schema::try_from(IpcMessage(columns))?;
                let columns = columns.fields().iter().map(|field| field.name().clone()).collect();
                let (catalog, schema, name) = (text(catalogs, row), text(schemas, row), text(names, row));
                tables.push(Table { catalog, schema, name, kind, columns });
            }
        }
        Ok(tables)
    }

    /// Returns the names that statements may use, as they were when they may last have changed.
    async fn known_names(&self) -> Outcome<Names> {
        if let Some(names) = self.names.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(names);
        }
        let first = |rows: Vec<[String; 1]>| rows.into_iter().map(|[name]| name).collect();
        let names = Names {
            functions: first(self.texts(CALLED).await?),
            prompts: first(self.texts(PROMPTS).await?),
            models: first(self.texts("SELECT name FROM ai_models() ORDER BY 1").await?),
            settings: first(self.texts("SELECT name FROM information_schema.df_settings ORDER BY 1").await?),
        };
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = Some(names.clone());
        Ok(names)
    }
}

#[async_trait]
impl Place for Remote {
    async fn about(&self) -> Outcome<String> {
        let (greeting, model) = (&self.greeting, self.default_model().await?);
        Ok(format!(
            "refrain {} connected to {} (refrain {}), session {} of {}\n{model}",
            version(),
            self.address,
            greeting.version,
            greeting.session,
            greeting.user
        ))
    }

    async fn default_model(&self) -> Outcome<String> {
        let set = "SELECT value FROM information_schema.df_settings WHERE name = 'refrain.model' AND value IS NOT NULL";
        match self.texts::<1>(set).await?.as_slice() {
            [[model]] => Ok(format!("model {model}")),
            _ => Ok("the server chooses the model; \\dm lists those it has".to_owned()),
        }
    }

    fn prompt(&self) -> String {
        format!("refrain@{}> ", self.address.authority)
    }

    async fn start(&self, sql: &str) -> Outcome<Box<dyn Statement>> {
        let statement = self.start_statement(sql).await?;
        if statement.schema().fields().is_empty() {
            *self.names.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(Box::new(statement))
    }

    async fn estimate(&self, sql: &str) -> Outcome<String> {
        let text = self.act(ESTIMATE, sql.to_owned()).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    async fn forecast(&self, sql: &str) -> Outcome<Option<Forecast>> {
        read(&self.act(FORECAST, sql.to_owned()).await?)
    }

    async fn changes_something(&self, sql: &str) -> Outcome<bool> {
        read(&self.act(CHANGES, sql.to_owned()).await?)
    }

    async fn tables(&self) -> Outcome<RecordBatch> {
        let row = |table: Table| {
            let Table { catalog, schema, name, kind, columns } = table;
            [catalog, schema, name, kind, columns.len().to_string()]
        };
        let rows = self.all_tables().await?.into_iter().map(row).collect();
        Ok(listing(["catalog", "schema", "table", "type", "columns"], rows)?)
    }

    async fn columns(&self, table: &str) -> Outcome<RecordBatch> {
        Ok(listing(["column", "type", "nullable"], self.texts(&format!("DESCRIBE {table}")).await?)?)
    }

    async fn models(&self) -> Outcome<RecordBatch> {
        let columns = ["model", "type", "location", "state", "device", "max_context", "credential"];
        Ok(listing(columns, self.texts(MODELS).await?)?)
    }

    async fn functions(&self, pattern: &str) -> Outcome<RecordBatch> {
        let mut rows = self.texts::<4>(FUNCTIONS).await?;
        rows.retain(|[name, ..]| matches(name, pattern));
        for [.., description] in &mut rows {
            *description = description.lines().next().unwrap_or_default().to_owned();
        }
        Ok(listing(["function", "kind", "syntax", "description"], rows)?)
    }

    async fn settings(&self, pattern: &str) -> Outcome<RecordBatch> {
        let mut rows = self.texts::<3>(SETTINGS).await?;
        rows.retain(|[name, ..]| matches(name, pattern));
        if rows.is_empty() && !pattern.contains('*') {
            return Err(Failure::usage(format!("there is no setting {pattern}")));
        }
        Ok(listing(["setting", "value", "description"], rows)?)
    }

    async fn help_on(&self, function: &str) -> Outcome<String> {
        let found = self.texts::<4>(FUNCTIONS).await?.into_iter().find(|[name, ..]| *name == function.to_lowercase());
        let [name, kind, syntax, description] =
            found.ok_or_else(|| Failure::usage(format!("no function {function}; \\df * lists them all")))?;
        match syntax.as_str() {
            "" => Ok(format!("{name} is a function of kind {kind}")),
            _ => Ok(format!("{syntax}\n\n{}", description.trim())),
        }
    }

    async fn vocabulary(&self) -> Vocabulary {
        // A server that does not answer completes nothing; the next statement tells why.
        let (Ok(tables), Ok(names)) = (self.all_tables().await, self.known_names().await) else {
            return Vocabulary::default();
        };
        let Names { functions, prompts, models, settings } = names;
        let tables = tables.into_iter().map(|table| TableWords { name: table.name, columns: table.columns }).collect();
        Vocabulary { tables, functions, prompts, models, settings }
    }

    async fn leave(&self) {
        // A session that is not closed ends by itself, with its connection or after a while.
        let _ = self.act("CloseSession", Bytes::new()).await;
    }
}
