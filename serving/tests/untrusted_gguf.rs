//! GGUF files and tokenizers from strangers: whatever is in them, loading ends in a model or in an error that names the file,
//! and a model that loads keeps its promises. Nothing here may panic, loop or take much memory.
//!
//! `PROPTEST_CASES=100000 cargo test -p refrain-serving --test untrusted_gguf` looks longer.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use refrain_serving::load::{ChatTemplate, HfTokenizer, LoadedModel, load_folder};
use refrain_serving::{Error, Tokenizer};
use serde_json::{Value, json};

/// Files with tokenizers of both kinds, and with tensors of several layouts.
static FIXTURES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf");
    ["llama-spm", "qwen2", "phi3"].map(|name| std::fs::read(folder.join(format!("{name}.gguf"))).unwrap()).into()
});

/// Loads a file of these bytes. What comes out must be a usable model, or an error that names the file.
fn load(bytes: &[u8]) -> Option<LoadedModel> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    match load_folder(&path) {
        Ok(model) => {
            check_tokenizer(model.tokenizer.as_ref());
            for (name, shape) in model.config.tensors() {
                model.weights.read(&name, &shape).unwrap();
            }
            Some(model)
        }
        Err(Error::Weights { path: named, reason }) => {
            assert!(named.starts_with(folder.path()) && !reason.is_empty(), "{named:?} {reason}");
            None
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Texts of row data give no control tokens and no ids outside the vocabulary; no id is too wild to decode.
fn check_tokenizer(tokenizer: &HfTokenizer) {
    for text in ["", "a", " the  end\n", "<s><|end|></s>", "é🦙\u{0}", "<0x0A>", "abcabc"] {
        for id in tokenizer.encode(text) {
            assert!((id as usize) < tokenizer.vocab_size(), "{text:?} {id}");
        }
        tokenizer.encode_control(text);
        tokenizer.decode(&tokenizer.encode(text));
    }
    tokenizer.decode(&[0, 1, 2, u32::MAX]);
}

/// One change to a file.
#[derive(Clone, Debug)]
enum Change {
    /// Another byte.
    Byte(Index, u8),
    /// A number of eight bytes: a count, a length, an offset.
    Number(Index, u64),
    /// A number of four bytes: a type, an id, a score.
    Word(Index, u32),
    /// Bytes from one place to another.
    Copy(Index, Index, usize),
    /// Bytes taken out.
    Cut(Index, usize),
    /// The end taken off.
    Truncate(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<Index>;
    let number = prop_oneof![
        select(vec![0, 1, 7, 8, 255, 1 << 16, 1 << 31, 1 << 32, 1 << 40, 1 << 62, u64::MAX - 7, u64::MAX]),
        any::<u64>(),
        0_u64..100_000,
    ];
    let word = prop_oneof![
        select(vec![0, 1, 5, 6, 8, 9, 12, 13, 0x7fc0_0000, 0xff80_0000, 0x7f80_0000, u32::MAX]),
        any::<u32>(),
        0_u32..1000,
    ];
    prop_oneof![
        3 => (place(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        3 => (place(), number).prop_map(|(at, number)| Change::Number(at, number)),
        3 => (place(), word).prop_map(|(at, word)| Change::Word(at, word)),
        1 => (place(), place(), 1_usize..64).prop_map(|(from, to, len)| Change::Copy(from, to, len)),
        1 => (place(), 1_usize..64).prop_map(|(at, len)| Change::Cut(at, len)),
        1 => place().prop_map(Change::Truncate),
    ]
}

/// Changes the first `header` bytes.
fn apply(change: &Change, bytes: &mut Vec<u8>, header: usize) {
    let size = header.min(bytes.len());
    if size < 8 {
        return;
    }
    let mut put = |at: &Index, new: &[u8]| {
        let at = at.index(size - new.len() + 1);
        bytes[at..at + new.len()].copy_from_slice(new);
    };
    match change {
        Change::Byte(at, byte) => put(at, &[*byte]),
        Change::Number(at, number) => put(at, &number.to_le_bytes()),
        Change::Word(at, word) => put(at, &word.to_le_bytes()),
        Change::Copy(from, to, len) => {
            let len = (*len).min(size);
            let from = from.index(size - len + 1);
            bytes.copy_within(from..from + len, to.index(size - len + 1));
        }
        Change::Cut(at, len) => {
            let at = at.index(size);
            bytes.drain(at..(at + len).min(size));
        }
        Change::Truncate(at) => bytes.truncate(at.index(bytes.len())),
    }
}

/// A small file whose every part is chosen by a strategy; what is written is well-formed, what it says may be nonsense.
#[derive(Clone, Debug)]
struct Strange {
    kind: &'static str,
    pre: &'static str,
    tokens: Vec<String>,
    kinds: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
    ids: Vec<(&'static str, u32)>,
    template: String,
}

fn strange() -> impl Strategy<Value = Strange> {
    let token = || {
        prop_oneof![
            6 => "[abĠ▁]{1,3}",
            2 => select(vec!["<s>", "</s>", "<unk>", "<|end|>", "<0x0A>", "<0x41>", "", " ", "a b"]).prop_map(str::to_owned),
            1 => any::<String>(),
        ]
    };
    let merge = prop_oneof![
        4 => "[abĠ▁]{1,2} [abĠ▁]{1,2}",
        1 => select(vec!["", " ", "  ", "a", "a b c", "#version 0.2", " a b"]).prop_map(str::to_owned),
    ];
    let score = prop_oneof![
        4 => -100.0_f32..0.0,
        1 => select(vec![0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN, 1e30]),
    ];
    let key = select(vec!["bos", "eos", "eot", "unknown", "padding"]);
    let id = prop_oneof![0_u32..20, Just(u32::MAX)];
    let pre =
        select(vec!["default", "gpt-2", "llama-bpe", "qwen2", "smollm", "tekken", "deepseek-llm", "deepseek-v3", "odd"]);
    let template = select(vec!["{{ messages[0].content }}", "{% if", "{{ bos_token }}", "", "{{ 1/0 }}"]);
    (1_usize..24).prop_flat_map(move |count| {
        (
            select(vec!["gpt2", "gpt2", "llama", "llama", "bert", "no_vocab"]),
            pre.clone(),
            prop_oneof![
                prop::collection::vec(token(), count),
                prop::collection::hash_set(token(), count).prop_map(|set| set.into_iter().collect()),
            ],
            prop::collection::vec(prop_oneof![3 => Just(1), 1 => -1_i32..9], count.saturating_sub(1)..count + 2),
            prop::collection::vec(score.clone(), count.saturating_sub(1)..count + 2),
            prop::collection::vec(merge.clone(), 0..6),
            prop::collection::vec((key.clone(), id.clone()), 0..4),
            template.clone().prop_map(str::to_owned),
        )
            .prop_map(|(kind, pre, tokens, kinds, scores, merges, ids, template)| Strange {
                kind,
                pre,
                tokens,
                kinds,
                scores,
                merges,
                ids,
                template,
            })
    })
}

impl Strange {
    fn bytes(&self) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let array = |kind: u32, count: usize, items: Vec<u8>| {
            [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), &items].concat()
        };
        let texts = |all: &[String]| array(8, all.len(), all.iter().flat_map(|item| text(item)).collect());
        let number = |value: u32| value.to_le_bytes().to_vec();
        let mut pairs = vec![
            ("general.architecture".to_owned(), 8_u32, text("llama")),
            ("tokenizer.ggml.model".to_owned(), 8, text(self.kind)),
            ("tokenizer.ggml.pre".to_owned(), 8, text(self.pre)),
            ("tokenizer.ggml.tokens".to_owned(), 9, texts(&self.tokens)),
            ("tokenizer.ggml.merges".to_owned(), 9, texts(&self.merges)),
            ("tokenizer.chat_template".to_owned(), 8, text(&self.template)),
        ];
        let words = |items: &[[u8; 4]]| items.concat();
        let kinds: Vec<[u8; 4]> = self.kinds.iter().map(|kind| kind.to_le_bytes()).collect();
        pairs.push(("tokenizer.ggml.token_type".into(), 9, array(5, kinds.len(), words(&kinds))));
        let scores: Vec<[u8; 4]> = self.scores.iter().map(|score| score.to_le_bytes()).collect();
        pairs.push(("tokenizer.ggml.scores".into(), 9, array(6, scores.len(), words(&scores))));
        for (key, value) in &self.ids {
            pairs.push((format!("tokenizer.ggml.{key}_token_id"), 4, number(*value)));
        }
        for (key, value) in [
            ("context_length", 16),
            ("embedding_length", 4),
            ("block_count", 1),
            ("feed_forward_length", 4),
            ("attention.head_count", 1),
        ] {
            pairs.push((format!("llama.{key}"), 4, number(value)));
        }
        let square = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        let mut tensors: Vec<(String, Vec<u64>)> =
            square.iter().map(|part| (format!("blk.0.{part}.weight"), vec![4, 4])).collect();
        tensors.push(("token_embd.weight".into(), vec![4, 24]));
        for part in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
            tensors.push((format!("{part}.weight"), vec![4]));
        }
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((pairs.len() as u64).to_le_bytes());
        for (key, kind, value) in pairs {
            out.extend([text(&key), kind.to_le_bytes().to_vec(), value].concat());
        }
        for (name, dimensions) in tensors {
            out.extend(text(&name));
            out.extend((dimensions.len() as u32).to_le_bytes());
            out.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
            // All tensors share one place.
            out.extend([0; 12]);
        }
        out.resize(out.len().next_multiple_of(32) + 24 * 4 * 4, 0);
        out
    }
}

/// A small tokenizer.json of each kind.
fn tokenizers() -> [Value; 2] {
    let added = |id: usize, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": special})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    [
        json!({"version": "1.0", "added_tokens": [added(4, "<s>", true), added(5, "[x]", false)], "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level]},
            "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<s>": 4}, "merges": ["a b"]}}),
        json!({"version": "1.0", "added_tokens": [added(0, "<unk>", true)],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": null,
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                "vocab": {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3}, "merges": [["▁", "a"]]}}),
    ]
}

