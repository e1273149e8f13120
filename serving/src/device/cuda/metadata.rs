//! What describes a pass: many small arrays, copied to the GPU in one piece.

use std::sync::Arc;

use super::driver::{Buffer, Event, Gpu, Pinned};
use crate::error::Result;

/// Arrays begin on a multiple of so many words, since kernels read them four at a time.
const ALIGNMENT: usize = 4;

/// The arrays of a pass, and once they are uploaded, where they lie.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    words: Vec<i32>,
    base: u64,
}

impl Metadata {
    /// Starts anew, for the next pass.
    pub(super) fn clear(&mut self) {
        self.words.clear();
    }

    /// Adds an array and returns its place.
    pub(super) fn push(&mut self, array: &[i32]) -> usize {
        self.extend(array.iter().copied())
    }

    /// Adds an array and returns its place.
    pub(super) fn extend(&mut self, array: impl Iterator<Item = i32>) -> usize {
        let place = self.words.len().next_multiple_of(ALIGNMENT);
        self.words.resize(place, 0);
        self.words.extend(array);
        place
    }

    /// Returns the address on the GPU of the array at a place.
    pub(super) fn at(&self, place: usize) -> u64 {
        self.base + 4 * place as u64
    }
}

/// Copies the arrays of passes to the GPU.
#[derive(Debug)]
pub(super) struct Uploader {
    gpu: Arc<Gpu>,
    device: Buffer<i32>,
    /// Pinned memory for passes in turn, and when each may be written again.
    staging: Vec<(Pinned<i32>, Event)>,
    turn: usize,
}

impl Uploader {
    /// Takes memory for `passes` at a time of up to `words` words, which grows where a pass needs more.
    pub(super) fn new(gpu: &Arc<Gpu>, passes: usize, words: usize) -> Result<Self> {
        let staging = (0..passes).map(|_| Ok((gpu.pinned(words)?, gpu.event()?))).collect::<Result<_>>()?;
        Ok(Uploader { gpu: Arc::clone(gpu), device: gpu.allocate(words)?, staging, turn: 0 })
    }

    /// Copies the arrays after what was launched before, so that what the pass before reads stays until it has ended.
    pub(super) fn upload(&mut self, metadata: &mut Metadata) -> Result<()> {
        let len = metadata.words.len();
        if len > self.device.len() {
            // Waits for the passes that read the old memory.
            self.device = self.gpu.allocate(len.next_power_of_two())?;
        }
        let turn = self.turn;
        self.turn = (turn + 1) % self.staging.len();
        let (staging, free) = &mut self.staging[turn];
        free.wait()?;
        if len > staging.len() {
            *staging = self.gpu.pinned(len.next_power_of_two())?;
        }
        staging[..len].copy_from_slice(&metadata.words);
        // SAFETY: the staging memory is not written before its event has passed.
        unsafe { self.gpu.copy_in(staging, &self.device, 0, len) }?;
        self.gpu.record(free)?;
        metadata.base = self.device.at(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_begin_where_four_words_are_read_at_once() {
        let mut metadata = Metadata::default();
        let places = [metadata.push(&[1]), metadata.push(&[]), metadata.push(&[2, 3, 4, 5, 6]), metadata.extend(7..9)];
        assert_eq!(places, [0, 4, 4, 12]);
        assert_eq!((metadata.words[4], metadata.words[12..].to_vec()), (2, vec![7, 8]));
        metadata.clear();
        assert_eq!(metadata.push(&[9]), 0);
    }
}
