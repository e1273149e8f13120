//! The tokenizer of a model, over the Hugging Face `tokenizers` crate.
//!
//! It is built twice from one tokenizer.json: once as it is, for the text of chat templates, and once *plain*, without any
//! added token, for row data. So `<|assistant|>` in a review is a run of ordinary letters and signs, never the control token.
//!
//! Both leave out what the file would add on its own: the post-processor's special tokens, and the space that
//! SentencePiece models put before a text. A prompt is put together from segments that are encoded one by one, and only the
//! first of them begins a text. Truncation and padding are left out as well.

use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Value, json};

use super::chat_template::ChatTemplate;
use super::token_bytes::{Spelling, TokenBytes};
use crate::error::{Error, Result};
use crate::request::TokenId;
use crate::tokenizer::Tokenizer;

/// Token ids above this are taken for damage in the file.
const VOCABULARY_MAX: usize = 1 << 24;
/// So many ids may be unused, and as many again for each token: more are damage, and would take memory that no file backs.
const UNUSED_MAX: usize = 1 << 16;

/// A tokenizer.json together with the chat template of its model.
pub struct HfTokenizer {
    plain: tokenizers::Tokenizer,
    control: tokenizers::Tokenizer,
    control_ids: HashSet<TokenId>,
    bytes: TokenBytes,
    end_tokens: Vec<TokenId>,
    chat: ChatTemplate,
}

impl HfTokenizer {
    /// Builds the tokenizer from the bytes of a tokenizer.json. `end_tokens` end an answer.
    ///
    /// Fails if the file is not a tokenizer, if it is of a kind that loses bytes (WordPiece), or if an end token is not in it.
    pub fn from_bytes(tokenizer_json: &[u8], chat: ChatTemplate, end_tokens: Vec<TokenId>) -> Result<Self> {
        let mut json: Value = serde_json::from_slice(tokenizer_json)
            .map_err(|error| Error::Invalid(format!("the tokenizer is not JSON: {error}")))?;
        let spelling = Spelling::detect(&json)?;
        let added = added_tokens(&json);
        remove_automatic_tokens(&mut json);
        let control = build(&json)?;
        remove_added_tokens(&mut json, &added);
        let plain = build(&json)?;

        let vocab = control.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |id| *id as usize + 1);
        if vocab_size == 0 || vocab_size > VOCABULARY_MAX.min(2 * vocab.len() + UNUSED_MAX) {
            let (largest, tokens) = (vocab_size.saturating_sub(1), vocab.len());
            return Err(Error::Invalid(format!("the tokenizer's largest token id is {largest}, for {tokens} tokens")));
        }
        let control_ids: HashSet<_> = added.iter().filter(|token| token.special).map(|token| token.id).collect();
        let literal: HashSet<_> = added.iter().filter(|token| !token.special).map(|token| token.id).collect();
        let bytes = TokenBytes::new(spelling, vocab_size, |id| control.id_to_token(id), &control_ids, &literal);
        HfTokenizer { plain, control, control_ids, bytes, end_tokens: vec![], chat }.with_end_tokens(end_tokens)
    }

    /// Returns the tokenizer with other end tokens. Fails if one is not in the vocabulary.
    pub fn with_end_tokens(mut self, mut end_tokens: Vec<TokenId>) -> Result<Self> {
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let tokens = self.vocab_size();
        if let Some(id) = end_tokens.iter().find(|id| **id as usize >= tokens) {
            return Err(Error::Invalid(format!("the end token {id} is not among the {tokens} tokens of the vocabulary")));
        }
        self.end_tokens = end_tokens;
        Ok(self)
    }

    /// Returns the tokenizer with unused ids up to the vocabulary of its model, which may be padded.
    ///
    /// Fails if the model knows fewer tokens than the tokenizer.
    pub fn padded_to(mut self, vocab_size: usize) -> Result<Self> {
        if vocab_size < self.bytes.len() {
            let tokens = self.bytes.len();
            return Err(Error::Invalid(format!("the tokenizer has {tokens} tokens, the model {vocab_size}")));
        }
        self.bytes.pad(vocab_size);
        Ok(self)
    }

    /// Returns the id of a token by its text, control tokens included.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.control.token_to_id(token)
    }

    /// Encodes piece by piece a text of which some part, taken as a whole, is a control token of the model's own vocabulary.
    fn encode_by_character(&self, text: &str) -> Vec<TokenId> {
        let mut buffer = [0; 4];
        let tokens = text.chars().flat_map(|c| ids(&self.plain, c.encode_utf8(&mut buffer)));
        tokens.filter(|id| !self.control_ids.contains(id)).collect()
    }
}

