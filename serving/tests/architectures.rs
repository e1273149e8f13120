//! Tiny random models of every architecture against transformers: logits after prompts cut in several ways, and greedy answers.
//!
//! scripts/make_fixtures.py makes the models and computes the expected numbers in single precision.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use futures::executor::block_on;
use refrain_serving::device::cpu::{Activations, CpuDevice, CpuOptions};
use refrain_serving::device::{Device, StepTicket};
use refrain_serving::load::{LoadedModel, load_folder};
use refrain_serving::local::{LocalBackend, LocalConfig};
use refrain_serving::model::{ModelConfig, RopeScaling};
use refrain_serving::step::{
    Allowed, KvWrite, PAGE_TOKENS, PageId, RowSlot, RowSpan, SampleRow, StepPlan, StepResult, TokenSource,
};
use refrain_serving::{Backend, Batch, OutputShape, Request, RequestId, Sampling, TokenId};
use serde_json::Value;

/// Allowed distance of two logits, relative above 1. Both sides compute in single precision, in different orders.
const TOLERANCE: f32 = 1e-4;
/// Logits must move by more than this when a feature of the model is left out.
const NOTICED: f32 = 1e-2;

/// One prompt of a model, with what transformers makes of it.
struct Prompt {
    max_context: usize,
    tokens: Vec<TokenId>,
    /// Logits of the whole vocabulary after some tokens.
    logits: Vec<(usize, Vec<f32>)>,
    greedy: Vec<TokenId>,
}

/// A model as it would lie on a disk: the fixture, with the tokenizer that all share.
struct Fixture {
    folder: tempfile::TempDir,
    prompts: Vec<Prompt>,
}

impl Fixture {
    fn open(name: &str) -> Fixture {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/architectures");
        let folder = tempfile::tempdir().unwrap();
        let files = std::fs::read_dir(fixtures.join(name)).unwrap().map(|entry| entry.unwrap().path());
        for file in files.chain([fixtures.join("tokenizer.json")]) {
            std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        let prompts = read_prompts(&folder.path().join("logits.json"));
        Fixture { folder, prompts }
    }

    fn load(&self, max_context: usize) -> LoadedModel {
        let mut model = load_folder(self.folder.path()).unwrap();
        assert!(max_context <= model.config.max_context);
        model.config.max_context = max_context;
        model
    }
}

fn read_prompts(path: &Path) -> Vec<Prompt> {
    let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tokens = |value: &Value| serde_json::from_value::<Vec<TokenId>>(value.clone()).unwrap();
    let logits = |value: &Value| {
        let numbers = serde_json::from_value(value["logits"].clone()).unwrap();
        (value["after"].as_u64().unwrap() as usize, numbers)
    };
    let prompt = |value: &Value| Prompt {
        max_context: value["max_context"].as_u64().unwrap() as usize,
        tokens: tokens(&value["tokens"]),
        logits: value["logits"].as_array().unwrap().iter().map(logits).collect(),
        greedy: tokens(&value["greedy"]),
    };
    json["prompts"].as_array().unwrap().iter().map(prompt).collect()
}

fn device(config: &ModelConfig, model: &LoadedModel, threads: usize) -> CpuDevice {
    let options = CpuOptions { threads: NonZeroUsize::new(threads), kv_bytes: 1 << 20, activations: Activations::F32 };
    CpuDevice::new(config, model.weights.as_ref(), options).unwrap()
}

fn run(device: &mut CpuDevice, plan: &StepPlan) -> StepResult {
    let ticket: StepTicket = device.launch(plan).unwrap();
    let mut result = StepResult::default();
    assert!(device.poll(ticket, &mut result).unwrap());
    result
}

/// Logits after the tokens `after`, of a prompt that is computed in steps of `chunk` tokens.
fn logits(device: &mut CpuDevice, vocab_size: usize, tokens: &[TokenId], after: &[usize], chunk: usize) -> Vec<Vec<f32>> {
    let mut found = Vec::new();
    let pages: Vec<PageId> = (0..tokens.len().div_ceil(PAGE_TOKENS) as u32).map(PageId).collect();
    for (step, chunk_tokens) in tokens.chunks(chunk).enumerate() {
        let (first, len) = (step * chunk, chunk_tokens.len());
        let sample = |at: usize| SampleRow {
            token: (at - first) as u32,
            slot: RowSlot(at as u32),
            allowed: Allowed::All,
            sampling: Sampling::GREEDY,
            draw: 0,
            top_logits: vocab_size as u32,
            logprobs: None,
        };
        let write = |i: usize| KvWrite {
            token: i as u32,
            page: pages[(first + i) / PAGE_TOKENS],
            offset: ((first + i) % PAGE_TOKENS) as u32,
        };
        let plan = StepPlan {
            tokens: chunk_tokens.iter().map(|&token| TokenSource::Host(token)).collect(),
            positions: (first as u32..(first + len) as u32).collect(),
            writes: (0..len).map(write).collect(),
            rows: vec![RowSpan { tokens: 0..len as u32, pages: 0..pages.len() as u32 }],
            block_tables: pages.clone(),
            sample: after.iter().filter(|at| (first..first + len).contains(*at)).map(|&at| sample(at)).collect(),
            ..StepPlan::default()
        };
        for mut top in run(device, &plan).top_logits {
            top.sort_unstable_by_key(|&(token, _)| token);
            found.push(top.into_iter().map(|(_, logit)| logit).collect());
        }
    }
    found
}

/// The largest distance of two rows of logits, relative above 1.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|logit| logit.is_finite()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max)
}

