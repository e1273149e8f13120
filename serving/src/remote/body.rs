//! The bodies of requests, and the fields that a service may not know.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::config::{ApiFormat, RemoteConfig};
use super::tokenizer::Message;
use crate::request::Request;

/// Tokens that the wrapper around a label or number takes.
const WRAPPER_TOKENS: u32 = 16;

/// Services take at most this many stop strings; all are looked for here as well.
const STOP_MAX: usize = 4;

/// Services report at most this many alternatives to a token.
const LOGPROBS_MAX: u32 = 20;

/// A field that can be left out, or written otherwise, for a service that does not know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Optional {
    Dimensions,
    Logprobs,
    /// Written as `max_completion_tokens` for services that do not know `max_tokens`.
    MaxTokens,
    Seed,
    Stop,
    StreamOptions,
    Structure,
    Temperature,
    TopK,
    TopP,
}

/// What services call the fields.
const NAMES: [(Optional, &[&str]); 10] = [
    (Optional::Dimensions, &["dimensions"]),
    (Optional::Logprobs, &["logprobs", "top_logprobs"]),
    (Optional::MaxTokens, &["max_tokens"]),
    (Optional::Seed, &["seed"]),
    (Optional::Stop, &["stop"]),
    (Optional::StreamOptions, &["stream_options"]),
    (
        Optional::Structure,
        &[
            "response_format",
            "structured_outputs",
            "guided_choice",
            "guided_regex",
            "guided_json",
            "json_schema",
            "json_object",
        ],
    ),
    (Optional::Temperature, &["temperature"]),
    (Optional::TopK, &["top_k"]),
    (Optional::TopP, &["top_p"]),
];

/// Fields that are left out.
pub(super) type Omitted = BTreeSet<Optional>;

/// Returns the body that asks for an answer. `structure` holds the fields that give it its shape, in an object if `wrapped`.
pub(super) fn question(
    config: &RemoteConfig,
    request: &Request,
    messages: &[Message],
    (structure, wrapped): &(Map<String, Value>, bool),
    omitted: &Omitted,
) -> Map<String, Value> {
    let mut body = Map::new();
    let mut set = |field: Option<Optional>, key: &str, value: Value| {
        if field.is_none_or(|field| !omitted.contains(&field)) {
            body.insert(key.to_string(), value);
        }
    };
    set(None, "model", json!(config.model));
    match config.api_format {
        ApiFormat::Completions => {
            let texts: Vec<&str> = messages.iter().map(|message| message.text.as_str()).collect();
            set(None, "prompt", json!(texts.join("\n\n")));
        }
        ApiFormat::Chat | ApiFormat::Embeddings => {
            let message = |message: &Message| json!({"role": message.role.name(), "content": message.text});
            set(None, "messages", messages.iter().map(message).collect());
        }
    }
    let sampling = &request.sampling;
    set(Some(Optional::Temperature), "temperature", number(sampling.temperature));
    if sampling.top_p < 1.0 {
        set(Some(Optional::TopP), "top_p", number(sampling.top_p));
    }
    if sampling.top_k > 0 {
        set(Some(Optional::TopK), "top_k", json!(sampling.top_k));
    }
    if sampling.seed != 0 || sampling.temperature > 0.0 {
        // Services keep seeds in signed numbers.
        set(Some(Optional::Seed), "seed", json!(sampling.seed & i64::MAX as u64));
    }
    let max_tokens = request.max_tokens.saturating_add(if *wrapped { WRAPPER_TOKENS } else { 0 });
    let renamed = omitted.contains(&Optional::MaxTokens);
    set(None, if renamed { "max_completion_tokens" } else { "max_tokens" }, json!(max_tokens));
    if !request.stop.is_empty() {
        set(Some(Optional::Stop), "stop", json!(request.stop[..request.stop.len().min(STOP_MAX)]));
    }
    match (request.logprobs, config.api_format) {
        (None, _) => {}
        (Some(count), ApiFormat::Completions) => set(Some(Optional::Logprobs), "logprobs", json!(count.min(LOGPROBS_MAX))),
        (Some(count), _) => {
            set(Some(Optional::Logprobs), "logprobs", json!(true));
            set(Some(Optional::Logprobs), "top_logprobs", json!(count.min(LOGPROBS_MAX)));
        }
    }
    for (key, value) in structure {
        set(Some(Optional::Structure), key, value.clone());
    }
    set(None, "stream", json!(config.streaming));
    if config.streaming {
        set(Some(Optional::StreamOptions), "stream_options", json!({"include_usage": true}));
    }
    body.extend(config.extra_body.clone());
    body
}

/// Returns the body that asks for vectors.
pub(super) fn texts(
    config: &RemoteConfig,
    texts: &[String],
    dimensions: Option<u32>,
    omitted: &Omitted,
) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("model".to_string(), json!(config.model));
    body.insert("input".to_string(), json!(texts));
    body.insert("encoding_format".to_string(), json!("float"));
    if let Some(dimensions) = dimensions.filter(|_| !omitted.contains(&Optional::Dimensions)) {
        body.insert("dimensions".to_string(), json!(dimensions));
    }
    body.extend(config.extra_body.clone());
    body
}

