//! What goes wrong between us and a service, and whom it concerns: an attempt, a row, or every row.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, LOCATION};
use serde_json::{Map, Value};

use super::body::{Optional, unknown_field};
use super::retry::retry_after;
use crate::error::Error;
use crate::request::RowFailure;

/// Characters of a service's message that are passed on.
const MESSAGE_MAX: usize = 300;

/// The outcome of an attempt that brought no answer.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The next attempt may succeed. Without one, this is why the row failed.
    Passing {
        failure: RowFailure,
        /// How long the service asks to be left alone.
        wait: Option<Duration>,
    },
    /// The service does not know this field.
    Unknown(Optional),
    /// The prompt is longer than the service allows.
    TooLong,
    /// This row alone fails, and would again.
    Row(RowFailure),
    /// The service finds the request wrong. Whether that is the row's fault is known once other rows were answered.
    Rejected(String),
    /// No row would do better.
    Fatal(Error),
}

impl Fault {
    /// Makes a failed connection worth another attempt.
    pub(super) fn transport(message: String) -> Self {
        Fault::Passing { failure: RowFailure::Transport(message), wait: None }
    }
}

/// Judges a response that is not an answer: its status, its headers and the beginning of its body.
pub(super) fn judge(host: &str, status: u16, headers: &HeaderMap, text: &str, body: &Map<String, Value>) -> Fault {
    let complaint = Complaint::read(text);
    let said = &complaint.message;
    let fatal = |what: &str, mend: &str| {
        Fault::Fatal(Error::Http(format!("the remote model at {host} {what} (HTTP {status}: {said}); {mend}")))
    };
    let passing = |failure: RowFailure| Fault::Passing { failure, wait: retry_after(headers, SystemTime::now()) };
    let unknown = || unknown_field(body, &format!("{said} {}", complaint.code), complaint.parameter.as_deref());
    // llama-cpp-python reports values that it does not know as failures of its own.
    let may_be_unknown = matches!(status, 400 | 422 | 500) && !complaint.says(&TOO_LONG);
    if let Some(field) = may_be_unknown.then(unknown).flatten() {
        return Fault::Unknown(field);
    }
    match status {
        429 if complaint.says(&["insufficient_quota", "exceeded your current quota", "billing"]) => {
            fatal("has no credit left for this key", "add credit to the account or use another key")
        }
        429 => passing(RowFailure::RateLimit(format!("the remote model at {host} limits the rate of requests: {said}"))),
        408 | 409 | 425 | 500..=599 => {
            passing(RowFailure::Transport(format!("the remote model at {host} failed (HTTP {status}: {said})")))
        }
        300..=399 => {
            let target = headers.get(LOCATION).and_then(|target| target.to_str().ok()).unwrap_or("another address");
            let message = format!(
                "the remote model at {host} redirects to {} (HTTP {status}), which is not followed; \
                 if that is where it lives, use that address as its location",
                shorten(target)
            );
            Fault::Fatal(Error::Http(message))
        }
        401 => fatal("does not accept the key", "check the secret that the model's credential names"),
        402 => fatal("wants to be paid first", "add credit to the account or use another key"),
        403 if complaint.says(&["flagged", "moderation", "content_filter"]) => Fault::Row(refused(said)),
        403 => fatal("does not permit this", "check what the key may be used for"),
        404 | 405 => {
            fatal("knows no such model or address", "check the location, which usually ends in /v1, and the model's name")
        }
        413 => Fault::TooLong,
        400 | 422 if complaint.says(&TOO_LONG) => Fault::TooLong,
        400 | 422 if complaint.says(&["content_filter", "content_policy", "content management policy", "flagged"]) => {
            Fault::Row(refused(said))
        }
        400 | 422 => Fault::Rejected(format!("the remote model at {host} rejects the request (HTTP {status}: {said})")),
        _ => fatal("refuses requests", "check its documentation"),
    }
}

/// How services say that a prompt is too long.
const TOO_LONG: [&str; 6] = [
    "context_length_exceeded",
    "maximum context length",
    "context window",
    "exceed_context_size",
    "maximum input length",
    "too many tokens",
];

fn refused(said: &str) -> RowFailure {
    RowFailure::Refused(format!("the service refused the prompt: {said}"))
}

/// What the body of an error says, in whatever form.
#[derive(Debug, Default)]
struct Complaint {
    message: String,
    /// Code and type of the error.
    code: String,
    parameter: Option<String>,
}

