//! Probabilities of the service's tokens, which are not ours, as probabilities of bytes.
//!
//! A token's probability is spread over its bytes: each byte gets the share that all reported tokens with the same beginning
//! have of those that go on from there. The logarithms of a token's bytes therefore add up to that of the token, and the
//! alternatives to a first byte are the alternatives to the token, those with the same first byte taken together.

use serde_json::Value;

use crate::request::{TokenId, TokenLogprobs};

/// A token as the service reports it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TokenReport {
    bytes: Vec<u8>,
    logprob: f64,
    top: Vec<(Vec<u8>, f64)>,
}

/// Reads the `logprobs` of a choice, in the form of chats or that of completions.
pub(super) fn reports(value: &Value) -> Vec<TokenReport> {
    match value.get("content").and_then(Value::as_array) {
        Some(tokens) => tokens.iter().filter_map(chat_report).collect(),
        None => completion_reports(value).unwrap_or_default(),
    }
}

fn chat_report(token: &Value) -> Option<TokenReport> {
    let (bytes, logprob) = entry(token)?;
    let top = token.get("top_logprobs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    Some(TokenReport { bytes, logprob, top: top.iter().filter_map(entry).collect() })
}

fn entry(token: &Value) -> Option<(Vec<u8>, f64)> {
    let bytes = token.get("bytes").and_then(Value::as_array);
    let bytes =
        bytes.and_then(|bytes| bytes.iter().map(|byte| u8::try_from(byte.as_u64()?).ok()).collect::<Option<Vec<_>>>());
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => token.get("token")?.as_str()?.as_bytes().to_vec(),
    };
    Some((bytes, token.get("logprob")?.as_f64()?))
}

fn completion_reports(value: &Value) -> Option<Vec<TokenReport>> {
    let tokens = value.get("tokens")?.as_array()?;
    let logprobs = value.get("token_logprobs")?.as_array()?;
    let tops = value.get("top_logprobs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let report = |(index, (token, logprob)): (usize, (&Value, &Value))| {
        let top = tops.get(index).and_then(Value::as_object).into_iter().flatten();
        let top = top.filter_map(|(token, logprob)| Some((token.as_bytes().to_vec(), logprob.as_f64()?))).collect();
        Some(TokenReport { bytes: token.as_str()?.as_bytes().to_vec(), logprob: logprob.as_f64()?, top })
    };
    tokens.iter().zip(logprobs).enumerate().map(report).collect()
}

/// Returns the probabilities of the bytes of `text`, which stands somewhere in what the tokens spell; nothing if it does not.
/// `count` is how many alternatives are wanted.
pub(super) fn of_bytes(reports: &[TokenReport], text: &str, count: u32) -> Vec<TokenLogprobs> {
    let spelled: Vec<u8> = reports.iter().flat_map(|report| report.bytes.iter().copied()).collect();
    let text = text.as_bytes();
    let start = if text.is_empty() { None } else { spelled.windows(text.len()).position(|window| window == text) };
    let Some(start) = start else {
        return Vec::new();
    };
    let spread = reports.iter().flat_map(|report| spread(report, count as usize));
    spread.skip(start).take(text.len()).collect()
}

/// Spreads one token over its bytes.
fn spread(report: &TokenReport, count: usize) -> Vec<TokenLogprobs> {
    let mut tokens: Vec<(&[u8], f64)> =
        report.top.iter().map(|(bytes, logprob)| (bytes.as_slice(), logprob.exp())).collect();
    if !tokens.iter().any(|(bytes, _)| *bytes == report.bytes) {
        tokens.push((&report.bytes, report.logprob.exp()));
    }
    let (mut whole, mut left) = (1.0, report.logprob);
    let mut spread = Vec::with_capacity(report.bytes.len());
    for (position, byte) in report.bytes.iter().enumerate() {
        tokens.retain(|(bytes, _)| bytes.starts_with(&report.bytes[..position]));
        let mut shares = shares(&tokens, position);
        let own = shares.iter().find(|(token, _)| *token == TokenId::from(*byte)).map_or(0.0, |(_, share)| *share);
        let last = position + 1 == report.bytes.len();
        // What rounding and longer tokens with this beginning leave over goes to the last byte.
        let logprob = if last { left } else { (own / whole).ln().clamp(left.min(0.0), 0.0) };
        left -= logprob;
        shares.truncate(count);
        let top = shares.into_iter().map(|(token, share)| (token, (share / whole).ln().min(0.0) as f32)).collect();
        spread.push(TokenLogprobs { logprob: logprob as f32, top });
        whole = own;
    }
    spread
}

/// Returns the probability of each byte at a position, in descending order.
fn shares(tokens: &[(&[u8], f64)], position: usize) -> Vec<(TokenId, f64)> {
    let mut shares: Vec<(TokenId, f64)> = Vec::new();
    for (bytes, probability) in tokens {
        let Some(byte) = bytes.get(position).map(|byte| TokenId::from(*byte)) else { continue };
        match shares.iter_mut().find(|(token, _)| *token == byte) {
            Some((_, share)) => *share += probability,
            None => shares.push((byte, *probability)),
        }
    }
    shares.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
    shares
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn probabilities(bytes: &[TokenLogprobs]) -> Vec<f32> {
        bytes.iter().map(|byte| (byte.logprob.exp() * 1000.0).round() / 1000.0).collect()
    }

    #[test]
    fn a_token_is_spread_over_its_bytes() {
        let top = [("Yes", 0.5_f64), ("Yo", 0.2), ("No", 0.25), ("YES", 0.05)];
        let top: Vec<_> = top.iter().map(|(token, p)| json!({"token": token, "logprob": p.ln()})).collect();
        let value = json!({"content": [
            {"token": "\"", "logprob": 0.0, "top_logprobs": []},
            {"token": "Yes", "logprob": 0.5_f64.ln(), "bytes": [89, 101, 115], "top_logprobs": top},
            {"token": "\"", "logprob": 0.0},
        ]});
        let bytes = of_bytes(&reports(&value), "Yes", 2);
        assert_eq!(probabilities(&bytes), [0.75, 0.667, 1.0]);
        let alternatives: Vec<_> =
            bytes[0].top.iter().map(|(token, logprob)| (*token, (logprob.exp() * 100.0).round())).collect();
        assert_eq!(alternatives, [(89, 75.0), (78, 25.0)]);
        let sum: f32 = bytes.iter().map(|byte| byte.logprob).sum();
        assert!((sum.exp() - 0.5).abs() < 1e-6);
        assert!(of_bytes(&reports(&value), "No", 2).is_empty());
    }

    #[test]
    fn completions_report_in_columns() {
        let value = json!({
            "tokens": ["a", "bc"], "token_logprobs": [-1.0, -2.0], "top_logprobs": [{"a": -1.0, "x": -0.5}, null], "text_offset": [0, 1]
        });
        let bytes = of_bytes(&reports(&value), "abc", 5);
        let sum: f32 = bytes.iter().map(|byte| byte.logprob).sum();
        assert_eq!((bytes.len(), bytes[0].top[0], sum), (3, (u32::from(b'x'), -0.5), -3.0));
        assert!(reports(&json!({"tokens": ["a"], "token_logprobs": [null]})).is_empty());
        assert!(reports(&json!({})).is_empty());
    }
}
