//! A running row: its tokens, its place in the prefix tree, its own pages, and what its constraint wants next.

use super::prefix_tree::{NodeId, PrefixTree};
use super::run::Run;
use super::scheduler::Outcome;
use crate::backend::BatchId;
use crate::constraint::{Constraint, Next};
use crate::request::{RequestId, Sampling, TokenId, Usage};
use crate::step::{PageId, RowSlot};

/// A running row. Its *known* tokens are the prompt and the answer so far; the scheduler computes them up to the last one,
/// which is then sampled from. Prefill, chunks, decode and forced tokens are all this one gap between computed and known.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) batch: BatchId,
    pub(super) slot: RowSlot,
    pub(super) answer: AnswerState,
    /// Where the row's shared prefix ends. Prompt tokens up to here belong to the tree, which the row has locked.
    pub(super) leaf: NodeId,
    /// The rest is the row's own: the last prompt token, computed by every row for its logits, and the answer.
    pub(super) tail: Run,
    /// Pages of the whole path, tail included.
    pub(super) table: Vec<PageId>,
    /// Prompt tokens computed by this row.
    pub(super) computed_prompt: usize,
}

impl Row {
    /// Returns how many leading tokens have been handed to the device, by this row or by others.
    pub(super) fn computed(&self, tree: &PrefixTree) -> usize {
        if self.tail.computed > 0 { self.tail.start + self.tail.computed } else { tree.first_gap(self.leaf) }
    }

    /// Returns whether the prompt is computed, so that only tokens of the answer are missing.
    pub(super) fn is_decoding(&self) -> bool {
        self.tail.start + self.tail.computed >= self.answer.prompt
    }

    /// Returns what the row has cost so far.
    pub(super) fn usage(&self) -> Usage {
        let cached = self.answer.prompt - self.computed_prompt;
        Usage { cached: cached as u32, ..self.answer.usage() }
    }
}

/// The tokens of a row and the state of its answer.
#[derive(Debug)]
pub(super) struct AnswerState {
    pub(super) id: RequestId,
    /// Prompt and answer so far.
    pub(super) tokens: Vec<TokenId>,
    /// Length of the prompt.
    pub(super) prompt: usize,
    /// Most tokens of the answer.
    pub(super) limit: usize,
    pub(super) constraint: Box<dyn Constraint>,
    pub(super) sampling: Sampling,
    /// Tokens drawn so far.
    pub(super) draws: u32,
    /// What may be sampled after the last known token.
    pub(super) allowed: Next,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model ended it, or nothing was left to decide.
    Stop,
    /// It reached its limit; free text may stand as it is.
    Length,
    /// It reached its limit before it was complete, or left its shape.
    Incomplete,
}

impl AnswerState {
    /// Follows the constraint up to the next choice: appends what is forced, and returns an ending if nothing is to be chosen.
    pub(super) fn advance(&mut self) -> Option<Ending> {
        loop {
            match self.constraint.next() {
                Ok(Next::Finish(tokens)) if tokens.len() <= self.room() => {
                    self.tokens.extend_from_slice(&tokens);
                    return Some(Ending::Stop);
                }
                // An empty list would never lead to a choice.
                Ok(Next::Forced(tokens)) if tokens.is_empty() => return Some(Ending::Incomplete),
                Ok(Next::Finish(tokens) | Next::Forced(tokens)) => {
                    for token in tokens {
                        if self.room() == 0 {
                            return Some(Ending::Incomplete);
                        }
                        if let Some(ending) = self.push(token) {
                            return Some(ending);
                        }
                    }
                }
                // A vector takes no room.
                Ok(choice @ Next::Hidden { .. }) => {
                    self.allowed = choice;
                    return None;
                }
                Ok(Next::Free) if self.room() == 0 => return Some(Ending::Length),
                // A number or a label that could go on is not the answer, even if it could end here: 8 of 87 is wrong.
                Ok(_) if self.room() == 0 => return Some(Ending::Incomplete),
                Ok(choice) => {
                    self.allowed = choice;
                    return None;
                }
                Err(_) => return Some(Ending::Incomplete),
            }
        }
    }