impl Complaint {
    fn read(text: &str) -> Self {
        let Ok(value) = serde_json::from_str::<Value>(text) else {
            return Complaint { message: shorten(text), ..Complaint::default() };
        };
        let error = value.get("error").filter(|error| error.is_object()).unwrap_or(&value);
        let message =
            ["message", "detail", "error"].iter().find_map(|key| error.get(key)).map_or_else(|| text.to_string(), plain);
        let code = ["code", "type"].iter().filter_map(|key| error.get(key)).map(plain).collect::<Vec<_>>().join(" ");
        let parameter = error.get("param").and_then(Value::as_str).map(str::to_string);
        Complaint { message: shorten(&message), code, parameter }
    }

    /// Returns whether code or message has one of these words.
    fn says(&self, words: &[&str]) -> bool {
        let (code, message) = (self.code.to_ascii_lowercase(), self.message.to_ascii_lowercase());
        words.iter().any(|word| code.contains(word) || message.contains(word))
    }
}

/// Returns a string without its quotes, and other values as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// Returns the beginning of a text in one line.
pub(super) fn shorten(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MESSAGE_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.is_empty() => "no message".to_string(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(status: u16, text: &str, expected: &str) {
        let headers = [("retry-after", "3"), ("location", "https://elsewhere/v1")];
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let body = json!({"model": "m", "top_k": 1});
        let fault = judge("host", status, &headers, text, body.as_object().unwrap());
        let found = match fault {
            Fault::Passing { failure, wait } => format!("passing {} {wait:?}: {failure}", failure.reason()),
            Fault::Unknown(field) => format!("unknown {field:?}"),
            Fault::TooLong => "too long".to_string(),
            Fault::Row(failure) => format!("row {}: {failure}", failure.reason()),
            Fault::Rejected(message) => format!("rejected {message}"),
            Fault::Fatal(error) => format!("fatal {error}"),
        };
        assert!(found.starts_with(expected), "{status}: {found}");
    }

    fn error(message: &str, code: &str) -> String {
        json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": code}}).to_string()
    }

    #[test]
    fn passing() {
        check(
            429,
            &error("Slow down", "rate_limit_exceeded"),
            "passing rate_limit Some(3s): the remote model at host limits",
        );
        check(500, "<html>\n oops", "passing transport Some(3s): the remote model at host failed (HTTP 500: <html> oops)");
        check(529, "", "passing transport Some(3s): the remote model at host failed (HTTP 529: no message)");
        check(408, "", "passing transport");
    }

    #[test]
    fn fatal() {
        check(
            401,
            &error("No", "invalid_api_key"),
            "fatal the remote model at host does not accept the key (HTTP 401: No); check the secret",
        );
        check(
            404,
            &error("no model m", ""),
            "fatal the remote model at host knows no such model or address (HTTP 404: no model m); check",
        );
        check(
            429,
            &error("You exceeded your current quota", "insufficient_quota"),
            "fatal the remote model at host has no credit",
        );
        check(307, "", "fatal the remote model at host redirects to https://elsewhere/v1 (HTTP 307), which is not followed");
        check(403, "{\"detail\": \"region\"}", "fatal the remote model at host does not permit this (HTTP 403: region)");
        check(418, "", "fatal the remote model at host refuses requests");
    }

    #[test]
    fn of_the_row_or_a_field() {
        check(400, &error("This model's maximum context length is 8192 tokens", "context_length_exceeded"), "too long");
        check(413, "", "too long");
        check(400, &error("Filtered", "content_filter"), "row refused: the service refused the prompt: Filtered");
        check(403, &error("input flagged", ""), "row refused");
        check(400, &error("Unrecognized request argument supplied: top_k", ""), "unknown TopK");
        check(422, "{\"detail\": [{\"type\": \"extra_forbidden\", \"loc\": [\"body\", \"top_k\"]}]}", "unknown TopK");
        check(500, &error("1 validation error: ('body', 'top_k') 'Input should be 0'", ""), "unknown TopK");
        check(400, &error("bad", ""), "rejected the remote model at host rejects the request (HTTP 400: bad)");
    }

    #[test]
    fn messages_are_short_lines() {
        assert_eq!(shorten("a\n  b"), "a b");
        assert_eq!(shorten(&"ö".repeat(1000)).chars().count(), MESSAGE_MAX + 1);
    }
}
