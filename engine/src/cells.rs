//! The text of a value: as Arrow displays it, and as JSON where it is nested.

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::FieldRef;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::writer::{EncoderOptions, make_encoder};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};

/// Returns the text of each value of a column; `None` is NULL.
pub(crate) fn column_texts(field: &FieldRef, column: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    if column.data_type().is_nested() {
        return nested_texts(field, column);
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
    (0..column.len()).map(|row| present(column, row).then(|| formatter.value(row).try_to_string()).transpose()).collect()
}

fn nested_texts(field: &FieldRef, column: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let mut encoder = make_encoder(field, column.as_ref(), &options)?;
    let mut text = |row| {
        let mut json = Vec::new();
        encoder.encode(row, &mut json);
        String::from_utf8(json).map_err(|error| ArrowError::JsonError(error.to_string()))
    };
    (0..column.len()).map(|row| present(column, row).then(|| text(row)).transpose()).collect()
}

/// Whether the value of this row is not NULL. A column of type NULL has no validity bits of its own.
fn present(column: &ArrayRef, row: usize) -> bool {
    column.data_type() != &datafusion::arrow::datatypes::DataType::Null && column.is_valid(row)
}
