//! A table whose rows are read when the query runs.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream;

/// A system table.
#[derive(Clone)]
pub(super) struct SystemTable {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether its function takes the number of a query.
    pub(super) takes_query: bool,
    schema: SchemaRef,
    read: Arc<Read>,
}

/// Reads the rows, of one query if there is a number.
type Read = dyn Fn(Option<u64>) -> Result<RecordBatch> + Send + Sync;

impl SystemTable {
    /// Makes a table; `columns` lays out rows, of which there are none when it is asked for the schema, and `rows` finds them.
    pub(super) fn try_new<R: 'static>(
        name: &'static str,
        columns: fn(&[R]) -> Result<RecordBatch>,
        rows: impl Fn(Option<u64>) -> Vec<R> + Send + Sync + 'static,
    ) -> Result<Self> {
        let schema = columns(&[])?.schema();
        Ok(SystemTable { name, takes_query: false, schema, read: Arc::new(move |query| columns(&rows(query))) })
    }

    /// Lets the function take the number of a query.
    pub(super) fn of_query(mut self) -> Self {
        self.takes_query = true;
        self
    }

    /// Returns the table, with the rows of one query only if there is a number.
    pub(super) fn provider(&self, query: Option<u64>) -> Result<Arc<dyn TableProvider>> {
        let rows = Rows { table: self.clone(), query };
        Ok(Arc::new(StreamingTable::try_new(Arc::clone(&self.schema), vec![Arc::new(rows)])?))
    }
}

impl fmt::Debug for SystemTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemTable").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Rows {
    table: SystemTable,
    query: Option<u64>,
}

impl PartitionStream for Rows {
    fn schema(&self) -> &SchemaRef {
        &self.table.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (read, query) = (Arc::clone(&self.table.read), self.query);
        let rows = stream::once(async move { read(query) });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.table.schema), rows))
    }
}

impl TableFunctionImpl for SystemTable {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        match (args.exprs(), self.takes_query) {
            ([], _) => self.provider(None),
            ([Expr::Literal(value, _)], true) if query_of(value).is_some() => self.provider(query_of(value)),
            (_, true) => plan_err!("{}([query_id]) takes the number of a query", self.name),
            (_, false) => plan_err!("{}() takes no arguments", self.name),
        }
    }
}

fn query_of(value: &ScalarValue) -> Option<u64> {
    match value {
        ScalarValue::Int64(Some(id)) => u64::try_from(*id).ok(),
        _ => None,
    }
}
