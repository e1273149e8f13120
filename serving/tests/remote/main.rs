//! Remote models against a real HTTP server on this machine.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod answers;
mod faults;
mod scheduling;
mod server;
mod stranger;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use refrain_serving::remote::{RemoteBackend, RemoteConfig, Secret};
use refrain_serving::{Backend, Batch, Completion, OutputShape, Request, RequestId, Result, RowFailure, Sampling};

use server::Server;

/// A configuration whose waits are short.
fn config(server: &Server) -> RemoteConfig {
    let mut config = RemoteConfig::new(&server.url, "test");
    config.credential = Some(Secret::new("sk-hidden"));
    config.backoff_base = Duration::from_millis(1);
    config.backoff_max = Duration::from_millis(5);
    config
}

fn backend(server: &Server, change: impl FnOnce(&mut RemoteConfig)) -> RemoteBackend {
    let mut config = config(server);
    change(&mut config);
    RemoteBackend::new(config).unwrap()
}

/// Asks these questions in one batch, under a system text.
fn batch(backend: &RemoteBackend, questions: &[&str], shape: OutputShape) -> Batch {
    let (tokenizer, shape) = (backend.tokenizer(), Arc::new(shape));
    let chat = tokenizer.render_chat("Be brief.", "MARK").unwrap();
    let (before, after) = chat.split_once("MARK").unwrap();
    let request = |(id, question): (u32, &&str)| {
        let prompt = vec![
            tokenizer.encode_control(before).into(),
            tokenizer.encode(question).into(),
            tokenizer.encode_control(after).into(),
        ];
        Request::new(RequestId(id), prompt, Arc::clone(&shape), Sampling::GREEDY, 64)
    };
    Batch { requests: (0..).zip(questions).map(request).collect(), ..Batch::default() }
}

/// Returns the completions in the order of the questions, errors last.
async fn ask(backend: &RemoteBackend, questions: &[&str], shape: OutputShape) -> Vec<Result<Completion>> {
    let mut completions: Vec<_> = backend.submit(batch(backend, questions, shape)).collect().await;
    completions.sort_by_key(|completion| completion.as_ref().map_or(u32::MAX, |completion| completion.id.0));
    completions
}

/// Asks one question.
async fn ask_one(backend: &RemoteBackend, question: &str, shape: OutputShape) -> Result<Completion> {
    let mut completions = ask(backend, &[question], shape).await;
    assert_eq!(completions.len(), 1);
    completions.remove(0)
}

fn text(completion: Result<Completion>) -> String {
    completion.unwrap().result.unwrap().text
}

fn failure(completion: Result<Completion>) -> RowFailure {
    completion.unwrap().result.unwrap_err()
}

fn labels() -> OutputShape {
    OutputShape::Choice(vec!["Yes".to_string(), "No".to_string()])
}
