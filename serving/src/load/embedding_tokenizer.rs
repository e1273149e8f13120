//! The tokenizer of an embedding model, over the Hugging Face `tokenizers` crate.
//!
//! A text becomes what the model was trained on: the tokens of the text between those that the file's post-processor adds, such
//! as `[CLS]` and `[SEP]`. These take the part of a chat template: [`render_chat`](Tokenizer::render_chat) puts them around a
//! text. As in [`HfTokenizer`](super::HfTokenizer), a text that spells `[SEP]` is ordinary text: it is encoded without any
//! added token. Unlike there, a tokenizer may lose bytes, such as WordPiece, which folds case: nothing is generated from it.

use std::collections::HashSet;
use std::fmt;

use serde_json::Value;

use super::tokenizer::{added_tokens, build, remove_added_tokens};
use crate::error::{Error, Result};
use crate::request::TokenId;
use crate::tokenizer::Tokenizer;

/// Token ids above this are taken for damage in the file.
const VOCABULARY_MAX: usize = 1 << 24;

/// A tokenizer.json of an embedding model.
pub struct EmbeddingTokenizer {
    plain: tokenizers::Tokenizer,
    control: tokenizers::Tokenizer,
    /// Tokens that row data may not become.
    control_ids: HashSet<TokenId>,
    /// The spelling of each token.
    spellings: Vec<Box<str>>,
    /// What stands before and after a text.
    frame: [String; 2],
    lower_case: bool,
}

impl EmbeddingTokenizer {
    /// Builds the tokenizer from the text of a tokenizer.json. With `lower_case`, text is put in lower case first.
    ///
    /// Fails if the file is not a tokenizer, or if its vocabulary is larger than `vocab_size`, that of the model.
    pub fn new(tokenizer_json: &str, vocab_size: usize, lower_case: bool) -> Result<Self> {
        let mut json: Value = serde_json::from_str(tokenizer_json)
            .map_err(|error| Error::Invalid(format!("the tokenizer is not JSON: {error}")))?;
        if !json.is_object() {
            return Err(Error::Invalid("the tokenizer is no JSON object".to_string()));
        }
        let added = added_tokens(&json);
        json["truncation"] = Value::Null;
        json["padding"] = Value::Null;
        let whole = build(&json)?;
        json["post_processor"] = Value::Null;
        let control = build(&json)?;
        let unknown = json["model"]["unk_token"].as_str().map(str::to_owned);
        remove_added_tokens(&mut json, &added);
        let plain = build(&json)?;

        let tokens = control.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        if tokens == 0 || tokens > VOCABULARY_MAX {
            return Err(Error::Invalid(format!("the tokenizer's largest token id is {}", tokens.saturating_sub(1))));
        }
        if tokens > vocab_size {
            return Err(Error::Invalid(format!("the tokenizer has {tokens} tokens, the model {vocab_size}")));
        }
        // The unknown token stands for words that the vocabulary lacks, so it is an ordinary one.
        let is_control = |content: &str| unknown.as_deref() != Some(content);
        let control_ids = added.iter().filter(|token| token.special && is_control(&token.content)).map(|token| token.id);
        let spelling = |id: usize| control.id_to_token(id as TokenId).unwrap_or_default().into_boxed_str();
        Ok(EmbeddingTokenizer {
            frame: frame(&whole)?,
            control_ids: control_ids.collect(),
            spellings: (0..vocab_size).map(spelling).collect(),
            plain,
            control,
            lower_case,
        })
    }

    /// Returns the tokens of a text as the model takes it, those around it included.
    pub fn encode_input(&self, text: &str) -> Vec<TokenId> {
        let [before, after] = &self.frame;
        [self.encode_control(before), self.encode(text), self.encode_control(after)].concat()
    }

    /// Encodes piece by piece a text of which some part, taken as a whole, is a control token of the model's own vocabulary.
    fn encode_by_character(&self, text: &str) -> Vec<TokenId> {
        let mut buffer = [0; 4];
        let tokens = text.chars().flat_map(|c| ids(&self.plain, c.encode_utf8(&mut buffer)));
        tokens.filter(|id| !self.control_ids.contains(id)).collect()
    }
}

impl Tokenizer for EmbeddingTokenizer {
    fn encode(&self, text: &str) -> Vec<TokenId> {
        if self.lower_case {
            return self.encode_cased(&text.to_lowercase());
        }
        self.encode_cased(text)
    }

    fn encode_control(&self, text: &str) -> Vec<TokenId> {
        if text.is_empty() { Vec::new() } else { ids(&self.control, text) }
    }

    fn decode(&self, tokens: &[TokenId]) -> String {
        // Unknown ids are no tokens; the rest always decodes.
        self.control.decode(tokens, true).unwrap_or_default()
    }

    fn token_bytes(&self, token: TokenId) -> &[u8] {
        match self.spellings.get(token as usize) {
            Some(text) if !self.control_ids.contains(&token) => text.as_bytes(),
            _ => &[],
        }
    }

    fn vocab_size(&self) -> usize {
        self.spellings.len()
    }

    fn end_tokens(&self) -> &[TokenId] {
        &[]
    }

    /// An embedding model has no roles: the text stands between the tokens of the frame, and the system text is left out.
    fn render_chat(&self, _system: &str, user: &str) -> Result<String> {
        let [before, after] = &self.frame;
        Ok(format!("{before}{user}{after}"))
    }
}

