//! Constrained decoding: which tokens may come next, and which need not be asked for.
//!
//! | shape | how it is enforced |
//! |---|---|
//! | text | not at all (`compile.rs`) |
//! | choice | a trie of the labels' tokens (`choice.rs`) |
//! | number | the decimal numbers of a range (`number.rs`); few whole numbers are a choice |
//! | vector | nothing is decoded (`hidden.rs`) |
//! | JSON, regular expression | token masks of llguidance (`grammar.rs`); a schema is looked at first (`schema.rs`), and one of a few texts is a choice |

mod choice;
pub mod compile;
mod grammar;
mod hidden;
mod number;
mod schema;

use std::fmt;

pub use compile::{ConstraintCompiler, ConstraintFactory, check, constraint};
pub(crate) use hidden::Hidden;

use crate::error::Result;
use crate::request::TokenId;

/// The state of one request's output shape.
///
/// The scheduler alternates `next` and `accept`: `next` says what may follow the tokens accepted so far. Before `next` it asks
/// `next_early`, which leaves to `next` what takes long to say, so that a pass may run meanwhile.
pub trait Constraint: Send + fmt::Debug {
    /// Returns what may come next. May be called again without `accept` and returns the same.
    fn next(&mut self) -> Result<Next>;

    /// Returns what may come next if that is quick to say. `None` is for [`next`](Self::next) to say, which then may find that
    /// there is a choice, or after all none. Of forced tokens it may return a part, and leave it open what follows them.
    fn next_early(&mut self) -> Result<Option<Next>> {
        self.next().map(Some)
    }

    /// Takes one token, sampled or forced, that `next` allowed. The end token is never passed in.
    fn accept(&mut self, token: TokenId) -> Result<()>;

    /// Returns the lane of the state. States of one lane share tables behind a lock, so it is in vain to ask several of them at
    /// the same time; those of different lanes share nothing that is written.
    fn lane(&self) -> usize {
        0
    }

    /// Returns whether the tokens accepted so far are a complete answer, though a longer one may exist.
    fn is_complete(&mut self) -> bool;
}

/// What may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Any token, and after it any token again; an end token ends the answer.
    Free,
    /// Nothing is left to decide: these tokens (maybe none) complete the answer. They need not be computed.
    Finish(Vec<TokenId>),
    /// These tokens follow without a choice, and a choice comes after them.
    Forced(Vec<TokenId>),
    /// One of these tokens, at least two, in ascending order; an end token among them ends the answer.
    OneOf(Vec<TokenId>),
    /// One of the tokens whose bit is set, `ceil(vocabulary / 32)` words; an end token among them ends the answer.
    Mask(Vec<u32>),
    /// No token at all: the answer is the state of the prompt's last token, from which a vector is made.
    Hidden {
        /// Leading dimensions to keep; `None` keeps all.
        dimensions: Option<u32>,
    },
}
