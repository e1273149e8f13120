//! A running row: its tokens, its place in the prefix tree, its own pages, and what its constraint wants next.

use super::prefix_tree::{NodeId, PrefixTree};
use super::run::Run;
use super::scheduler::Outcome;
use super::stop::{Cut, StopState};
use super::waiting::Job;
use crate::backend::BatchId;
use crate::constraint::{Constraint, Next};
use crate::error::Result;
use crate::request::{RequestId, Sampling, TokenId, TokenLogprobs, Usage};
use crate::step::{PageId, RowSlot};

/// A running row. Its *known* tokens are the prompt and the answer so far; the scheduler computes them up to the last one,
/// which is then sampled from. Prefill, chunks, decode and forced tokens are all this one gap between computed and known. A
/// sample in flight may count as known before the host has seen it.
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
    /// Samples of steps in flight: tokens that the host has not seen. All known tokens are computed while there are any.
    pub(super) unseen: usize,
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

    /// Returns whether there is something to compute that does not depend on a token the host has not seen.
    pub(super) fn is_ready(&self) -> bool {
        self.unseen == 0 || (self.answer.allowed == Some(Next::Free) && self.answer.room() > self.unseen)
    }

    /// Returns whether the row's constraint has to see a sample in flight before the row goes on.
    pub(super) fn is_held_up(&self) -> bool {
        self.unseen > 0 && !matches!(self.answer.allowed, Some(Next::Free | Next::Hidden { .. }))
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
    /// What may be sampled after the last known token; `None` until the constraint is asked in [`bind`](Self::bind).
    pub(super) allowed: Option<Next>,
    /// How many probable tokens are reported for each token, and what was reported so far.
    pub(super) top_logprobs: Option<u32>,
    logprobs: Vec<TokenLogprobs>,
    stop: Option<StopState>,
    cut: Option<Cut>,
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
    /// Starts the answer to a prompt.
    pub(super) fn new(job: &Job, prompt: Vec<TokenId>, limit: usize) -> Self {
        let Job { request, constraint, stop } = job;
        AnswerState {
            id: request.id,
            prompt: prompt.len(),
            tokens: prompt,
            limit,
            constraint: constraint(),
            sampling: request.sampling,
            draws: 0,
            allowed: None,
            top_logprobs: request.logprobs,
            logprobs: Vec::new(),
            stop: stop.as_ref().map(StopState::new),
            cut: None,
        }
    }

    /// Follows the constraint up to the next choice: appends what is forced, and returns an ending if nothing is to be chosen.
    /// Whether there is a choice may be left open, for [`bind`](Self::bind).
    pub(super) fn advance(&mut self) -> Option<Ending> {
        let next = self.constraint.next_early();
        self.follow(next)
    }

    /// Asks the constraint for what [`advance`](Self::advance) left open, and returns nothing: a choice is made by the device, and
    /// what is none is followed when the device's answer is taken.
    pub(super) fn bind(&mut self) {
        // No tokens, and no end: what leads nowhere.
        self.allowed = Some(self.constraint.next().unwrap_or(Next::Forced(Vec::new())));
    }

    fn follow(&mut self, mut next: Result<Option<Next>>) -> Option<Ending> {
        loop {
            match next {
                Ok(Some(Next::Finish(tokens))) if tokens.len() <= self.room() => {
                    let cut = tokens.into_iter().find_map(|token| self.append(token, None));
                    return Some(cut.unwrap_or(Ending::Stop));
                }
                // An empty list would never lead to a choice.
                Ok(Some(Next::Forced(tokens))) if tokens.is_empty() => return Some(Ending::Incomplete),
                Ok(Some(Next::Finish(tokens) | Next::Forced(tokens))) => {
                    for token in tokens {
                        if self.room() == 0 {
                            return Some(Ending::Incomplete);
                        }
                        if let Some(ending) = self.push(token, None) {
                            return Some(ending);
                        }
                    }
                    next = self.constraint.next_early();
                }
                // A vector takes no room.
                Ok(choice @ Some(Next::Hidden { .. })) => {
                    self.allowed = choice;
                    return None;
                }
                // Nothing more is computed, so it has to be said now whether the answer is complete.
                Ok(None) if self.room() == 0 => next = self.constraint.next().map(Some),
                Ok(Some(Next::Free)) if self.room() == 0 => return Some(Ending::Length),
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

    /// Takes a sampled token and follows the constraint. Where [`bind`](Self::bind) found no choice, the token means nothing.
    pub(super) fn take(
        &mut self,
        token: TokenId,
        logprobs: Option<TokenLogprobs>,
        end_tokens: &[TokenId],
    ) -> Option<Ending> {
        if let Some(Next::Forced(_) | Next::Finish(_)) = self.allowed {
            let next = self.allowed.take();
            return self.follow(Ok(next));
        }
        self.draws += 1;
        if end_tokens.contains(&token) {
            return Some(Ending::Stop);
        }
        self.push(token, logprobs).or_else(|| self.advance())
    }

    /// Returns what can be said of the cost without knowing what was cached.
    pub(super) fn usage(&self) -> Usage {
        let output = self.tokens.len() - self.prompt;
        Usage { prompt: self.prompt as u32, output: output as u32, ..Usage::default() }
    }

    /// Returns the answer.
    pub(super) fn outcome(mut self, ending: Ending) -> Outcome {
        let mut tokens = self.tokens.split_off(self.prompt);
        let Cut { tokens: kept, rest } = self.cut.unwrap_or_else(|| Cut { tokens: tokens.len(), rest: Vec::new() });
        tokens.truncate(kept);
        self.logprobs.truncate(kept);
        Outcome::Answer { tokens, rest, logprobs: self.logprobs, ending }
    }

    /// Returns how many more tokens the answer may have.
    pub(super) fn room(&self) -> usize {
        self.limit - (self.tokens.len() - self.prompt)
    }

    /// Appends a token that the constraint allowed. One that it then refuses ends the row: the answer is no longer of its shape.
    fn push(&mut self, token: TokenId, logprobs: Option<TokenLogprobs>) -> Option<Ending> {
        self.append(token, logprobs).or_else(|| self.constraint.accept(token).err().map(|_| Ending::Incomplete))
    }

    /// Appends a token, which ends the answer if it completes a stop string. Without probabilities it was not chosen.
    fn append(&mut self, token: TokenId, logprobs: Option<TokenLogprobs>) -> Option<Ending> {
        self.tokens.push(token);
        if self.top_logprobs.is_some() {
            self.logprobs.push(logprobs.unwrap_or(TokenLogprobs { logprob: 0.0, top: Vec::new() }));
        }
        self.cut = self.stop.as_mut()?.push(&self.tokens[self.prompt..]);
        self.cut.as_ref().map(|_| if self.allowed == Some(Next::Free) { Ending::Stop } else { Ending::Incomplete })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake_device::{Digits, END};
    use std::sync::Arc;

    use super::super::stop::StopStrings;
    use super::super::test_constraints::{any_text, labels, late_labels};
    use super::super::waiting::OpenConstraint;
    use super::*;
    use crate::request::{OutputShape, Request};

    /// Answers a prompt of one token with these samples and returns the answer and its ending, if there is one.
    #[track_caller]
    fn check(constraint: OpenConstraint, limit: usize, samples: &[TokenId], expected: (&[TokenId], Option<Ending>)) {
        let (answer, ending) = write(job(constraint, None, None), limit, samples);
        assert_eq!((&answer.tokens[1..], ending), expected);
    }

    fn job(constraint: OpenConstraint, stop: Option<Arc<StopStrings>>, logprobs: Option<u32>) -> Job {
        let shape = Arc::new(OutputShape::Text);
        let request = Request { logprobs, ..Request::new(RequestId(0), vec![[9].into()], shape, Sampling::GREEDY, 0) };
        Job { request, constraint, stop }
    }

    fn write(job: Job, limit: usize, samples: &[TokenId]) -> (AnswerState, Option<Ending>) {
        let mut answer = AnswerState::new(&job, vec![9], limit);
        let mut ending = answer.advance();
        for sample in samples {
            assert_eq!(ending, None, "nothing is sampled after the end");
            if answer.allowed.is_none() {
                answer.bind();
            }
            let logprobs = TokenLogprobs { logprob: -1.0, top: vec![(*sample, -1.0)] };
            ending = answer.take(*sample, Some(logprobs), &[END]);
        }
        (answer, ending)
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

    #[test]
    fn what_turns_out_to_be_no_choice_is_not_sampled() {
        let shape = || late_labels(&[&[1, 2, 3, 4], &[1, 2, 5]]);
        check(shape(), 4, &[], (&[], None));
        check(shape(), 4, &[7, 7, 3, 7], (&[1, 2, 3, 4], Some(Ending::Stop)));
        check(shape(), 3, &[7, 7, 5], (&[1, 2, 5], Some(Ending::Stop)));
        check(shape(), 2, &[7, 7], (&[1, 2], Some(Ending::Incomplete)));
        check(late_labels(&[&[6, 7]]), 2, &[1], (&[6, 7], Some(Ending::Stop)));
        check(late_labels(&[&[6, 7]]), 1, &[1], (&[6], Some(Ending::Incomplete)));
        check(late_labels(&[&[1], &[1, 2]]), 1, &[7], (&[1], Some(Ending::Incomplete)));
        let (answer, ending) = write(job(shape(), None, Some(1)), 4, &[7, 7, 3, 7]);
        assert_eq!(answer.draws, 1);
        let Outcome::Answer { logprobs, .. } = answer.outcome(ending.unwrap()) else { panic!("it is an answer") };
        assert_eq!(logprobs.iter().map(|token| token.logprob).collect::<Vec<_>>(), [0.0, 0.0, -1.0, 0.0]);
    }

    #[test]
    fn each_token_of_an_answer_has_its_probability() {
        let shape = labels(&[&[1, 2, 3, 4], &[1, 2, 5]], false);
        let (answer, ending) = write(job(shape, None, Some(1)), 4, &[3]);
        let Outcome::Answer { tokens, logprobs, .. } = answer.outcome(ending.unwrap()) else { panic!("it is an answer") };
        let logprobs: Vec<_> = logprobs.iter().map(|token| (token.logprob, token.top.len())).collect();
        assert_eq!((&tokens[..], &logprobs[..]), (&[1, 2, 3, 4][..], &[(0.0, 0), (0.0, 0), (-1.0, 1), (0.0, 0)][..]));
    }

    #[test]
    fn a_stop_string_ends_text_and_spoils_other_shapes() {
        let stop = || StopStrings::new(&["23".to_string()], &Digits::shared());
        let (answer, ending) = write(job(any_text(), stop(), Some(0)), 9, &[1, 2, 3]);
        assert_eq!((answer.usage().output, ending), (3, Some(Ending::Stop)));
        let Outcome::Answer { tokens, rest, logprobs, .. } = answer.outcome(Ending::Stop) else { panic!("it is an answer") };
        assert_eq!((&tokens[..], &rest[..], logprobs.len()), (&[1][..], &[][..], 1));
        let (_, ending) = write(job(labels(&[&[1, 2, 3], &[4]], false), stop(), None), 9, &[1]);
        assert_eq!(ending, Some(Ending::Incomplete));
    }
}
