//! A group on its way to one value: it says what it must know next, and takes the answers.

use std::sync::Arc;

use datafusion::common::ScalarValue;

use super::measure::Measure;
use crate::operators::memo::{Failure, Outcome};

/// A question of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    /// The call that asks it.
    pub stage: usize,
    /// The JSON text of each of its inputs.
    pub inputs: Vec<Arc<str>>,
}

/// What became of a group.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reduced {
    /// A value.
    Value(ScalarValue),
    /// The best items, by number, the best first.
    Ranked(Vec<usize>),
    /// It has no inputs.
    Empty,
    /// It failed.
    Failed(Failure),
}

/// An input that was left out, as it stands in a prompt, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Skipped {
    pub text: Arc<str>,
    pub failure: Failure,
}

/// A group on its way to one value.
pub(super) trait Reducer: Send {
    /// Returns what must be asked next; nothing once the group is done.
    fn ask(&mut self, measure: &Measure) -> Vec<Ask>;

    /// Takes the outcomes of what was asked last, in that order.
    fn tell(&mut self, outcomes: Vec<Outcome>);

    /// Returns what became of the group, and which inputs were left out.
    fn finish(self: Box<Self>) -> (Reduced, Vec<Skipped>);
}

/// Returns the failure of a text that is too long.
pub(super) fn overflow(message: String) -> Failure {
    Failure { reason: "overflow", message, prompt: None, output: None, attempts: 0 }
}
