//! Work on many cells or questions on all cores.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Items that a thread takes at a time.
const CHUNK: usize = 64;

/// Returns `of(0)`, `of(1)`, … `of(count - 1)`. Blocks its thread and uses one for each core where there is work for them.
pub(super) fn in_parallel<T: Send>(count: usize, of: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(count.div_ceil(CHUNK));
    if threads <= 1 {
        return (0..count).map(of).collect();
    }
    let next = AtomicUsize::new(0);
    // Items differ in length by orders of magnitude, so threads take chunks as they come free.
    let work = || {
        let mut done: Vec<(usize, Vec<T>)> = vec![];
        loop {
            let start = next.fetch_add(CHUNK, Ordering::Relaxed);
            if start >= count {
                return done;
            }
            done.push((start, (start..count.min(start + CHUNK)).map(&of).collect()));
        }
    };
    let mut chunks: Vec<(usize, Vec<T>)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join =
            |thread: thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        threads.into_iter().flat_map(join).collect()
    });
    chunks.sort_unstable_by_key(|(start, _)| *start);
    chunks.into_iter().flat_map(|(_, done)| done).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_keep_their_places() {
        for count in [0, 1, CHUNK, CHUNK + 1, 10 * CHUNK + 3] {
            assert_eq!(
                in_parallel(count, |item| vec![item; item % 3]),
                (0..count).map(|item| vec![item; item % 3]).collect::<Vec<_>>()
            );
        }
    }
}
