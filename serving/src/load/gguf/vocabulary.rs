//! The tokenizer and the chat template in a GGUF file, written as tokenizer.json and tokenizer_config.json.
//!
//! Two kinds keep text exactly and are read: byte-level BPE (`gpt2`), which has merges and a named way to split a text, and
//! SentencePiece BPE (`llama`), which has a score for each token instead. There, two neighbours join if the token of both has
//! the best score of all; in the order of their scores these joins are merges, as when transformers converts such a model.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::header::{Contents, Meta};
use super::pre_tokenizer::{KNOWN, pre_tokenizer};
use crate::error::Result;
use crate::request::TokenId;

/// The most tokens of a vocabulary; the largest have some 260,000. Bounds the memory that a hostile file takes.
const TOKENS_MAX: u64 = 1 << 20;
/// The most merges; the largest vocabularies have some 580,000.
const MERGES_MAX: u64 = 1 << 21;
/// The longest token of a SentencePiece vocabulary, in bytes: each split of a token is looked up.
const SCORED_TOKEN_MAX: usize = 512;
/// What to do about a vocabulary that cannot be used.
const CURE: &str = "fetch the file again, or put the model's tokenizer.json beside it";

/// Texts of control tokens that end an answer, whether or not the file says so.
const END_TEXTS: [&str; 7] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>"];

/// The plain form of a prompt, after the token that begins a text.
const TEMPLATE_WITH_BOS: &str = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\
                                 {{ '\\n' if loop.last else '\\n\\n' }}{% endfor %}";

/// The tokenizer of a GGUF file.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    /// As the model's tokenizer.json.
    pub(crate) tokenizer_json: String,
    /// As its tokenizer_config.json: special tokens and chat template.
    pub(crate) tokenizer_config: Value,
    /// Tokens that end an answer by their text.
    pub(crate) end_tokens: Vec<TokenId>,
}

impl Vocabulary {
    /// Reads the tokenizer, or none if there is no vocabulary in the file.
    ///
    /// Fails if it is damaged or of a kind that is not supported.
    pub(super) fn read(file: &Contents) -> Result<Option<Self>> {
        let kind = match file.meta("tokenizer.ggml.model") {
            None => return Ok(None),
            Some(Meta::Text(kind)) if kind == "no_vocab" || kind == "none" => return Ok(None),
            Some(Meta::Text(kind)) => kind.as_str(),
            Some(other) => return Err(file.storage.error(format!("tokenizer.ggml.model is {other:?}; {CURE}"))),
        };
        let tokens = Tokens::read(file)?;
        let json = match kind {
            "gpt2" => byte_level(file, &tokens)?,
            "llama" => sentence_piece(file, &tokens)?,
            other => {
                return Err(file.storage.error(format!(
                    "the tokenizer is of kind {other}; supported are gpt2 and llama: put the model's tokenizer.json beside it"
                )));
            }
        };
        Ok(Some(Vocabulary {
            tokenizer_json: json.to_string(),
            tokenizer_config: tokenizer_config(file)?,
            end_tokens: tokens.ends(),
        }))
    }
}

/// Returns what the file's tokenizer_config.json would hold.
pub(super) fn tokenizer_config(file: &Contents) -> Result<Value> {
    let tokens = file.texts("tokenizer.ggml.tokens", TOKENS_MAX)?.unwrap_or_default();
    let mut config = Map::new();
    for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")] {
        let id = token_id(file, &format!("tokenizer.ggml.{key}_token_id"));
        if let Some(token) = id.and_then(|id| tokens.get(id)) {
            config.insert(name.to_owned(), json!(token));
        }
    }
    let template = match file.meta("tokenizer.chat_template") {
        Some(Meta::Text(template)) => Some(template.as_str()),
        _ => (adds_bos(file) && config.contains_key("bos_token")).then_some(TEMPLATE_WITH_BOS),
    };
    config.extend(template.map(|template| ("chat_template".to_owned(), json!(template))));
    Ok(Value::Object(config))
}

/// Returns whether texts begin with the token for their beginning.
fn adds_bos(file: &Contents) -> bool {
    match (file.meta("tokenizer.ggml.add_bos_token"), file.meta("tokenizer.ggml.model"), file.meta("tokenizer.ggml.pre")) {
        (Some(Meta::Bool(adds)), ..) => *adds,
        (_, Some(Meta::Text(kind)), _) if kind == "llama" => true,
        (_, _, Some(Meta::Text(name))) => pre_tokenizer(name).is_some_and(|pre| pre.add_bos),
        _ => false,
    }
}

fn token_id(file: &Contents, key: &str) -> Option<usize> {
    match file.meta(key) {
        Some(Meta::Unsigned(id)) => usize::try_from(*id).ok(),
        Some(Meta::Signed(id)) => usize::try_from(*id).ok(),
        _ => None,
    }
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The tokens of a file, in the order of their ids.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<Kind>,
}

