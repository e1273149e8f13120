//! The embedded engine with a bundled model on the CPU: answers do not depend on how they were scheduled.
#![cfg(feature = "bundled-model")]
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use futures::StreamExt;
use futures::executor::block_on;
use refrain_serving::device::cpu::{Activations, CpuDevice, CpuOptions};
use refrain_serving::load::{BundledModel, LoadedModel, bundled};
use refrain_serving::local::{EngineConfig, EngineResources, LocalBackend, LocalConfig, LocalEngine};
use refrain_serving::scheduler::SchedulerConfig;
use refrain_serving::{
    Answer, Backend, Batch, CompletionStream, OutputShape, Request, RequestId, RowFailure, Sampling, Stats, Tokenizer,
};
use serde_json::json;

const REVIEWS: [&str; 6] = [
    "The parcel came late and the box was torn.",
    "The parcel came late and nobody answered my mail.",
    "The parcel came early.",
    "I love it.",
    "I love it.",
    "I want my money back!",
];

fn shapes() -> Vec<Arc<OutputShape>> {
    let schema = json!({
        "type": "object",
        "properties": { "topic": { "enum": ["delivery", "price"] }, "angry": { "type": "boolean" } },
        "required": ["topic", "angry"],
        "additionalProperties": false
    });
    let shapes = [
        OutputShape::Choice(["praise", "complaint", "other"].map(str::to_string).to_vec()),
        OutputShape::Number { min: 0.0, max: 1.0, integer: false },
        OutputShape::Json(schema),
        OutputShape::Regex("[a-z]{3,8}( [a-z]{3,8})?".to_string()),
        OutputShape::Text,
    ];
    shapes.map(Arc::new).to_vec()
}

/// Every shape for every review; one in four draws its tokens.
fn batch(tokenizer: &dyn Tokenizer, share_prefixes: bool) -> Batch {
    let mut requests = Vec::new();
    for review in REVIEWS {
        let chat = tokenizer.render_chat("Read the review and answer.", review).unwrap();
        let prompt = tokenizer.encode_control(&chat);
        for shape in shapes() {
            let id = requests.len() as u32;
            let temperature = if id.is_multiple_of(4) { 1.0 } else { 0.0 };
            let sampling = Sampling { temperature, seed: u64::from(id), ..Sampling::GREEDY };
            let prompt = vec![prompt.as_slice().into()];
            requests.push(Request::new(RequestId(id), prompt, Arc::clone(&shape), sampling, 24));
        }
    }
    Batch { requests, share_prefixes, keep_prefix: 8, ..Batch::default() }
}

type Answers = BTreeMap<RequestId, Result<Answer, RowFailure>>;

fn answers(
    share_prefixes: bool,
    scheduler: impl FnOnce(SchedulerConfig) -> SchedulerConfig,
    kv_bytes: usize,
) -> (Answers, Stats) {
    let LoadedModel { config, weights, tokenizer, digest } = bundled(BundledModel::MiniDraft).unwrap();
    let mut local = LocalConfig::new(config.max_context, digest);
    local.scheduler = scheduler(local.scheduler);
    let open = move || {
        let options = CpuOptions { threads: NonZeroUsize::new(2), kv_bytes, activations: Activations::default() };
        Ok(Box::new(CpuDevice::new(&config, weights.as_ref(), options)?) as _)
    };
    let backend = LocalBackend::start(open, tokenizer, local).unwrap();
    let stream = backend.submit(batch(backend.tokenizer().as_ref(), share_prefixes));
    let completions = block_on(stream.map(Result::unwrap).collect::<Vec<_>>());
    let answers = completions.into_iter().map(|completion| (completion.id, completion.result)).collect();
    (answers, backend.stats())
}

#[test]
fn answers_do_not_depend_on_sharing_chunks_or_memory() {
    let (expected, alone) = answers(false, |config| SchedulerConfig { max_rows: 1, ..config }, 64 << 20);
    assert_eq!((expected.len(), alone.cached_tokens), (REVIEWS.len() * shapes().len(), 0));
    let (shared, stats) = answers(true, |config| config, 64 << 20);
    assert_eq!(shared, expected);
    assert!(stats.computed_tokens < alone.computed_tokens / 2 && stats.steps < alone.steps / 4, "{stats:?} {alone:?}");
    let (chunked, _) = answers(true, |config| SchedulerConfig { step_tokens: 7, max_rows: 5, ..config }, 64 << 20);
    assert_eq!(chunked, expected);
    let (small, stats) = answers(true, |config| config, 1 << 20);
    assert_eq!(small, expected);
    assert!(stats.pages_total < 100, "{stats:?}");
}

#[test]
fn answers_have_their_shapes() {
    let (answers, _) = answers(true, |config| config, 64 << 20);
    for (RequestId(id), result) in answers {
        let shape = &*shapes()[id as usize % shapes().len()];
        let Ok(Answer { text, .. }) = result else {
            assert!(*shape != OutputShape::Text, "a text may be cut anywhere");
            continue;
        };
        match shape {
            OutputShape::Choice(labels) => assert!(labels.contains(&text)),
            OutputShape::Number { min, max, .. } => assert!((*min..=*max).contains(&text.parse().unwrap())),
            OutputShape::Json(_) => {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert!(value["topic"].is_string() && value["angry"].is_boolean());
            }
            OutputShape::Regex(_) => assert!(text.split(' ').all(|word| (3..=8).contains(&word.len()))),
            OutputShape::Text => {}
            OutputShape::Embedding { .. } => unreachable!("no vector was asked for"),
        }
    }
}

/// Two models on the same threads, in KV memory that is too small for both, answer as each does alone.
#[test]
fn models_share_an_engine() {
    let kv_bytes = 6 << 20;
    let engine = LocalEngine::start(EngineConfig { threads: NonZeroUsize::new(2), ..EngineConfig::new(kv_bytes) }).unwrap();
    let start = |name: BundledModel, shared: bool| {
        let LoadedModel { config, weights, tokenizer, digest } = bundled(name).unwrap();
        let local = LocalConfig::new(config.max_context, digest);
        if shared {
            let open = |resources: &EngineResources| {
                let EngineResources { threads, kv_bytes } = resources;
                Ok(Box::new(CpuDevice::shared(&config, weights.as_ref(), Arc::clone(threads), *kv_bytes)?) as _)
            };
            return engine.add_model(open, tokenizer, local).unwrap();
        }
        let options = CpuOptions { threads: NonZeroUsize::new(2), kv_bytes: 64 << 20, activations: Activations::default() };
        let open = || Ok(Box::new(CpuDevice::new(&config, weights.as_ref(), options)?) as _);
        LocalBackend::start(open, tokenizer, local).unwrap()
    };
    let answers = |streams: Vec<CompletionStream>| -> Vec<Answers> {
        let read = |stream: CompletionStream| block_on(stream.map(Result::unwrap).collect::<Vec<_>>());
        let read = streams.into_iter().map(read);
        read.map(|all| all.into_iter().map(|completion| (completion.id, completion.result)).collect()).collect()
    };
    let ask = |backend: &LocalBackend| backend.submit(batch(backend.tokenizer().as_ref(), true));
    let models = [BundledModel::MiniDraft, BundledModel::Mini];
    let expected = models.map(|name| answers(vec![ask(&start(name, false))]).remove(0));
    let [one, other] = models.map(|name| start(name, true));
    let found = answers(vec![ask(&one), ask(&other), ask(&one)]);
    assert!(found[0] == expected[0] && found[1] == expected[1] && found[2] == expected[0]);
    drop(one);
    assert!(answers(vec![ask(&other)])[0] == expected[1]);
}
