//! Work on rows: splitting it over the threads of the current rayon pool, and sums of a row.

use rayon::prelude::*;

/// Tasks for each thread, so that a thread that is held up elsewhere leaves work to the others.
const TASKS_PER_THREAD: usize = 4;
/// Below this many values a task costs less than handing it to a thread.
const TASK_VALUES_MIN: usize = 8192;
/// Partial sums of a row: as many on every machine, so that their bits are the same everywhere.
const LANES: usize = 16;

/// Returns how many of `rows` rows of `width` values one task takes.
pub(super) fn rows_per_task(rows: usize, width: usize) -> usize {
    let tasks = rayon::current_num_threads() * TASKS_PER_THREAD;
    rows.div_ceil(tasks).max(TASK_VALUES_MIN.div_ceil(width.max(1))).max(1)
}

/// Calls `work(first_row, block)` for blocks of whole rows of `out`, which has rows of `width` values.
pub(super) fn for_row_blocks(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 {
        return;
    }
    let block = rows_per_task(out.len() / width, width);
    out.par_chunks_mut(block * width).enumerate().for_each(|(i, rows)| work(i * block, rows));
}

/// Sums up a row: `add` takes each value to one of the partial sums, which are added in order.
#[inline(always)]
pub(super) fn fold(x: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum = add(*sum, x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum = add(*sum, x);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once_with_its_number() {
        for (rows, width) in [(0, 3), (1, 1), (7, 5), (1000, 64)] {
            let mut out = vec![-1.0; rows * width];
            for_row_blocks(&mut out, width, |first, block| {
                for (i, row) in block.chunks_exact_mut(width).enumerate() {
                    assert!(row.iter().all(|&x| x == -1.0));
                    row.fill((first + i) as f32);
                }
            });
            assert!(out.chunks(width).enumerate().all(|(i, row)| row.iter().all(|&x| x == i as f32)));
        }
    }
}
