//! What is done to prompts that are too long for their model.

use refrain_udf::{Combination, OnOverflow, Shape};

use crate::operators::call::PhysicalCall;
use crate::operators::chunk::ChunkLimits;

/// What is done to a prompt that is too long, and when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overflow {
    /// The longest text is cut.
    Truncate {
        /// Tokens of a prompt.
        limit: usize,
    },
    /// The longest text is cut into chunks.
    Chunk(ChunkLimits),
}

impl Overflow {
    /// Returns what is done to prompts of a call, for a model whose longest prompt and answer together are `max_context` tokens, `None`
    /// if they simply fail. Tokens here are counted as this side does, of which each is `token_scale` of the model's.
    pub(super) fn of(call: &PhysicalCall, max_context: usize, token_scale: f64) -> Option<Overflow> {
        // What the context leaves when the longest answer, or a quarter of it, is taken off; a vector takes nothing of it.
        let answer = match call.call.task.shape {
            Shape::Embedding { .. } => 0,
            _ => (call.options.max_tokens as usize).min(max_context / 4).max(1),
        };
        let limit = (max_context.saturating_sub(answer) as f64 / token_scale) as usize;
        match call.options.on_overflow {
            OnOverflow::Error => None,
            OnOverflow::Truncate => Some(Overflow::Truncate { limit }),
            OnOverflow::Chunk => {
                let text = match Combination::of(&call.call)? {
                    // An answer is about as long as its chunk, and must fit into what it may have, with something to spare.
                    Combination::Joined => ((answer * 3 / 4).max(1) as f64 / token_scale) as usize,
                    _ => limit,
                };
                Some(Overflow::Chunk(ChunkLimits { prompt: limit, text }))
            }
        }
    }

    /// Returns the tokens of the longest prompt that is left as it is.
    pub(super) fn limit(self) -> usize {
        match self {
            Overflow::Truncate { limit } => limit,
            Overflow::Chunk(limits) => limits.prompt,
        }
    }
}
