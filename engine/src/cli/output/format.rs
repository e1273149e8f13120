//! The output formats by name, and the writer of each.

use std::io::Write;
use std::path::Path;

use clap::ValueEnum;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;

use super::delimited::Delimited;
use super::grid::{Grid, Style};
use super::json::Json;
use super::parquet::Parquet;
use super::plan::{self, Plan};
use crate::cli::error::{Failure, Outcome};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table with borders
    Table,
    /// A table with borders between rows too, and long texts in lines below each other
    Box,
    /// A value a line, under a heading for each row
    #[value(alias = "line")]
    Expanded,
    /// A Markdown table
    Markdown,
    /// Comma-separated values with a header
    Csv,
    /// Tab-separated values with a header
    Tsv,
    /// One array of objects
    Json,
    /// One object a line
    #[value(alias = "jsonl")]
    Ndjson,
    /// A Parquet file, of one result
    Parquet,
}

impl Format {
    /// Returns the format called `name`.
    pub(crate) fn named(name: &str) -> Outcome<Self> {
        Self::from_str(name, true).map_err(|_| {
            let names: Vec<&str> = Self::value_variants().iter().map(|format| format.name()).collect();
            Failure::usage(format!("no output format {name:?}; there are {}", names.join(", ")))
        })
    }

    /// The name by which users choose it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Box => "box",
            Self::Expanded => "expanded",
            Self::Markdown => "markdown",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Parquet => "parquet",
        }
    }

    /// Returns the format that the ending of a file's name stands for.
    pub(crate) fn of_file(file: &Path) -> Outcome<Self> {
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        Ok(match ending.as_str() {
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "json" => Self::Json,
            "ndjson" | "jsonl" => Self::Ndjson,
            "parquet" => Self::Parquet,
            "md" => Self::Markdown,
            _ => {
                return Err(Failure::usage(format!(
                    "the name of {} tells no format; end it by .parquet, .csv, .tsv, .json, .ndjson or .md",
                    file.display()
                )));
            }
        })
    }

    /// Whether results are for reading, and written once all of their rows are there.
    pub(crate) fn is_for_reading(self) -> bool {
        matches!(self, Self::Table | Self::Box | Self::Expanded | Self::Markdown)
    }
}

/// What a writer needs to know about the place it writes to and the user's wishes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// Text for NULL; without one, `NULL` in tables and nothing in CSV.
    pub(crate) null: Option<String>,
    /// Rows to show in a table; the rest are counted only.
    pub(crate) max_rows: Option<usize>,
    /// Columns of the terminal; without one, nothing is shortened.
    pub(crate) width: Option<u16>,
}

/// Writes the batches of one result.
pub(crate) trait ResultWriter {
    /// Writes or keeps one batch.
    fn batch(&mut self, out: &mut dyn Write, batch: &RecordBatch) -> Outcome<()>;

    /// Writes what must follow the last batch; returns the number of rows that were not shown.
    fn finish(&mut self, out: &mut dyn Write) -> Outcome<usize>;
}

/// Returns the writer of `format` for a result of this schema.
pub(crate) fn writer(format: Format, schema: SchemaRef, layout: Layout) -> Box<dyn ResultWriter + Send> {
    match format {
        Format::Table if plan::is_plan(&schema) => Box::new(Plan),
        Format::Table => Box::new(Grid::new(Style::Table, schema, layout)),
        Format::Box => Box::new(Grid::new(Style::Box, schema, layout)),
        Format::Expanded => Box::new(Grid::new(Style::Expanded, schema, layout)),
        Format::Markdown => Box::new(Grid::new(Style::Markdown, schema, layout)),
        Format::Csv => Box::new(Delimited::new(b',', schema, layout)),
        Format::Tsv => Box::new(Delimited::new(b'\t', schema, layout)),
        Format::Json => Box::new(Json::array(schema)),
        Format::Ndjson => Box::new(Json::lines(schema)),
        Format::Parquet => Box::new(Parquet::new(schema)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, StringArray, StructArray};
    use datafusion::arrow::datatypes::{DataType, Field, Int64Type};

    use super::*;

    /// Two rows of every kind of value; the second is NULL but for its id.
    pub(in crate::cli::output) fn sample() -> RecordBatch {
        let fields = [("kind", DataType::Utf8), ("rank", DataType::Int64)].map(|(name, kind)| Field::new(name, kind, true));
        let children: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(vec![Some("a|b"), None])), Arc::new(Int64Array::from(vec![Some(1), None]))];
        let nested = StructArray::new(fields.to_vec().into(), children, Some(vec![true, false].into()));
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>(vec![Some(vec![Some(1), None]), None]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", Arc::new(Int64Array::from(vec![1, 2]))),
            ("text", Arc::new(StringArray::from(vec![Some("a, \"b\" | c\nd"), None]))),
            ("share", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
            ("good", Arc::new(BooleanArray::from(vec![Some(true), None]))),
            ("nested", Arc::new(nested)),
            ("list", Arc::new(list)),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
    }

    /// Returns what `format` writes for these batches, and the number of rows not shown.
    pub(in crate::cli::output) fn written(format: Format, layout: Layout, batches: &[RecordBatch]) -> (String, usize) {
        let mut out = Vec::new();
        let mut writer = writer(format, batches[0].schema(), layout);
        for batch in batches {
            writer.batch(&mut out, batch).unwrap();
        }
        let hidden = writer.finish(&mut out).unwrap();
        (String::from_utf8(out).unwrap(), hidden)
    }

    #[test]
    fn formats_are_found_by_name() {
        for format in Format::value_variants() {
            assert_eq!(Format::named(format.name()).unwrap(), *format);
        }
        assert_eq!(Format::named("LINE").unwrap(), Format::Expanded);
        assert!(Format::named("xml").unwrap_err().to_string().contains("ndjson"));
    }

    #[test]
    fn endings_name_formats() {
        for (file, format) in [("a.CSV", Format::Csv), ("b/c.jsonl", Format::Ndjson), ("d.md", Format::Markdown)] {
            assert_eq!(Format::of_file(Path::new(file)).unwrap(), format);
        }
        assert_eq!(Format::of_file(Path::new("csv")).unwrap_err().exit_code(), 2);
    }
}
