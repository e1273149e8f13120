//! Embedding models from folders, against vectors that transformers computed (scripts/make_embedding_fixtures.py).
//!
//! The tiny fixtures are always tested. A real model, such as all-MiniLM-L6-v2, is tested where the variable `REFRAIN_MINILM` names
//! a folder that holds it and the vectors.json that the script writes with `--real`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use futures::executor::block_on;
use refrain_serving::{
    Backend, Batch, EmbeddingOptions, Error, ModelKind, OpenedModel, OutputShape, Request, RequestId, RowFailure, Sampling,
    TokenId, open_model,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    text: String,
    ids: Vec<TokenId>,
    vector: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings").join(name)
}

fn expected(folder: &Path) -> Vec<Expected> {
    serde_json::from_slice(&std::fs::read(folder.join("vectors.json")).unwrap()).unwrap()
}

fn open(folder: &Path) -> Arc<dyn Backend> {
    match open_model(folder).unwrap() {
        OpenedModel::Embedding(model) => {
            let threads = NonZeroUsize::new(2);
            model.start(EmbeddingOptions { threads, kv_bytes: 4 << 20, max_tokens: None }).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

/// The tokens of a text as a caller puts them together: what the chat form writes around it, and the text itself between.
fn prompt(backend: &dyn Backend, text: &str) -> Vec<TokenId> {
    let tokenizer = backend.tokenizer();
    let chat = tokenizer.render_chat("system", "MARK").unwrap();
    let (before, after) = chat.split_once("MARK").unwrap();
    [tokenizer.encode_control(before), tokenizer.encode(text), tokenizer.encode_control(after)].concat()
}

fn batch(prompts: Vec<Vec<TokenId>>, dimensions: Option<u32>) -> Batch {
    let shape = Arc::new(OutputShape::Embedding { dimensions });
    let request = |(id, prompt): (u32, Vec<TokenId>)| {
        Request::new(RequestId(id), vec![prompt.into()], Arc::clone(&shape), Sampling::GREEDY, 1)
    };
    Batch { requests: (0..).zip(prompts).map(request).collect(), ..Batch::default() }
}

fn embed(backend: &dyn Backend, prompts: Vec<Vec<TokenId>>, dimensions: Option<u32>) -> Vec<Result<Vec<f32>, RowFailure>> {
    let stream = backend.submit(batch(prompts, dimensions));
    let mut completions: Vec<_> = block_on(stream.map(Result::unwrap).collect());
    completions.sort_by_key(|completion| completion.id);
    completions.into_iter().map(|completion| completion.result.map(|answer| answer.embedding.unwrap())).collect()
}

/// Embeds all texts together and returns the largest difference of a component and the least cosine.
fn compare(folder: &Path) -> (f32, f64) {
    let (backend, expected) = (open(folder), expected(folder));
    assert!(expected.len() > 5);
    for Expected { text, ids, .. } in &expected {
        assert_eq!(&prompt(backend.as_ref(), text), ids, "{text:?}");
    }
    let vectors = embed(backend.as_ref(), expected.iter().map(|row| row.ids.clone()).collect(), None);
    let (mut difference, mut cosine) = (0.0f32, 1.0f64);
    for (vector, expected) in vectors.into_iter().zip(&expected) {
        let vector = vector.unwrap();
        assert_eq!(vector.len(), expected.vector.len());
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        assert!((dot(&vector, &vector) - 1.0).abs() < 1e-6, "{:?} is not of unit length", expected.text);
        let lengths = (dot(&vector, &vector) * dot(&expected.vector, &expected.vector)).sqrt();
        cosine = cosine.min(dot(&vector, &expected.vector) / lengths);
        difference = vector.iter().zip(&expected.vector).map(|(a, b)| (a - b).abs()).fold(difference, f32::max);
    }
    (difference, cosine)
}

#[track_caller]
fn check(folder: &Path) -> (f32, f64) {
    let (difference, cosine) = compare(folder);
    assert!(difference < 1e-5 && cosine > 0.99999, "{}: differs by {difference:e}, cosine {cosine}", folder.display());
    (difference, cosine)
}

#[test]
fn mean_pooling_and_the_error_function() {
    check(&fixture("bert"));
}

#[test]
fn cls_pooling_and_the_hyperbolic_tangent() {
    check(&fixture("bert-cls"));
}

#[test]
fn the_last_token_of_a_decoder() {
    check(&fixture("mistral"));
}

#[test]
fn the_last_token_of_qwen3() {
    check(&fixture("qwen3"));
}

#[test]
fn a_decoder_shares_prefixes_and_writes_nothing() {
    let backend = open(&fixture("mistral"));
    let texts = (0..40).map(|i| prompt(backend.as_ref(), &format!("{} {i}", "the red fox ".repeat(5))));
    let vectors = embed(backend.as_ref(), texts.clone().collect(), Some(7));
    for (text, vector) in texts.zip(vectors) {
        assert_eq!(embed(backend.as_ref(), vec![text], Some(7)), [vector]);
    }
    let stats = backend.stats();
    assert_eq!((stats.output_tokens, stats.completed, stats.pending), (0, 80, 0));
    assert!(stats.cached_tokens > stats.prompt_tokens / 3, "{stats:?}");
    let long = prompt(backend.as_ref(), &"z".repeat(100));
    assert_eq!(embed(backend.as_ref(), vec![long], None), [Err(RowFailure::Overflow { tokens: 102, limit: 101 })]);
    let mut text = batch(vec![prompt(backend.as_ref(), "a")], None);
    text.requests[0].shape = Arc::new(OutputShape::Text);
    let answers: Vec<_> = block_on(backend.submit(text).collect());
    assert!(matches!(&answers[..], [Err(Error::Invalid(reason))] if reason.contains("the model embeds")), "{answers:?}");
}

#[test]
#[allow(clippy::print_stderr, reason = "says that the test was left out, or how near the vectors are")]
fn real_weights() {
    match std::env::var_os("REFRAIN_MINILM").map(PathBuf::from) {
        Some(folder) => {
            let (difference, cosine) = check(&folder);
            eprintln!("largest difference {difference:e}, least cosine {cosine:.9}");
        }
        None => eprintln!("skipped: REFRAIN_MINILM names no folder of a real model"),
    }
}

#[test]
fn vectors_do_not_depend_on_the_batch() {
    let (backend, expected) = (open(&fixture("bert")), expected(&fixture("bert")));
    let prompts: Vec<_> = expected.iter().map(|row| row.ids.clone()).collect();
    let many: Vec<_> = (0..200).map(|i| prompts[i % prompts.len()].clone()).collect();
    let together = embed(backend.as_ref(), many, None);
    for (i, prompt) in prompts.iter().enumerate() {
        assert_eq!(embed(backend.as_ref(), vec![prompt.clone()], None)[0], together[i]);
        assert_eq!(together[i], together[i + prompts.len()]);
    }
}

#[test]
fn leading_dimensions_are_scaled_to_unit_length() {
    let backend = open(&fixture("bert"));
    let text = prompt(backend.as_ref(), "the red fox");
    let whole = embed(backend.as_ref(), vec![text.clone()], None).remove(0).unwrap();
    let short = embed(backend.as_ref(), vec![text], Some(5)).remove(0).unwrap();
    let length = whole[..5].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert_eq!(short.len(), 5);
    assert!(short.iter().zip(&whole).all(|(short, whole)| (short - whole / length).abs() < 1e-6));
}

#[test]
fn capabilities_say_what_the_model_takes_and_gives() {
    let backend = open(&fixture("bert"));
    let capabilities = backend.capabilities();
    assert_eq!((capabilities.kind, capabilities.max_context), (ModelKind::Embedding { dimensions: Some(32) }, 48));
    let long = prompt(backend.as_ref(), &"fox ".repeat(47));
    assert_eq!(embed(backend.as_ref(), vec![long], None), [Err(RowFailure::Overflow { tokens: 49, limit: 48 })]);
    let mut text = batch(vec![prompt(backend.as_ref(), "a")], None);
    text.requests[0].shape = Arc::new(OutputShape::Text);
    let answers: Vec<_> = block_on(backend.submit(text).collect());
    assert!(matches!(&answers[..], [Err(Error::Invalid(reason))] if reason.contains("the model embeds")), "{answers:?}");
}

/// A copy of a fixture that a test may damage.
fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("1_Pooling")).unwrap();
    for file in [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    ] {
        std::fs::copy(fixture(name).join(file), copy.path().join(file)).unwrap();
    }
    copy
}

#[test]
fn names_what_is_missing_or_not_supported() {
    let check = |change: &dyn Fn(&Path), words: &str| {
        let folder = copy("bert");
        change(folder.path());
        match open_model(folder.path()) {
            Err(error @ Error::Weights { .. }) => assert!(error.to_string().contains(words), "{error}"),
            other => panic!("{other:?} instead of {words}"),
        }
    };
    let remove = |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
    let replace = |name: &'static str, from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let text = std::fs::read_to_string(folder.join(name)).unwrap();
            assert!(text.contains(from), "{name}");
            std::fs::write(folder.join(name), text.replace(from, to)).unwrap();
        }
    };
    check(&|folder| std::fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap(), "pickle");
    check(&remove("model.safetensors"), "no *.safetensors");
    check(&remove("tokenizer.json"), "tokenizer.json: the file is missing");
    check(&replace("config.json", "\"BertModel\"", "\"MPNetModel\""), "the architecture is MPNetModel");
    check(&replace("config.json", "\"hidden_size\": 32", "\"hidden_size\": 64"), "has shape");
    check(&replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"), "is missing");
    check(&replace("modules.json", "models.Normalize", "models.Dense"), "models.Dense");
    check(&replace("1_Pooling/config.json", "mean_tokens\": true", "mean_tokens\": false"), "no pooling mode is set");
    check(&replace("1_Pooling/config.json", "{", "["), "it is not JSON");
    check(&replace("tokenizer.json", "{", "["), "tokenizer");
}

#[test]
fn any_change_changes_the_digest() {
    let digest = |folder: &Path| match open_model(folder).unwrap() {
        OpenedModel::Embedding(model) => model.digest().to_owned(),
        other => panic!("{other:?}"),
    };
    let before = digest(&fixture("bert"));
    assert_ne!(before, digest(&fixture("bert-cls")));
    let folder = copy("bert");
    let pooling = folder.path().join("1_Pooling/config.json");
    let text = std::fs::read_to_string(&pooling).unwrap();
    let cls = text.replace("mean_tokens\": true", "mean_tokens\": false").replace("cls_token\": false", "cls_token\": true");
    let unchanged = digest(folder.path());
    std::fs::write(pooling, cls).unwrap();
    assert_ne!(unchanged, digest(folder.path()));
}