impl Tokens {
    /// Reads the tokens. Fails if two have one text, since then a text would not say which of them is meant.
    fn read(file: &Contents) -> Result<Self> {
        let texts = file.texts("tokenizer.ggml.tokens", TOKENS_MAX)?;
        let texts = texts.filter(|texts| !texts.is_empty());
        let texts = texts.ok_or_else(|| file.storage.error(format!("tokenizer.ggml.tokens is missing: {CURE}")))?;
        let mut kinds = match file.numbers("tokenizer.ggml.token_type", TOKENS_MAX)? {
            None => vec![Kind::Normal; texts.len()],
            Some(kinds) if kinds.len() == texts.len() => kinds.into_iter().map(kind).collect(),
            Some(kinds) => {
                let (found, expected) = (kinds.len(), texts.len());
                return Err(file.storage.error(format!("there are {found} token types for {expected} tokens: {CURE}")));
            }
        };
        let mut seen = HashMap::with_capacity(texts.len());
        for (id, (text, kind)) in texts.iter().zip(&mut kinds).enumerate() {
            if text.is_empty() {
                *kind = Kind::Unused;
            } else if let Some(first) = seen.insert(text.as_str(), id) {
                return Err(file.storage.error(format!("tokens {first} and {id} are both {text:?}: {CURE}")));
            }
        }
        Ok(Tokens { texts, kinds })
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &str, Kind)> {
        self.texts.iter().zip(&self.kinds).enumerate().map(|(id, (text, kind))| (id, text.as_str(), *kind))
    }

    /// Returns the control tokens that end an answer by their text.
    fn ends(&self) -> Vec<TokenId> {
        let ends = self
            .iter()
            .filter(|(_, text, kind)| matches!(kind, Kind::Control | Kind::UserDefined) && END_TEXTS.contains(text));
        ends.map(|(id, ..)| id as TokenId).collect()
    }

    /// Returns the vocabulary of a tokenizer.json. Unused tokens are left out: no text may become one.
    fn vocab(&self) -> Map<String, Value> {
        self.iter().filter(|(.., kind)| *kind != Kind::Unused).map(|(id, text, _)| (text.to_owned(), json!(id))).collect()
    }

    /// Returns the added tokens of a tokenizer.json. `strips` says after which control tokens space is dropped.
    fn added(&self, strips: impl Fn(&str) -> bool) -> Vec<Value> {
        let added = self.iter().filter_map(|(id, text, kind)| {
            let special = match kind {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                Kind::Normal | Kind::Unused | Kind::Byte => return None,
            };
            Some(json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": strips(text),
                "normalized": false, "special": special}))
        });
        added.collect()
    }
}

fn kind(number: f64) -> Kind {
    match number as i64 {
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => Kind::Normal,
    }
}

/// Returns after which control tokens space is dropped: the file does not say, but Phi-3 is known to do so.
fn strips(file: &Contents) -> impl Fn(&str) -> bool {
    let name = match file.meta("general.name") {
        Some(Meta::Text(name)) => name.to_lowercase(),
        _ => String::new(),
    };
    let phi3 = name.contains("phi-3") || name.contains("phi3");
    move |token| phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&token)
}

/// Writes the tokenizer.json of a byte-level BPE tokenizer.
fn byte_level(file: &Contents, tokens: &Tokens) -> Result<Value> {
    let name = match file.meta("tokenizer.ggml.pre") {
        Some(Meta::Text(name)) => name.as_str(),
        _ => "default",
    };
    let pre_tokenizer = pre_tokenizer(name).ok_or_else(|| {
        let reason = format!("the pre-tokenizer is {name}; supported are {KNOWN}");
        file.storage.error(format!("{reason}: put the model's tokenizer.json beside the file"))
    })?;
    let split =
        |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let parts: Vec<Value> = pre_tokenizer.splits.iter().map(split).chain([byte_level.clone()]).collect();
    Ok(json!({
        "version": "1.0",
        "added_tokens": tokens.added(strips(file)),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre_tokenizer.ignore_merges, "vocab": tokens.vocab(), "merges": merges(file, tokens)?,
        },
    }))
}

