//! What services answer, in the forms that they have agreed on more or less.

use serde_json::Value;

use super::logprobs::{TokenReport, reports};
use crate::request::Usage;

/// A message or a continuation, from one response or put together from the events of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reply {
    pub(super) text: String,
    /// What the model said when it refused.
    pub(super) refusal: String,
    /// The service's word for why the answer ended.
    pub(super) finish: Option<String>,
    pub(super) logprobs: Vec<TokenReport>,
    pub(super) usage: Option<Usage>,
    /// The version of the model that the service says it runs.
    pub(super) version: Option<String>,
    /// Whether there was any choice.
    pub(super) has_choice: bool,
    /// Vectors, in the order of the texts that were sent.
    pub(super) vectors: Vec<Vec<f32>>,
}

impl Reply {
    /// Adds what a response, or one event of a stream, says.
    pub(super) fn absorb(&mut self, value: &Value) {
        if let Some(choice) = value.pointer("/choices/0") {
            self.absorb_choice(choice);
        }
        self.usage = usage(value).or(self.usage);
        if self.version.is_none() {
            self.version = version(value);
        }
    }

    fn absorb_choice(&mut self, choice: &Value) {
        self.has_choice = true;
        let message = choice.get("message").or_else(|| choice.get("delta"));
        let content = message.map_or_else(|| choice.get("text"), |message| message.get("content"));
        push_text(&mut self.text, content);
        push_text(&mut self.refusal, message.and_then(|message| message.get("refusal")));
        if let Some(finish) = choice.get("finish_reason").and_then(Value::as_str) {
            self.finish = Some(finish.to_string());
        }
        self.logprobs.extend(choice.get("logprobs").map(reports).unwrap_or_default());
    }

    /// Returns whether `max_tokens` ended the answer.
    pub(super) fn was_cut(&self) -> bool {
        matches!(self.finish.as_deref(), Some("length" | "max_tokens" | "model_length"))
    }

    /// Returns why the model or the service refused, if it did.
    pub(super) fn refused(&self) -> Option<String> {
        if !self.refusal.is_empty() {
            return Some(format!("the model refused: {}", self.refusal));
        }
        let filtered = matches!(self.finish.as_deref(), Some("content_filter" | "safety" | "SAFETY" | "refusal"));
        filtered.then(|| "the content filter of the service stopped the answer".to_string())
    }
}

/// Adds text that stands by itself or in parts.
fn push_text(text: &mut String, content: Option<&Value>) {
    match content {
        Some(Value::String(content)) => text.push_str(content),
        Some(Value::Array(parts)) => {
            text.extend(parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)));
        }
        _ => {}
    }
}

/// Reads the tokens of a request. Services name those found in the prompt cache in different ways.
fn usage(value: &Value) -> Option<Usage> {
    let usage = value.get("usage").filter(|usage| usage.is_object())?;
    let count = |path: &str| usage.pointer(path).and_then(Value::as_u64).map(|count| count.min(u64::from(u32::MAX)) as u32);
    let cached =
        ["/prompt_tokens_details/cached_tokens", "/prompt_cache_hit_tokens", "/cache_read_input_tokens", "/cached_tokens"];
    let prompt = count("/prompt_tokens").or_else(|| count("/input_tokens"))?;
    Some(Usage {
        prompt,
        cached: cached.iter().find_map(|path| count(path)).unwrap_or(0).min(prompt),
        output: count("/completion_tokens").or_else(|| count("/output_tokens")).unwrap_or(0),
        ..Usage::default()
    })
}

fn version(value: &Value) -> Option<String> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let parts: Vec<&str> = ["model", "system_fingerprint"].into_iter().filter_map(text).collect();
    (!parts.is_empty()).then(|| parts.join(" "))
}

/// Reads the vectors of a response, in the order of the texts that were sent. Fails with what is wrong with them.
pub(super) fn read_vectors(value: &Value, count: usize) -> Result<Vec<Vec<f32>>, String> {
    let data = value.get("data").and_then(Value::as_array).ok_or("a response without data")?;
    if data.len() != count {
        return Err(format!("{} vectors for {count} texts", data.len()));
    }
    let mut vectors = vec![Vec::new(); count];
    for (position, item) in data.iter().enumerate() {
        let index = item.get("index").and_then(Value::as_u64).map_or(position, |index| index as usize);
        let vector: Option<Vec<f32>> = item
            .get("embedding")
            .and_then(Value::as_array)
            .and_then(|numbers| numbers.iter().map(|number| Some(number.as_f64()? as f32)).collect());
        match (vectors.get_mut(index), vector) {
            (Some(place), Some(vector)) if place.is_empty() && !vector.is_empty() => *place = vector,
            _ => return Err(format!("a vector at position {position} that is none, or is there twice")),
        }
    }
    Ok(vectors)
}

