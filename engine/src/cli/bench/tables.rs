//! The tables of a benchmark's queries: local copies, or generated ones in their shape.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::UInt32Array;
use datafusion::arrow::compute::{concat_batches, take_record_batch};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::scalar::ScalarValue;
use refrain_datasets::catalogue::{Dataset, dataset};
use refrain_datasets::generate::{generate, generate_as_in_the_paper, permutation};
use refrain_datasets::local;
use refrain_datasets::queries::Query;
use refrain_datasets::tpch::{self, Table};

use super::super::error::{Failure, Outcome};
use super::super::session::Session;
use crate::Error;

/// Where tables come from.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TableArgs {
    /// Read at most this many rows of a query's first table; the others are read whole
    #[arg(long)]
    pub(super) rows: Option<usize>,

    /// Look for the tables in this folder; a table that is not there is generated
    #[arg(long, value_name = "DIR", env = "REFRAIN_DATA")]
    pub(super) data: Option<PathBuf>,

    /// Generate every table
    #[arg(long)]
    pub(super) generated: bool,

    /// Scale of the tables of TPC-H; at 1 they have a gigabyte as text
    #[arg(long, default_value_t = 0.1, value_parser = super::positive)]
    pub(super) scale: f64,

    /// Seed of generated tables, and of the order of shuffled ones
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,

    /// Shuffle the rows of a query's first table
    #[arg(long)]
    pub(super) shuffled: bool,

    /// How large tables are: as the local copies, or generated with the rows and columns of the paper's
    #[arg(long, value_enum, default_value_t = TableSize::Local)]
    pub(super) size: TableSize,
}

/// How large tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TableSize {
    Local,
    Paper,
}

/// Where a table came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Local,
    Generated,
}

impl TableArgs {
    /// Says what tables are besides as stored.
    pub(super) fn about(&self) -> Option<String> {
        let shuffled = self.shuffled.then(|| format!("shuffled with seed {}", self.seed));
        let size = (self.size == TableSize::Paper).then(|| "of the paper's size".to_owned());
        let parts: Vec<String> = shuffled.into_iter().chain(size).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    /// Returns where the local copy of a table is, if it is to be read.
    fn local_copy(&self, table: &Dataset, folders: &[PathBuf]) -> Option<PathBuf> {
        let fits = self.size == TableSize::Local || table.paper.is_some_and(|paper| paper.is_same);
        table.local(folders).filter(|_| fits && !self.generated)
    }

    /// Generates the first rows of a table, or all of them.
    fn generate(&self, table: &Dataset, limit: Option<usize>) -> Outcome<RecordBatch> {
        let rows = limit.unwrap_or(usize::MAX);
        Ok(match self.size {
            TableSize::Local => generate(table, rows, self.seed)?,
            TableSize::Paper => generate_as_in_the_paper(table, rows, self.seed)?,
        })
    }

    /// Puts the tables of a query into the session, runs what the query wants to have run before, and returns its statement with its
    /// parameters in place, the rows of its first table, and where its tables came from.
    pub(super) async fn prepare(&self, session: &mut Session, query: &Query) -> Outcome<Prepared> {
        let folders = local::folders(self.data.clone(), Path::new("."));
        let (mut rows, mut origin) = (None, Origin::Local);
        for (at, name) in query.tables.iter().enumerate() {
            let limit = self.rows.filter(|_| at == 0);
            let context = session.db.context();
            context.deregister_table(*name).map_err(Error::from)?;
            if let Some(Table { schema, batches }) = tpch::table(name, self.scale) {
                let batches: Vec<RecordBatch> = batches.collect::<Result<_, _>>()?;
                origin = Origin::Generated;
                rows.get_or_insert(batches.iter().map(RecordBatch::num_rows).sum());
                let table = MemTable::try_new(schema, vec![batches]).map_err(Error::from)?;
                context.register_table(*name, Arc::new(table)).map_err(Error::from)?;
                continue;
            }
            let table = dataset(name).ok_or_else(|| Failure::usage(format!("the catalogue has no table {name}")))?;
            let mut batch = match self.local_copy(table, &folders) {
                Some(file) => read(session, &file, limit).await?,
                None => {
                    origin = Origin::Generated;
                    self.generate(table, limit)?
                }
            };
            if self.shuffled && at == 0 {
                batch = take_record_batch(&batch, &UInt32Array::from(permutation(batch.num_rows(), self.seed)))?;
            }
            rows.get_or_insert(batch.num_rows());
            session.db.context().register_batch(*name, batch).map_err(Error::from)?;
        }
        if let Some(setup) = query.setup {
            for statement in session.db.statements(setup)? {
                session.collect(&statement).await?;
            }
        }
        Ok(Prepared { sql: with_parameters(session, query).await?, rows: rows.unwrap_or_default(), origin })
    }
}

async fn read(session: &Session, file: &Path, limit: Option<usize>) -> Outcome<RecordBatch> {
    let quoted = file.display().to_string().replace('\'', "''");
    let limit = limit.map_or_else(String::new, |rows| format!(" LIMIT {rows}"));
    let mut run = session.db.sql(&format!("SELECT * FROM '{quoted}'{limit}")).await?.execute().await?;
    let batches = run.fetch_all().await?;
    Ok(concat_batches(&run.schema(), &batches)?)
}

/// A query that can be run.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) sql: String,
    /// Rows of its first table.
    pub(super) rows: usize,
    pub(super) origin: Origin,
}

/// Returns the statement of a query with the values of its parameters in place of `$name`.
async fn with_parameters(session: &mut Session, query: &Query) -> Outcome<String> {
    let mut sql = query.sql.to_owned();
    for (name, value_of) in query.parameters {
        let found = session.collect(value_of).await?.rows;
        if found.num_rows() == 0 {
            return Err(Failure::usage(format!("{}: no row gives a value for ${name}; take more rows", query.name)));
        }
        let value = ScalarValue::try_from_array(found.column(0), 0).map_err(Error::from)?;
        let literal = match &value {
            ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => format!("'{}'", text.replace('\'', "''")),
            other => other.to_string(),
        };
        sql = sql.replace(&format!("${name}"), &literal);
    }
    Ok(sql)
}
