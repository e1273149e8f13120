//! Chunks: consecutive rows that fit into one prompt.

use std::ops::Range;

/// Fills chunks in order, each with as many rows as `room` tokens hold. Every row is in exactly one chunk; a row that is longer
/// than `room` has a chunk of its own.
pub(super) fn fill(lens: &[usize], room: usize) -> Vec<Range<usize>> {
    let mut chunks: Vec<Range<usize>> = vec![];
    let (mut start, mut used) = (0, 0);
    for (row, len) in lens.iter().enumerate() {
        if row > start && used + len > room {
            chunks.push(start..row);
            (start, used) = (row, 0);
        }
        used += len;
    }
    if start < lens.len() {
        chunks.push(start..lens.len());
    }
    chunks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunks_are_filled_in_order() {
        assert_eq!(fill(&[3, 3, 4, 1, 9, 2], 10), [0..3, 3..5, 5..6]);
        assert!(fill(&[], 10).is_empty());
        assert_eq!(fill(&[20, 1], 10), [0..1, 1..2]);
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_chunk_that_fits(lens in prop::collection::vec(1_usize..50, 0..200), room in 50_usize..300) {
            let chunks = fill(&lens, room);
            let rows: Vec<usize> = chunks.iter().cloned().flatten().collect();
            prop_assert_eq!(rows, (0..lens.len()).collect::<Vec<_>>());
            for chunk in &chunks {
                prop_assert!(lens[chunk.clone()].iter().sum::<usize>() <= room);
            }
            // No chunk could have taken the first row of the next one.
            for pair in chunks.windows(2) {
                prop_assert!(lens[pair[0].start..=pair[1].start].iter().sum::<usize>() > room);
            }
        }
    }
}
