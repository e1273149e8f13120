//! GGUF files against what others compute from them; `scripts/make_gguf_fixtures.py` makes the files and says how.
//!
//! - `blocks.json`: values of every block type, as the `gguf` package decodes them;
//! - each `NAME.gguf` with `NAME.json`: tokens of the library that trained the tokenizer, logits and greedy tokens of
//!   transformers.
//!
//! The variable `REFRAIN_GGUF` may name a folder with more such pairs, too large to be kept here: vocabularies of published
//! models with the tokens of llama.cpp, and the bundled model in other types.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use refrain_serving::device::Device;
use refrain_serving::device::cpu::{Activations, CpuDevice, CpuOptions};
use refrain_serving::load::{LoadedModel, load_folder};
use refrain_serving::model::{DType, dequantize};
use refrain_serving::step::{
    Allowed, KvWrite, PAGE_TOKENS, PageId, RowSlot, RowSpan, SampleRow, StepPlan, StepResult, TokenSource,
};
use refrain_serving::{Sampling, TokenId, Tokenizer};
use serde::Deserialize;

/// What others say about a file.
#[derive(Deserialize)]
struct Expected {
    /// Texts of row data and their tokens.
    tokens: Vec<(String, Vec<TokenId>)>,
    /// The prompt for the texts of [`SYSTEM`] and [`USER`].
    chat: Option<String>,
    answers: Vec<Answer>,
    /// By how much a logit may differ.
    #[serde(default = "default_tolerance")]
    tolerance: f32,
}

#[derive(Deserialize)]
struct Answer {
    ids: Vec<TokenId>,
    greedy: Vec<TokenId>,
    /// The largest logits after the prompt.
    top: Vec<(TokenId, f32)>,
}

const SYSTEM: &str = "Be brief.";
const USER: &str = "Is 'x' good?";

/// The weights are the same to the bit, and sums are in single precision on both sides.
fn default_tolerance() -> f32 {
    2e-4
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf")
}

/// Runs `tokens` of one row from position `position` on; returns the largest logits after the last of them.
fn run(device: &mut CpuDevice, tokens: &[TokenId], position: usize, top_logits: u32) -> StepResult {
    let end = position + tokens.len();
    let pages: Vec<PageId> = (0..end.div_ceil(PAGE_TOKENS) as u32).map(PageId).collect();
    let write = |(token, position): (usize, usize)| KvWrite {
        token: token as u32,
        page: pages[position / PAGE_TOKENS],
        offset: (position % PAGE_TOKENS) as u32,
    };
    let plan = StepPlan {
        tokens: tokens.iter().map(|&token| TokenSource::Host(token)).collect(),
        positions: (position as u32..end as u32).collect(),
        writes: (0..tokens.len()).zip(position..end).map(write).collect(),
        rows: vec![RowSpan { tokens: 0..tokens.len() as u32, pages: 0..pages.len() as u32 }],
        sample: vec![SampleRow {
            token: tokens.len() as u32 - 1,
            slot: RowSlot(0),
            allowed: Allowed::All,
            sampling: Sampling::GREEDY,
            draw: 0,
            top_logits,
            logprobs: None,
        }],
        block_tables: pages,
        ..StepPlan::default()
    };
    let ticket = device.launch(&plan).unwrap();
    let mut result = StepResult::default();
    assert!(device.poll(ticket, &mut result).unwrap());
    result
}

fn check_answers(path: &Path, model: &LoadedModel, answers: &[Answer], tolerance: f32) {
    let options = CpuOptions { threads: None, kv_bytes: 64 << 20, activations: Activations::F32 };
    let mut device = CpuDevice::new(&model.config, model.weights.as_ref(), options).unwrap();
    for answer in answers {
        let mut result = run(&mut device, &answer.ids, 0, answer.top.len() as u32);
        for ((token, logit), (expected, expected_logit)) in result.top_logits[0].iter().zip(&answer.top) {
            let difference = (logit - expected_logit).abs();
            assert!(difference < tolerance, "{}: {:?} instead of {:?}", path.display(), result.top_logits, answer.top);
            // Tokens may change places only where their logits hardly differ.
            let tied = answer.top.iter().any(|(other, near)| other == token && (near - expected_logit).abs() < tolerance);
            assert!(token == expected || tied, "{}: token {token} instead of {expected}", path.display());
        }
        for (step, expected) in answer.greedy.iter().enumerate() {
            assert_eq!(result.sampled, [*expected], "{}: token {step}", path.display());
            result = run(&mut device, &[*expected], answer.ids.len() + step, 0);
        }
    }
}

