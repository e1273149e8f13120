//! One remote service: rows in, completions out, whatever it takes in between.
//!
//! A row costs at least one attempt. Attempts that fail in passing are made again after a wait, up to `max_retries` for each row.
//! An attempt that fails over a field the service does not know is made again without it, and the field is not sent any more. An
//! answer of the wrong shape is sent back for correction, up to `max_corrections` times.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use super::body::{Omitted, question, texts};
use super::breaker::Breaker;
use super::config::RemoteConfig;
use super::endpoint::Endpoint;
use super::fault::Fault;
use super::http::ask;
use super::logprobs::of_bytes;
use super::rate::RateLimit;
use super::reply::{Reply, unit};
use super::retry::backoff;
use super::shape::Shape;
use super::slots::Slots;
use super::tokenizer::{Message, MessageTokenizer, Role, messages};
use crate::backend::Stats;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::request::{Answer, Completion, FinishReason, OutputShape, Request, RowFailure, Usage};
use crate::tokenizer::Tokenizer;

/// A byte counts as a quarter of a token: about what tokenizers make of English text.
pub(super) const TOKENS_PER_BYTE: f64 = 0.25;

/// The service and what is known of it. Each lock is held for a copy or a change, and never across a wait.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) config: RemoteConfig,
    pub(super) endpoint: Endpoint,
    pub(super) slots: Arc<Slots>,
    rate: RateLimit,
    breaker: Breaker,
    omitted: Mutex<Omitted>,
    version: Mutex<Option<String>>,
    stats: Mutex<Stats>,
}

/// Why there is no answer: for one row, or for the whole batch.
#[derive(Debug)]
enum Failed {
    Row(RowFailure),
    Batch(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Batch(error)
    }
}

/// What is sent.
enum Call<'a> {
    Question { request: &'a Request, messages: &'a [Message], structure: &'a (Map<String, Value>, bool) },
    Texts { texts: &'a [String], dimensions: Option<u32> },
}

impl Call<'_> {
    fn body(&self, config: &RemoteConfig, omitted: &Omitted) -> Map<String, Value> {
        match self {
            Call::Question { request, messages, structure } => question(config, request, messages, structure, omitted),
            Call::Texts { texts: sent, dimensions } => texts(config, sent, *dimensions, omitted),
        }
    }

    /// Returns about how many tokens of prompt and answer the service will count.
    fn tokens(&self) -> u32 {
        match self {
            Call::Question { request, messages, .. } => {
                let bytes = messages.iter().map(|message| message.text.len()).sum();
                tokens(bytes).saturating_add(request.max_tokens)
            }
            Call::Texts { texts, .. } => tokens(texts.iter().map(String::len).sum()),
        }
    }

    /// Returns whether what is wrong with a part of it can be found by sending the parts.
    fn has_parts(&self) -> bool {
        matches!(self, Call::Texts { texts, .. } if texts.len() > 1)
    }

    fn vectors(&self) -> Option<usize> {
        match self {
            Call::Question { .. } => None,
            Call::Texts { texts, .. } => Some(texts.len()),
        }
    }
}

impl Service {
    pub(super) fn new(config: RemoteConfig) -> Result<Self> {
        let endpoint = Endpoint::new(&config)?;
        Ok(Service {
            slots: Slots::new(config.max_concurrency),
            rate: RateLimit::new(&config, Instant::now()),
            breaker: Breaker::new(&config, endpoint.host()),
            omitted: Mutex::default(),
            version: Mutex::default(),
            stats: Mutex::default(),
            config,
            endpoint,
        })
    }

    /// Answers one request in text. Fails if every other request of the batch would fail as well.
    pub(super) async fn answer(&self, key: u64, request: &Request, shape: &Shape) -> Result<Completion> {
        let mut usage = Usage::default();
        let result = match self.converse(key, request, shape, &mut usage).await {
            Ok(answer) => Ok(answer),
            Err(Failed::Row(failure)) => Err(failure),
            Err(Failed::Batch(error)) => return Err(error),
        };
        Ok(Completion { id: request.id, result, usage })
    }

    /// Asks, and asks again for what is wrong with the answer.
    async fn converse(&self, key: u64, request: &Request, shape: &Shape, usage: &mut Usage) -> Result<Answer, Failed> {
        let mut messages = messages(&request.prompt);
        if messages.is_empty() {
            return Err(empty(request).into());
        }
        self.check_length(request, request.max_tokens).map_err(Failed::Row)?;
        let structure = shape.fields(self.config.structured_output);
        let mut corrections = 0;
        loop {
            let call = Call::Question { request, messages: &messages, structure: &structure };
            let reply = self.exchange(&call, key, usage).await?;
            add(usage, reply.usage.unwrap_or_else(|| estimate(&call, &reply)));
            if let Some(reason) = reply.refused() {
                return Err(Failed::Row(RowFailure::Refused(reason)));
            }
            let (text, finish) = cut(&reply, &request.stop);
            match shape.check(&text).filter(|_| finish == FinishReason::Stop || shape.ends_itself(&text)) {
                Some(text) => return Ok(answer(request, &reply, text, finish)),
                // A longer answer is not what a correction would bring.
                None if finish == FinishReason::Length || corrections == self.config.max_corrections => {
                    return Err(Failed::Row(RowFailure::Schema(text)));
                }
                None => {
                    corrections += 1;
                    usage.retries += 1;
                    messages.push(Message { role: Role::Assistant, text });
                    messages.push(Message { role: Role::User, text: shape.correction() });
                }
            }
        }
    }

