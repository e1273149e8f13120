//! The mock: answers every request at once, on the caller's thread.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::future::select;
use tokio::sync::{mpsc, watch};

use super::answer::{Draws, answer, embedding};
use super::script::{Gate, MockReply, Release};
use super::tokenizer::ByteTokenizer;
use crate::backend::{Backend, BatchId, Capabilities, CompletionStream, ModelKind, Stats};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::request::{
    Answer, Batch, Completion, FinishReason, OutputShape, Request, RowFailure, TokenId, TokenLogprobs, Usage,
};
use crate::tokenizer::Tokenizer;

/// A backend without a model: answers obey the shape of their request and follow from the seed and the prompt alone.
///
/// It counts calls, remembers prompts, finds the prefix of each prompt that an earlier one had, and may be told what to reply:
///
/// ```
/// use refrain_serving::mock::{MockBackend, MockReply};
///
/// let mock = MockBackend::new(7).answer(|prompt| prompt.contains("refund").then(|| MockReply::text("yes")));
/// assert_eq!(mock.calls(), 0);
/// ```
#[derive(Debug)]
pub struct MockBackend {
    seed: u64,
    tokenizer: ByteTokenizer,
    max_context: usize,
    history: bool,
    /// Length of the vectors of an embedding model; `None` for one that completes text.
    dimensions: Option<u32>,
    scripts: Vec<Script>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

/// One rule of a test.
struct Script(Box<Rule>);

type Rule = dyn Fn(&str) -> Option<MockReply> + Send + Sync;

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The number of requests so far; also signalled when held replies go out.
    calls: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    prompts: Vec<String>,
    /// All prompts so far, in order, so that the longest common prefix is with a neighbour.
    seen: BTreeSet<Vec<TokenId>>,
    held: Vec<Held>,
    stats: Stats,
}

/// A reply behind a gate.
#[derive(Debug)]
struct Held {
    gate: Gate,
    batch: BatchId,
    completions: mpsc::Sender<Result<Completion>>,
    reply: Result<Completion>,
}

impl MockBackend {
    /// Makes a mock; equal seeds give equal answers to equal prompts.
    pub fn new(seed: u64) -> Self {
        MockBackend {
            seed,
            tokenizer: ByteTokenizer,
            max_context: 32_768,
            history: true,
            dimensions: None,
            scripts: Vec::new(),
            shared: Arc::new(Shared { state: Mutex::default(), calls: watch::channel(0).0 }),
            next_id: AtomicU64::new(0),
        }
    }

    /// Adds a rule: given the full text of a prompt, control tokens spelled out, it may decide on a reply. Rules are asked in the
    /// order of their addition, and the first that decides does.
    pub fn answer(mut self, rule: impl Fn(&str) -> Option<MockReply> + Send + Sync + 'static) -> Self {
        self.scripts.push(Script(Box::new(rule)));
        self
    }

    /// Sets the longest prompt and answer together, in tokens; longer requests fail with [`RowFailure::Overflow`].
    pub fn max_context(mut self, tokens: usize) -> Self {
        self.max_context = tokens;
        self
    }

    /// Makes it an embedding model with vectors of this length: each says how often which word occurs in the text, or in the
    /// text of a [`MockReply::Text`], so that texts with common words are near each other.
    pub fn embedding(mut self, dimensions: u32) -> Self {
        self.dimensions = Some(dimensions);
        self
    }

    /// Forgets prompts at once, for runs that are too large to remember: [`prompts`](Self::prompts) stays empty and nothing is
    /// counted as cached.
    pub fn without_history(mut self) -> Self {
        self.history = false;
        self
    }

    /// Returns how many requests have been submitted.
    pub fn calls(&self) -> u64 {
        *self.shared.calls.borrow()
    }

    /// Returns the full text of every prompt in order of submission, control tokens spelled out.
    pub fn prompts(&self) -> Vec<String> {
        self.shared.lock().prompts.clone()
    }

