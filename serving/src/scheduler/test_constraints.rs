//! Constraints for tests: any text, and one of a few token sequences.

use std::sync::Arc;

use super::fake_device::{END, VOCAB};
use super::waiting::OpenConstraint;
use crate::constraint::compile::FreeText;
use crate::constraint::{Constraint, Hidden, Next};
use crate::error::Result;
use crate::request::TokenId;

/// One of these sequences.
#[derive(Debug)]
pub(crate) struct Labels {
    labels: Arc<Vec<Vec<TokenId>>>,
    accepted: Vec<TokenId>,
    /// Says the same as a mask.
    masked: bool,
}

impl Labels {
    fn rests(&self) -> Vec<&[TokenId]> {
        self.labels.iter().filter_map(|label| label.strip_prefix(self.accepted.as_slice())).collect()
    }
}

impl Constraint for Labels {
    fn next(&mut self) -> Result<Next> {
        let rests = self.rests();
        if let [rest] = rests[..] {
            return Ok(Next::Finish(rest.to_vec()));
        }
        let mut tokens: Vec<TokenId> = rests.iter().map(|rest| rest.first().copied().unwrap_or(END)).collect();
        tokens.sort_unstable();
        tokens.dedup();
        Ok(match (&tokens[..], self.masked) {
            ([only], _) => Next::Forced(vec![*only]),
            (_, false) => Next::OneOf(tokens),
            (_, true) => {
                let mut words = vec![0; VOCAB.div_ceil(32) as usize];
                tokens.iter().for_each(|token| words[*token as usize / 32] |= 1 << (token % 32));
                Next::Mask(words)
            }
        })
    }

    fn accept(&mut self, token: TokenId) -> Result<()> {
        self.accepted.push(token);
        Ok(())
    }

    fn is_complete(&mut self) -> bool {
        self.rests().iter().any(|rest| rest.is_empty())
    }
}

pub(crate) fn any_text() -> OpenConstraint {
    Arc::new(|| Box::new(FreeText))
}

/// A vector of so many dimensions.
pub(crate) fn vector(dimensions: u32) -> OpenConstraint {
    Arc::new(move || Box::new(Hidden { dimensions: Some(dimensions) }))
}

pub(crate) fn labels(labels: &[&[TokenId]], masked: bool) -> OpenConstraint {
    let labels = Arc::new(labels.iter().map(|label| label.to_vec()).collect());
    Arc::new(move || Box::new(Labels { labels: Arc::clone(&labels), accepted: Vec::new(), masked }))
}