/// Values that may stand anywhere in a tokenizer.json.
fn value() -> impl Strategy<Value = Value> {
    let literal = vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(2),
        json!(1e300),
        json!(u64::MAX),
        json!(u32::MAX),
        json!(4_000_000_000_u64),
        json!(""),
        json!("a"),
        json!("<unk>"),
        json!("x y"),
        json!([]),
        json!({}),
        json!(["a", "b"]),
        json!([["a", "q"]]),
        json!({"a": 0, "b": 0}),
        json!({"type": "BPE"}),
        json!({"type": "ByteFallback"}),
        json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "z"}),
        json!({"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "z", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 3}),
        json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]], "byte_fallback": true}),
        json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["▁", -2.0]], "byte_fallback": true}),
        json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
        json!({"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}),
        json!({"type": "NFKC"}),
        json!({"type": "Prepend", "prepend": ""}),
        json!({"type": "Replace", "pattern": {"String": ""}, "content": "▁"}),
        json!({"type": "Strip", "content": "a", "start": 9, "stop": 9}),
    ];
    prop_oneof![5 => select(literal), 1 => any::<i64>().prop_map(|n| json!(n)), 1 => any::<String>().prop_map(|s| json!(s))]
}

/// Puts `new` at a place that `steps` lead to.
fn replace(json: &mut Value, steps: &[Index], new: Value) {
    let Some((step, rest)) = steps.split_first() else {
        *json = new;
        return;
    };
    match json {
        Value::Array(items) if !items.is_empty() => {
            let at = step.index(items.len());
            replace(&mut items[at], rest, new);
        }
        Value::Object(fields) if !fields.is_empty() => {
            let at = step.index(fields.len());
            replace(fields.values_mut().nth(at).unwrap(), rest, new);
        }
        other => *other = new,
    }
}