    /// Turns the prompts of requests into vectors. All want the same dimensions. A request for many texts that the service finds
    /// wrong is halved until the text is found.
    pub(super) async fn embed(&self, key: u64, requests: &[&Request], dimensions: Option<u32>) -> Result<Vec<Completion>> {
        let mut completions = Vec::with_capacity(requests.len());
        let mut fitting = Vec::with_capacity(requests.len());
        for request in requests {
            match self.check_length(request, 0) {
                Ok(()) => fitting.push(*request),
                Err(failure) => completions.push(failed(request, failure, 0)),
            }
        }
        let mut groups = vec![fitting];
        while let Some(group) = groups.pop() {
            if group.is_empty() {
                continue;
            }
            let texts: Vec<String> = group.iter().map(|request| MessageTokenizer.decode(&request.prompt.concat())).collect();
            if let Some(position) = texts.iter().position(String::is_empty) {
                return Err(empty(group[position]));
            }
            let call = Call::Texts { texts: &texts, dimensions };
            let mut usage = Usage::default();
            match self.exchange(&call, key, &mut usage).await {
                Ok(reply) => {
                    add(&mut usage, reply.usage.unwrap_or_else(|| estimate(&call, &reply)));
                    completions.extend(vectors(&group, &texts, reply.vectors, usage, dimensions));
                }
                Err(Failed::Row(RowFailure::Overflow { .. } | RowFailure::Refused(_))) if group.len() > 1 => {
                    let (left, right) = group.split_at(group.len() / 2);
                    groups.extend([right.to_vec(), left.to_vec()]);
                }
                Err(Failed::Row(failure)) => {
                    completions.extend(group.iter().map(|request| failed(request, failure.clone(), usage.retries)));
                }
                Err(Failed::Batch(error)) => return Err(error),
            }
        }
        Ok(completions)
    }

    /// Sends a call until it is answered or there is no hope. Counts attempts after the first.
    async fn exchange(&self, call: &Call<'_>, key: u64, usage: &mut Usage) -> Result<Reply, Failed> {
        let (cost, mut retry) = (call.tokens(), 0);
        loop {
            self.breaker.check(Instant::now())?;
            self.rate.acquire(f64::from(cost)).await;
            let omitted = lock(&self.omitted).clone();
            let body = call.body(&self.config, &omitted);
            self.stats().steps += 1;
            let fault = match ask(&self.config, &self.endpoint, &body, call.vectors()).await {
                Ok(reply) => {
                    self.note(&reply, cost);
                    return Ok(reply);
                }
                Err(fault) => fault,
            };
            usage.retries += 1;
            match fault {
                Fault::Unknown(field) if !omitted.contains(&field) => {
                    lock(&self.omitted).insert(field);
                }
                Fault::Passing { wait, .. } if retry < self.config.max_retries => {
                    self.wait(key, retry, wait).await;
                    retry += 1;
                }
                fault => {
                    usage.retries -= 1;
                    return Err(self.give_up(fault, call));
                }
            }
        }
    }

    /// Waits before a retry. What the service asks for holds for every request.
    async fn wait(&self, key: u64, retry: u32, asked: Option<Duration>) {
        match asked {
            Some(asked) => self.rate.pause_until(Instant::now() + asked.min(self.config.backoff_max)),
            None => sleep(backoff(&self.config, key, retry)).await,
        }
    }

    /// Decides whether a fault that remains is the row's or the batch's.
    fn give_up(&self, fault: Fault, call: &Call<'_>) -> Failed {
        let failure = match fault {
            Fault::Fatal(error) => return Failed::Batch(error),
            Fault::Row(failure) => return Failed::Row(failure),
            Fault::TooLong => {
                let limit = self.config.max_context;
                return Failed::Row(RowFailure::Overflow { tokens: call.tokens() as usize, limit });
            }
            Fault::Passing { failure, .. } => failure,
            Fault::Unknown(field) => RowFailure::Refused(format!("the service does not know the field {field:?}")),
            Fault::Rejected(message) if self.breaker.has_answered() || call.has_parts() => RowFailure::Refused(message),
            Fault::Rejected(message) => {
                return Failed::Batch(Error::Http(format!(
                    "{message}; no request to it has succeeded yet, check its options"
                )));
            }
        };
        if !call.has_parts() || !matches!(failure, RowFailure::Refused(_)) {
            self.breaker.failure(&failure.to_string(), Instant::now());
        }
        self.breaker.check(Instant::now()).map_or_else(Failed::Batch, |()| Failed::Row(failure))
    }