    /// Returns how many requests are held back by a gate and still wanted.
    pub fn in_flight(&self) -> usize {
        let mut state = self.shared.lock();
        state.forget_unwanted();
        state.held.len()
    }

    /// Waits until so many requests have been submitted.
    pub async fn wait_for_calls(&self, count: u64) {
        // The sender is ours, so the wait cannot fail.
        let _ = self.shared.calls.subscribe().wait_for(|calls| *calls >= count).await;
    }

    /// Waits until no request is held back and wanted: each was let go, or its stream was dropped.
    pub async fn wait_until_idle(&self) {
        let mut changes = self.shared.calls.subscribe();
        loop {
            changes.borrow_and_update();
            let held = {
                let mut state = self.shared.lock();
                state.forget_unwanted();
                state.held.first().map(|held| held.completions.clone())
            };
            let Some(held) = held else { return };
            select(pin!(held.closed()), pin!(changes.changed())).await;
        }
    }

    /// Answers one request. Returns the gate that holds the reply back, if any.
    fn reply(&self, request: &Request) -> (Option<Gate>, Result<Completion>) {
        let tokens = request.prompt.concat();
        let prompt = self.tokenizer.spell(&tokens);
        let mut reply = self.scripts.iter().find_map(|script| (script.0)(&prompt)).unwrap_or(MockReply::Seeded);
        let mut gate = None;
        while let MockReply::After(outer, inner) = reply {
            gate.get_or_insert(outer);
            reply = *inner;
        }
        let draws = &mut Draws::new(self.seed, &prompt);
        let mut usage = Usage { prompt: tokens.len() as u32, ..Usage::default() };
        usage.cached = if self.history { self.shared.lock().remember(tokens, prompt) as u32 } else { 0 };
        let result = match reply {
            MockReply::Error(error) => return (gate, Err(error)),
            _ if self.dimensions.is_some() != matches!(*request.shape, OutputShape::Embedding { .. }) => {
                let error =
                    Error::Invalid("an embedding model answers with a vector, every other one with text".to_string());
                return (gate, Err(error));
            }
            _ if usage.prompt == 0 => {
                let error = Error::Invalid(format!("the prompt of request {} is empty", request.id.0));
                return (gate, Err(error));
            }
            _ if request.prompt_len() + 1 > self.max_context => {
                Err(RowFailure::Overflow { tokens: request.prompt_len() + 1, limit: self.max_context })
            }
            MockReply::Fail(failure) => Err(failure),
            MockReply::Text(text) => self.finish(request, &text).map(|answer| report(request, answer, draws.share())),
            MockReply::Probable(text, p) => self.finish(request, &text).map(|answer| report(request, answer, p)),
            _ if self.dimensions.is_some() => self.finish(request, &self.tokenizer.user_text(&request.prompt.concat())),
            MockReply::Seeded | MockReply::After(..) => match answer(&request.shape, draws) {
                Some(text) => self.finish(request, &text).map(|answer| report(request, answer, draws.share())),
                None => Err(RowFailure::Schema(String::new())),
            },
        };
        usage.output = result.as_ref().map_or(0, |answer| answer.tokens.len() as u32);
        (gate, Ok(Completion { id: request.id, result, usage }))
    }

    /// Makes an answer of a text, cut where the request or the context ends.
    fn finish(&self, request: &Request, text: &str) -> Result<Answer, RowFailure> {
        if let (Some(all), OutputShape::Embedding { dimensions }) = (self.dimensions, &*request.shape) {
            let embedding = Some(embedding(text, dimensions.unwrap_or(all)));
            return Ok(Answer { embedding, ..Answer::text(String::new(), Vec::new(), FinishReason::Stop) });
        }
        let limit = (request.max_tokens as usize).min(self.max_context - request.prompt_len());
        let stop = request.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
        let text = &text[..stop.unwrap_or(text.len())];
        let mut tokens = self.tokenizer.encode(text);
        if tokens.len() <= limit {
            return Ok(Answer::text(text.to_string(), tokens, FinishReason::Stop));
        }
        tokens.truncate(limit);
        let text = self.tokenizer.decode(&tokens);
        match *request.shape {
            OutputShape::Text => Ok(Answer::text(text, tokens, FinishReason::Length)),
            _ => Err(RowFailure::Schema(text)),
        }
    }
}

