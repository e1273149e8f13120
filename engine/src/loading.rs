//! A backend that is made at the first call: once for all who wait for it, and again after it was given up.
//!
//! The load is a task of its own. Whoever waits may stop waiting: the load goes on, and the next call finds it. A load that fails
//! leaves nothing behind, so the next call tries again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use refrain_serving::device::cuda::PassTimes;
use refrain_serving::model::{HostTensor, Normal, StoredTensor, TensorSource};
use refrain_serving::{Backend, Batch, BatchId, Capabilities, CompletionStream, Error, Result, Stats, Tokenizer};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;

/// A backend, or the way to one.
#[derive(Debug, Default)]
pub(crate) struct LazyBackend {
    state: Mutex<State>,
    /// Told when somebody has stopped using the backend.
    released: Notify,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Unloaded,
    Loading(Arc<Load>),
    Loaded(Loaded),
}

/// A load under way.
#[derive(Debug)]
struct Load {
    started: Instant,
    progress: Arc<LoadProgress>,
    /// Filled once.
    outcome: watch::Receiver<Option<Result<()>>>,
}

#[derive(Debug)]
struct Loaded {
    backend: Arc<dyn Backend>,
    /// Queries that use it.
    users: usize,
    facts: LoadFacts,
}

/// What stands in the way of unloading.
enum Unload {
    /// There is nothing to unload.
    Nothing,
    Taken(State),
    InUse,
    Loading(watch::Receiver<Option<Result<()>>>),
}

/// How a model was loaded.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoadFacts {
    /// When it was ready.
    pub at: SystemTime,
    /// How long that took.
    pub took: Duration,
    /// Bytes of weights that were read; 0 where weights lie elsewhere.
    pub weight_bytes: u64,
}

/// How far a load is.
#[derive(Debug, Default)]
pub(crate) struct LoadProgress {
    /// Bytes of weights that have been read.
    pub(crate) done: AtomicU64,
    /// Bytes of weights in all; 0 while that is not known.
    pub(crate) total: AtomicU64,
}

/// How far a load is, and since when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loading {
    /// Bytes of weights that have been read.
    pub done: u64,
    /// Bytes of weights in all; 0 while that is not known.
    pub total: u64,
    /// Since the load began.
    pub elapsed: Duration,
}

impl LazyBackend {
    /// Wraps a backend that is there already.
    pub(crate) fn ready(backend: Arc<dyn Backend>) -> Self {
        let facts = LoadFacts { at: SystemTime::now(), took: Duration::ZERO, weight_bytes: 0 };
        LazyBackend { state: Mutex::new(State::Loaded(Loaded { backend, users: 0, facts })), released: Notify::new() }
    }