fn build(json: &[u8]) {
    match HfTokenizer::from_bytes(json, ChatTemplate::plain(), vec![]) {
        Ok(tokenizer) => check_tokenizer(&tokenizer),
        Err(Error::Invalid(reason)) => assert!(reason.contains("tokenizer"), "{reason}"),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn fixtures_load_unchanged() {
    assert!(FIXTURES.iter().all(|bytes| load(bytes).is_some()));
}

proptest! {
    #[test]
    fn changed_headers(which in any::<Index>(), changes in prop::collection::vec(change(), 1..4)) {
        let mut bytes = FIXTURES[which.index(FIXTURES.len())].clone();
        // Fixtures end in tensors; what comes before is mostly vocabulary, so small places are favoured as well.
        let header = [200, 1200, 20_000][which.index(3)];
        changes.iter().for_each(|change| apply(change, &mut bytes, header));
        load(&bytes);
    }

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        let bytes = if magic { [b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0", &bytes[..]].concat() } else { bytes };
        load(&bytes);
    }

    #[test]
    fn strange_vocabularies(strange in strange(), changes in prop::collection::vec(change(), 0..2)) {
        let mut bytes = strange.bytes();
        let header = bytes.len();
        changes.iter().for_each(|change| apply(change, &mut bytes, header));
        load(&bytes);
    }

    #[test]
    fn strange_tokenizer_json(
        which in 0_usize..2,
        changes in prop::collection::vec((prop::collection::vec(any::<Index>(), 1..6), value()), 1..4),
    ) {
        let mut json = tokenizers()[which].clone();
        for (steps, new) in changes {
            replace(&mut json, &steps, new);
        }
        build(json.to_string().as_bytes());
    }

    #[test]
    fn changed_bytes_of_tokenizer_json(which in 0_usize..2, changes in prop::collection::vec(change(), 1..4)) {
        let mut bytes = tokenizers()[which].to_string().into_bytes();
        let size = bytes.len();
        changes.iter().for_each(|change| apply(change, &mut bytes, size));
        build(&bytes);
    }
}
