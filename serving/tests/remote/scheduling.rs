//! When requests are sent: order, concurrency, rate, priority, and what cancels them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use refrain_serving::{Backend, Error, OutputShape};
use tokio::sync::Semaphore;

use super::server::{Reply, Server};
use super::{ask, ask_one, backend, batch, text};

/// A server that answers as many requests as the gate has permits for.
async fn gated() -> (Server, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    (Server::start(move |_, _| Reply::chat("fine").held(&held)).await, gate)
}

#[tokio::test]
async fn requests_arrive_in_the_order_of_the_batch() {
    // The first attempt of every third fails: its retry comes before the next question.
    let server =
        Server::start(|index, _| if index % 3 == 0 { Reply::error(500, "oops", "") } else { Reply::chat("fine") }).await;
    let backend = backend(&server, |config| config.max_concurrency = 1);
    let questions: Vec<String> = (0..20).map(|question| question.to_string()).collect();
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let completions = ask(&backend, &questions, OutputShape::Text).await;
    assert!(completions.into_iter().all(|completion| text(completion) == "fine"));
    let mut arrived = server.questions();
    arrived.dedup();
    assert_eq!(arrived, questions);
}

#[tokio::test]
async fn concurrency_is_used_and_never_exceeded() {
    let (server, gate) = gated().await;
    let backend = backend(&server, |config| config.max_concurrency = 3);
    let mut streams = [0, 1].map(|_| backend.submit(batch(&backend, &["q"; 10], OutputShape::Text)));
    server.wait_for(|counts| counts.active == 3).await;
    gate.add_permits(20);
    for stream in &mut streams {
        assert_eq!(stream.by_ref().filter(|completion| std::future::ready(completion.is_ok())).count().await, 10);
    }
    let counts = server.counts();
    assert_eq!((counts.received, counts.active_max), (20, 3));
}

#[tokio::test]
async fn higher_priorities_go_first() {
    let (server, gate) = gated().await;
    let backend = backend(&server, |config| config.max_concurrency = 1);
    let low = backend.submit(batch(&backend, &["low 1", "low 2", "low 3"], OutputShape::Text));
    server.wait_for(|counts| counts.received == 1).await;
    let mut urgent = batch(&backend, &["high 1", "high 2"], OutputShape::Text);
    urgent.priority = 1;
    let high = backend.submit(urgent);
    // Both batches have run up to their next wait once a task that was started later has run.
    tokio::spawn(async {}).await.unwrap();
    gate.add_permits(5);
    assert_eq!((high.count().await, low.count().await), (2, 3));
    let questions = server.questions();
    let place = |question: &str| questions.iter().position(|asked| asked == question).unwrap();
    assert!(place("high 1") < place("low 2") && place("high 1") < place("high 2"), "{questions:?}");
}

#[tokio::test]
async fn rates_are_kept() {
    let server = Server::start(|_, _| Reply::chat("fine")).await;
    let backend = backend(&server, |config| config.requests_per_minute = Some(1));
    let mut stream = backend.submit(batch(&backend, &["1", "2", "3"], OutputShape::Text));
    assert_eq!(text(stream.next().await.unwrap()), "fine");
    // The others wait for minutes, and can be cancelled meanwhile.
    assert_eq!(backend.stats().pending, 2);
    drop(stream);
    let backend = backend_with_tokens(&server);
    let mut stream = backend.submit(batch(&backend, &["1", "2"], OutputShape::Text));
    assert_eq!(text(stream.next().await.unwrap()), "fine");
    backend.cancel(stream.id());
    assert!(stream.next().await.is_none());
    assert_eq!(server.counts().received, 2);
}

fn backend_with_tokens(server: &Server) -> refrain_serving::remote::RemoteBackend {
    backend(server, |config| config.tokens_per_minute = Some(10))
}

#[tokio::test]
async fn the_first_of_a_long_head_goes_ahead() {
    let (server, gate) = gated().await;
    let backend = backend(&server, |config| config.lead_bytes = Some(100));
    let long = |head: &str, tail: u32| format!("{}{tail}", head.repeat(100));
    let questions: Vec<String> = ["a", "b"].iter().flat_map(|head| (0..4).map(move |tail| long(head, tail))).collect();
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let stream = backend.submit(batch(&backend, &questions, OutputShape::Text));
    server.wait_for(|counts| counts.active == 2).await;
    gate.add_permits(2);
    server.wait_for(|counts| counts.active == 6).await;
    gate.add_permits(6);
    assert_eq!(stream.count().await, 8);
    let mut first = server.questions()[..2].to_vec();
    first.sort();
    assert_eq!(first, [questions[0], questions[4]]);
}