    /// Returns the backend, which counts as used until what is returned is dropped. Makes it with `open` unless it is there or
    /// under way; `open` runs on a thread that may wait. Must be called within a tokio runtime.
    pub(crate) async fn get(
        self: &Arc<Self>,
        open: impl FnOnce(Arc<LoadProgress>) -> Result<Arc<dyn Backend>> + Send + Clone + 'static,
    ) -> Result<Arc<dyn Backend>> {
        // One that was just loaded is returned even if it is lost already: its error says why.
        let mut waited = false;
        loop {
            let mut outcome = {
                let mut state = self.lock();
                match &mut *state {
                    State::Loaded(loaded) if waited || !loaded.backend.is_lost() => return Ok(self.used(loaded)),
                    State::Loading(load) => load.outcome.clone(),
                    // Whoever uses one that is lost keeps it, and gets its error.
                    State::Unloaded | State::Loaded(_) => {
                        let load = self.start(open.clone());
                        let outcome = load.outcome.clone();
                        *state = State::Loading(load);
                        outcome
                    }
                }
            };
            match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
                // Another may have unloaded it in the meantime; then it is loaded again.
                Ok(Some(Ok(())) | None) => waited = true,
                Ok(Some(Err(error))) => return Err(error),
                // The runtime of the load has ended, and the load with it.
                Err(_) => self.forget_ended_load(&outcome),
            }
        }
    }

    /// Starts a load that nobody has to wait for.
    fn start(
        self: &Arc<Self>,
        open: impl FnOnce(Arc<LoadProgress>) -> Result<Arc<dyn Backend>> + Send + 'static,
    ) -> Arc<Load> {
        let (sender, outcome) = watch::channel(None);
        let load = Arc::new(Load { started: Instant::now(), progress: Arc::default(), outcome });
        let (this, started, progress) = (Arc::clone(self), load.started, Arc::clone(&load.progress));
        tokio::spawn(async move {
            let counted = Arc::clone(&progress);
            let opened = spawn_blocking(move || open(counted)).await;
            let opened = opened.unwrap_or_else(|e| Err(Error::Device(format!("loading the model failed: {e}"))));
            let outcome = this.finish(opened, started, &progress);
            sender.send_replace(Some(outcome));
        });
        load
    }

    fn finish(&self, opened: Result<Arc<dyn Backend>>, started: Instant, progress: &LoadProgress) -> Result<()> {
        let (state, outcome) = match opened {
            Ok(backend) => {
                let weight_bytes = progress.done.load(Ordering::Relaxed);
                let facts = LoadFacts { at: SystemTime::now(), took: started.elapsed(), weight_bytes };
                (State::Loaded(Loaded { backend, users: 0, facts }), Ok(()))
            }
            Err(error) => (State::Unloaded, Err(error)),
        };
        *self.lock() = state;
        outcome
    }

    fn forget_ended_load(&self, outcome: &watch::Receiver<Option<Result<()>>>) {
        let mut state = self.lock();
        if matches!(&*state, State::Loading(load) if load.outcome.same_channel(outcome)) {
            *state = State::Unloaded;
        }
    }

    fn used(self: &Arc<Self>, loaded: &mut Loaded) -> Arc<dyn Backend> {
        loaded.users += 1;
        Arc::new(Used { backend: Arc::clone(&loaded.backend), owner: Arc::clone(self) })
    }

    /// Gives up the backend once nobody uses it, and returns when its memory is free. Returns whether there was one.
    pub(crate) async fn unload(&self) -> bool {
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            // From here on no release is missed.
            released.as_mut().enable();
            match self.take_unused() {
                Unload::Nothing => return false,
                Unload::Taken(state) => {
                    // Waits for the thread of the device.
                    let _ = spawn_blocking(move || drop(state)).await;
                    return true;
                }
                Unload::InUse => released.await,
                Unload::Loading(mut outcome) => {
                    if outcome.wait_for(Option::is_some).await.is_err() {
                        return false;
                    }
                }
            }
        }
    }

    fn take_unused(&self) -> Unload {
        let mut state = self.lock();
        match &*state {
            State::Unloaded => Unload::Nothing,
            State::Loading(load) => Unload::Loading(load.outcome.clone()),
            State::Loaded(loaded) if loaded.users > 0 => Unload::InUse,
            State::Loaded(_) => Unload::Taken(std::mem::take(&mut *state)),
        }
    }

    /// Gives up the backend at once; queries that run go on with theirs.
    pub(crate) fn forget(&self) {
        let mut state = self.lock();
        if matches!(&*state, State::Loaded(_)) {
            *state = State::Unloaded;
        }
    }

    /// Returns what the backend can do and how it was loaded; `None` while it is not there.
    pub(crate) fn loaded(&self) -> Option<(Capabilities, LoadFacts)> {
        match &*self.lock() {
            State::Loaded(loaded) => Some((loaded.backend.capabilities(), loaded.facts.clone())),
            _ => None,
        }
    }

    /// Returns the version that the service of the model reported last; `None` while it is not there, or has reported none.
    pub(crate) fn reported_version(&self) -> Option<String> {
        match &*self.lock() {
            State::Loaded(loaded) => loaded.backend.reported_version(),
            _ => None,
        }
    }

    /// Returns the counters of the backend; `None` while it is not there.
    pub(crate) fn stats(&self) -> Option<Stats> {
        match &*self.lock() {
            State::Loaded(loaded) => Some(loaded.backend.stats()),
            _ => None,
        }
    }

    /// Returns the tokenizer of the backend; `None` while it is not there.
    pub(crate) fn tokenizer(&self) -> Option<Arc<dyn Tokenizer>> {
        match &*self.lock() {
            State::Loaded(loaded) => Some(loaded.backend.tokenizer()),
            _ => None,
        }
    }

    /// Returns how far the load is; `None` if none is under way.
    pub(crate) fn loading(&self) -> Option<Loading> {
        match &*self.lock() {
            State::Loading(load) => Some(Loading {
                done: load.progress.done.load(Ordering::Relaxed),
                total: load.progress.total.load(Ordering::Relaxed),
                elapsed: load.started.elapsed(),
            }),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A backend in use.
#[derive(Debug)]
struct Used {
    backend: Arc<dyn Backend>,
    owner: Arc<LazyBackend>,
}

impl Backend for Used {
    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        self.backend.tokenizer()
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        self.backend.submit(batch)
    }

    fn cancel(&self, batch: BatchId) {
        self.backend.cancel(batch);
    }

    fn stats(&self) -> Stats {
        self.backend.stats()
    }

    fn time_passes(&self) {
        self.backend.time_passes();
    }

    fn pass_times(&self) -> Vec<PassTimes> {
        self.backend.pass_times()
    }

    fn is_lost(&self) -> bool {
        self.backend.is_lost()
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        if let State::Loaded(loaded) = &mut *self.owner.lock() {
            // Another one may have taken its place after `forget`; that one has users of its own.
            if Arc::ptr_eq(&loaded.backend, &self.backend) {
                loaded.users -= 1;
            }
        }
        self.owner.released.notify_waiters();
    }
}

/// Weights that count what is read of them.
#[derive(Debug)]
pub(crate) struct CountedWeights<'a> {
    /// The weights.
    pub(crate) weights: &'a dyn TensorSource,
    /// Where it is counted.
    pub(crate) progress: &'a LoadProgress,
}