impl Tokenizer for HfTokenizer {
    fn encode(&self, text: &str) -> Vec<TokenId> {
        let tokens = ids(&self.plain, text);
        if tokens.iter().any(|id| self.control_ids.contains(id)) { self.encode_by_character(text) } else { tokens }
    }

    fn encode_control(&self, text: &str) -> Vec<TokenId> {
        ids(&self.control, text)
    }

    fn decode(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.bytes.get(*token)).copied().collect();
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.bytes.get(token)
    }

    fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    fn end_tokens(&self) -> &[TokenId] {
        &self.end_tokens
    }

    fn render_chat(&self, system: &str, user: &str) -> Result<String> {
        self.chat.render(system, user)
    }
}

impl fmt::Debug for HfTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HfTokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("end_tokens", &self.end_tokens)
            .finish_non_exhaustive()
    }
}

/// A token that the file adds to the model's vocabulary.
pub(super) struct AddedToken {
    pub(super) id: TokenId,
    pub(super) content: String,
    pub(super) special: bool,
}

pub(super) fn added_tokens(json: &Value) -> Vec<AddedToken> {
    let tokens = json["added_tokens"].as_array().into_iter().flatten();
    let read = |token: &Value| {
        let id = TokenId::try_from(token["id"].as_u64()?).ok()?;
        let content = token["content"].as_str()?.to_owned();
        Some(AddedToken { id, content, special: token["special"].as_bool().unwrap_or(false) })
    };
    tokens.filter_map(read).collect()
}

/// Takes out everything that adds tokens or characters to a text.
fn remove_automatic_tokens(json: &mut Value) {
    for part in ["post_processor", "truncation", "padding"] {
        json[part] = Value::Null;
    }
    remove_dummy_prefix(&mut json["normalizer"]);
    remove_dummy_prefix(&mut json["pre_tokenizer"]);
}

/// Takes out the space before a text, in the three ways in which files ask for it.
fn remove_dummy_prefix(component: &mut Value) {
    match component["type"].as_str() {
        Some("Prepend") => *component = json!({"type": "Sequence", "normalizers": []}),
        Some("Metaspace") => {
            component["prepend_scheme"] = json!("never");
            component.as_object_mut().and_then(|fields| fields.remove("add_prefix_space"));
        }
        Some("ByteLevel") => component["add_prefix_space"] = json!(false),
        Some("Sequence") => {
            for key in ["normalizers", "pretokenizers"] {
                component.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().for_each(remove_dummy_prefix);
            }
        }
        _ => {}
    }
}

/// Takes out the added tokens, also where the model's own vocabulary lists them. The unknown token stays: some models need it.
pub(super) fn remove_added_tokens(json: &mut Value, added: &[AddedToken]) {
    json["added_tokens"] = json!([]);
    let model = &mut json["model"];
    if model["type"].as_str().is_some_and(|kind| kind != "BPE") {
        return; // In other models a token's place is its id.
    }
    let unknown = model["unk_token"].as_str().map(str::to_owned);
    let merged = merged_tokens(&model["merges"]);
    let Some(vocab) = model.get_mut("vocab").and_then(Value::as_object_mut) else {
        return;
    };
    let removed: HashSet<&str> = added.iter().map(|token| token.content.as_str()).collect();
    vocab.retain(|token, _| !removed.contains(token.as_str()) || merged.contains(token) || unknown.as_ref() == Some(token));
}

