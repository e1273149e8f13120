//! How many inputs of a sample will be asked about in chunks, and how many calls that makes.

use refrain_serving::Request;
use refrain_udf::Combination;

use crate::operators::call::PhysicalCall;
use crate::operators::overflow::Overflow;

/// Inputs that are too long for one prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Chunked {
    /// How many there are.
    pub inputs: u64,
    /// Their chunks.
    pub chunks: u64,
    /// The calls that take their place: one for each chunk, and those that ask about the answers.
    pub calls: u64,
}

impl Chunked {
    /// Counts the prompts of a call that will not fit into `max_context` tokens; `None` if they are not cut into chunks. `fixed` tokens
    /// of each stay in every chunk.
    pub(super) fn of(
        call: &PhysicalCall,
        requests: &[Request],
        fixed: usize,
        max_context: usize,
        token_scale: f64,
    ) -> Option<Self> {
        let Some(Overflow::Chunk(limits)) = Overflow::of(call, max_context, token_scale) else { return None };
        let room = limits.prompt.saturating_sub(fixed).min(limits.text).max(1);
        let long = requests.iter().map(Request::prompt_len).filter(|len| *len > limits.prompt);
        let chunks_of: Vec<u64> = long.map(|len| (len.saturating_sub(fixed)).div_ceil(room) as u64).collect();
        let (inputs, chunks) = (chunks_of.len() as u64, chunks_of.iter().sum());
        let asked_again = Combination::of(&call.call) == Some(Combination::AskedAgain);
        Some(Chunked { inputs, chunks, calls: chunks + if asked_again { inputs } else { 0 } })
    }

    /// Returns the counts for so many times as many inputs.
    pub(super) fn scaled(self, by: f64) -> Self {
        let scaled = |count: u64| (count as f64 * by).round() as u64;
        Chunked { inputs: scaled(self.inputs), chunks: scaled(self.chunks), calls: scaled(self.calls) }
    }

    /// Returns how many calls there are more than inputs.
    pub(super) fn further_calls(self) -> u64 {
        self.calls.saturating_sub(self.inputs)
    }
}