impl TensorSource for CountedWeights<'_> {
    fn contains(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let tensor = self.weights.read(name, shape)?;
        self.progress.done.fetch_add(tensor.bytes.len() as u64, Ordering::Relaxed);
        Ok(tensor)
    }

    /// Counts all of a tensor, since whoever asks reads it next.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Option<StoredTensor<'_>>> {
        let stored = self.weights.stored(name, shape)?;
        let (width, rows) = (shape.last().copied().unwrap_or(1), shape.iter().rev().skip(1).product::<usize>());
        let row_bytes = stored.and_then(|stored| stored.dtype.row_bytes(width)).unwrap_or(0);
        self.progress.done.fetch_add((rows * row_bytes) as u64, Ordering::Relaxed);
        Ok(stored)
    }

    fn normal(&self, name: &str) -> Option<Normal> {
        self.weights.normal(name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt;
    use refrain_serving::mock::MockBackend;

    use super::*;

    fn mock() -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(MockBackend::new(1)))
    }

    #[tokio::test]
    async fn two_who_wait_share_one_load() {
        let (lazy, loads) = (Arc::new(LazyBackend::default()), Arc::new(AtomicU64::new(0)));
        let open = || {
            let loads = Arc::clone(&loads);
            move |_| {
                loads.fetch_add(1, Ordering::Relaxed);
                mock()
            }
        };
        let (a, b) = tokio::join!(lazy.get(open()), lazy.get(open()));
        assert!(a.is_ok() && b.is_ok());
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        assert!(lazy.loading().is_none() && lazy.loaded().is_some());
    }

    #[tokio::test]
    async fn a_failed_load_is_tried_again() {
        let lazy = Arc::new(LazyBackend::default());
        let failed = lazy.get(|_| Err(Error::Invalid("no such file".into()))).await;
        assert!(failed.unwrap_err().to_string().contains("no such file"));
        let panicked = lazy.get(|_| panic!("broken")).await;
        assert!(panicked.unwrap_err().to_string().contains("loading the model failed"));
        assert!(lazy.get(|_| mock()).await.is_ok());
    }

    /// A backend whose device is gone.
    #[derive(Debug)]
    struct Lost(MockBackend);

    impl Backend for Lost {
        fn capabilities(&self) -> Capabilities {
            self.0.capabilities()
        }

        fn tokenizer(&self) -> Arc<dyn Tokenizer> {
            self.0.tokenizer()
        }

        fn submit(&self, batch: Batch) -> CompletionStream {
            self.0.submit(batch)
        }

        fn cancel(&self, batch: BatchId) {
            self.0.cancel(batch);
        }

        fn stats(&self) -> Stats {
            self.0.stats()
        }

        fn is_lost(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn one_that_is_lost_is_loaded_again() {
        let lazy = Arc::new(LazyBackend::default());
        let lost = lazy.get(|_| Ok(Arc::new(Lost(MockBackend::new(1))) as Arc<dyn Backend>)).await.unwrap();
        assert!(lost.is_lost(), "it was there when it was loaded");
        let again = lazy.get(|_| mock()).await.unwrap();
        assert!(!again.is_lost());
        drop(lost);
        let mut unload = Box::pin(lazy.unload());
        assert!(unload.as_mut().now_or_never().is_none(), "the new one is in use");
        drop(again);
        assert!(unload.await);
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_the_load_to_others() {
        let lazy = Arc::new(LazyBackend::default());
        let (gate, opened) = mpsc::channel::<()>();
        let opened = Arc::new(Mutex::new(opened));
        let slow = move |progress: Arc<LoadProgress>| {
            progress.total.store(10, Ordering::Relaxed);
            let _ = opened.lock().unwrap().recv();
            mock()
        };
        assert!(lazy.get(slow).now_or_never().is_none(), "it waits, and is dropped");
        assert!(lazy.loading().is_some());
        gate.send(()).unwrap();
        let found = lazy.get(|_| Err(Error::Invalid("a second load".into()))).await;
        assert!(found.is_ok());
    }

    #[tokio::test]
    async fn unloading_waits_for_who_uses_it() {
        let lazy = Arc::new(LazyBackend::default());
        let used = lazy.get(|_| mock()).await.unwrap();
        let mut unload = Box::pin(lazy.unload());
        assert!(unload.as_mut().now_or_never().is_none());
        drop(used);
        assert!(unload.await);
        assert!(lazy.loaded().is_none());
        assert!(!lazy.unload().await);
        assert!(lazy.get(|_| mock()).await.is_ok());
    }

    #[tokio::test]
    async fn a_forgotten_backend_serves_who_has_it() {
        let lazy = Arc::new(LazyBackend::default());
        let old = lazy.get(|_| mock()).await.unwrap();
        lazy.forget();
        let new = lazy.get(|_| mock()).await.unwrap();
        drop(old);
        let mut unload = Box::pin(lazy.unload());
        assert!(unload.as_mut().now_or_never().is_none(), "the new one is in use");
        drop(new);
        assert!(unload.await);
    }
}
