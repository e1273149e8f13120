//! The identity of a question: by it the memo and the answers of earlier queries are found.

use std::sync::Arc;

use refrain_serving::Sampling;
use refrain_udf::{Dedup, Layout, NullInput, OnOverflow, ResolvedOptions};

use crate::answers::Key;
use crate::operators::ask::Asker;
use crate::operators::call::PhysicalCall;
use crate::operators::distinct::Questions;
use crate::operators::parallel::in_parallel;

/// The identities of some questions.
pub(super) struct Keys {
    /// Across queries, by number of the question; only those that are wanted have one.
    pub(super) kept: Vec<Key>,
    /// The operator that these questions belong to, if others must not answer them.
    node: Option<u32>,
}

impl Keys {
    /// Returns the identity of a question in the memo of its query.
    pub(super) fn in_memo(&self, question: u32) -> Key {
        let key = self.kept[question as usize];
        match self.node {
            None => key,
            Some(node) => *blake3::Hasher::new().update(&key).update(&node.to_le_bytes()).finalize().as_bytes(),
        }
    }
}

impl Asker {
    /// The identity of each question that is wanted: inputs as declared, not as rendered.
    pub(super) fn keys(&self, questions: &Questions, wanted: &[u32]) -> Keys {
        let mut call = blake3::Hasher::new();
        call.update(&self.call.call.digest());
        call.update(format!("{:?}", Answering::of(&self.call, self.layout.layout())).as_bytes());
        call.update(self.backend.capabilities().model_digest.as_bytes());
        let call = call.finalize();
        let order = self.call.call.key_order();
        let key = |idx: usize| {
            let question = wanted[idx];
            let mut identity = call.as_bytes().to_vec();
            for input in &order {
                let text = questions.text(question, *input);
                identity.extend((text.len() as u64).to_le_bytes());
                identity.extend(text.as_bytes());
            }
            let (window, occurrence) = questions.occurrence(question);
            identity.extend(window.to_le_bytes());
            identity.extend(occurrence.to_le_bytes());
            *blake3::hash(&identity).as_bytes()
        };
        let is_apart = self.call.options.dedup == Dedup::Off || !self.memo;
        let mut kept = vec![Key::default(); questions.len()];
        let keys = in_parallel(wanted.len(), key);
        wanted.iter().zip(keys).for_each(|(question, key)| kept[*question as usize] = key);
        Keys { kept, node: is_apart.then_some(self.stats.id) }
    }
}

/// Settings that change answers, beside what the call itself says.
#[derive(Debug)]
#[expect(dead_code, reason = "read through Debug, as part of the key")]
struct Answering {
    sampling: Sampling,
    max_tokens: u32,
    stop: Arc<[String]>,
    on_overflow: OnOverflow,
    null_input: NullInput,
    layout: Layout,
}

impl Answering {
    fn of(call: &PhysicalCall, layout: Layout) -> Self {
        // In full, so that a new option is a decision here.
        let ResolvedOptions {
            sampling,
            max_tokens,
            stop,
            on_overflow,
            null_input,
            model: _,
            on_error: _,
            reorder: _,
            reorder_window: _,
            dedup: _,
        } = call.options.clone();
        Answering { sampling, max_tokens, stop, on_overflow, null_input, layout }
    }
}
