//! What a test tells the mock to reply, and the gate that holds replies back.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::error::Error;
use crate::lock::lock;
use crate::request::RowFailure;

/// What the mock does with one request.
#[derive(Clone, Debug)]
pub enum MockReply {
    /// Answers with this text, whatever the request's shape; only `max_tokens` is observed.
    Text(String),
    /// Answers like `Text`, and reports this probability of the whole text where one is asked for.
    Probable(String, f64),
    /// Answers as without a script: from the seed, the prompt and the shape.
    Seeded,
    /// Fails this request alone.
    Fail(RowFailure),
    /// Fails the whole batch, after the completions of the requests before this one.
    Error(Error),
    /// Replies when the gate is opened.
    After(Gate, Box<MockReply>),
}

impl MockReply {
    /// Makes a text reply.
    pub fn text(text: impl Into<String>) -> Self {
        MockReply::Text(text.into())
    }

    /// Makes a text reply that the mock is so sure of, between 0 and 1.
    pub fn probable(text: impl Into<String>, probability: f64) -> Self {
        MockReply::Probable(text.into(), probability)
    }

    /// Holds a reply back until the gate is opened.
    pub fn after(self, gate: &Gate) -> Self {
        MockReply::After(gate.clone(), Box::new(self))
    }
}

/// Holds replies back until it is opened, so that a test decides when a request is in flight. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<GateState>);

#[derive(Default)]
struct GateState {
    open: AtomicBool,
    waiting: Mutex<Vec<Weak<dyn Release>>>,
}

/// Something that holds replies behind gates.
pub(super) trait Release: Send + Sync {
    /// Sends the replies whose gates are open.
    fn release(&self);
}

impl Gate {
    /// Makes a closed gate.
    pub fn new() -> Self {
        Gate::default()
    }

    /// Lets the replies behind the gate go, and those to come.
    pub fn open(&self) {
        self.0.open.store(true, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *lock(&self.0.waiting));
        for holder in waiting.iter().filter_map(Weak::upgrade) {
            holder.release();
        }
    }

    /// Returns whether the gate has been opened.
    pub fn is_open(&self) -> bool {
        self.0.open.load(Ordering::SeqCst)
    }

    /// Has `holder` told when the gate opens, or at once if it is open.
    pub(super) fn notify(&self, holder: Weak<dyn Release>) {
        lock(&self.0.waiting).push(holder);
        if self.is_open() {
            self.open();
        }
    }
}

impl fmt::Debug for GateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("open", &self.open).finish_non_exhaustive()
    }
}