/// Reads merges. Fails if one names a token that is not in the vocabulary.
fn merges(file: &Contents, tokens: &Tokens) -> Result<Vec<Value>> {
    let refuse = |reason: String| file.storage.error(format!("{reason}: {CURE}"));
    let lines = file.texts("tokenizer.ggml.merges", MERGES_MAX)?;
    let lines = lines.ok_or_else(|| refuse("tokenizer.ggml.merges is missing".to_owned()))?;
    let known: HashSet<&str> = tokens.iter().filter(|(.., kind)| *kind != Kind::Unused).map(|(_, text, _)| text).collect();
    let merge = |(index, line): (usize, &String)| {
        // The first token may itself begin with a space.
        let space = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let Some((left, right)) = space.map(|at| (&line[..at], &line[at + 1..])) else {
            return Err(refuse(format!("merge {index} is {line:?} instead of two tokens")));
        };
        match [left, right, &format!("{left}{right}")].into_iter().find(|token| !known.contains(token)) {
            Some(token) => Err(refuse(format!("merge {index} names the token {token:?}, which is not in the vocabulary"))),
            None => Ok(json!([left, right])),
        }
    };
    lines.iter().enumerate().map(merge).collect()
}

/// Writes the tokenizer.json of a SentencePiece tokenizer.
fn sentence_piece(file: &Contents, tokens: &Tokens) -> Result<Value> {
    let refuse = |reason: String| file.storage.error(format!("{reason}: {CURE}"));
    let scores = file.numbers("tokenizer.ggml.scores", TOKENS_MAX)?.filter(|scores| scores.len() == tokens.texts.len());
    let scores = scores.ok_or_else(|| refuse("tokenizer.ggml.scores does not hold a score for each token".to_owned()))?;
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(refuse(format!("the score of token {id} is not a number")));
    }
    let unknown = token_id(file, "tokenizer.ggml.unknown_token_id").and_then(|id| tokens.texts.get(id));
    let unknown = unknown.filter(|text| !text.is_empty());
    let bytes = tokens.iter().filter(|(.., kind)| *kind == Kind::Byte).count();
    Ok(json!({
        "version": "1.0",
        "added_tokens": tokens.added(strips(file)),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": bytes > 0, "ignore_merges": false,
            "vocab": tokens.vocab(), "merges": merges_by_score(tokens, &scores).map_err(refuse)?,
        },
    }))
}

/// Derives merges: each split of a token into two tokens, best score first; among equal scores the longest left part first.
fn merges_by_score(tokens: &Tokens, scores: &[f64]) -> Result<Vec<Value>, String> {
    let normal: HashMap<&str, usize> =
        tokens.iter().filter(|(.., kind)| *kind == Kind::Normal).map(|(id, text, _)| (text, id)).collect();
    let mut merges = Vec::new();
    for (id, text, _) in tokens.iter().filter(|(.., kind)| *kind == Kind::Normal) {
        if text.len() > SCORED_TOKEN_MAX {
            let len = text.len();
            return Err(format!("token {id} has {len} bytes, more than the {SCORED_TOKEN_MAX} of any such model"));
        }
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut splits: Vec<_> =
            splits.filter_map(|(left, right)| Some((*normal.get(left)?, *normal.get(right)?))).collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|(left, right)| (scores[id], left, right)));
        if merges.len() as u64 > MERGES_MAX {
            return Err(format!("the vocabulary gives more than {MERGES_MAX} merges"));
        }
    }
    let len = |id: usize| tokens.texts[id].chars().count();
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (len(b.1), len(b.2)).cmp(&(len(a.1), len(a.2)))));
    Ok(merges.into_iter().map(|(_, left, right)| json!([tokens.texts[left], tokens.texts[right]])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each token has its score; merges are expected as `left+right`.
    #[track_caller]
    fn check(tokens: &[(&str, f64)], expected: &str) {
        let texts = tokens.iter().map(|(text, _)| (*text).to_owned()).collect();
        let kinds = vec![Kind::Normal; tokens.len()];
        let scores: Vec<f64> = tokens.iter().map(|(_, score)| *score).collect();
        let merges = merges_by_score(&Tokens { texts, kinds }, &scores).unwrap();
        let text = |merge: &Value| format!("{}+{}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
        assert_eq!(merges.iter().map(text).collect::<Vec<_>>().join(" "), expected);
    }

    #[test]
    fn merges_follow_scores() {
        check(&[("a", 0.0), ("b", 0.0), ("ab", -2.0), ("ba", -1.0)], "b+a a+b");
        check(&[("a", 0.0), ("aa", -1.0), ("aaa", -2.0)], "a+a aa+a a+aa");
        check(&[("é", 0.0), ("🦙", 0.0), ("é🦙", -1.0), ("x", -5.0)], "é+🦙");
        check(&[("ab", 0.0)], "");
    }

    #[test]
    fn long_scored_tokens_are_refused() {
        let tokens = Tokens { texts: vec!["a".repeat(SCORED_TOKEN_MAX + 1)], kinds: vec![Kind::Normal] };
        assert!(merges_by_score(&tokens, &[0.0]).unwrap_err().contains("513 bytes"));
    }
}
