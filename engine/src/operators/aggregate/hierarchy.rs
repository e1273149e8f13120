//! One answer for a group of any length: chunks are answered, and answers are combined until one is left.
//!
//! Inputs and answers are rows of a prompt, one JSON object a line, so that the tokens of a chunk are the sum of those of its
//! rows. Levels are like those of a tree: the inputs, the answers for their chunks, the answers for chunks of these.

use std::sync::Arc;

use datafusion::common::{Result, ScalarValue};
use refrain_udf::aggregate::{CHUNK_STAGE, COMBINE_STAGE};
use refrain_udf::{JsonRenderer, Overflow};

use super::chunks;
use super::groups::Item;
use super::measure::Measure;
use super::reducer::{Ask, Reduced, Reducer, Skipped, overflow};
use crate::operators::memo::{Failure, Outcome};

/// Levels of answers. Each has fewer than the one before, mostly by the number of answers that fit into a prompt.
const LEVELS_MAX: usize = 16;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Hierarchy {
    items: Vec<Item>,
    /// The labels of the rows of each stage.
    labels: Arc<[Vec<String>; 2]>,
    overflow: Overflow,
    /// The answers of the level before; empty at the first.
    answers: Vec<Arc<str>>,
    level: usize,
    done: Option<Reduced>,
    skipped: Vec<Skipped>,
}

impl Hierarchy {
    pub(super) fn new(items: Vec<Item>, labels: Arc<[Vec<String>; 2]>, overflow: Overflow) -> Self {
        let done = items.is_empty().then_some(Reduced::Empty);
        Hierarchy { items, labels, overflow, answers: vec![], level: 0, done, skipped: vec![] }
    }

    /// Returns the rows of the inputs that fit into a chunk.
    fn input_lines(&mut self, measure: &Measure) -> Result<Vec<Arc<str>>, Failure> {
        let room = measure.room(CHUNK_STAGE);
        let mut lines = Vec::with_capacity(self.items.len());
        for item in std::mem::take(&mut self.items) {
            match measure.line(&self.labels[CHUNK_STAGE], &item.fields, room) {
                Ok(line) => lines.push(line),
                Err(len) => self.skipped.push(Skipped {
                    text: item.fields.join(", ").into(),
                    failure: overflow(format!("an input has {len} tokens, and a prompt has room for {room}")),
                }),
            }
        }
        match lines.is_empty() {
            true => Err(overflow("every input of the group is longer than the context".to_string())),
            false => Ok(lines),
        }
    }

    /// Returns the rows of the answers, each of which must fit into a prompt.
    fn answer_lines(&mut self, measure: &Measure) -> Result<Vec<Arc<str>>, Failure> {
        let room = measure.room(COMBINE_STAGE);
        let line = |answer: &Arc<str>| measure.line(&self.labels[COMBINE_STAGE], std::slice::from_ref(answer), room);
        let lines = self.answers.iter().map(line).collect::<Result<Vec<_>, usize>>();
        lines.map_err(|len| {
            overflow(format!("a partial answer has {len} tokens, and a prompt has room for {room}; lower max_tokens"))
        })
    }

    /// Returns the chunks of the next level.
    fn chunks(&mut self, measure: &Measure) -> Result<(usize, Vec<Arc<str>>), Failure> {
        let stage = if self.level == 0 { CHUNK_STAGE } else { COMBINE_STAGE };
        let lines = if self.level == 0 { self.input_lines(measure)? } else { self.answer_lines(measure)? };
        let lens: Vec<usize> = lines.iter().map(|line| measure.len(line)).collect();
        let chunks = chunks::fill(&lens, measure.room(stage));
        if self.level == 0 && chunks.len() > 1 && self.overflow == Overflow::Error {
            let tokens: usize = lens.iter().sum();
            return Err(overflow(format!(
                "the {} inputs of the group have {tokens} tokens, and a prompt has room for {}; \
                 overflow => 'hierarchical' answers them in parts",
                lines.len(),
                measure.room(stage)
            )));
        }
        if self.level > 0 && (chunks.len() == lines.len() || self.level > LEVELS_MAX) {
            return Err(overflow(format!(
                "no two of {} partial answers fit into a prompt, which has room for {} tokens; lower max_tokens",
                lines.len(),
                measure.room(stage)
            )));
        }
        Ok((stage, chunks.into_iter().map(|chunk| lines[chunk].concat().into()).collect()))
    }
}

impl Reducer for Hierarchy {
    fn ask(&mut self, measure: &Measure) -> Vec<Ask> {
        if self.done.is_some() {
            return vec![];
        }
        match self.chunks(measure) {
            Ok((stage, chunks)) => chunks.into_iter().map(|chunk| Ask { stage, inputs: vec![chunk] }).collect(),
            Err(failure) => {
                self.done = Some(Reduced::Failed(failure));
                vec![]
            }
        }
    }

    fn tell(&mut self, outcomes: Vec<Outcome>) {
        let n_parts = outcomes.len();
        let mut values: Vec<ScalarValue> = Vec::with_capacity(n_parts);
        for outcome in outcomes {
            match outcome {
                Ok(value) => values.push(value),
                Err(failure) => {
                    let message = match (n_parts, self.level) {
                        (1, 0) => failure.message,
                        _ => format!("a part of the group: {}", failure.message),
                    };
                    self.done = Some(Reduced::Failed(Failure { message, ..failure }));
                    return;
                }
            }
        }
        self.level += 1;
        match (values.len(), values.iter().map(json).collect::<Result<Vec<_>>>()) {
            (1, _) => self.done = values.pop().map(Reduced::Value),
            (_, Ok(answers)) => self.answers = answers,
            (_, Err(error)) => {
                let message = format!("a partial answer cannot be written into a prompt: {}", error.strip_backtrace());
                let failure = Failure { reason: "schema", message, prompt: None, output: None, attempts: 1 };
                self.done = Some(Reduced::Failed(failure));
            }
        }
    }

    fn finish(self: Box<Self>) -> (Reduced, Vec<Skipped>) {
        (self.done.unwrap_or(Reduced::Empty), self.skipped)
    }
}

fn json(value: &ScalarValue) -> Result<Arc<str>> {
    let array = value.to_array()?;
    let mut text = String::new();
    JsonRenderer::new(array.as_ref())?.write(0, &mut text);
    Ok(text.into())
}
