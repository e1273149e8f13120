//! Parquet: encoded batch by batch, handed on a row group at a time.

use std::io::Write;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::errors::ParquetError;

use super::format::ResultWriter;
use super::json::with_unique_names;
use crate::Error;
use crate::cli::error::{Failure, Outcome};

/// Writes one result as a Parquet file. Repeated names of columns are numbered, since readers want each once.
pub(super) struct Parquet {
    schema: SchemaRef,
    /// Made with the first rows; encodes into memory.
    writer: Option<ArrowWriter<Vec<u8>>>,
}

impl Parquet {
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self { schema: with_unique_names(&schema), writer: None }
    }

    fn writer(&mut self) -> Outcome<&mut ArrowWriter<Vec<u8>>> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => ArrowWriter::try_new(Vec::new(), Arc::clone(&self.schema), None)?,
        };
        Ok(self.writer.insert(writer))
    }
}

impl ResultWriter for Parquet {
    fn batch(&mut self, out: &mut dyn Write, batch: &RecordBatch) -> Outcome<()> {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let named = RecordBatch::try_new_with_options(Arc::clone(&self.schema), batch.columns().to_vec(), &options)?;
        let writer = self.writer()?;
        writer.write(&named)?;
        // The writer counts the bytes it has written, and never reads them again.
        Ok(out.write_all(&std::mem::take(writer.inner_mut()))?)
    }

    fn finish(&mut self, out: &mut dyn Write) -> Outcome<usize> {
        if !self.schema.fields().is_empty() {
            let writer = self.writer()?;
            writer.finish()?;
            out.write_all(&std::mem::take(writer.inner_mut()))?;
        }
        Ok(0)
    }
}

impl From<ParquetError> for Failure {
    fn from(error: ParquetError) -> Self {
        Self::Engine(Error::from(DataFusionError::from(error)))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::AsArray;
    use datafusion::arrow::compute::concat_batches;
    use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReader;

    use super::super::format::tests::{sample, written};
    use super::super::format::{Format, Layout};
    use super::*;

    /// Returns what a reader finds in the file that is written of these batches.
    fn read_back(batches: &[RecordBatch]) -> RecordBatch {
        let (mut file, mut writer) = (Vec::new(), Parquet::new(batches[0].schema()));
        for batch in batches {
            writer.batch(&mut file, batch).unwrap();
        }
        assert_eq!(writer.finish(&mut file).unwrap(), 0);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("t.parquet"), file).unwrap();
        let file = std::fs::File::open(folder.path().join("t.parquet")).unwrap();
        let found: Vec<_> = ParquetRecordBatchReader::try_new(file, 1024).unwrap().map(Result::unwrap).collect();
        let schema = found.first().map_or_else(|| Arc::clone(&writer.schema), RecordBatch::schema);
        concat_batches(&schema, &found).unwrap()
    }

    #[test]
    fn a_reader_finds_every_row() {
        let found = read_back(&[sample(), sample()]);
        let as_csv = |batch| written(Format::Csv, Layout::default(), &[batch]).0;
        assert_eq!(found.num_rows(), 4);
        assert_eq!(as_csv(found.slice(2, 2)), as_csv(sample()));
        assert_eq!(read_back(&[sample().slice(0, 0)]).num_rows(), 0);
    }

    #[test]
    fn repeated_names_are_numbered() {
        let twice = sample().project(&[0, 0]).unwrap();
        let found = read_back(&[twice]);
        assert_eq!(found.schema().field(1).name(), "id_2");
        assert_eq!(found.column(1).as_primitive::<datafusion::arrow::datatypes::Int64Type>().values(), &[1_i64, 2]);
    }
}