#[tokio::test]
async fn dropping_the_stream_breaks_requests_off() {
    let (server, _gate) = gated().await;
    let backend = backend(&server, |config| config.max_concurrency = 2);
    let stream = backend.submit(batch(&backend, &["q"; 100], OutputShape::Text));
    server.wait_for(|counts| counts.active == 2).await;
    assert_eq!(backend.stats().pending, 100);
    drop(stream);
    server.wait_for(|counts| counts.abandoned == 2 && counts.active == 0).await;
    assert_eq!(server.counts().received, 2);
    let stats = backend.stats();
    assert_eq!((stats.cancelled, stats.pending, stats.completed), (100, 0, 0));
}

#[tokio::test]
async fn cancelling_ends_the_stream_after_what_is_there() {
    let (server, gate) = gated().await;
    let backend = backend(&server, |config| config.max_concurrency = 1);
    let mut stream = backend.submit(batch(&backend, &["1", "2", "3"], OutputShape::Text));
    gate.add_permits(1);
    assert_eq!(text(stream.next().await.unwrap()), "fine");
    server.wait_for(|counts| counts.received == 2).await;
    backend.cancel(stream.id());
    assert!(stream.next().await.is_none());
    server.wait_for(|counts| counts.abandoned == 1).await;
    assert_eq!((backend.stats().cancelled, backend.stats().pending), (2, 0));
    // The place is free again.
    gate.add_permits(1);
    assert_eq!(text(ask_one(&backend, "4", OutputShape::Text).await), "fine");
}

#[tokio::test]
async fn waits_can_be_cancelled() {
    let server = Server::start(|_, _| Reply::error(429, "slow down", "").with("retry-after", "3600")).await;
    let backend = backend(&server, |config| config.backoff_max = Duration::from_secs(3600));
    let mut stream = backend.submit(batch(&backend, &["1", "2"], OutputShape::Text));
    server.wait_for(|counts| counts.received >= 1 && counts.active == 0).await;
    backend.cancel(stream.id());
    assert!(stream.next().await.is_none());
    assert_eq!((backend.stats().cancelled, backend.stats().pending), (2, 0));
}

#[tokio::test]
async fn dropping_the_backend_ends_all_streams() {
    let (server, _gate) = gated().await;
    let backend = backend(&server, |_| {});
    let stream = backend.submit(batch(&backend, &["q"], OutputShape::Text));
    server.wait_for(|counts| counts.active == 1).await;
    drop(backend);
    assert_eq!(stream.count().await, 0);
    server.wait_for(|counts| counts.abandoned == 1).await;
}

#[tokio::test]
async fn batches_without_bound_are_refused() {
    let (server, _gate) = gated().await;
    let backend = backend(&server, |config| config.queued_batches = 1);
    let _first = backend.submit(batch(&backend, &["q"], OutputShape::Text));
    let refused = ask_one(&backend, "q", OutputShape::Text).await;
    assert!(matches!(&refused, Err(Error::OutOfMemory(message)) if message.contains("1 batches wait")), "{refused:?}");
}

#[tokio::test]
async fn every_row_of_a_large_batch_is_answered_once() {
    let server = Server::start(|_, received| Reply::chat(received.question())).await;
    let backend = backend(&server, |_| {});
    let questions: Vec<String> = (0..2000).map(|question| format!("question {question}")).collect();
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let answers: Vec<String> = ask(&backend, &questions, OutputShape::Text).await.into_iter().map(text).collect();
    assert_eq!(answers, questions);
    assert_eq!((backend.stats().completed, backend.stats().steps), (2000, 2000));
}

#[tokio::test]
async fn empty_batches_end_at_once() {
    let (server, _gate) = gated().await;
    let backend = backend(&server, |_| {});
    assert!(ask(&backend, &[], OutputShape::Text).await.is_empty());
}