/// Keeps the leading dimensions and scales the rest to unit length. Fails if there are too few, or no direction.
pub(super) fn unit(mut vector: Vec<f32>, dimensions: Option<u32>) -> Result<Vec<f32>, String> {
    if let Some(dimensions) = dimensions.map(|dimensions| dimensions as usize) {
        if vector.len() < dimensions {
            return Err(format!("it sent a vector of {} dimensions where {dimensions} were asked for", vector.len()));
        }
        vector.truncate(dimensions);
    }
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err("it sent a vector without direction".to_string());
    }
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply(values: &[Value]) -> Reply {
        let mut reply = Reply::default();
        values.iter().for_each(|value| reply.absorb(value));
        reply
    }

    #[test]
    fn whole_and_streamed_answers_are_the_same() {
        let usage = json!({"prompt_tokens": 5, "completion_tokens": 2});
        let whole = reply(&[json!({
            "model": "m-1", "system_fingerprint": "fp", "usage": usage,
            "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
        })]);
        let streamed = reply(&[
            json!({"model": "m-1", "system_fingerprint": "fp", "choices": [{"delta": {"role": "assistant", "content": null}}]}),
            json!({"choices": [{"delta": {"content": "Hel"}, "finish_reason": null}]}),
            json!({"choices": [{"delta": {"content": "lo"}}]}),
            json!({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": null}),
            json!({"choices": [], "usage": usage}),
        ]);
        assert_eq!(whole, streamed);
        assert_eq!((whole.text.as_str(), whole.version.as_deref()), ("Hello", Some("m-1 fp")));
        let parts =
            json!({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]});
        assert_eq!(reply(&[parts]).text, "ab");
        assert_eq!(reply(&[json!({"choices": [{"text": "on", "finish_reason": "length"}]})]).text, "on");
        assert!(!reply(&[json!({"choices": []})]).has_choice);
    }

    #[test]
    fn refusals() {
        let refused = json!({"choices": [{"message": {"content": null, "refusal": "I cannot."}, "finish_reason": "stop"}]});
        assert_eq!(reply(&[refused]).refused().unwrap(), "the model refused: I cannot.");
        assert!(reply(&[json!({"choices": [{"message": {}, "finish_reason": "content_filter"}]})]).refused().is_some());
        assert!(reply(&[json!({"choices": [{"message": {}, "finish_reason": "stop"}]})]).refused().is_none());
    }

    #[test]
    fn cached_tokens_have_many_names() {
        for named in [
            json!({"prompt_tokens_details": {"cached_tokens": 7}}),
            json!({"prompt_cache_hit_tokens": 7}),
            json!({"cache_read_input_tokens": 7}),
        ] {
            let mut value = json!({"usage": {"prompt_tokens": 9, "completion_tokens": 1}});
            value["usage"].as_object_mut().unwrap().extend(named.as_object().unwrap().clone());
            assert_eq!(usage(&value).unwrap(), Usage { prompt: 9, cached: 7, output: 1, ..Usage::default() });
        }
        assert_eq!(usage(&json!({"usage": null})), None);
    }

    #[test]
    fn vectors_are_sorted_cut_and_scaled() {
        let data = json!({"data": [{"index": 1, "embedding": [0, 2.0]}, {"index": 0, "embedding": [3, 4]}]});
        let read = read_vectors(&data, 2).unwrap();
        assert_eq!(read, [[3.0, 4.0], [0.0, 2.0]]);
        assert_eq!(unit(read[0].clone(), None).unwrap(), [0.6, 0.8]);
        assert_eq!(unit(read[0].clone(), Some(1)).unwrap(), [1.0]);
        assert!(unit(read[0].clone(), Some(3)).unwrap_err().contains("2 dimensions where 3"));
        assert!(unit(vec![0.0, 0.0], None).is_err() && unit(vec![f32::NAN], None).is_err());
        assert!(read_vectors(&data, 3).unwrap_err().contains("2 vectors for 3 texts"));
        let twice = json!({"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]});
        assert!(read_vectors(&twice, 2).is_err());
        assert!(read_vectors(&json!({"data": [{"embedding": [1, "x"]}]}), 1).is_err());
    }
}
