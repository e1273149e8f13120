//! How much of a GPU's memory a model may take.

use std::fmt;

/// The most memory that a model may take of a GPU: weights, scratch memory and KV pages together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GpuMemory {
    /// So many bytes.
    Bytes(usize),
    /// A share of all memory of the GPU, above 0 and at most 1.
    Share(f64),
}

impl GpuMemory {
    /// Returns the bytes on a GPU that has `total` of them.
    pub(super) fn bytes(self, total: usize) -> usize {
        match self {
            GpuMemory::Bytes(bytes) => bytes,
            GpuMemory::Share(share) => (total as f64 * share) as usize,
        }
    }
}

impl fmt::Display for GpuMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuMemory::Bytes(bytes) => bytes.fmt(f),
            GpuMemory::Share(share) => share.fmt(f),
        }
    }
}

/// Returns the bytes that a pool may take of `free` ones, where the model has `taken` others and may have `most` in all.
pub(super) fn pool_bytes(free: usize, taken: usize, most: Option<usize>) -> usize {
    most.map_or(free, |most| free.min(most.saturating_sub(taken)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_stays_within_what_is_free_and_what_is_allowed() {
        assert_eq!(pool_bytes(60, 20, None), 60);
        assert_eq!(pool_bytes(60, 20, Some(50)), 30);
        assert_eq!(pool_bytes(60, 20, Some(100)), 60);
        assert_eq!(pool_bytes(60, 20, Some(10)), 0);
        assert_eq!(GpuMemory::Share(0.25).bytes(80 << 30), 20 << 30);
        assert_eq!((GpuMemory::Bytes(7).bytes(80), GpuMemory::Bytes(7).to_string()), (7, "7".to_owned()));
    }
}