/// Adds the probabilities that a request asks for: the whole of an answer's on its first token.
fn report(request: &Request, answer: Answer, probability: f64) -> Answer {
    if request.logprobs.is_none() {
        return answer;
    }
    let of = |position: usize| if position == 0 { probability.ln() as f32 } else { 0.0 };
    let logprobs = (0..answer.tokens.len()).map(|position| TokenLogprobs { logprob: of(position), top: vec![] });
    Answer { logprobs: logprobs.collect(), ..answer }
}

impl Backend for MockBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            device: "mock".to_string(),
            max_context: self.max_context,
            prefix_granularity: 1,
            model_digest: format!("mock-{}", self.seed),
            kind: match self.dimensions {
                Some(_) => ModelKind::Embedding { dimensions: self.dimensions },
                None => ModelKind::Completion,
            },
            token_scale: 1.0,
            held_bytes: None,
            gpu_bytes: None,
            dtype: None,
        }
    }

    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::new(self.tokenizer)
    }

    fn submit(&self, batch: Batch) -> CompletionStream {
        let id = BatchId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (completions, receiver) = mpsc::channel(batch.requests.len() + 1);
        for request in &batch.requests {
            let (gate, reply) = self.reply(request);
            let failed = reply.is_err();
            match gate {
                Some(gate) => {
                    let held = Held { gate: gate.clone(), batch: id, completions: completions.clone(), reply };
                    self.shared.lock().held.push(held);
                    let shared: Arc<dyn Release> = Arc::clone(&self.shared) as _;
                    gate.notify(Arc::downgrade(&shared));
                }
                None => self.shared.lock().send(&completions, reply),
            }
            self.shared.calls.send_modify(|calls| *calls += 1);
            if failed {
                break;
            }
        }
        CompletionStream::new(id, receiver)
    }

    fn cancel(&self, batch: BatchId) {
        let mut state = self.shared.lock();
        let before = state.held.len();
        state.held.retain(|held| held.batch != batch);
        state.stats.cancelled += (before - state.held.len()) as u64;
    }

    fn stats(&self) -> Stats {
        let mut state = self.shared.lock();
        state.forget_unwanted();
        Stats { pending: state.held.len() as u64, ..state.stats }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Release for Shared {
    fn release(&self) {
        let mut state = self.lock();
        let (open, closed) = std::mem::take(&mut state.held).into_iter().partition(|held| held.gate.is_open());
        state.held = closed;
        let open: Vec<Held> = open;
        for held in open {
            state.send(&held.completions, held.reply);
        }
        drop(state);
        self.calls.send_modify(|_| {});
    }
}

impl State {
    /// Notes a prompt and returns how many of its leading tokens an earlier one had; the last token is always computed.
    fn remember(&mut self, tokens: Vec<TokenId>, prompt: String) -> usize {
        let before = self.seen.range::<[TokenId], _>((Bound::Unbounded, Bound::Included(tokens.as_slice()))).next_back();
        let after = self.seen.range::<[TokenId], _>((Bound::Excluded(tokens.as_slice()), Bound::Unbounded)).next();
        let shared = |other: &Vec<TokenId>| other.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        let longest = before.into_iter().chain(after).map(shared).max().unwrap_or(0);
        let cached = longest.min(tokens.len().saturating_sub(1));
        self.seen.insert(tokens);
        self.prompts.push(prompt);
        cached
    }

    fn send(&mut self, completions: &mpsc::Sender<Result<Completion>>, reply: Result<Completion>) {
        if let Ok(Completion { usage, .. }) = &reply {
            self.stats.computed_tokens += u64::from(usage.prompt - usage.cached);
            self.stats.prompt_tokens += u64::from(usage.prompt);
            self.stats.cached_tokens += u64::from(usage.cached);
            self.stats.output_tokens += u64::from(usage.output);
            self.stats.completed += 1;
        }
        // There is room for every reply; a closed stream wants none.
        let _ = completions.try_send(reply);
    }

    /// Forgets the held replies whose stream was dropped.
    fn forget_unwanted(&mut self) {
        let before = self.held.len();
        self.held.retain(|held| !held.completions.is_closed());
        self.stats.cancelled += (before - self.held.len()) as u64;
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::request::{RequestId, Sampling};

    fn batch(mock: &MockBackend, users: &[&str], shape: OutputShape, max_tokens: u32) -> Batch {
        let shape = Arc::new(shape);
        let tokenizer = mock.tokenizer();
        let request = |(id, user): (u32, &&str)| {
            let prompt = vec![tokenizer.encode_control(&tokenizer.render_chat("s", user).unwrap()).into()];
            Request::new(RequestId(id), prompt, Arc::clone(&shape), Sampling::GREEDY, max_tokens)
        };
        Batch { requests: (0..).zip(users).map(request).collect(), ..Batch::default() }
    }

    fn ask(mock: &MockBackend, users: &[&str], shape: OutputShape, max_tokens: u32) -> Vec<Result<Completion>> {
        block_on(mock.submit(batch(mock, users, shape, max_tokens)).collect())
    }

    fn texts(completions: Vec<Result<Completion>>) -> Vec<String> {
        completions.into_iter().map(|completion| completion.unwrap().result.unwrap().text).collect()
    }

    #[test]
    fn answers_follow_from_seed_and_prompt() {
        let labels = || OutputShape::Choice(["red", "green", "blue"].map(str::to_string).to_vec());
        let users = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let first = texts(ask(&MockBackend::new(1), &users, labels(), 10));
        assert_eq!(first, texts(ask(&MockBackend::new(1), &users, labels(), 10)));
        assert_ne!(first, texts(ask(&MockBackend::new(2), &users, labels(), 10)));
    }

    #[test]
    fn prompts_are_remembered_and_prefixes_are_hits() {
        let mock = MockBackend::new(1);
        let completions = ask(&mock, &["same", "some", "same"], OutputShape::Text, 100);
        let cached: Vec<u32> = completions.iter().map(|completion| completion.as_ref().unwrap().usage.cached).collect();
        let prompt = "<|begin|><|system|>s<|user|>same<|assistant|>";
        // Four control tokens, the system text and the user text.
        assert_eq!(cached, [0, 5, 8]);
        assert_eq!((mock.calls(), mock.prompts()[2].as_str()), (3, prompt));
        assert_eq!((mock.stats().prompt_tokens, mock.stats().cached_tokens), (27, 13));
    }

    #[test]
    fn scripts_decide_before_the_seed() {
        let mock = MockBackend::new(1)
            .answer(|prompt| prompt.contains("refused").then(|| MockReply::Fail(RowFailure::Refused("no".to_string()))))
            .answer(|prompt| prompt.contains("fatal").then(|| MockReply::Error(Error::Device("gone".to_string()))))
            .answer(|prompt| prompt.contains("user|>x").then(|| MockReply::text("twelve chars")));
        assert_eq!(texts(ask(&mock, &["x"], OutputShape::Text, 100)), ["twelve chars"]);
        let answers = ask(&mock, &["refused", "x", "fatal", "never"], OutputShape::Regex("y".to_string()), 4);
        assert!(matches!(&answers[..], [Ok(refused), Ok(cut), Err(Error::Device(_))]
            if refused.result == Err(RowFailure::Refused("no".to_string()))
            && cut.result == Err(RowFailure::Schema("twel".to_string()))));
        assert_eq!(mock.calls(), 4);
        let cut = ask(&mock, &["x"], OutputShape::Text, 4).remove(0).unwrap().result.unwrap();
        assert_eq!((cut.text.as_str(), cut.finish), ("twel", FinishReason::Length));
    }

    #[test]
    fn gates_hold_replies_until_they_open() {
        let gate = Gate::new();
        let rule = gate.clone();
        let mock =
            MockBackend::new(1).answer(move |prompt| prompt.contains("held").then(|| MockReply::text("late").after(&rule)));
        let mut stream = mock.submit(batch(&mock, &["held", "free"], OutputShape::Text, 100));
        block_on(mock.wait_for_calls(2));
        assert_eq!(mock.in_flight(), 1);
        assert_eq!(block_on(stream.next()).unwrap().unwrap().id, RequestId(1));
        assert!(stream.next().now_or_never().is_none());
        assert!(mock.wait_until_idle().now_or_never().is_none());
        gate.open();
        assert_eq!(texts(block_on(stream.collect())), ["late"]);
        assert_eq!(mock.in_flight(), 0);
        assert_eq!(texts(ask(&mock, &["held"], OutputShape::Text, 100)), ["late"]);
    }

    #[test]
    fn dropped_and_cancelled_streams_are_not_in_flight() {
        let gate = Gate::new();
        let rule = gate.clone();
        let mock = MockBackend::new(1).answer(move |_| Some(MockReply::Seeded.after(&rule)));
        let dropped = mock.submit(batch(&mock, &["a", "b"], OutputShape::Text, 100));
        let cancelled = mock.submit(batch(&mock, &["c"], OutputShape::Text, 100));
        assert_eq!(mock.in_flight(), 3);
        drop(dropped);
        assert_eq!(mock.in_flight(), 1);
        mock.cancel(cancelled.id());
        block_on(mock.wait_until_idle());
        assert!(block_on(cancelled.collect::<Vec<_>>()).is_empty());
        assert_eq!((mock.stats().cancelled, mock.stats().pending), (3, 0));
    }

    #[test]
    fn an_embedding_model_counts_words() {
        let mock =
            MockBackend::new(1).embedding(64).answer(|prompt| prompt.contains("alias").then(|| MockReply::text("a b")));
        let shape = |dimensions| OutputShape::Embedding { dimensions };
        let texts = ["the red fox", "Fox, the red!", "blue whales", "", "alias", "b a"];
        let vectors: Vec<Vec<f32>> = ask(&mock, &texts, shape(None), 1)
            .into_iter()
            .map(|completion| completion.unwrap().result.unwrap().embedding.unwrap())
            .collect();
        let similarity = |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(a, b)| a * b).sum::<f32>();
        assert!(vectors.iter().all(|vector| vector.len() == 64));
        assert!((similarity(3, 3) - 1.0).abs() < 1e-6 && similarity(0, 2) < 0.5);
        assert_eq!(vectors[4], vectors[5]);
        let short = ask(&mock, &texts[..1], shape(Some(8)), 1).remove(0).unwrap().result.unwrap().embedding.unwrap();
        assert_eq!(short.len(), 8);
        for (mock, shape) in [(mock, OutputShape::Text), (MockBackend::new(1), shape(None))] {
            assert!(matches!(ask(&mock, &["a"], shape, 9)[..], [Err(Error::Invalid(_))]));
        }
    }

    #[test]
    fn long_prompts_overflow() {
        let mock = MockBackend::new(1).max_context(10);
        let answers = ask(&mock, &["aaaa", "aaaaa"], OutputShape::Text, 100);
        assert_eq!(answers[0].as_ref().unwrap().result.as_ref().unwrap().tokens.len(), 1);
        assert_eq!(answers[1].as_ref().unwrap().result, Err(RowFailure::Overflow { tokens: 11, limit: 10 }));
    }
}
