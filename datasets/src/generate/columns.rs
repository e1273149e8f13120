//! A table in the making: columns in the order of the catalogue, each as codes and a function that writes the value of a code.
//!
//! Values are written only where a row has them, each with random numbers of its own. So the first rows of a table are the same whether
//! or not more follow.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};

use crate::catalogue::{Dataset, Kind};
use crate::random::SplitMix64;

pub(super) struct Columns<'a> {
    dataset: &'a Dataset,
    random: SplitMix64,
    rows: usize,
    arrays: Vec<ArrayRef>,
}

impl<'a> Columns<'a> {
    /// Begins a table of the first `rows` rows.
    pub(super) fn new(dataset: &'a Dataset, random: SplitMix64, rows: usize) -> Self {
        Self { dataset, random, rows, arrays: vec![] }
    }

    /// Adds a column of text: the code of each row, and the text of a code.
    pub(super) fn text<T: AsRef<str>>(&mut self, codes: &[u32], write: impl Fn(u32, &mut SplitMix64) -> T) {
        self.nullable_text(codes, |code, random| Some(write(code, random)));
    }

    /// Adds a column of text in which some codes are NULL.
    pub(super) fn nullable_text<T: AsRef<str>>(&mut self, codes: &[u32], write: impl Fn(u32, &mut SplitMix64) -> Option<T>) {
        let (known, rows) = self.values(codes, write);
        let text = |code: &u32| known.get(code).and_then(|value| value.as_ref()).map(AsRef::as_ref);
        let array: StringArray = codes[..rows].iter().map(text).collect();
        self.arrays.push(Arc::new(array));
    }

    /// Adds a column of integers.
    pub(super) fn integer(&mut self, codes: &[u32], write: impl Fn(u32, &mut SplitMix64) -> i64) {
        let (known, rows) = self.values(codes, write);
        self.arrays.push(Arc::new(Int64Array::from_iter_values(codes[..rows].iter().map(|code| known[code]))));
    }

    /// Adds a column of numbers in which some codes are NULL.
    pub(super) fn number(&mut self, codes: &[u32], write: impl Fn(u32, &mut SplitMix64) -> Option<f64>) {
        let (known, rows) = self.values(codes, write);
        self.arrays.push(Arc::new(codes[..rows].iter().map(|code| known[code]).collect::<Float64Array>()));
    }

    /// Writes the value of each code that a row has.
    fn values<T>(&self, codes: &[u32], write: impl Fn(u32, &mut SplitMix64) -> T) -> (HashMap<u32, T>, usize) {
        let name = self.dataset.columns.get(self.arrays.len()).map_or("", |column| column.name);
        let rows = self.rows.min(codes.len());
        let mut known = HashMap::new();
        for code in &codes[..rows] {
            known.entry(*code).or_insert_with(|| write(*code, &mut self.random.part(name, u64::from(*code))));
        }
        (known, rows)
    }

    /// Returns the table.
    ///
    /// # Errors
    /// If the columns are not those of the catalogue.
    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        RecordBatch::try_new(schema(self.dataset), self.arrays)
    }
}

/// Returns the schema of a table of the catalogue; every column may hold NULL.
pub(super) fn schema(dataset: &Dataset) -> SchemaRef {
    let field = |column: &crate::catalogue::Column| {
        let data_type = match column.kind {
            Kind::Text => DataType::Utf8,
            Kind::Integer => DataType::Int64,
            Kind::Number => DataType::Float64,
        };
        Field::new(column.name, data_type, true)
    };
    Arc::new(Schema::new(dataset.columns.iter().map(field).collect::<Vec<_>>()))
}

/// Returns the code of each row: its number.
pub(super) fn numbered(rows: usize) -> Vec<u32> {
    (0..rows as u32).collect()
}

/// Returns the unit that each row belongs to, where units come one after the other and `counts` says how many rows each has.
pub(super) fn grouped(counts: &[usize]) -> Vec<u32> {
    counts.iter().enumerate().flat_map(|(unit, count)| vec![unit as u32; *count]).collect()
}

/// Returns the value of each row by way of its unit.
pub(super) fn of_units(units: &[u32], values: &[u32]) -> Vec<u32> {
    units.iter().map(|unit| values[*unit as usize]).collect()
}
