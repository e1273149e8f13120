//! What a remote model is, and the bounds within which it is called.

use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value};

use super::secret::Secret;
use crate::error::{Error, Result};

/// The longest wait that can be configured: a day.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Which interface of the service answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApiFormat {
    /// `/chat/completions`: messages in, a message out.
    #[default]
    Chat,
    /// `/completions`: text in, its continuation out. The prompt is system and user text, a blank line between them.
    Completions,
    /// `/embeddings`: texts in, vectors out.
    Embeddings,
}

/// How the service is made to answer in a shape. Answers are checked in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StructuredOutput {
    /// `response_format` of type `json_schema`: OpenAI, and most others. Labels and numbers are wrapped in an object.
    #[default]
    JsonSchema,
    /// `response_format` of type `json_object` with a `schema`: llama-cpp-python, Together, Fireworks.
    JsonObject,
    /// `guided_choice`, `guided_regex` and `guided_json`: vLLM before 0.12.
    Guided,
    /// `structured_outputs` with `choice`, `regex` or `json`: vLLM from 0.11 on.
    StructuredOutputs,
    /// Nothing: the prompt alone asks for the shape.
    Prompt,
}

/// A remote model. [`new`](Self::new) sets what most services need; the fields are plain.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// The address that `/chat/completions` is appended to, such as `https://api.openai.com/v1`. It must be https, unless the host
    /// is this machine.
    pub location: String,
    /// The model's name at the service.
    pub model: String,
    /// A label of the user for what the service serves under that name now, part of the model's identity.
    pub revision: Option<String>,
    /// Which interface answers.
    pub api_format: ApiFormat,
    /// The key, sent as bearer token.
    pub credential: Option<Secret>,
    /// Hosts that may be called, as `host` or `host:port`; `None` allows all.
    pub allowed_hosts: Option<Vec<String>>,
    /// The longest prompt and answer together, in the model's own tokens, of which a byte counts as a quarter.
    pub max_context: usize,
    /// The length of an embedding model's vectors, where that is known.
    pub dimensions: Option<u32>,
    /// Most texts in one request for vectors.
    pub embeddings_per_request: usize,
    /// Most requests on their way at any time, those that wait for a retry included.
    pub max_concurrency: usize,
    /// Most requests in a minute.
    pub requests_per_minute: Option<u32>,
    /// Most tokens in a minute, of prompts (estimated until the service reports them) and answers.
    pub tokens_per_minute: Option<u32>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the head of the response; without [`streaming`](Self::streaming) most services send it with the answer.
    pub first_byte_timeout: Duration,
    /// Longest time from the request to the end of the response, within one attempt.
    pub request_timeout: Duration,
    /// Most attempts after the first for one request, whatever went wrong.
    pub max_retries: u32,
    /// The wait before the first retry; it doubles with each. A random share of up to a half is taken off.
    pub backoff_base: Duration,
    /// The longest wait before a retry, also if the service asks for more.
    pub backoff_max: Duration,
    /// Seed of the random share of waits.
    pub backoff_seed: u64,
    /// How often an answer of the wrong shape is sent back for correction.
    pub max_corrections: u32,
    /// After so many requests in a row that failed for good, with none answered in between, the service counts as down, and
    /// batches fail as a whole.
    pub failures_in_a_row: u32,
    /// How long a service that is down is left alone.
    pub down_for: Duration,
    /// Requests that begin with this many equal bytes or more wait until the first of them is answered, so that the service
    /// finds them in its prompt cache. `None` starts them together.
    pub lead_bytes: Option<usize>,
    /// How answers are given their shape.
    pub structured_output: StructuredOutput,
    /// Whether answers are read token by token as they are written.
    pub streaming: bool,
    /// Largest response that is read.
    pub response_bytes_max: usize,
    /// Most batches that are unfinished at any time; further ones fail at once.
    pub queued_batches: usize,
    /// More fields of each request's body, such as `{"reasoning_effort": "low"}`.
    pub extra_body: Map<String, Value>,
}

impl StructuredOutput {
    /// Returns whether an answer can be asked for by a regular expression: it has a field for one, or none for anything.
    pub fn takes_regex(self) -> bool {
        match self {
            StructuredOutput::Guided | StructuredOutput::StructuredOutputs | StructuredOutput::Prompt => true,
            StructuredOutput::JsonSchema | StructuredOutput::JsonObject => false,
        }
    }
}

impl RemoteConfig {
    /// Returns the usual configuration for a model at a location.
    pub fn new(location: impl Into<String>, model: impl Into<String>) -> Self {
        RemoteConfig {
            location: location.into(),
            model: model.into(),
            revision: None,
            api_format: ApiFormat::Chat,
            credential: None,
            allowed_hosts: None,
            max_context: 128_000,
            dimensions: None,
            embeddings_per_request: 64,
            max_concurrency: 16,
            requests_per_minute: None,
            tokens_per_minute: None,
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(120),
            request_timeout: Duration::from_secs(300),
            max_retries: 5,
            backoff_base: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
            backoff_seed: 0,
            max_corrections: 1,
            failures_in_a_row: 8,
            down_for: Duration::from_secs(30),
            lead_bytes: Some(4096),
            structured_output: StructuredOutput::JsonSchema,
            streaming: false,
            response_bytes_max: 16 << 20,
            queued_batches: 4096,
            extra_body: Map::new(),
        }
    }