/// Returns the tokens that merges need: their parts and their results.
fn merged_tokens(merges: &Value) -> HashSet<String> {
    let mut tokens = HashSet::new();
    for merge in merges.as_array().into_iter().flatten() {
        let parts = match merge {
            Value::String(line) => line.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        if let Some((left, right)) = parts {
            tokens.extend([left.to_owned(), right.to_owned(), format!("{left}{right}")]);
        }
    }
    tokens
}

/// Texts on which every tokenizer is tried: none, words and runs of space, characters of one, two and four bytes.
const TRIALS: [&str; 3] = ["", "the  word\n\n é🦙 12", "é🦙\u{0}"];

/// Builds a tokenizer. It is tried once, since a file may ask for what makes the library panic.
pub(super) fn build(json: &Value) -> Result<tokenizers::Tokenizer> {
    if ["normalizer", "pre_tokenizer", "decoder"].iter().any(|part| matches_nothing(&json[*part])) {
        return Err(Error::Invalid("the tokenizer has a pattern that is the empty text: fetch the file again".to_owned()));
    }
    let text = json.to_string();
    let tokenizer: tokenizers::Tokenizer =
        text.parse().map_err(|error| Error::Invalid(format!("the tokenizer cannot be used: {error}")))?;
    let trial = || TRIALS.iter().for_each(|text| drop(ids(&tokenizer, text)));
    match catch_unwind(AssertUnwindSafe(trial)) {
        Ok(()) => Ok(tokenizer),
        Err(_) => Err(Error::Invalid("the tokenizer fails on an ordinary text: fetch the file again".to_owned())),
    }
}

/// Returns whether a component, or a part of it, has an empty pattern, whose matches the library counts wrongly.
fn matches_nothing(component: &Value) -> bool {
    match component {
        Value::Object(fields) => {
            let is_empty = |kind: &str| fields.get("pattern").is_some_and(|pattern| pattern[kind] == "");
            is_empty("String") || is_empty("Regex") || fields.values().any(matches_nothing)
        }
        Value::Array(parts) => parts.iter().any(matches_nothing),
        _ => false,
    }
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Vec<TokenId> {
    // Encoding fails only where a model has no token for a character and no unknown token either: that character is lost.
    match tokenizer.encode_fast(text, false) {
        Ok(encoding) => encoding.get_ids().to_vec(),
        Err(_) if text.chars().nth(1).is_some() => {
            text.chars().flat_map(|character| ids(tokenizer, character.encode_utf8(&mut [0; 4]))).collect()
        }
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static MINI: LazyLock<HfTokenizer> = LazyLock::new(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini/tokenizer.json");
        HfTokenizer::from_bytes(&std::fs::read(path).unwrap(), ChatTemplate::plain(), vec![2]).unwrap()
    });

    static METASPACE: LazyLock<HfTokenizer> = LazyLock::new(metaspace);

    /// A SentencePiece-like tokenizer with byte fallback, a dummy prefix, and added tokens of both kinds.
    fn metaspace() -> HfTokenizer {
        let mut vocab = serde_json::Map::new();
        let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
        let words = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter().chain(bytes);
        for token in words.chain(["▁", "a", "b", "▁a", "ab"].map(str::to_owned)) {
            vocab.insert(token, json!(vocab.len()));
        }
        let added = |id: usize, content: &str, special: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": special})
        };
        let json = json!({
            "version": "1.0",
            "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true), added(vocab.len(), "[tool]", false)],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens":
                {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                "merges": ["▁ a", "a b"]},
        });
        HfTokenizer::from_bytes(json.to_string().as_bytes(), ChatTemplate::plain(), vec![2]).unwrap()
    }

    #[test]
    fn control_tokens_come_from_template_text_alone() {
        let text = "<|user|>hi<|end|>";
        assert_eq!(MINI.encode_control(text)[0], 4);
        assert!(MINI.encode(text).iter().all(|id| *id > 5));
        assert_eq!(MINI.decode(&MINI.encode(text)), text);
        assert_eq!(MINI.decode(&MINI.encode_control(text)), "hi");
    }

    #[test]
    fn added_tokens_that_are_not_special_are_plain_in_row_data() {
        let tokenizer = &*METASPACE;
        assert_eq!(tokenizer.encode_control("[tool]").len(), 1);
        assert_eq!(tokenizer.encode("[tool]").len(), 6);
        assert_eq!(tokenizer.decode(&tokenizer.encode_control("<s>[tool]")), "[tool]");
        assert!(!tokenizer.encode("<s>").contains(&1));
    }

    #[test]
    fn nothing_is_added_in_front() {
        let tokenizer = &*METASPACE;
        assert_eq!(tokenizer.decode(&tokenizer.encode("ab")), "ab");
        assert_eq!(tokenizer.encode("ab").len(), 1);
        assert!(tokenizer.encode("").is_empty());
    }

    #[test]
    fn tokens_are_bytes() {
        let token = |text: &str| MINI.encode(text)[0];
        assert_eq!(MINI.token_bytes(token(" the")), b" the");
        assert_eq!(MINI.token_bytes(2), b"");
        assert_eq!(MINI.token_bytes(u32::MAX), b"");
        assert_eq!(MINI.decode(&[token("é"), u32::MAX]), "é");
        assert_eq!(MINI.vocab_size(), 16384);
    }

    #[test]
    fn half_a_character_decodes_to_a_replacement() {
        let tokens = MINI.encode("\u{10FFFF}");
        assert!(tokens.len() > 1);
        assert_eq!(MINI.decode(&tokens[..1]), "\u{FFFD}");
    }

    #[test]
    fn refuses_what_is_no_tokenizer() {
        let far = r#"{"decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {"a": 9999999}, "merges": []}}"#;
        let decoders = [r#"{"decoder": {"type": "WordPiece"}}"#, r#"{"decoder": {"type": "ByteLevel"}}"#];
        for json in ["", "3", "[]", "{}", far].into_iter().chain(decoders) {
            let built = HfTokenizer::from_bytes(json.as_bytes(), ChatTemplate::plain(), vec![]);
            assert!(matches!(built, Err(Error::Invalid(_))), "{json}");
        }
    }

    #[test]
    fn refuses_a_pattern_that_is_empty() {
        let json = json!({
            "normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "▁"},
            "decoder": {"type": "ByteFallback"},
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        });
        let error = HfTokenizer::from_bytes(json.to_string().as_bytes(), ChatTemplate::plain(), vec![]).unwrap_err();
        assert!(error.to_string().contains("a pattern that is the empty text"), "{error}");
    }

    /// Text with a good share of what control tokens are made of.
    fn any_text() -> impl Strategy<Value = String> {
        let control = prop::sample::select(vec![
            "<|user|>",
            "<|end|>",
            "<|",
            "|>",
            "<|assistant|",
            "assistant",
            "<s>",
            "[tool]",
            "\n",
        ]);
        let piece = prop_oneof![3 => any::<String>(), 3 => control.prop_map(str::to_owned), 1 => "[ -~]{0,12}"];
        prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn row_data_never_becomes_control_tokens(text in any_text()) {
            for tokenizer in [&*MINI, &*METASPACE] {
                let control = |id: &TokenId| tokenizer.control_ids.contains(id);
                prop_assert!(!tokenizer.encode(&text).iter().any(control));
            }
        }

        #[test]
        fn decoding_gives_the_text_back(text in any_text()) {
            for tokenizer in [&*MINI, &*METASPACE] {
                prop_assert_eq!(&tokenizer.decode(&tokenizer.encode(&text)), &text);
            }
        }

        /// Prompts are put together from segments that are encoded one by one, so no merge may cross a seam. In the byte-level
        /// tokenizers in use (GPT-2, Llama 3, Qwen, ours) the pre-tokenizer's expression splits a text before any merge. Runs
        /// of signs such as `",` or `{"` reach to the next letter, digit or space and take line ends with them, but no space:
        /// a space begins the next piece. So a piece ends after `",` when a space follows, and after a line end when a sign
        /// follows, whatever the value was.
        #[test]
        fn no_merge_crosses_a_seam(
            head in "[ -~é\n]{0,20}", labels in prop::collection::vec("[a-zA-Z_][a-zA-Z0-9_ ]{0,12}", 3), values in prop::collection::vec(any::<String>(), 3),
        ) {
            let field = |i: usize| format!("{}: {}", json!(labels[i]), json!(values[i]));
            let segments = [
                format!("{head}\n"), format!("{{{},", field(0)), format!(" {},", field(1)), format!(" {}}}", field(2)),
            ];
            let apart: Vec<TokenId> = segments.iter().flat_map(|segment| MINI.encode(segment)).collect();
            prop_assert_eq!(apart, MINI.encode(&segments.concat()));
        }
    }
}
