//! The bytes that each token of a vocabulary stands for.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::request::TokenId;

/// How a vocabulary writes bytes as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2: each byte is one character of a printable alphabet.
    ByteLevel,
    /// SentencePiece: text with `▁` for a space, and `<0xNN>` for a byte that no token covers.
    Metaspace,
}

impl Spelling {
    /// Finds out how the vocabulary of a tokenizer.json is spelt. Fails for tokenizers that lose bytes, such as WordPiece.
    pub(super) fn detect(json: &Value) -> Result<Self> {
        let parts: Vec<&str> =
            ["normalizer", "pre_tokenizer", "decoder"].iter().flat_map(|part| types(&json[*part])).collect();
        if parts.contains(&"ByteLevel") {
            return Ok(Spelling::ByteLevel);
        }
        let replaces_space = ["normalizer", "decoder"].iter().any(|part| json[*part].to_string().contains('▁'));
        if parts.contains(&"Metaspace") || parts.contains(&"ByteFallback") || replaces_space {
            return Ok(Spelling::Metaspace);
        }
        Err(Error::Invalid(
            "the tokenizer is neither byte-level nor SentencePiece-like; only these two kinds keep text exactly".to_owned(),
        ))
    }
}

/// Returns the `type` of a component, and of its parts if it is a sequence.
fn types(component: &Value) -> Vec<&str> {
    let own = component["type"].as_str();
    let parts = ["pretokenizers", "normalizers", "decoders"].iter().filter_map(|key| component[*key].as_array()).flatten();
    own.into_iter().chain(parts.flat_map(types)).collect()
}

/// Bytes of all tokens, one after the other.
#[derive(Clone, Debug)]
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// Token `t` has `bytes[ends[t - 1]..ends[t]]`.
    ends: Vec<usize>,
}

impl TokenBytes {
    /// Collects the bytes of tokens `0..vocab_size`; control tokens and unused ids have none. `literal` tokens stand for
    /// themselves, whatever the spelling.
    pub(super) fn new(
        spelling: Spelling,
        vocab_size: usize,
        token: impl Fn(TokenId) -> Option<String>,
        control: &HashSet<TokenId>,
        literal: &HashSet<TokenId>,
    ) -> Self {
        let byte_of = byte_alphabet();
        let mut all = TokenBytes { bytes: Vec::new(), ends: Vec::with_capacity(vocab_size) };
        for id in 0..vocab_size as TokenId {
            if let Some(text) = token(id).filter(|_| !control.contains(&id)) {
                match spelling {
                    _ if literal.contains(&id) => all.bytes.extend(text.as_bytes()),
                    Spelling::ByteLevel => all.bytes.extend(text.chars().filter_map(|c| byte_of.get(&c).copied())),
                    Spelling::Metaspace => all.push_metaspace(&text),
                }
            }
            all.ends.push(all.bytes.len());
        }
        all
    }

    fn push_metaspace(&mut self, text: &str) {
        let fallback = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
        match fallback.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => self.bytes.push(byte),
            None => self.bytes.extend(text.replace('▁', " ").as_bytes()),
        }
    }

    /// Returns the bytes of a token; none for an id outside the vocabulary.
    pub(super) fn get(&self, token: TokenId) -> &[u8] {
        let Some(end) = self.ends.get(token as usize) else {
            return &[];
        };
        let start = if token == 0 { 0 } else { self.ends[token as usize - 1] };
        &self.bytes[start..*end]
    }

    /// Returns the number of tokens.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Adds tokens without bytes up to `vocab_size`.
    pub(super) fn pad(&mut self, vocab_size: usize) {
        self.ends.resize(vocab_size.max(self.ends.len()), self.bytes.len());
    }
}

/// The GPT-2 alphabet: each character's byte. Printable bytes are themselves, the others follow from U+0100 on.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut unprintable = (0x100..).filter_map(char::from_u32);
    let character = |byte: u8| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(char::from(byte)),
        _ => unprintable.next(),
    };
    let characters: Vec<_> = (0..=u8::MAX).filter_map(character).collect();
    characters.into_iter().zip(0..=u8::MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bytes(spelling: Spelling, tokens: &[&str]) -> Vec<Vec<u8>> {
        let none = HashSet::new();
        let token = |id: TokenId| Some(tokens[id as usize].to_owned());
        let all = TokenBytes::new(spelling, tokens.len(), token, &none, &none);
        (0..tokens.len() as TokenId).map(|id| all.get(id).to_vec()).collect()
    }

    #[test]
    fn byte_level_tokens_are_bytes() {
        let found = bytes(Spelling::ByteLevel, &["a", "Ġthe", "Ċ", "Ã©", "ÿ"]);
        assert_eq!(found, [b"a".to_vec(), b" the".to_vec(), b"\n".to_vec(), "é".as_bytes().to_vec(), vec![0xff]]);
    }

    #[test]
    fn sentencepiece_tokens_have_spaces_and_byte_fallback() {
        let found = bytes(Spelling::Metaspace, &["▁the", "<0xE2>", "é", "<0xZZ>"]);
        assert_eq!(found, [b" the".to_vec(), vec![0xe2], "é".as_bytes().to_vec(), b"<0xZZ>".to_vec()]);
    }

    #[test]
    fn control_tokens_have_no_bytes_and_literal_ones_are_themselves() {
        let tokens = ["<|end|>", "<é>", "a"];
        let token = |id: TokenId| tokens.get(id as usize).map(|text| (*text).to_owned());
        let mut all = TokenBytes::new(Spelling::ByteLevel, 3, token, &HashSet::from([0]), &HashSet::from([1]));
        all.pad(5);
        assert_eq!((all.get(0), all.get(1), all.get(2)), (&b""[..], "<é>".as_bytes(), &b"a"[..]));
        assert_eq!((all.len(), all.get(4), all.get(99)), (5, &b""[..], &b""[..]));
    }

    #[test]
    fn the_spelling_is_detected() {
        let sequence = json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}});
        assert_eq!(Spelling::detect(&sequence).unwrap(), Spelling::ByteLevel);
        let metaspace = json!({"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}});
        assert_eq!(Spelling::detect(&metaspace).unwrap(), Spelling::Metaspace);
        assert!(Spelling::detect(&json!({"decoder": {"type": "WordPiece"}})).is_err());
    }
}
