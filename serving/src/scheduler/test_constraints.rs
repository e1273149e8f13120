//! Constraints for tests: any text, and one of a few token sequences, said in several ways.

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
    says: Says,
}

/// How a constraint says what may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// Lists tokens.
    Lists,
    /// Makes masks.
    Masks,
    /// Makes masks, and says nothing before it is asked for one.
    Late,
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
        Ok(match (&tokens[..], self.says) {
            ([only], _) => Next::Forced(vec![*only]),
            (_, Says::Lists) => Next::OneOf(tokens),
            (_, Says::Masks | Says::Late) => {
                let mut words = vec![0; VOCAB.div_ceil(32) as usize];
                tokens.iter().for_each(|token| words[*token as usize / 32] |= 1 << (token % 32));
                Next::Mask(words)
            }
        })
    }

    fn next_early(&mut self) -> Result<Option<Next>> {
        if self.says == Says::Late { Ok(None) } else { self.next().map(Some) }
    }

    fn accept(&mut self, token: TokenId) -> Result<()> {
        self.accepted.push(token);
        Ok(())
    }

    fn is_complete(&mut self) -> bool {
        self.rests().iter().any(|rest| rest.is_empty())
    }
}

/// Says at once what another constraint would say later.
#[derive(Debug)]
struct AtOnce(Box<dyn Constraint>);

impl Constraint for AtOnce {
    fn next(&mut self) -> Result<Next> {
        self.0.next()
    }

    fn accept(&mut self, token: TokenId) -> Result<()> {
        self.0.accept(token)
    }

    fn is_complete(&mut self) -> bool {
        self.0.is_complete()
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
    labels_saying(labels, if masked { Says::Masks } else { Says::Lists })
}

/// Labels of which nothing is said early, not even where there is no choice.
pub(crate) fn late_labels(labels: &[&[TokenId]]) -> OpenConstraint {
    labels_saying(labels, Says::Late)
}

fn labels_saying(labels: &[&[TokenId]], says: Says) -> OpenConstraint {
    let labels = Arc::new(labels.iter().map(|label| label.to_vec()).collect());
    Arc::new(move || Box::new(Labels { labels: Arc::clone(&labels), accepted: Vec::new(), says }))
}

/// The same constraint, which says all at once.
pub(crate) fn at_once(open: &OpenConstraint) -> OpenConstraint {
    let open = Arc::clone(open);
    Arc::new(move || Box::new(AtOnce(open())))
}