/// Compares a model with transformers.
#[track_caller]
fn check(name: &str) {
    let fixture = Fixture::open(name);
    for prompt in &fixture.prompts {
        let model = fixture.load(prompt.max_context);
        let mut after: Vec<usize> = prompt.logits.iter().map(|(at, _)| *at).collect();
        after.sort_unstable();
        let whole = logits(&mut device(&model.config, &model, 1), model.config.vocab_size, &prompt.tokens, &after, 1000);
        for (at, expected) in &prompt.logits {
            let found = &whole[after.binary_search(at).unwrap()];
            let distance = distance(found, expected);
            assert!(distance <= TOLERANCE, "{name}: logits after token {at} differ by {distance}");
        }
        for chunk in [1, 7, 16, 33] {
            let mut device = device(&model.config, &model, 2);
            let chunked = logits(&mut device, model.config.vocab_size, &prompt.tokens, &after, chunk);
            assert!(chunked == whole, "{name}: chunks of {chunk} give other logits");
        }
    }
    for max_context in [32, 128] {
        let prompts: Vec<_> = fixture.prompts.iter().filter(|prompt| prompt.max_context == max_context).collect();
        if prompts.is_empty() {
            continue;
        }
        let expected: Vec<_> = prompts.iter().map(|prompt| prompt.greedy.clone()).collect();
        assert_eq!(answers(fixture.load(max_context), &prompts), expected, "{name}");
    }
}

/// Greedy tokens of the embedded engine, which runs all prompts together in short steps.
fn answers(model: LoadedModel, prompts: &[&Prompt]) -> Vec<Vec<TokenId>> {
    let LoadedModel { config, weights, tokenizer, digest } = model;
    let mut local = LocalConfig::new(config.max_context, digest);
    local.scheduler.step_tokens = 24;
    let open = move || {
        let options = CpuOptions { threads: NonZeroUsize::new(2), kv_bytes: 1 << 20, activations: Activations::F32 };
        Ok(Box::new(CpuDevice::new(&config, weights.as_ref(), options)?) as _)
    };
    let backend = LocalBackend::start(open, tokenizer, local).unwrap();
    let shape = Arc::new(OutputShape::Text);
    let request = |(i, prompt): (usize, &&Prompt)| {
        let (id, segments) = (RequestId(i as u32), vec![prompt.tokens.as_slice().into()]);
        Request::new(id, segments, Arc::clone(&shape), Sampling::GREEDY, prompt.greedy.len() as u32)
    };
    let requests = prompts.iter().enumerate().map(request).collect();
    let stream = backend.submit(Batch { requests, ..Batch::default() });
    let mut completions = block_on(stream.map(Result::unwrap).collect::<Vec<_>>());
    completions.sort_unstable_by_key(|completion| completion.id);
    completions.into_iter().map(|completion| completion.result.unwrap().tokens).collect()
}

/// Fails unless `change` moves the logits of the longest prompt, so that the comparison above would notice a model without it.
#[track_caller]
fn check_noticed(name: &str, change: impl Fn(&mut ModelConfig)) {
    let fixture = Fixture::open(name);
    let prompt = fixture.prompts.last().unwrap();
    let model = fixture.load(prompt.max_context);
    let mut config = model.config.clone();
    change(&mut config);
    assert_ne!(config, model.config, "{name}");
    let (at, expected) = &prompt.logits[0];
    let found = logits(&mut device(&config, &model, 1), config.vocab_size, &prompt.tokens, &[*at], 1000);
    let distance = distance(&found[0], expected);
    assert!(distance > NOTICED, "{name}: without the feature logits differ by {distance} only");
}

#[test]
fn llama() {
    check("llama_mha");
    check("llama_gqa");
    check("llama_bias");
    check_noticed("llama_bias", |config| config.qkv_bias = false);
    check_noticed("llama_bias", |config| config.output_bias = false);
    check_noticed("llama_bias", |config| config.mlp_bias = false);
}

#[test]
fn llama_with_scaled_frequencies() {
    for name in ["llama_linear", "llama_llama3", "llama_yarn", "qwen2_yarn"] {
        check(name);
        check_noticed(name, |config| config.rope_scaling = None);
    }
    for name in ["llama_yarn", "qwen2_yarn"] {
        check_noticed(name, |config| {
            if let Some(RopeScaling::Yarn { attention_factor, .. }) = &mut config.rope_scaling {
                *attention_factor = 1.0;
            }
        });
    }
}

#[test]
fn weights_in_several_files() {
    check("llama_sharded");
}

#[test]
fn mistral() {
    check("mistral");
    check_noticed("mistral", |config| config.layer_attention.clear());
}

#[test]
fn qwen2() {
    check("qwen2");
    check("qwen2_window");
    check_noticed("qwen2", |config| config.qkv_bias = false);
    check_noticed("qwen2_window", |config| config.layer_attention.clear());
    check_noticed("qwen2_window", |config| config.layer_attention.reverse());
}

#[test]
fn qwen3() {
    check("qwen3");
    check("qwen3_layers");
    check_noticed("qwen3", |config| config.qk_norm = false);
    check_noticed("qwen3_layers", |config| config.layer_attention.reverse());
}

#[test]
fn phi3() {
    check("phi3");
    check("phi3_longrope");
    check("phi3_partial");
    check_noticed("phi3", |config| config.layer_attention.clear());
    check_noticed("phi3_longrope", |config| config.max_context = 32);
    check_noticed("phi3_partial", |config| config.max_context = 32);
    check_noticed("phi3_partial", |config| (config.rotary_dim, config.rope_scaling) = (8, None));
}

#[test]
fn smollm3() {
    check("smollm3");
    check_noticed("smollm3", |config| config.layer_attention.clear());
}
