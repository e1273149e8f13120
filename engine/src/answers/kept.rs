//! An answer as it is kept, and where it came from.
//!
//! Text is kept rather than the SQL value: parsing it again takes a microsecond, gives what a fresh answer would give, and does
//! not tie files to a version of Arrow.

use std::sync::Arc;

use refrain_serving::{Answer, FinishReason};
use serde_json::{Value, json};

/// Identity of a question: function, prompt layout, model, options, and inputs as declared.
pub type Key = [u8; 32];

/// The first byte of a kept answer.
const TEXT: u8 = b't';
const VECTOR: u8 = b'v';

/// What is kept of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Kept {
    /// Its text.
    Text(Arc<str>),
    /// Its vector.
    Vector(Arc<[f32]>),
}

impl Kept {
    /// Takes what is to be kept of an answer. `None` for one with probabilities, which would not be whole without them.
    pub fn of(answer: &Answer) -> Option<Kept> {
        match &answer.embedding {
            _ if !answer.logprobs.is_empty() => None,
            Some(vector) => Some(Kept::Vector(vector.as_slice().into())),
            None => Some(Kept::Text(answer.text.as_str().into())),
        }
    }

    /// Returns the answer, without its tokens.
    pub fn to_answer(&self) -> Answer {
        match self {
            Kept::Text(text) => Answer::text(text.to_string(), vec![], FinishReason::Stop),
            Kept::Vector(vector) => {
                Answer { embedding: Some(vector.to_vec()), ..Answer::text(String::new(), vec![], FinishReason::Stop) }
            }
        }
    }

    /// Returns the bytes that [`decode`](Self::decode) reads.
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Kept::Text(text) => [&[TEXT], text.as_bytes()].concat(),
            Kept::Vector(vector) => [VECTOR].into_iter().chain(vector.iter().flat_map(|x| x.to_le_bytes())).collect(),
        }
    }

    /// Reads an answer; `None` if these bytes are none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Kept> {
        match bytes.split_first()? {
            (&TEXT, text) => Some(Kept::Text(std::str::from_utf8(text).ok()?.into())),
            (&VECTOR, vector) => {
                let (floats, []) = vector.as_chunks::<4>() else { return None };
                Some(Kept::Vector(floats.iter().map(|float| f32::from_le_bytes(*float)).collect()))
            }
            _ => None,
        }
    }

    /// Returns the size of the text or vector.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Kept::Text(text) => text.len(),
            Kept::Vector(vector) => size_of_val(vector.as_ref()),
        }
    }
}

/// Where a group of answers came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Provenance {
    /// The function, such as `ai_filter`.
    pub function: String,
    /// Identity of the model.
    pub model_digest: String,
    /// Digest of instruction, labels and options, in hexadecimal.
    pub prompt_hash: String,
    /// The version of the texts around instruction and data.
    pub layout_version: u32,
    /// The order of the fields in the prompt, where one order served all rows.
    pub column_order: Vec<String>,
}

impl Provenance {
    /// Returns the JSON text that [`from_json`](Self::from_json) reads.
    pub(super) fn to_json(&self) -> String {
        let Provenance { function, model_digest, prompt_hash, layout_version, column_order } = self;
        json!({
            "function": function,
            "model_digest": model_digest,
            "prompt_hash": prompt_hash,
            "layout_version": layout_version,
            "column_order": column_order,
        })
        .to_string()
    }

    /// Reads a provenance; what is missing is empty.
    pub(super) fn from_json(text: &str) -> Provenance {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let string = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let order = value["column_order"].as_array().into_iter().flatten();
        Provenance {
            function: string("function"),
            model_digest: string("model_digest"),
            prompt_hash: string("prompt_hash"),
            layout_version: value["layout_version"].as_u64().and_then(|n| n.try_into().ok()).unwrap_or(0),
            column_order: order.filter_map(|label| label.as_str().map(str::to_owned)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_as_they_were() {
        for kept in [Kept::Text("".into()), Kept::Text("Yes, né".into()), Kept::Vector(vec![0.5, -1.25].into())] {
            assert_eq!(Kept::decode(&kept.encode()), Some(kept.clone()));
            assert_eq!(Kept::of(&kept.to_answer()), Some(kept));
        }
        for wrong in [&b""[..], b"x", b"t\xff", b"v123"] {
            assert_eq!(Kept::decode(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn provenance_comes_back_as_it_was() {
        let provenance = Provenance {
            function: "ai_filter".into(),
            model_digest: "m".into(),
            prompt_hash: "p".into(),
            layout_version: 1,
            column_order: vec!["b\"".into(), "a".into()],
        };
        assert_eq!(Provenance::from_json(&provenance.to_json()), provenance);
        assert_eq!(Provenance::from_json("not JSON"), Provenance::default());
    }
}
