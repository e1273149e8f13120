//! Tokenises many cells on all cores.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use refrain_serving::Segment;

/// Cells that a thread takes at a time.
const CHUNK: usize = 64;

/// Returns `encode(0)`, `encode(1)`, … `encode(count - 1)`. Blocks its thread and uses one for each core where there is work for
/// them.
pub(super) fn tokenise(count: usize, encode: impl Fn(usize) -> Segment + Sync) -> Vec<Segment> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(count.div_ceil(CHUNK));
    if threads <= 1 {
        return (0..count).map(encode).collect();
    }
    let next = AtomicUsize::new(0);
    // Cells differ in length by orders of magnitude, so threads take chunks as they come free.
    let work = || {
        let mut done: Vec<(usize, Vec<Segment>)> = vec![];
        loop {
            let start = next.fetch_add(CHUNK, Ordering::Relaxed);
            if start >= count {
                return done;
            }
            done.push((start, (start..count.min(start + CHUNK)).map(&encode).collect()));
        }
    };
    let mut chunks: Vec<(usize, Vec<Segment>)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join =
            |thread: thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        threads.into_iter().flat_map(join).collect()
    });
    chunks.sort_unstable_by_key(|(start, _)| *start);
    chunks.into_iter().flat_map(|(_, segments)| segments).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_keep_their_places() {
        for count in [0, 1, CHUNK, CHUNK + 1, 10 * CHUNK + 3] {
            let tokens = tokenise(count, |cell| vec![cell as u32; cell % 3].into());
            assert_eq!(tokens.len(), count);
            for (cell, tokens) in tokens.iter().enumerate() {
                assert_eq!(**tokens, *vec![cell as u32; cell % 3]);
            }
        }
    }
}
