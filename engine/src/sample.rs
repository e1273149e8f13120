//! Rows of a plan drawn at random, for estimates: algorithm R (Vitter, "Random Sampling with a Reservoir", 1985) with a fixed
//! seed, over as many rows as may be read.

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions, UInt32Array};
use datafusion::arrow::compute::{concat_batches, take_record_batch};
use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

/// Rows that an estimate looks at.
pub(crate) const SAMPLE_ROWS: usize = 4096;
/// Rows that are read to draw them from; a longer table is drawn from its beginning.
const READ_ROWS_MAX: usize = 200_000;

/// Rows drawn at random.
#[derive(Debug)]
pub(crate) struct Sample {
    /// The rows, in the order in which they came.
    pub(crate) rows: RecordBatch,
    /// Rows that were read.
    pub(crate) read: u64,
    /// Whether these were all.
    pub(crate) ended: bool,
}

/// Draws rows from a stream.
pub(crate) async fn draw(mut input: SendableRecordBatchStream) -> Result<Sample> {
    let schema = input.schema();
    let mut draws = Draws(0x5EED);
    // The rows kept, by slot: where they came, the batch that holds them, and their place in it.
    let (mut slots, mut batches): (Vec<(u64, usize, u32)>, Vec<RecordBatch>) = (vec![], vec![]);
    let mut read = 0;
    let mut ended = false;
    while read < READ_ROWS_MAX as u64 {
        let Some(batch) = input.next().await else {
            ended = true;
            break;
        };
        let batch = batch?;
        if schema.fields().is_empty() {
            read += batch.num_rows() as u64;
            continue;
        }
        let mut taken: Vec<u32> = vec![];
        for row in 0..batch.num_rows() {
            let slot = match slots.len() < SAMPLE_ROWS {
                true => slots.len(),
                false => draws.below(read + 1) as usize,
            };
            if slot < SAMPLE_ROWS {
                let place = (read, batches.len(), taken.len() as u32);
                taken.push(row as u32);
                if slot == slots.len() { slots.push(place) } else { slots[slot] = place }
            }
            read += 1;
        }
        // Copied, so that a batch is not kept for the sake of few of its rows.
        batches.push(take_record_batch(&batch, &UInt32Array::from(taken))?);
    }
    if schema.fields().is_empty() {
        // Rows without columns differ in nothing but their number.
        let options = RecordBatchOptions::new().with_row_count(Some(SAMPLE_ROWS.min(read as usize)));
        let rows = RecordBatch::try_new_with_options(schema, vec![], &options)?;
        return Ok(Sample { rows, read, ended });
    }
    slots.sort_unstable();
    let picked = slots.iter().map(|(_, batch, row)| batches[*batch].slice(*row as usize, 1)).collect::<Vec<_>>();
    Ok(Sample { rows: concat_batches(&schema, &picked)?, read, ended })
}

/// SplitMix64: a few numbers that are random enough and the same in every run.
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    /// Returns a number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array};
    use datafusion::arrow::datatypes::Int64Type;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

    use super::*;

    async fn sample_of(n_rows: i64) -> Sample {
        let batch = |start: i64| {
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(start..n_rows.min(start + 1000)));
            RecordBatch::try_from_iter([("n", numbers)]).unwrap()
        };
        let batches: Vec<_> = (0..n_rows).step_by(1000).map(|start| Ok(batch(start))).collect();
        let schema = batch(0).schema();
        draw(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches)))).await.unwrap()
    }

    #[tokio::test]
    async fn few_rows_are_all_taken_and_many_are_drawn_evenly() {
        let few = sample_of(4096).await;
        assert_eq!((few.rows.num_rows(), few.read, few.ended), (4096, 4096, true));
        let many = sample_of(100_000).await;
        assert_eq!((many.rows.num_rows(), many.read, many.ended), (4096, 100_000, true));
        let numbers = many.rows.column(0).as_primitive::<Int64Type>().values();
        assert!(numbers.is_sorted());
        let in_first_half = numbers.iter().filter(|n| **n < 50_000).count();
        assert!((1900..2200).contains(&in_first_half), "{in_first_half}");
    }

    #[tokio::test]
    async fn a_long_table_is_not_read_to_its_end() {
        let long = sample_of(300_000).await;
        assert_eq!((long.read, long.ended), (200_000, false));
    }
}
