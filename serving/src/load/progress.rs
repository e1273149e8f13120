//! How far the loading of weights has come, and how to end it early.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::model::{HostTensor, TensorSource};

/// Shared between who loads a model and who waits for it.
#[derive(Debug, Default)]
pub struct LoadProgress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl LoadProgress {
    /// Returns how many weights have been read.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed).min(self.total())
    }

    /// Returns how many weights the model has; 0 before loading begins.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Makes the loading fail with [`Error::Cancelled`] before its next tensor.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// A source of tensors that tells how far its reader has come.
pub struct WatchedTensors<'a> {
    source: &'a dyn TensorSource,
    progress: Arc<LoadProgress>,
}

impl<'a> WatchedTensors<'a> {
    /// Watches a source of which tensors with these shapes will be read.
    pub fn new<'s>(
        source: &'a dyn TensorSource,
        shapes: impl IntoIterator<Item = &'s [usize]>,
        progress: Arc<LoadProgress>,
    ) -> Self {
        progress.total.store(shapes.into_iter().map(weights).sum(), Ordering::Relaxed);
        WatchedTensors { source, progress }
    }
}

impl TensorSource for WatchedTensors<'_> {
    fn contains(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        if self.progress.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let tensor = self.source.read(name, shape)?;
        self.progress.done.fetch_add(weights(shape), Ordering::Relaxed);
        Ok(tensor)
    }
}

impl fmt::Debug for WatchedTensors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedTensors").field("source", &self.source).field("progress", &self.progress).finish()
    }
}

/// Returns how many weights a tensor has.
fn weights(shape: &[usize]) -> u64 {
    shape.iter().map(|size| *size as u64).product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::{CpuDevice, CpuOptions};
    use crate::load::{BundledModel, LoadedModel, bundled};

    #[test]
    fn progress_is_complete_when_the_device_is_open_and_cancelling_ends_it() {
        let LoadedModel { config, weights, .. } = bundled(BundledModel::MiniDraft).unwrap();
        let tensors = config.tensors();
        let open = |progress: &Arc<LoadProgress>| {
            let shapes = tensors.iter().map(|(_, shape)| shape.as_slice());
            let watched = WatchedTensors::new(weights.as_ref(), shapes, Arc::clone(progress));
            CpuDevice::new(&config, &watched, CpuOptions { threads: None, kv_bytes: 1 << 20 })
        };
        let progress = Arc::new(LoadProgress::default());
        assert_eq!((progress.done(), progress.total()), (0, 0));
        open(&progress).unwrap();
        assert!(progress.total() > 1_000_000 && progress.done() == progress.total());
        let cancelled = Arc::new(LoadProgress::default());
        cancelled.cancel();
        assert!(matches!(open(&cancelled), Err(Error::Cancelled)));
        assert_eq!(cancelled.done(), 0);
    }
}
