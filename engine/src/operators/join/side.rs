//! One input of a join, gathered: its rows by number.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_empty_array};
use datafusion::arrow::compute::interleave;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryReservation;
use futures::TryStreamExt;

/// All rows of one input.
#[derive(Debug)]
pub(super) struct Side {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    /// The number of the first row of each batch.
    starts: Vec<usize>,
    n_rows: usize,
    _memory: MemoryReservation,
}

impl Side {
    /// Gathers an input. Fails if it does not fit into the memory of the query, or has more rows than 32 bits can number.
    pub(super) async fn gather(mut input: SendableRecordBatchStream, memory: MemoryReservation) -> Result<Side> {
        let mut side = Side { schema: input.schema(), batches: vec![], starts: vec![], n_rows: 0, _memory: memory };
        while let Some(batch) = input.try_next().await? {
            if batch.num_rows() > 0 {
                side.add(batch)?;
            }
        }
        Ok(side)
    }

    /// Returns an input of no rows.
    pub(super) fn empty(schema: SchemaRef, memory: MemoryReservation) -> Side {
        Side { schema, batches: vec![], starts: vec![], n_rows: 0, _memory: memory }
    }

    fn add(&mut self, batch: RecordBatch) -> Result<()> {
        self._memory
            .try_grow(batch.get_array_memory_size())
            .map_err(|error| error.context("an input of a join on an LLM predicate must fit into memory"))?;
        self.starts.push(self.n_rows);
        self.n_rows += batch.num_rows();
        if self.n_rows > u32::MAX as usize {
            let message = "an input of a join on an LLM predicate has more than 4,294,967,295 rows; filter it first";
            return Err(DataFusionError::ResourcesExhausted(message.to_owned()));
        }
        self.batches.push(batch);
        Ok(())
    }

    /// Returns the number of rows.
    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Returns the batches that the rows came in.
    pub(super) fn batches(&self) -> &[RecordBatch] {
        &self.batches
    }

    /// Returns the columns.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns about how many bytes a row has in some columns.
    pub(super) fn bytes_per_row(&self, columns: impl Iterator<Item = usize> + Clone) -> usize {
        let bytes = |batch: &RecordBatch| -> usize {
            columns.clone().map(|column| batch.column(column).to_data().get_slice_memory_size().unwrap_or(0)).sum()
        };
        self.batches.iter().map(bytes).sum::<usize>() / self.n_rows.max(1)
    }

    /// Returns some rows of all columns, in the order of their numbers in `rows`.
    pub(super) fn rows(&self, rows: &[u32]) -> Result<RecordBatch> {
        let columns = (0..self.schema.fields().len()).map(|column| self.take(column, rows)).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    /// Returns some rows of one column, in the order of their numbers in `rows`.
    pub(super) fn take(&self, column: usize, rows: &[u32]) -> Result<ArrayRef> {
        let arrays: Vec<&dyn Array> = self.batches.iter().map(|batch| batch.column(column).as_ref()).collect();
        if rows.is_empty() || arrays.is_empty() {
            return Ok(new_empty_array(self.schema.field(column).data_type()));
        }
        let places: Vec<(usize, usize)> = rows.iter().map(|row| self.place(*row as usize)).collect();
        Ok(interleave(&arrays, &places)?)
    }

    /// Returns the batch of a row, and the row in it.
    fn place(&self, row: usize) -> (usize, usize) {
        let batch = self.starts.partition_point(|start| *start <= row) - 1;
        (batch, row - self.starts[batch])
    }
}