    /// Fails if a bound is zero, a time is zero or beyond reason, a name is empty, or an extra field is one that is always set here.
    pub(super) fn validate(&self) -> Result<()> {
        let bounds = [
            ("max_context", self.max_context),
            ("embeddings_per_request", self.embeddings_per_request),
            ("max_concurrency", self.max_concurrency),
            ("requests_per_minute", self.requests_per_minute.map_or(1, |limit| limit as usize)),
            ("tokens_per_minute", self.tokens_per_minute.map_or(1, |limit| limit as usize)),
            ("failures_in_a_row", self.failures_in_a_row as usize),
            ("response_bytes_max", self.response_bytes_max),
            ("queued_batches", self.queued_batches),
        ];
        if let Some((name, _)) = bounds.iter().find(|(_, bound)| *bound == 0) {
            return Err(Error::Invalid(format!("{name} of a remote model must be at least 1")));
        }
        let times = [
            ("connect_timeout", self.connect_timeout, Duration::from_millis(1)),
            ("first_byte_timeout", self.first_byte_timeout, Duration::from_millis(1)),
            ("request_timeout", self.request_timeout, Duration::from_millis(1)),
            ("backoff_base", self.backoff_base, Duration::ZERO),
            ("backoff_max", self.backoff_max, Duration::ZERO),
        ];
        if let Some((name, _, least)) = times.iter().find(|(_, time, least)| !(*least..=LONGEST).contains(time)) {
            return Err(Error::Invalid(format!("{name} of a remote model must lie between {least:?} and a day")));
        }
        if self.model.is_empty() {
            return Err(Error::Invalid("a remote model needs the name that its service knows it by".to_string()));
        }
        let reserved = ["model", "messages", "prompt", "input", "stream", "n"];
        match self.extra_body.keys().find(|key| reserved.contains(&key.as_str())) {
            Some(key) => Err(Error::Invalid(format!("{key:?} cannot be an extra field of requests to a remote model"))),
            None => Ok(()),
        }
    }
}

impl FromStr for ApiFormat {
    type Err = Error;

    /// Reads `chat` (also `openai` and `auto`), `completions` or `embeddings`.
    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "chat" | "openai" | "auto" => Ok(ApiFormat::Chat),
            "completions" => Ok(ApiFormat::Completions),
            "embeddings" => Ok(ApiFormat::Embeddings),
            _ => Err(Error::Invalid(format!("api_format is chat, completions or embeddings, not {text:?}"))),
        }
    }
}

impl FromStr for StructuredOutput {
    type Err = Error;

    /// Reads `json_schema`, `json_object`, `guided`, `structured_outputs` or `prompt`.
    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "json_schema" => Ok(StructuredOutput::JsonSchema),
            "json_object" => Ok(StructuredOutput::JsonObject),
            "guided" => Ok(StructuredOutput::Guided),
            "structured_outputs" => Ok(StructuredOutput::StructuredOutputs),
            "prompt" => Ok(StructuredOutput::Prompt),
            _ => Err(Error::Invalid(format!(
                "structured_output is json_schema, json_object, guided, structured_outputs or prompt, not {text:?}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refused(change: impl FnOnce(&mut RemoteConfig), reason: &str) {
        let mut config = RemoteConfig::new("http://localhost", "m");
        assert!(config.validate().is_ok());
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        refused(|config| config.max_concurrency = 0, "max_concurrency of a remote model must be at least 1");
        refused(|config| config.requests_per_minute = Some(0), "requests_per_minute");
        refused(
            |config| config.request_timeout = Duration::MAX,
            "request_timeout of a remote model must lie between 1ms and a day",
        );
        refused(|config| config.connect_timeout = Duration::ZERO, "connect_timeout");
        refused(|config| config.model.clear(), "needs the name");
        refused(
            |config| config.extra_body = Map::from_iter([("n".to_string(), json!(2))]),
            "\"n\" cannot be an extra field",
        );
    }

    #[test]
    fn names_of_choices() {
        assert_eq!("OpenAI".parse::<ApiFormat>().unwrap(), ApiFormat::Chat);
        assert_eq!("embeddings".parse::<ApiFormat>().unwrap(), ApiFormat::Embeddings);
        assert!("x".parse::<ApiFormat>().unwrap_err().to_string().contains("chat, completions or embeddings, not \"x\""));
        assert_eq!("guided".parse::<StructuredOutput>().unwrap(), StructuredOutput::Guided);
        assert!("x".parse::<StructuredOutput>().is_err());
    }
}
