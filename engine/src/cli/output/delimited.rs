//! CSV and TSV, written batch by batch.

use std::io::Write;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::arrow::csv::WriterBuilder;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::record_batch::{RecordBatch, RecordBatchOptions};

use super::format::{Layout, ResultWriter};
use crate::cells;
use crate::cli::error::Outcome;

/// Writes rows as delimited text; nested values become JSON text.
pub(super) struct Delimited {
    delimiter: u8,
    schema: SchemaRef,
    null: String,
    has_header: bool,
}

impl Delimited {
    pub(super) fn new(delimiter: u8, schema: SchemaRef, layout: Layout) -> Self {
        Self { delimiter, schema, null: layout.null.unwrap_or_default(), has_header: false }
    }
}

impl ResultWriter for Delimited {
    fn batch(&mut self, out: &mut dyn Write, batch: &RecordBatch) -> Outcome<()> {
        let builder = WriterBuilder::new().with_delimiter(self.delimiter).with_null(self.null.clone());
        // Arrow's writer turns an error of the output into text; written from here, a closed pipe is still known as one.
        let mut text = Vec::new();
        builder.with_header(!self.has_header).build(&mut text).write(&flattened(batch)?)?;
        self.has_header = true;
        Ok(out.write_all(&text)?)
    }

    fn finish(&mut self, out: &mut dyn Write) -> Outcome<usize> {
        // A result without rows still has its header; a statement without columns has none.
        if !self.has_header && !self.schema.fields().is_empty() {
            self.batch(out, &RecordBatch::new_empty(Arc::clone(&self.schema)))?;
        }
        Ok(0)
    }
}

/// Returns the batch with its nested columns as text.
fn flattened(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if column.data_type().is_nested() {
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            columns.push(Arc::new(StringArray::from(cells::column_texts(field, column)?)));
        } else {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::{sample, written};
    use super::super::format::{Format, Layout};

    #[test]
    fn csv_has_one_header_and_quotes_what_needs_it() {
        let rows = "1,\"a, \"\"b\"\" | c\nd\",0.5,true,\"{\"\"kind\"\":\"\"a|b\"\",\"\"rank\"\":1}\",\"[1,null]\"\n2,,,,,\n";
        let (text, _) = written(Format::Csv, Layout::default(), &[sample(), sample()]);
        assert_eq!(text, format!("id,text,share,good,nested,list\n{rows}{rows}"));
    }

    #[test]
    fn tsv_separates_by_tabs_and_shows_the_null_text() {
        let layout = Layout { null: Some("\\N".into()), ..Layout::default() };
        let (text, _) = written(Format::Tsv, layout, &[sample().project(&[0, 2]).unwrap()]);
        assert_eq!(text, "id\tshare\n1\t0.5\n2\t\\N\n");
    }

    #[test]
    fn a_result_without_rows_has_its_header() {
        let (text, _) = written(Format::Csv, Layout::default(), &[sample().slice(0, 0)]);
        assert_eq!(text, "id,text,share,good,nested,list\n");
    }
}
