//! A record batch from Rust values, one line a column. A value that is not known is NULL.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::common::Result;

/// Columns over rows of one type.
pub(super) struct Columns<'a, R> {
    rows: &'a [R],
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl<'a, R> Columns<'a, R> {
    pub(super) fn of(rows: &'a [R]) -> Self {
        Columns { rows, fields: vec![], arrays: vec![] }
    }

    /// Adds a VARCHAR column.
    pub(super) fn text<T: Into<String>>(self, name: &str, value: impl Fn(&'a R) -> Option<T>) -> Self {
        let values: StringArray = self.rows.iter().map(|row| value(row).map(Into::into)).collect();
        self.column(name, Arc::new(values))
    }

    /// Adds a column of lists of VARCHAR.
    pub(super) fn texts<T: AsRef<str> + 'a>(self, name: &str, values: impl Fn(&'a R) -> &'a [T]) -> Self {
        let mut lists = ListBuilder::new(StringBuilder::new());
        for row in self.rows {
            values(row).iter().for_each(|text| lists.values().append_value(text));
            lists.append(true);
        }
        let lists = lists.finish();
        self.column(name, Arc::new(lists))
    }

    /// Adds a BOOLEAN column.
    pub(super) fn flag(self, name: &str, value: impl Fn(&'a R) -> Option<bool>) -> Self {
        let values: BooleanArray = self.rows.iter().map(value).collect();
        self.column(name, Arc::new(values))
    }

    /// Adds a BIGINT column.
    pub(super) fn count(self, name: &str, value: impl Fn(&'a R) -> Option<u64>) -> Self {
        let to_signed = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let values: Int64Array = self.rows.iter().map(|row| value(row).map(to_signed)).collect();
        self.column(name, Arc::new(values))
    }

    /// Adds a DOUBLE column.
    pub(super) fn number(self, name: &str, value: impl Fn(&'a R) -> Option<f64>) -> Self {
        let values: Float64Array = self.rows.iter().map(value).collect();
        self.column(name, Arc::new(values))
    }

    /// Adds a TIMESTAMP column, in UTC.
    pub(super) fn time(self, name: &str, value: impl Fn(&'a R) -> Option<SystemTime>) -> Self {
        let micros = |time: SystemTime| i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok();
        let values: TimestampMicrosecondArray = self.rows.iter().map(|row| value(row).and_then(micros)).collect();
        self.column(name, Arc::new(values.with_timezone("+00:00")))
    }

    pub(super) fn finish(self) -> Result<RecordBatch> {
        Ok(RecordBatch::try_new(Arc::new(Schema::new(self.fields)), self.arrays)?)
    }

    fn column(mut self, name: &str, values: ArrayRef) -> Self {
        self.fields.push(Field::new(name, values.data_type().clone(), true));
        self.arrays.push(values);
        self
    }
}