/// Returns which field of the body a service says it does not know. `parameter` is the name it gives, if it does.
pub(super) fn unknown_field(body: &Map<String, Value>, message: &str, parameter: Option<&str>) -> Option<Optional> {
    const COMPLAINTS: [&str; 12] = [
        "unrecognized",
        "unknown",
        "unsupported",
        "not supported",
        "not support",
        "unexpected",
        "extra inputs",
        "not permitted",
        "not allowed",
        "not available",
        "extra_forbidden",
        "input should be",
    ];
    let message = message.to_ascii_lowercase();
    // A schema that is wrong in itself is the caller's to mend.
    if message.contains("invalid schema") || !COMPLAINTS.iter().any(|complaint| message.contains(complaint)) {
        return None;
    }
    let sent = |names: &[&str]| names.iter().any(|name| body.contains_key(*name));
    let named = |names: &[&str], place: &str| names.iter().any(|name| mentions(place, name));
    let find = |place: &str| NAMES.iter().find(|(_, names)| sent(names) && named(names, place)).map(|(field, _)| *field);
    parameter.and_then(find).or_else(|| find(&message))
}

/// Returns whether a text has a name as a whole word.
fn mentions(text: &str, name: &str) -> bool {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.match_indices(name).any(|(start, _)| {
        !text[..start].chars().next_back().is_some_and(is_part)
            && !text[start + name.len()..].chars().next().is_some_and(is_part)
    })
}

/// A number as it is written in decimal, not as its nearest binary fraction in twice the precision.
fn number(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tokenizer::Role;
    use super::*;
    use crate::request::{OutputShape, RequestId, Sampling};

    fn body(config: &RemoteConfig, sampling: Sampling, omitted: &[Optional]) -> Value {
        let mut request = Request::new(RequestId(0), vec![], Arc::new(OutputShape::Text), sampling, 9);
        request.stop = ["\n", "a", "b", "c", "d"].map(str::to_string).into();
        request.logprobs = Some(50);
        let said = |(role, text): (Role, &str)| Message { role, text: text.to_string() };
        let messages = [(Role::System, "s"), (Role::User, "u")].map(said);
        let structure = (Map::from_iter([("guided_json".to_string(), json!({}))]), true);
        question(config, &request, &messages, &structure, &omitted.iter().copied().collect()).into()
    }

    #[test]
    fn fields() {
        let mut config = RemoteConfig::new("", "m");
        config.extra_body.insert("reasoning_effort".to_string(), json!("low"));
        assert_eq!(
            body(&config, Sampling { temperature: 0.7, top_p: 0.9, top_k: 5, seed: u64::MAX }, &[]),
            json!({
                "model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
                "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": i64::MAX, "max_tokens": 25, "stop": ["\n", "a", "b", "c"],
                "logprobs": true, "top_logprobs": 20, "guided_json": {}, "stream": false, "reasoning_effort": "low",
            })
        );
        (config.api_format, config.streaming) = (ApiFormat::Completions, true);
        use Optional::*;
        assert_eq!(
            body(&config, Sampling::GREEDY, &[MaxTokens, Stop, Structure, Temperature]),
            json!({
                "model": "m", "prompt": "s\n\nu", "max_completion_tokens": 25, "logprobs": 20, "stream": true,
                "stream_options": {"include_usage": true}, "reasoning_effort": "low",
            })
        );
    }

    #[test]
    fn services_name_what_they_do_not_know() {
        let body = body(&RemoteConfig::new("", "m"), Sampling { top_k: 1, ..Sampling::GREEDY }, &[]);
        let body = body.as_object().unwrap();
        let check = |message: &str, parameter: Option<&str>, expected: Option<Optional>| {
            assert_eq!(unknown_field(body, message, parameter), expected, "{message}");
        };
        check("Unrecognized request argument supplied: top_k", None, Some(Optional::TopK));
        let rename =
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.";
        check(rename, Some("max_tokens"), Some(Optional::MaxTokens));
        check("Unsupported value: 'temperature' does not support 0", Some("temperature"), Some(Optional::Temperature));
        check("[{'type': 'extra_forbidden', 'loc': ['body', 'guided_json']}]", None, Some(Optional::Structure));
        let pydantic = "'loc': ('body', 'guided_json', 'type'), 'msg': \"Input should be 'text' or 'json_object'\"";
        check(pydantic, None, Some(Optional::Structure));
        check("Invalid schema for response_format: 'pattern' is not permitted", Some("guided_json"), None);
        check("top_k must be positive", None, None);
        check("Unknown parameter: 'top_p'", Some("top_p"), None);
        check("the model is not supported", None, None);
    }
}
