//! JSON: one array of objects, or one object a line; both are written batch by batch.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::json::WriterBuilder;
use datafusion::arrow::json::writer::LineDelimited;
use datafusion::arrow::record_batch::{RecordBatch, RecordBatchOptions};

use super::format::ResultWriter;
use crate::cli::error::Outcome;

/// Writes each row as an object with every column in it, NULLs included.
pub(super) struct Json {
    schema: SchemaRef,
    is_array: bool,
    has_rows: bool,
}

impl Json {
    /// `[{…},\n{…}]`
    pub(super) fn array(schema: SchemaRef) -> Self {
        Self { schema: with_unique_names(&schema), is_array: true, has_rows: false }
    }

    /// An object a line.
    pub(super) fn lines(schema: SchemaRef) -> Self {
        Self { schema: with_unique_names(&schema), is_array: false, has_rows: false }
    }
}

impl ResultWriter for Json {
    fn batch(&mut self, out: &mut dyn Write, batch: &RecordBatch) -> Outcome<()> {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let named = RecordBatch::try_new_with_options(Arc::clone(&self.schema), batch.columns().to_vec(), &options)?;
        let mut lines = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
        lines.write(&named)?;
        lines.finish()?;
        let lines = lines.into_inner();
        if !self.is_array {
            return Ok(out.write_all(&lines)?);
        }
        // Line ends inside a JSON string are escaped, so each line is one object.
        for object in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            out.write_all(if self.has_rows { b",\n" } else { b"[" })?;
            out.write_all(object)?;
            self.has_rows = true;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut dyn Write) -> Outcome<usize> {
        if self.is_array && !self.schema.fields().is_empty() {
            out.write_all(if self.has_rows { b"]\n" } else { b"[]\n" })?;
        }
        Ok(0)
    }
}

/// Numbers repeated names, since a join may give `id` twice and an object must not: `id`, `id_2`.
pub(super) fn with_unique_names(schema: &SchemaRef) -> SchemaRef {
    let mut taken = HashSet::new();
    let fields = schema.fields().iter().map(|field| {
        let numbered = (2..).map(|n| format!("{}_{n}", field.name()));
        let mut names = std::iter::once(field.name().clone()).chain(numbered);
        let name = names.find(|name| !taken.contains(name)).unwrap_or_default();
        taken.insert(name.clone());
        field.as_ref().clone().with_name(name)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::{DataType, Field};
    use serde_json::{Value, json};

    use super::super::format::tests::{sample, written};
    use super::super::format::{Format, Layout};
    use super::*;

    fn expected_rows() -> [Value; 2] {
        [
            json!({"id": 1, "text": "a, \"b\" | c\nd", "share": 0.5, "good": true,
                   "nested": {"kind": "a|b", "rank": 1}, "list": [1, null]}),
            json!({"id": 2, "text": null, "share": null, "good": null, "nested": null, "list": null}),
        ]
    }

    #[test]
    fn an_array_spans_batches() {
        let (text, _) = written(Format::Json, Layout::default(), &[sample().slice(0, 1), sample().slice(1, 1)]);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!(expected_rows()));
        assert_eq!(written(Format::Json, Layout::default(), &[sample().slice(0, 0)]).0, "[]\n");
    }

    #[test]
    fn lines_hold_one_object_each() {
        let (text, _) = written(Format::Ndjson, Layout::default(), &[sample(), sample()]);
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[0], expected_rows()[0]);
        assert_eq!(written(Format::Ndjson, Layout::default(), &[sample().slice(0, 0)]).0, "");
    }

    #[test]
    fn repeated_names_are_numbered() {
        let fields = ["id", "id", "id_2", "id"].map(|name| Field::new(name, DataType::Int64, true));
        let names = with_unique_names(&Arc::new(Schema::new(fields.to_vec())));
        let names: Vec<&str> = names.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["id", "id_2", "id_2_2", "id_3"]);
    }
}