fn check_tokens(path: &Path, tokenizer: &dyn Tokenizer, texts: &[(String, Vec<TokenId>)]) {
    let found: Vec<_> = texts.iter().map(|(text, _)| (text.clone(), tokenizer.encode(text))).collect();
    let differing: Vec<_> = found.iter().zip(texts).filter(|(found, expected)| found != expected).collect();
    let (count, of) = (differing.len(), texts.len());
    assert!(count == 0, "{}: {count} of {of}, found and expected: {:?}", path.display(), &differing[..count.min(3)]);
    for (text, tokens) in texts {
        // SentencePiece has one spelling for a space and for the sign that stands for it.
        let spaces = |text: &str| text.replace('▁', " ");
        assert_eq!(spaces(&tokenizer.decode(tokens)), spaces(text), "{}", path.display());
    }
}

fn check(path: &Path) {
    let expected: Expected = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
    let model = load_folder(path).unwrap();
    check_tokens(path, model.tokenizer.as_ref(), &expected.tokens);
    if let Some(chat) = expected.chat {
        assert_eq!(model.tokenizer.render_chat(SYSTEM, USER).unwrap(), chat, "{}", path.display());
        assert!(model.tokenizer.encode_control(&chat).len() + 20 < model.tokenizer.encode(&chat).len());
    }
    check_answers(path, &model, &expected.answers, expected.tolerance);
}

#[test]
fn llama_with_sentencepiece() {
    check(&folder().join("llama-spm.gguf"));
}

#[test]
fn llama_3_with_its_rotary_factors() {
    check(&folder().join("llama3-bpe.gguf"));
}

#[test]
fn qwen2_with_biases_and_yarn() {
    check(&folder().join("qwen2.gguf"));
}

#[test]
fn qwen3_with_norms_of_heads() {
    check(&folder().join("qwen3.gguf"));
}

#[test]
fn phi3_with_joined_tensors_window_and_longrope() {
    check(&folder().join("phi3.gguf"));
}

#[test]
fn smollm3_with_a_layer_without_rotary_embedding_in_bf16() {
    check(&folder().join("smollm3.gguf"));
}

#[test]
fn whole_models_in_q4_0() {
    check(&folder().join("llama-q4_0.gguf"));
}

#[test]
fn whole_models_in_k_types() {
    check(&folder().join("llama-q4_k.gguf"));
    check(&folder().join("llama-q6_k.gguf"));
}

