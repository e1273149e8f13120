//! One attempt: a request out, a response in, within bounds of time and size.

use std::error::Error as _;
use std::time::Duration;

use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout, timeout_at};

use super::config::RemoteConfig;
use super::endpoint::Endpoint;
use super::fault::{Fault, judge, shorten};
use super::reply::{Reply, read_vectors};
use super::sse::Events;
use crate::request::RowFailure;

/// How long the end of a stream is waited for after its end mark.
const END_OF_BODY: Duration = Duration::from_millis(50);

/// Bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Sends a request and returns the answer, whole or streamed. `vectors` is how many vectors it must hold, if not text.
pub(super) async fn ask(
    config: &RemoteConfig,
    endpoint: &Endpoint,
    body: &Map<String, Value>,
    vectors: Option<usize>,
) -> Result<Reply, Fault> {
    let mut attempt = Attempt::open(config, endpoint, body).await?;
    let mut reply = Reply::default();
    if attempt.is_stream() {
        attempt.read_events(&mut reply).await?;
    } else {
        let value = attempt.read_json().await?;
        reply.absorb(&value);
        if let Some(count) = vectors {
            reply.vectors = read_vectors(&value, count).map_err(|reason| attempt.malformed(&reason))?;
            return Ok(reply);
        }
    }
    if reply.has_choice { Ok(reply) } else { Err(attempt.malformed("a response without an answer")) }
}

/// A response that is being read.
struct Attempt<'a> {
    config: &'a RemoteConfig,
    host: String,
    body: &'a Map<String, Value>,
    deadline: Instant,
    response: Response,
}

impl<'a> Attempt<'a> {
    /// Sends the request and waits for the head of the response. Any status but success is a fault.
    async fn open(config: &'a RemoteConfig, endpoint: &Endpoint, body: &'a Map<String, Value>) -> Result<Self, Fault> {
        let (start, host) = (Instant::now(), endpoint.host());
        let deadline = start + config.request_timeout;
        let sending = endpoint.client.post(endpoint.url.clone()).json(body).send();
        let response = match timeout_at(deadline.min(start + config.first_byte_timeout), sending).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Fault::transport(format!("the remote model at {host} {}", describe(&error)))),
            Err(_) => {
                let waited = config.first_byte_timeout.min(config.request_timeout);
                return Err(Fault::transport(format!(
                    "the remote model at {host} did not begin to answer within {waited:?}"
                )));
            }
        };
        let mut attempt = Attempt { config, host, body, deadline, response };
        if attempt.response.status().is_success() {
            return Ok(attempt);
        }
        let text = attempt.read_error().await;
        Err(attempt.judge(attempt.response.status().as_u16(), &text))
    }

    fn is_stream(&self) -> bool {
        let kind = self.response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
    }

    async fn read_json(&mut self) -> Result<Value, Fault> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.next(bytes.len()).await? {
            bytes.extend_from_slice(&chunk);
        }
        let Ok(value) = serde_json::from_slice::<Value>(&bytes) else {
            let beginning = String::from_utf8_lossy(&bytes[..bytes.len().min(ERROR_BYTES_MAX)]);
            return Err(self.malformed(&format!("something that is not JSON: {}", shorten(&self.redact(&beginning)))));
        };
        self.check_error(&value)?;
        Ok(value)
    }

    /// Reads a streamed answer up to its end mark, or the end of the connection. It is whole only if it says why it ended: a
    /// server that gives up on a request may send the end mark all the same.
    async fn read_events(&mut self, reply: &mut Reply) -> Result<(), Fault> {
        let (mut events, mut size) = (Events::default(), 0);
        loop {
            let chunk = self.next(size).await?;
            let mut ended = chunk.is_none();
            let data = match chunk {
                Some(chunk) => {
                    size += chunk.len();
                    events.push(&chunk).map_err(|reason| self.malformed(&reason))?
                }
                None => events.finish().into_iter().collect(),
            };
            for data in data {
                if data.trim() == "[DONE]" {
                    // A body that was read to its end leaves the connection to the next request.
                    let _ = timeout(END_OF_BODY, self.response.chunk()).await;
                    ended = true;
                    break;
                }
                let value = serde_json::from_str(&data)
                    .map_err(|_| self.malformed(&format!("an event that is not JSON: {}", shorten(&self.redact(&data)))))?;
                self.check_error(&value)?;
                reply.absorb(&value);
            }
            if ended && reply.finish.is_some() {
                return Ok(());
            }
            if ended {
                return Err(Fault::transport(format!(
                    "the remote model at {} broke off in the middle of an answer",
                    self.host
                )));
            }
        }
    }

    /// Returns the next bytes of the body, of which `size` were read before.
    async fn next(&mut self, size: usize) -> Result<Option<Vec<u8>>, Fault> {
        let chunk = match timeout_at(self.deadline, self.response.chunk()).await {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(error)) => {
                return Err(Fault::transport(format!("the remote model at {} {}", self.host, describe(&error))));
            }
            Err(_) => {
                let message =
                    format!("the remote model at {} did not finish within {:?}", self.host, self.config.request_timeout);
                return Err(Fault::transport(message));
            }
        };
        let limit = self.config.response_bytes_max;
        let announced = self.response.content_length().unwrap_or(0);
        if announced > limit as u64 || size + chunk.as_ref().map_or(0, |chunk| chunk.len()) > limit {
            // Another attempt would bring the same.
            let message = format!("the remote model at {} sent more than response_bytes_max = {limit} bytes", self.host);
            return Err(Fault::Row(RowFailure::Transport(message)));
        }
        Ok(chunk.map(|chunk| chunk.to_vec()))
    }

    /// Returns the beginning of an error's body, or what came of it.
    async fn read_error(&mut self) -> String {
        let mut bytes = Vec::new();
        while bytes.len() < ERROR_BYTES_MAX {
            match timeout_at(self.deadline, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
                _ => break,
            }
        }
        bytes.truncate(ERROR_BYTES_MAX);
        self.redact(&String::from_utf8_lossy(&bytes))
    }

    /// Some services send errors as successes; the code within says what it is.
    fn check_error(&self, value: &Value) -> Result<(), Fault> {
        let Some(error) = value.get("error").filter(|error| !error.is_null()) else {
            return Ok(());
        };
        let code = error.get("code").and_then(Value::as_u64).filter(|code| (400..600).contains(code)).unwrap_or(500);
        Err(self.judge(code as u16, &self.redact(&value.to_string())))
    }

    fn judge(&self, status: u16, text: &str) -> Fault {
        judge(&self.host, status, self.response.headers(), text, self.body)
    }

    fn malformed(&self, what: &str) -> Fault {
        Fault::transport(format!("the remote model at {} sent {what}", self.host))
    }

    /// A service may repeat the key in its messages.
    fn redact(&self, text: &str) -> String {
        self.config.credential.as_ref().map_or_else(|| text.to_string(), |credential| credential.redact(text))
    }
}

/// Says what happened to a connection. Addresses are left out: they may be long, and the host is named before.
fn describe(error: &reqwest::Error) -> String {
    let what = if error.is_connect() { "cannot be reached" } else { "broke the connection" };
    let mut cause = error.source();
    let mut reason = String::new();
    while let Some(error) = cause {
        reason = error.to_string();
        cause = error.source();
    }
    if reason.is_empty() { what.to_string() } else { format!("{what}: {reason}") }
}
