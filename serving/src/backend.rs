//! The public face of serving: a backend takes batches of tokens and streams completions.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;

use crate::device::cuda::PassTimes;
use crate::error::Result;
use crate::request::{Batch, Completion};
use crate::tokenizer::Tokenizer;

/// Something that answers batches: the embedded engine, a remote endpoint, or the mock.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Returns what the backend can do; does not wait for the device.
    fn capabilities(&self) -> Capabilities;

    /// Returns the tokenizer of the model, which also renders its chat template.
    fn tokenizer(&self) -> Arc<dyn Tokenizer>;

    /// Starts a batch. Completions come as requests finish, in any order; dropping the stream cancels the rest.
    fn submit(&self, batch: Batch) -> CompletionStream;

    /// Cancels a batch: its stream ends after what has been completed already.
    fn cancel(&self, batch: BatchId);

    /// Returns counters since the backend was started.
    fn stats(&self) -> Stats;

    /// From now on measures where the time of forward passes goes, if the devices can tell; it costs a little of that time.
    fn time_passes(&self) {}

    /// Returns where the time of forward passes has gone since [`time_passes`](Self::time_passes), one entry for each device.
    /// Empty if it was not called, or if the devices cannot tell.
    fn pass_times(&self) -> Vec<PassTimes> {
        Vec::new()
    }

    /// Returns the version of the model that a service reported last, for people; `None` before the first answer, and for a model
    /// of this machine, whose digest says what it is.
    fn reported_version(&self) -> Option<String> {
        None
    }

    /// Returns whether the backend is lost, its device for instance: whatever is submitted fails, and only a new one helps.
    fn is_lost(&self) -> bool {
        false
    }
}

/// The name of a submitted batch, unique within its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// What a backend can do.
#[derive(Clone, Debug, PartialEq)]
pub struct Capabilities {
    /// Where and on what it runs, in a few words for people, such as `cpu, 2 threads`.
    pub device: String,
    /// The longest prompt and answer together, in tokens.
    pub max_context: usize,
    /// Prefixes are shared in units of this many tokens; 1 when a split page is copied.
    pub prefix_granularity: usize,
    /// Digest of weights, tokenizer and configuration, and what products round their inputs to, if to less than single precision:
    /// the identity of the model in caches.
    pub model_digest: String,
    /// What the model makes of a prompt.
    pub kind: ModelKind,
    /// What one token of [`Backend::tokenizer`] counts for in the model's own tokens: 1, or an estimate where prompts are not
    /// tokenised here, such as 0.25 for bytes.
    pub token_scale: f64,
    /// Bytes of the weights that the model holds, on each device; `None` where they are not known, as behind an endpoint. An encoder
    /// holds nothing else between passes, a decoder its KV pages as well.
    pub held_bytes: Option<u64>,
    /// Bytes of GPUs that the model takes, KV pages included, on all of them together; `None` where it is on none, or that is not known.
    pub gpu_bytes: Option<u64>,
    /// What the matrices of its layers are kept in, such as `bf16`; `None` where that is not known.
    pub dtype: Option<&'static str>,
}

/// Returns the digest of a model with the revision that its user gives it: a label that keeps answers of one apart from those of
/// another.
pub fn with_revision(digest: String, revision: Option<&str>) -> String {
    match revision {
        Some(revision) => format!("{digest}@{revision}"),
        None => digest,
    }
}

/// What a model makes of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Text.
    Completion,
    /// A vector.
    Embedding {
        /// Its length; `None` where only the first answer tells.
        dimensions: Option<u32>,
    },
}

/// Counters since the backend was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Forward passes.
    pub steps: u64,
    /// Tokens run through the model, in prefill and decode.
    pub computed_tokens: u64,
    /// Tokens of all prompts that were admitted.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the cache.
    pub cached_tokens: u64,
    /// Tokens of all answers.
    pub output_tokens: u64,
    /// Requests that were completed, failed ones included.
    pub completed: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests that are waiting or running now.
    pub pending: u64,
    /// KV pages in use now, cached prefixes included.
    pub pages_used: u64,
    /// KV pages of the pool.
    pub pages_total: u64,
}

/// The completions of one batch, as they finish. Dropping it cancels what has not finished.
#[derive(Debug)]
pub struct CompletionStream {
    id: BatchId,
    /// One, or more where several backends answer parts of the batch; those that have ended are gone.
    receivers: Vec<mpsc::Receiver<Result<Completion>>>,
    /// Who is asked first.
    turn: usize,
}

impl CompletionStream {
    /// Wraps the receiving end of a channel that has room for every completion of the batch.
    pub fn new(id: BatchId, receiver: mpsc::Receiver<Result<Completion>>) -> Self {
        CompletionStream { id, receivers: vec![receiver], turn: 0 }
    }

    /// Joins the streams of the parts of one batch, which has the same name in all of them.
    pub(crate) fn joined(streams: Vec<CompletionStream>) -> Self {
        let id = streams.first().map_or(BatchId(0), CompletionStream::id);
        debug_assert!(streams.iter().all(|stream| stream.id == id), "a batch has one name");
        CompletionStream { id, receivers: streams.into_iter().flat_map(|stream| stream.receivers).collect(), turn: 0 }
    }

    /// Returns the name under which the batch can be cancelled.
    pub fn id(&self) -> BatchId {
        self.id
    }
}

impl Stream for CompletionStream {
    type Item = Result<Completion>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut asked = 0;
        while asked < this.receivers.len() {
            this.turn %= this.receivers.len();
            match this.receivers[this.turn].poll_recv(cx) {
                Poll::Ready(Some(completion)) => {
                    this.turn += 1;
                    return Poll::Ready(Some(completion));
                }
                Poll::Ready(None) => drop(this.receivers.swap_remove(this.turn)),
                Poll::Pending => {
                    this.turn += 1;
                    asked += 1;
                }
            }
        }
        if this.receivers.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }
}