impl EmbeddingTokenizer {
    fn encode_cased(&self, text: &str) -> Vec<TokenId> {
        let tokens = ids(&self.plain, text);
        if tokens.iter().any(|id| self.control_ids.contains(id)) { self.encode_by_character(text) } else { tokens }
    }
}

impl fmt::Debug for EmbeddingTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddingTokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("frame", &self.frame)
            .finish_non_exhaustive()
    }
}

/// Finds out what the post-processor puts before and after a text. Fails if that cannot be said once for all texts.
fn frame(whole: &tokenizers::Tokenizer) -> Result<[String; 2]> {
    let unusable = |what: String| Error::Invalid(format!("the tokenizer cannot be used: {what}"));
    let encoding = whole.encode("a", true).map_err(|error| unusable(error.to_string()))?;
    let added = encoding.get_special_tokens_mask();
    let first = added.iter().position(|added| *added == 0).unwrap_or(added.len());
    let last = added.iter().rposition(|added| *added == 0).map_or(added.len(), |last| last + 1);
    let spell = |tokens: &[TokenId]| -> Result<String> {
        let spelled: String = tokens.iter().filter_map(|id| whole.id_to_token(*id)).collect();
        let read = if spelled.is_empty() { Vec::new() } else { ids(whole, &spelled) };
        if read == tokens {
            Ok(spelled)
        } else {
            Err(unusable(format!("its added tokens {spelled:?} are not control tokens")))
        }
    };
    Ok([spell(&encoding.get_ids()[..first])?, spell(&encoding.get_ids()[last..])?])
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Vec<TokenId> {
    // Encoding fails only where a model has no token for a part of the text and no unknown token either: that part is lost.
    tokenizer.encode_fast(text, false).map_or_else(|_| Vec::new(), |encoding| encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A WordPiece tokenizer of a few words, in the form that BERT models have.
    fn bert() -> Value {
        let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[", "]", "sep", "cls", "a", "b", "##b", "red"];
        let vocab: serde_json::Map<_, _> =
            words.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
        let added = |id: usize| {
            json!({"id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let special = |token: &str, id: usize| json!({"id": token, "ids": [id], "tokens": [token]});
        json!({
            "version": "1.0",
            "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [added(0), added(1), added(2), added(3)],
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}], "pair": [
                {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"[CLS]": special("[CLS]", 2), "[SEP]": special("[SEP]", 3)}},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab},
        })
    }

    fn tokenizer() -> EmbeddingTokenizer {
        EmbeddingTokenizer::new(&bert().to_string(), 16, false).unwrap()
    }

    #[test]
    fn text_stands_between_the_added_tokens_whole_and_unpadded() {
        assert_eq!(tokenizer().encode_input("Red ab b a a a"), [2, 11, 8, 10, 9, 8, 8, 8, 3]);
        assert_eq!(tokenizer().encode_input(""), [2, 3]);
        assert_eq!(tokenizer().render_chat("system", "x").unwrap(), "[CLS]x[SEP]");
    }

    #[test]
    fn text_that_spells_a_control_token_is_ordinary() {
        assert_eq!(tokenizer().encode_input("a[SEP] b"), [2, 8, 4, 6, 5, 9, 3]);
        assert_eq!(tokenizer().encode_control("a[SEP]"), [8, 3]);
        // A pre-tokenizer that splits at spaces alone would find the token in the vocabulary.
        let mut json = bert();
        json["pre_tokenizer"] = json!({"type": "WhitespaceSplit"});
        json["normalizer"] = Value::Null;
        let tokenizer = EmbeddingTokenizer::new(&json.to_string(), 16, false).unwrap();
        assert!(!tokenizer.encode("a [SEP] b").contains(&3));
    }

    #[test]
    fn unknown_words_are_the_unknown_token() {
        assert_eq!(tokenizer().encode("a unheard a"), [8, 1, 8]);
        assert_eq!(tokenizer().encode("a [UNK]"), [8, 4, 1, 5]);
        assert_eq!(tokenizer().decode(&[2, 8, 10, 11, 3]), "ab red");
        assert_eq!(
            (tokenizer().token_bytes(11), tokenizer().token_bytes(3), tokenizer().vocab_size()),
            (&b"red"[..], &b""[..], 16)
        );
    }

    #[test]
    fn lower_case_where_the_model_asks_for_it() {
        let mut json = bert();
        json["normalizer"] = Value::Null;
        let tokens = |lower_case| EmbeddingTokenizer::new(&json.to_string(), 16, lower_case).unwrap().encode("RED");
        assert_eq!((tokens(true), tokens(false)), (vec![11], vec![1]));
    }

    #[test]
    fn refuses_what_is_no_tokenizer() {
        for json in ["", "3", "[]", "{}", r#"{"model": {"type": "WordPiece"}}"#] {
            assert!(matches!(EmbeddingTokenizer::new(json, 16, false), Err(Error::Invalid(_))), "{json}");
        }
        let error = EmbeddingTokenizer::new(&bert().to_string(), 11, false).unwrap_err();
        assert!(error.to_string().contains("12 tokens, the model 11"), "{error}");
        let mut json = bert();
        json["added_tokens"] = json!([]);
        assert!(EmbeddingTokenizer::new(&json.to_string(), 16, false).is_err());
    }
}