    /// Takes a sampled token and follows the constraint.
    pub(super) fn take(&mut self, token: TokenId, end_tokens: &[TokenId]) -> Option<Ending> {
        self.draws += 1;
        if end_tokens.contains(&token) {
            return Some(Ending::Stop);
        }
        self.push(token).or_else(|| self.advance())
    }

    /// Returns what can be said of the cost without knowing what was cached.
    pub(super) fn usage(&self) -> Usage {
        let output = self.tokens.len() - self.prompt;
        Usage { prompt: self.prompt as u32, output: output as u32, ..Usage::default() }
    }

    /// Returns the answer.
    pub(super) fn outcome(mut self, ending: Ending) -> Outcome {
        Outcome::Answer { tokens: self.tokens.split_off(self.prompt), ending }
    }

    fn room(&self) -> usize {
        self.limit - (self.tokens.len() - self.prompt)
    }

    /// Appends a token that the constraint allowed. One that it then refuses ends the row: the answer is no longer of its shape.
    fn push(&mut self, token: TokenId) -> Option<Ending> {
        self.tokens.push(token);
        self.constraint.accept(token).err().map(|_| Ending::Incomplete)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake_device::END;
    use super::super::test_constraints::{any_text, labels};
    use super::super::waiting::OpenConstraint;
    use super::*;

    /// Answers a prompt of one token with these samples and returns the answer and its ending, if there is one.
    #[track_caller]
    fn check(constraint: OpenConstraint, limit: usize, samples: &[TokenId], expected: (&[TokenId], Option<Ending>)) {
        let (tokens, sampling, allowed) = (vec![9], Sampling::GREEDY, Next::Free);
        let (id, constraint) = (RequestId(0), constraint());
        let mut answer = AnswerState { id, tokens, prompt: 1, limit, constraint, sampling, draws: 0, allowed };
        let mut ending = answer.advance();
        for sample in samples {
            assert_eq!(ending, None, "nothing is sampled after the end");
            ending = answer.take(*sample, &[END]);
        }
        assert_eq!((&answer.tokens[1..], ending), expected);
    }

    #[test]
    fn text_ends_with_an_end_token_or_at_its_limit() {
        check(any_text(), 3, &[1, 2], (&[1, 2], None));
        check(any_text(), 3, &[1, 2, END], (&[1, 2], Some(Ending::Stop)));
        check(any_text(), 3, &[1, 2, 3], (&[1, 2, 3], Some(Ending::Length)));
        check(any_text(), 0, &[], (&[], Some(Ending::Length)));
    }

    #[test]
    fn what_is_forced_is_not_sampled() {
        let shape = || labels(&[&[1, 2, 3, 4], &[1, 2, 5]], false);
        check(shape(), 4, &[], (&[1, 2], None));
        check(shape(), 4, &[3], (&[1, 2, 3, 4], Some(Ending::Stop)));
        check(shape(), 3, &[5], (&[1, 2, 5], Some(Ending::Stop)));
        check(labels(&[&[6, 7]], false), 2, &[], (&[6, 7], Some(Ending::Stop)));
    }

    #[test]
    fn an_answer_that_is_cut_may_be_incomplete() {
        let shape = || labels(&[&[1, 2, 3, 4], &[1, 2, 5]], false);
        check(shape(), 1, &[], (&[1], Some(Ending::Incomplete)));
        check(shape(), 2, &[], (&[1, 2], Some(Ending::Incomplete)));
        check(shape(), 3, &[3], (&[1, 2, 3], Some(Ending::Incomplete)));
        // One label is the beginning of the other, and does not stand for it.
        check(labels(&[&[1], &[1, 2]], true), 1, &[], (&[1], Some(Ending::Incomplete)));
        check(labels(&[&[1], &[1, 2]], true), 2, &[END], (&[1], Some(Ending::Stop)));
    }
}