    /// Learns from a reply.
    fn note(&self, reply: &Reply, cost: u32) {
        self.breaker.success();
        if let Some(usage) = reply.usage {
            self.rate.settle(f64::from(cost), f64::from(usage.prompt) + f64::from(usage.output));
        }
        if reply.version.is_some() {
            lock(&self.version).clone_from(&reply.version);
        }
    }

    /// Fails if prompt and answer surely do not fit, going by the estimate.
    fn check_length(&self, request: &Request, max_tokens: u32) -> Result<(), RowFailure> {
        let needed = tokens(request.prompt_len()).saturating_add(max_tokens) as usize;
        let limit = self.config.max_context;
        if needed > limit { Err(RowFailure::Overflow { tokens: needed, limit }) } else { Ok(()) }
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, Stats> {
        lock(&self.stats)
    }

    pub(super) fn version(&self) -> Option<String> {
        lock(&self.version).clone()
    }

    /// Counts a completion.
    pub(super) fn record(&self, completion: &Completion) {
        let (mut stats, usage) = (self.stats(), completion.usage);
        stats.prompt_tokens += u64::from(usage.prompt);
        stats.cached_tokens += u64::from(usage.cached);
        stats.computed_tokens += u64::from(usage.prompt - usage.cached) + u64::from(usage.output);
        stats.output_tokens += u64::from(usage.output);
        stats.completed += 1;
        stats.pending -= 1;
    }
}

/// Returns about how many tokens so many bytes are.
fn tokens(bytes: usize) -> u32 {
    (bytes as f64 * TOKENS_PER_BYTE).ceil() as u32
}

fn empty(request: &Request) -> Error {
    Error::Invalid(format!("the prompt of request {} is empty", request.id.0))
}

fn failed(request: &Request, failure: RowFailure, retries: u32) -> Completion {
    Completion { id: request.id, result: Err(failure), usage: Usage { retries, ..Usage::default() } }
}

fn add(usage: &mut Usage, more: Usage) {
    usage.prompt = usage.prompt.saturating_add(more.prompt);
    usage.cached = usage.cached.saturating_add(more.cached);
    usage.output = usage.output.saturating_add(more.output);
}

/// What a request took at a service that does not say.
fn estimate(call: &Call<'_>, reply: &Reply) -> Usage {
    let prompt = match call {
        Call::Question { request, .. } => call.tokens() - request.max_tokens,
        Call::Texts { .. } => call.tokens(),
    };
    Usage { prompt, output: tokens(reply.text.len()), ..Usage::default() }
}

/// Returns the text before the first stop string, and why it ends.
fn cut(reply: &Reply, stop: &[String]) -> (String, FinishReason) {
    match stop.iter().filter_map(|stop| reply.text.find(stop.as_str())).min() {
        Some(end) => (reply.text[..end].to_string(), FinishReason::Stop),
        None if reply.was_cut() => (reply.text.clone(), FinishReason::Length),
        None => (reply.text.clone(), FinishReason::Stop),
    }
}

fn answer(request: &Request, reply: &Reply, text: String, finish: FinishReason) -> Answer {
    let logprobs = request.logprobs.map_or_else(Vec::new, |count| of_bytes(&reply.logprobs, &text, count));
    let finish = if matches!(*request.shape, OutputShape::Text) { finish } else { FinishReason::Stop };
    let tokens = MessageTokenizer.encode(&text);
    Answer { logprobs, ..Answer::text(text, tokens, finish) }
}

/// Makes completions of the vectors of a group. What the group cost is shared by the length of the texts.
fn vectors(
    group: &[&Request],
    texts: &[String],
    vectors: Vec<Vec<f32>>,
    usage: Usage,
    dimensions: Option<u32>,
) -> Vec<Completion> {
    let bytes: usize = texts.iter().map(String::len).sum();
    let (mut read, mut charged) = (0, 0);
    let mut completions = Vec::with_capacity(group.len());
    for ((request, text), vector) in group.iter().zip(texts).zip(vectors) {
        read += text.len();
        let until = (u64::from(usage.prompt) * read as u64 / bytes as u64) as u32;
        let result = unit(vector, dimensions)
            .map_err(RowFailure::Schema)
            .map(|vector| Answer { embedding: Some(vector), ..Answer::text(String::new(), Vec::new(), FinishReason::Stop) });
        let retries = if completions.is_empty() { usage.retries } else { 0 };
        let usage = Usage { prompt: until - charged, retries, ..Usage::default() };
        completions.push(Completion { id: request.id, result, usage });
        charged = until;
    }
    completions
}
