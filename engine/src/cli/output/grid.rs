//! Results for reading: tables with borders, Markdown, and records of one value a line.
//!
//! A grid needs the widths of all its cells before its first line, so it keeps its rows until the end, though no more of them
//! than it may show. Only on a terminal is a cell shortened, or broken into lines, and only there are control characters replaced: data must not be
//! able to move the cursor.

use std::io::Write;

use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL, UTF8_FULL_CONDENSED};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Row, Table};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::record_batch::RecordBatch;

use super::format::{Layout, ResultWriter};
use crate::cells;
use crate::cli::error::Outcome;

/// Columns narrower than this tell nothing; with less room a row is shown as a record.
const COLUMN_WIDTH_MIN: usize = 8;

/// The kinds of grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Borders of line characters, a line for each row.
    Table,
    /// Borders of line characters, also between rows, whose texts may take several lines.
    Box,
    /// Pipes and dashes.
    Markdown,
    /// One value a line, a heading for each row.
    Expanded,
}

/// Collects rows and writes them at the end.
pub(super) struct Grid {
    style: Style,
    schema: SchemaRef,
    layout: Layout,
    rows: Vec<Vec<String>>,
    hidden: usize,
}

impl Grid {
    pub(super) fn new(style: Style, schema: SchemaRef, layout: Layout) -> Self {
        Self { style, schema, layout, rows: Vec::new(), hidden: 0 }
    }

    /// Appends the rows of a batch as texts.
    fn keep(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let null = self.layout.null.as_deref().unwrap_or("NULL");
        let columns = self.schema.fields().iter().zip(batch.columns());
        let texts = columns.map(|(field, column)| cells::column_texts(field, column)).collect::<Result<Vec<_>, _>>()?;
        let mut columns: Vec<_> = texts.into_iter().map(Vec::into_iter).collect();
        for _ in 0..batch.num_rows() {
            let row = columns.iter_mut().map(|column| column.next().flatten());
            self.rows.push(row.map(|text| self.cell(text.unwrap_or_else(|| null.to_owned()))).collect());
        }
        Ok(())
    }

    /// Makes a text fit for its grid.
    fn cell(&self, text: String) -> String {
        match self.style {
            Style::Markdown => text.replace('\\', "\\\\").replace('|', "\\|").replace("\r\n", "<br>").replace('\n', "<br>"),
            Style::Box if self.layout.width.is_some() => {
                text.replace("\r\n", "\n").split('\n').map(printable).collect::<Vec<_>>().join("\n")
            }
            _ if self.layout.width.is_some() => printable(&text),
            _ => text,
        }
    }

    fn is_too_narrow(&self) -> bool {
        // A border and a blank on either side of each column.
        let needed = self.schema.fields().len() * (COLUMN_WIDTH_MIN + 3) + 1;
        self.layout.width.is_some_and(|width| usize::from(width) < needed)
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.force_no_tty().load_preset(match self.style {
            Style::Markdown => ASCII_MARKDOWN,
            Style::Box => UTF8_FULL,
            Style::Table | Style::Expanded => UTF8_FULL_CONDENSED,
        });
        let header = self.schema.fields().iter().map(|field| Cell::new(self.cell(field.name().clone())));
        table.set_header(header.collect::<Vec<_>>());
        for (field, column) in self.schema.fields().iter().zip(table.column_iter_mut()) {
            if field.data_type().is_numeric() {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        if let (Style::Table | Style::Box, Some(width)) = (self.style, self.layout.width) {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width).set_truncation_indicator("…");
        }
        for row in &self.rows {
            let mut row = Row::from(row.clone());
            if self.style == Style::Table && self.layout.width.is_some() {
                row.max_height(1);
            }
            table.add_row(row);
        }
        table
    }

    fn write_records(&self, out: &mut dyn Write) -> Outcome<()> {
        let names: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let name_width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        for (index, row) in self.rows.iter().enumerate() {
            writeln!(out, "─[ {} ]{}", index + 1, "─".repeat(name_width.max(20)))?;
            for (name, value) in names.iter().zip(row) {
                writeln!(out, "{name:name_width$} │ {value}")?;
            }
        }
        Ok(())
    }
}

impl ResultWriter for Grid {
    fn batch(&mut self, _out: &mut dyn Write, batch: &RecordBatch) -> Outcome<()> {
        let room = self.layout.max_rows.map_or(usize::MAX, |max| max - self.rows.len().min(max));
        let shown = batch.num_rows().min(room);
        self.hidden += batch.num_rows() - shown;
        Ok(self.keep(&batch.slice(0, shown))?)
    }

