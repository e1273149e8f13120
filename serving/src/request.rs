//! What a caller hands to a backend and what comes back: batches, requests and completions.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// A token of a model's vocabulary.
pub type TokenId = u32;

/// A run of prompt tokens, shared by every request of a batch that contains it.
pub type Segment = Arc<[TokenId]>;

/// The name of a request, unique within its batch and chosen by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u32);

/// Requests that are known together.
///
/// Their order is the order of execution as far as capacity allows: neighbours that share a prefix compute it once, and a
/// prefix is freed with the last request that needs it. Callers therefore sort requests depth first.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The requests, depth first by shared prefix.
    pub requests: Vec<Request>,
    /// Whether requests share the keys and values of common prefixes, among themselves and with other batches. Without it each
    /// computes its whole prompt: the baseline against which sharing is measured.
    pub share_prefixes: bool,
    /// Leading prompt tokens worth keeping after the batch, since later batches are likely to begin with them.
    pub keep_prefix: u32,
    /// Batches with a higher priority are admitted first.
    pub priority: i32,
    /// Among equal priorities, the earlier deadline is admitted first.
    pub deadline: Option<Instant>,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { requests: vec![], share_prefixes: true, keep_prefix: 0, priority: 0, deadline: None }
    }
}

/// One question to the model.
#[derive(Clone, Debug)]
pub struct Request {
    /// Chosen by the caller, unique in the batch.
    pub id: RequestId,
    /// The prompt: its tokens are the concatenation of the segments, control tokens included.
    pub prompt: Vec<Segment>,
    /// What the answer must look like.
    pub shape: Arc<OutputShape>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The longest answer, in tokens.
    pub max_tokens: u32,
    /// The answer ends before the first of these strings, which does not belong to it. None of them is empty. An answer of
    /// another shape than text is not of its shape when it ends like this.
    pub stop: Arc<[String]>,
    /// How many of the most probable tokens are reported for each token of the answer, with the logarithms of their
    /// probabilities; `None` reports nothing.
    ///
    /// Probabilities are of the whole vocabulary. With 0, where the shape leaves a short list of tokens, as a choice always
    /// does, they are those among the tokens of the list: what a score needs, at the price of the list alone.
    pub logprobs: Option<u32>,
}

impl Request {
    /// Makes a request that ends by itself or after `max_tokens`, and reports no probabilities.
    pub fn new(id: RequestId, prompt: Vec<Segment>, shape: Arc<OutputShape>, sampling: Sampling, max_tokens: u32) -> Self {
        Request { id, prompt, shape, sampling, max_tokens, stop: Arc::from([]), logprobs: None }
    }

    /// Returns the number of prompt tokens.
    pub fn prompt_len(&self) -> usize {
        self.prompt.iter().map(|segment| segment.len()).sum()
    }
}

/// What an answer must look like; enforced while decoding.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputShape {
    /// Any text.
    Text,
    /// One of these strings, which are distinct and not empty.
    Choice(Vec<String>),
    /// A decimal number within `min..=max`, without exponent.
    Number {
        /// The least value allowed.
        min: f64,
        /// The greatest value allowed.
        max: f64,
        /// Whether only whole numbers are allowed.
        integer: bool,
    },
    /// JSON text that is valid under this JSON schema.
    Json(serde_json::Value),
    /// Text that matches this regular expression as a whole.
    Regex(String),
    /// No text but a vector of unit length, made from the prompt by an embedding model.
    Embedding {
        /// Keep this many leading dimensions; `None` keeps all.
        dimensions: Option<u32>,
    },
}

/// How a token is chosen from its distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token; ties go to the smaller token id.
    pub temperature: f32,
    /// Keep the most probable tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Together with the position in the answer it decides every draw of the request.
    pub seed: u64,
}

impl Sampling {
    /// The most probable token at every step.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
}

/// The end of one request.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The request this completes.
    pub id: RequestId,
    /// The answer, or why this request alone has none.
    pub result: Result<Answer, RowFailure>,
    /// What the request cost.
    pub usage: Usage,
}

/// An answer of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The decoded tokens, control tokens left out.
    pub text: String,
    /// The tokens, without the one that ends the text.
    pub tokens: Vec<TokenId>,
    /// Why the answer ended.
    pub finish: FinishReason,
    /// For each token of `tokens` what was asked for with [`Request::logprobs`]; empty otherwise.
    pub logprobs: Vec<TokenLogprobs>,
    /// The vector that [`OutputShape::Embedding`] asks for; text and tokens are empty then.
    pub embedding: Option<Vec<f32>>,
}

impl Answer {
    /// Makes an answer of text alone.
    pub fn text(text: String, tokens: Vec<TokenId>, finish: FinishReason) -> Self {
        Answer { text, tokens, finish, logprobs: Vec::new(), embedding: None }
    }
}

/// How probable one token of an answer was, and what might have stood in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability, before temperature and restriction (see [`Request::logprobs`]); 0 for a
    /// token that the shape left no choice of.
    pub logprob: f32,
    /// The most probable tokens with their logarithms, in descending order.
    pub top: Vec<(TokenId, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or its shape left nothing more to say.
    Stop,
    /// It reached `max_tokens`, or the end of the context.
    Length,
}

/// Why one request failed while the others go on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowFailure {
    /// The prompt does not fit into the context, or into the whole KV pool.
    Overflow {
        /// Tokens that the request needs.
        tokens: usize,
        /// Tokens that there is room for.
        limit: usize,
    },
    /// No answer of the demanded shape came within `max_tokens`; holds what was written.
    Schema(String),
    /// The model or its provider refused.
    Refused(String),
    /// The provider's rate limit held after all retries.
    RateLimit(String),
    /// The connection failed after all retries.
    Transport(String),
}

impl RowFailure {
    /// Returns the name that users see and count by.
    pub fn reason(&self) -> &'static str {
        match self {
            RowFailure::Overflow { .. } => "overflow",
            RowFailure::Schema(_) => "schema",
            RowFailure::Refused(_) => "refused",
            RowFailure::RateLimit(_) => "rate_limit",
            RowFailure::Transport(_) => "transport",
        }
    }
}

impl fmt::Display for RowFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowFailure::Overflow { tokens, limit } => write!(f, "the request needs {tokens} tokens, the limit is {limit}"),
            RowFailure::Schema(text) => write!(f, "no valid answer within max_tokens; the model wrote {text:?}"),
            RowFailure::Refused(message) | RowFailure::RateLimit(message) | RowFailure::Transport(message) => {
                f.write_str(message)
            }
        }
    }
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Prompt tokens that were not computed for this request, since their KV was there.
    pub cached: u32,
    /// Tokens of the answer, forced ones included.
    pub output: u32,
    /// Tokens proposed by a draft.
    pub drafted: u32,
    /// Proposed tokens that were kept.
    pub accepted: u32,
    /// Attempts after the first, for a backend that is reached over a network.
    pub retries: u32,
}
