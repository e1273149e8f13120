//! The thread that writes a store, and the handle that queries use.
//!
//! Answers wait in a bounded queue. The thread takes the first, lingers for others to come, and writes all of them in one
//! transaction. A process that is killed loses what came since the last commit: at most the answers of one commit and of the
//! time that the thread lingers, which is as long as the commit before took.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::cache::{CacheStats, Tier};
use super::kept::{Kept, Key};
use super::store::{NewAnswer, Place, Store};

/// The longest time that the first of some answers waits for others. A commit costs much the same whatever it holds, so on a
/// slow disk more answers should share one.
const LINGER_MAX: Duration = Duration::from_millis(20);

/// Answers that may wait; more hold up the query.
const QUEUE: usize = 4096;

/// An open store with its writer. Dropping it writes what waits, and closes the file.
#[derive(Debug)]
pub(super) struct StoreHandle {
    store: Arc<Store>,
    queue: Option<mpsc::Sender<Message>>,
    writer: Option<JoinHandle<()>>,
    failure: Arc<Failure>,
}

#[derive(Debug)]
enum Message {
    Write(NewAnswer),
    /// Answered when everything before it is on disk.
    Flush(oneshot::Sender<()>),
}

/// Why the writer has stopped, if it has.
#[derive(Debug, Default)]
struct Failure(Mutex<Option<String>>);

impl StoreHandle {
    /// Opens a store on a blocking thread and starts its writer.
    pub(super) async fn open(place: Place) -> Result<StoreHandle> {
        let opening = place.clone();
        let opened = SpawnedTask::spawn_blocking(move || Store::open(opening)).join().await;
        // The library checks what it reads, but may still panic over a damaged file.
        let store = Arc::new(opened.map_err(|e| place.damaged(&e))??);
        let (queue, messages) = mpsc::channel(QUEUE);
        let failure = Arc::new(Failure::default());
        let (writing, failing) = (Arc::clone(&store), Arc::clone(&failure));
        let writer = thread::Builder::new()
            .name("refrain-answers".into())
            .spawn(move || {
                if let Err(error) = write_all(&writing, messages) {
                    failing.set(error.strip_backtrace());
                }
            })
            .map_err(|e| place.cannot("start a thread for", &e))?;
        Ok(StoreHandle { store, queue: Some(queue), writer: Some(writer), failure })
    }

    /// Returns where the store lies.
    pub(super) fn place(&self) -> &Place {
        self.store.place()
    }

    /// Hands over an answer to be written soon. Waits while the queue is full.
    pub(super) async fn write(&self, answer: NewAnswer) -> Result<()> {
        self.send(Message::Write(answer)).await
    }

    /// Waits until all answers handed over are on disk.
    pub(super) async fn flush(&self) -> Result<()> {
        let (done, written) = oneshot::channel();
        self.send(Message::Flush(done)).await?;
        self.wake();
        written.await.map_err(|_| self.stopped())
    }

    /// Returns the answers to questions, as far as they were made at `oldest` or later.
    pub(super) async fn read(&self, keys: Vec<Key>, oldest: u64) -> Result<Vec<Option<Kept>>> {
        self.on_store(move |store| store.read(&keys, oldest)).await
    }

    /// Forgets all answers, and returns how many there were.
    pub(super) async fn clear(&self) -> Result<u64> {
        self.on_store(Store::clear).await
    }

    /// Returns what is kept, by group.
    pub(super) async fn stats(&self, tier: Tier) -> Result<Vec<CacheStats>> {
        self.on_store(move |store| store.stats(tier)).await
    }

    /// Does something with the store on a blocking thread, after everything handed over is written.
    async fn on_store<T: Send + 'static>(&self, work: impl FnOnce(&Store) -> Result<T> + Send + 'static) -> Result<T> {
        self.flush().await?;
        let store = Arc::clone(&self.store);
        let task = SpawnedTask::spawn_blocking(move || work(&store));
        task.join().await.map_err(|e| self.place().damaged(&e))?
    }

    async fn send(&self, message: Message) -> Result<()> {
        let queue = self.queue.as_ref().ok_or_else(|| self.stopped())?;
        match queue.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => {
                self.wake();
                queue.send(message).await.map_err(|_| self.stopped())
            }
            Err(TrySendError::Closed(_)) => Err(self.stopped()),
        }
    }

    /// Ends the writer's lingering.
    fn wake(&self) {
        if let Some(writer) = &self.writer {
            writer.thread().unpark();
        }
    }

    fn stopped(&self) -> DataFusionError {
        match self.failure.get() {
            Some(message) => exec_datafusion_err!("{}", message.trim_start_matches("Execution error: ")),
            None => self.place().cannot("write", &"its writer has stopped"),
        }
    }
}

impl Drop for StoreHandle {
    fn drop(&mut self) {
        self.queue = None;
        self.wake();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has told so; there is nothing left to save.
            let _ = writer.join();
        }
    }
}

/// Writes what comes until all senders are gone or writing fails.
fn write_all(store: &Store, mut messages: mpsc::Receiver<Message>) -> Result<()> {
    let mut answers = Vec::new();
    let mut flushes = Vec::new();
    let mut linger = Duration::ZERO;
    while let Some(first) = messages.blocking_recv() {
        let lingers = matches!(first, Message::Write(_));
        let mut take = |message| match message {
            Message::Write(answer) => answers.push(answer),
            Message::Flush(done) => flushes.push(done),
        };
        take(first);
        if lingers {
            thread::park_timeout(linger);
        }
        for _ in 0..QUEUE {
            let Ok(message) = messages.try_recv() else { break };
            take(message);
        }
        let committing = Instant::now();
        store.write(&answers)?;
        linger = committing.elapsed().min(LINGER_MAX);
        answers.clear();
        for done in flushes.drain(..) {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
    }
    Ok(())
}

impl Failure {
    fn set(&self, message: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::store::place;
    use super::*;

    fn answer(n: u32) -> NewAnswer {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        NewAnswer { key, group: Arc::default(), created_at: 0, kept: Kept::Text(n.to_string().into()) }
    }

    async fn open(path: &Path) -> StoreHandle {
        StoreHandle::open(place(path, "checkpoint", "refrain.checkpoint", u64::MAX)).await.unwrap()
    }

    #[tokio::test]
    async fn more_than_the_queue_holds_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let count = QUEUE as u32 * 2 + 1;
        let handle = open(&path).await;
        for n in 0..count {
            handle.write(answer(n)).await.unwrap();
        }
        assert_eq!(handle.stats(Tier::Persistent).await.unwrap()[0].entries, u64::from(count));
        handle.write(answer(count)).await.unwrap();
        // Closed without a flush, and open again at once.
        drop(handle);
        let handle = open(&path).await;
        let found = handle.read(vec![answer(count).key], 0).await.unwrap();
        assert_eq!(found, [Some(Kept::Text(count.to_string().into()))]);
    }
}