#[test]
#[allow(clippy::print_stderr, reason = "says that part of the test was left out")]
fn files_of_a_folder() {
    let Some(folder) = std::env::var_os("REFRAIN_GGUF") else {
        eprintln!("skipped: REFRAIN_GGUF names no folder");
        return;
    };
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let pairs =
        paths.filter(|path| path.extension().is_some_and(|end| end == "gguf") && path.with_extension("json").exists());
    // All files are looked at, whether or not one fails.
    let failed: Vec<PathBuf> = pairs.filter(|path| std::panic::catch_unwind(|| check(path)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Reads pairs of hexadecimal digits.
fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn blocks_of_every_type_have_the_values_of_the_gguf_package() {
    #[derive(Deserialize)]
    struct Blocks {
        bytes: String,
        values: String,
    }
    let text = std::fs::read(folder().join("blocks.json")).unwrap();
    let types: BTreeMap<String, Blocks> = serde_json::from_slice(&text).unwrap();
    let dtypes = [
        ("F32", DType::F32),
        ("F16", DType::F16),
        ("BF16", DType::BF16),
        ("Q8_0", DType::Q8_0),
        ("Q4_0", DType::Q4_0),
        ("Q4_1", DType::Q4_1),
        ("Q5_0", DType::Q5_0),
        ("Q5_1", DType::Q5_1),
        ("Q2_K", DType::Q2K),
        ("Q3_K", DType::Q3K),
        ("Q4_K", DType::Q4K),
        ("Q5_K", DType::Q5K),
        ("Q6_K", DType::Q6K),
    ];
    assert_eq!(types.len(), dtypes.len());
    for (name, dtype) in dtypes {
        let blocks = &types[name];
        let expected: Vec<u32> =
            bytes(&blocks.values).as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let mut values = vec![0.0; expected.len()];
        dequantize(dtype, &bytes(&blocks.bytes), &mut values);
        let found: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        assert_eq!(found, expected, "{name}");
    }
}

/// The bundled model with its tokenizer inside the GGUF file. Its header is made longer by whole alignments, so tensors stay
/// where their offsets say.
fn mini_with_tokenizer() -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini");
    let read =
        |name: &str| -> serde_json::Value { serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap() };
    let (tokenizer, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let mut tokens: BTreeMap<u64, (&str, u32)> = BTreeMap::new();
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        tokens.insert(id.as_u64().unwrap(), (token, 1));
    }
    for token in tokenizer["added_tokens"].as_array().unwrap() {
        tokens.insert(token["id"].as_u64().unwrap(), (token["content"].as_str().unwrap(), 3));
    }
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    let merges: Vec<String> =
        merges.iter().map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect();

    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let texts = |texts: &[&str]| {
        let head = [&8_u32.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
        [head, texts.iter().flat_map(|item| text(item)).collect()].concat()
    };
    let kinds: Vec<u8> = tokens.values().flat_map(|(_, kind)| kind.to_le_bytes()).collect();
    let kinds = [&5_u32.to_le_bytes()[..], &(tokens.len() as u64).to_le_bytes(), &kinds].concat();
    let names: Vec<&str> = tokens.values().map(|(token, _)| *token).collect();
    let lines: Vec<&str> = merges.iter().map(String::as_str).collect();
    let mut pairs = vec![
        ("tokenizer.ggml.model", 8_u32, text("gpt2")),
        ("tokenizer.ggml.pre", 8, text("qwen2")),
        ("tokenizer.ggml.tokens", 9, texts(&names)),
        ("tokenizer.ggml.token_type", 9, kinds),
        ("tokenizer.ggml.merges", 9, texts(&lines)),
        ("tokenizer.chat_template", 8, text(config["chat_template"].as_str().unwrap())),
    ];
    let written = |pairs: &[(&str, u32, Vec<u8>)]| -> Vec<u8> {
        pairs
            .iter()
            .flat_map(|(key, kind, value)| [text(key), kind.to_le_bytes().to_vec(), value.clone()].concat())
            .collect()
    };
    pairs.push(("filler", 8, text("")));
    let filler = "x".repeat(written(&pairs).len().next_multiple_of(32) - written(&pairs).len());
    *pairs.last_mut().unwrap() = ("filler", 8, text(&filler));

    let original = std::fs::read(folder.join("model.gguf")).unwrap();
    let (head, rest) = original.split_at(24);
    let count = u64::from_le_bytes(head[16..].try_into().unwrap()) + pairs.len() as u64;
    let mut rest = rest.to_vec();
    let key = b"tokenizer.ggml.model";
    let place = rest.windows(key.len()).position(|window| window == key).unwrap();
    rest[place..place + key.len()].copy_from_slice(b"tokenizer.ggml.none_");
    [&head[..16], &count.to_le_bytes(), &written(&pairs), &rest].concat()
}

#[test]
fn the_bundled_model_answers_the_same_from_a_gguf_file_alone() {
    #[derive(Deserialize)]
    struct Golden {
        ids: Vec<TokenId>,
        greedy: Vec<TokenId>,
        top5: Vec<(TokenId, f32)>,
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mini.gguf");
    std::fs::write(&path, mini_with_tokenizer()).unwrap();
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini");
    let (inside, outside) = (load_folder(&path).unwrap(), load_folder(&beside).unwrap());
    assert_eq!(inside.config, outside.config);
    assert_eq!(inside.tokenizer.end_tokens(), outside.tokenizer.end_tokens());
    let prompt = outside.tokenizer.render_chat(SYSTEM, USER).unwrap();
    assert_eq!(inside.tokenizer.render_chat(SYSTEM, USER).unwrap(), prompt);
    assert_eq!(inside.tokenizer.encode_control(&prompt), outside.tokenizer.encode_control(&prompt));
    let expected: Expected = serde_json::from_slice(&std::fs::read(self::folder().join("qwen2.json")).unwrap()).unwrap();
    let tokens: Vec<_> =
        expected.tokens.into_iter().map(|(text, _)| (text.clone(), outside.tokenizer.encode(&text))).collect();
    check_tokens(&path, inside.tokenizer.as_ref(), &tokens);

    let golden: Vec<Golden> = serde_json::from_slice(&std::fs::read(beside.join("golden.json")).unwrap()).unwrap();
    let answers: Vec<Answer> =
        golden.into_iter().map(|golden| Answer { ids: golden.ids, greedy: golden.greedy, top: golden.top5 }).collect();
    check_answers(&path, &inside, &answers, 1e-2);
}

#[test]
fn tokenizer_json_beside_the_file_wins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::copy(self::folder().join("qwen2.gguf"), &path).unwrap();
    let inside = load_folder(&path).unwrap();
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let beside = load_folder(&path).unwrap();
    assert_eq!(beside.tokenizer.encode("ab"), [2]);
    assert_ne!(beside.digest, inside.digest);
    // The folder has no tokenizer_config.json: the template in the file stands for it.
    let render = |model: &LoadedModel| model.tokenizer.render_chat(SYSTEM, USER).unwrap();
    assert_eq!(render(&beside), render(&inside));
}
