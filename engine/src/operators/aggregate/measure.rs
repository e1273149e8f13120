//! How long texts are, in tokens, and how many of them a prompt of each stage holds.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use refrain_serving::Tokenizer;
use refrain_udf::{OnOverflow, PromptLayout, row_line};

use crate::operators::call::PhysicalCall;
use crate::operators::parallel::in_parallel;
use crate::operators::truncate;

/// The context of a model.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The longest prompt and answer together, in tokens of the model.
    pub max_tokens: usize,
    /// What one token of its tokenizer here counts for in its own.
    pub token_scale: f64,
}

/// Measures texts for one aggregate.
#[derive(Debug)]
pub(super) struct Measure {
    tokenizer: Arc<dyn Tokenizer>,
    /// The tokens that data may take in a prompt of each stage.
    rooms: Vec<usize>,
    on_overflow: OnOverflow,
    known: HashMap<Arc<str>, usize, RandomState>,
}

impl Measure {
    /// Takes the room of a stage to be what the context leaves when head, tail and the longest answer, or a quarter of the
    /// context, are taken off.
    pub(super) fn new(
        stages: &[Arc<PhysicalCall>],
        layouts: &[Arc<PromptLayout>],
        context: Context,
        tokenizer: Arc<dyn Tokenizer>,
    ) -> Self {
        let Context { max_tokens, token_scale } = context;
        let room = |(stage, layout): (&Arc<PhysicalCall>, &Arc<PromptLayout>)| {
            let answer = (stage.options.max_tokens as usize).min(max_tokens / 4).max(1);
            let prompt = (max_tokens.saturating_sub(answer) as f64 / token_scale) as usize;
            prompt.saturating_sub(layout.head().len() + layout.tail().len())
        };
        let rooms = stages.iter().zip(layouts).map(room).collect();
        let on_overflow = stages.first().map_or(OnOverflow::Error, |stage| stage.options.on_overflow);
        Measure { tokenizer, rooms, on_overflow, known: HashMap::default() }
    }

    /// Measures many texts on all cores.
    pub(super) fn learn(&mut self, texts: impl IntoIterator<Item = Arc<str>>) {
        let mut seen = std::collections::HashSet::with_hasher(RandomState::new());
        let new: Vec<Arc<str>> =
            texts.into_iter().filter(|text| !self.known.contains_key(text) && seen.insert(Arc::clone(text))).collect();
        let lens = in_parallel(new.len(), |idx| self.tokenizer.encode(&new[idx]).len());
        self.known.extend(new.into_iter().zip(lens));
    }

    /// Returns the tokens of a text.
    pub(super) fn len(&self, text: &str) -> usize {
        self.known.get(text).copied().unwrap_or_else(|| self.tokenizer.encode(text).len())
    }

    /// Returns the tokens that data may take in a prompt of a stage.
    pub(super) fn room(&self, stage: usize) -> usize {
        self.rooms[stage]
    }

    /// Returns the line of a row, cut to `room` tokens if it is longer and longer ones are to be cut; the tokens of the whole line
    /// as error if it does not fit.
    pub(super) fn line(&self, labels: &[String], fields: &[Arc<str>], room: usize) -> Result<Arc<str>, usize> {
        let line = |fields: &[String]| row_line(labels, fields.iter().map(String::as_str));
        let mut fields: Vec<String> = fields.iter().map(|field| field.to_string()).collect();
        let whole = line(&fields);
        let len = self.len(&whole);
        if len <= room {
            return Ok(whole.into());
        }
        let can_cut = self.on_overflow == OnOverflow::Truncate;
        let tokens = |fields: &[String]| self.tokenizer.encode(&line(fields)).len();
        if can_cut && truncate::cut(&mut fields, room, self.tokenizer.as_ref(), tokens) {
            return Ok(line(&fields).into());
        }
        Err(len)
    }
}