    fn finish(&mut self, out: &mut dyn Write) -> Outcome<usize> {
        if self.schema.fields().is_empty() {
            return Ok(self.hidden);
        }
        match self.style {
            Style::Expanded => self.write_records(out)?,
            Style::Table | Style::Box if self.is_too_narrow() => self.write_records(out)?,
            Style::Table | Style::Box | Style::Markdown => writeln!(out, "{}", self.table().trim_fmt())?,
        }
        Ok(self.hidden)
    }
}

/// Replaces what would move the cursor by visible signs.
fn printable(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let visible = |c: char| match c {
        '\n' => '↵',
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.replace("\r\n", "\n").chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::super::format::Format;
    use super::super::format::tests::{sample, written};
    use super::*;

    fn on_terminal(width: u16) -> Layout {
        Layout { width: Some(width), ..Layout::default() }
    }

    #[test]
    fn tables_align_numbers_and_show_null() {
        let batch = sample().project(&[0, 2, 3]).unwrap();
        let expected = "\
┌────┬───────┬──────┐
│ id ┆ share ┆ good │
╞════╪═══════╪══════╡
│  1 ┆   0.5 ┆ true │
│  2 ┆  NULL ┆ NULL │
└────┴───────┴──────┘
";
        assert_eq!(written(Format::Table, Layout::default(), &[batch]).0, expected);
    }

    #[test]
    fn a_box_has_lines_between_rows_and_keeps_those_of_texts() {
        let batch = sample().project(&[0, 1]).unwrap();
        let expected = "\
┌────┬────────────┐
│ id ┆ text       │
╞════╪════════════╡
│  1 ┆ a, \"b\" | c │
│    ┆ d          │
├╌╌╌╌┼╌╌╌╌╌╌╌╌╌╌╌╌┤
│  2 ┆ NULL       │
└────┴────────────┘
";
        assert_eq!(written(Format::Box, on_terminal(80), &[batch]).0, expected);
    }

    #[test]
    fn markdown_escapes_pipes_and_line_ends() {
        let layout = Layout { null: Some(String::new()), ..Layout::default() };
        let batch = sample().project(&[0, 1]).unwrap();
        let expected = "\
| id | text             |
|----|------------------|
|  1 | a, \"b\" \\| c<br>d |
|  2 |                  |
";
        assert_eq!(written(Format::Markdown, layout, &[batch]).0, expected);
    }

    #[test]
    fn only_a_terminal_shortens() {
        let long = sample().project(&[0, 1, 4]).unwrap();
        let (narrow, _) = written(Format::Table, on_terminal(40), std::slice::from_ref(&long));
        assert!(narrow.lines().all(|line| line.chars().count() <= 40), "{narrow}");
        assert!(narrow.contains('…'), "{narrow}");
        let (whole, _) = written(Format::Table, Layout::default(), &[long]);
        assert!(whole.contains(r#"{"kind":"a|b","rank":1}"#), "{whole}");
    }

    #[test]
    fn too_many_columns_become_records() {
        let (text, _) = written(Format::Table, on_terminal(30), &[sample()]);
        assert!(text.starts_with("─[ 1 ]"), "{text}");
        assert!(text.contains("share  │ 0.5"), "{text}");
    }

    #[test]
    fn rows_past_the_limit_are_counted() {
        let layout = Layout { max_rows: Some(3), ..Layout::default() };
        let (text, hidden) = written(Format::Expanded, layout, &[sample(), sample(), sample()]);
        assert_eq!(hidden, 3);
        assert_eq!(text.matches("─[ ").count(), 3);
    }

    #[test]
    fn data_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nc"), "a\u{fffd}[2Jb↵c");
    }
}
