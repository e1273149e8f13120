//! The last result, kept so that `\last` shows it again without another call of a model.

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;

/// Results larger than this are not kept.
const KEPT_BYTES: usize = 256 << 20;

/// The rows of a result.
pub(crate) struct Kept {
    /// Its columns.
    pub(crate) schema: SchemaRef,
    /// Its rows; `None` if they are too many.
    pub(crate) batches: Option<Vec<RecordBatch>>,
    bytes: usize,
}

impl Kept {
    /// A result of which nothing has come yet.
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Kept { schema, batches: Some(vec![]), bytes: 0 }
    }

    /// Keeps the next rows.
    pub(crate) fn keep(&mut self, batch: &RecordBatch) {
        self.bytes += batch.get_array_memory_size();
        if self.bytes > KEPT_BYTES {
            self.batches = None;
        } else if let Some(batches) = &mut self.batches {
            batches.push(batch.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, Int64Array};

    use super::*;

    #[test]
    fn what_is_too_large_is_forgotten() {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![0; 1 << 20]));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let mut kept = Kept::new(batch.schema());
        for _ in 0..31 {
            kept.keep(&batch);
        }
        assert_eq!(kept.batches.as_ref().map(Vec::len), Some(31));
        kept.keep(&batch);
        kept.keep(&batch);
        assert!(kept.batches.is_none());
    }
}
