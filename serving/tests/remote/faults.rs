//! Services that misbehave: what is tried again, what costs a row, and what ends a batch.

use std::time::Duration;

use refrain_serving::remote::{RemoteBackend, RemoteConfig};
use refrain_serving::{Backend, Error, OutputShape, Result, RowFailure, Sampling};
use serde_json::json;

use super::server::{Reply, Server};
use super::{ask, ask_one, backend, batch, config, failure, text};

/// Asks once and returns the answer with the number of retries.
async fn answer(server: &Server) -> (String, u32) {
    let completion = ask_one(&backend(server, |_| {}), "q", OutputShape::Text).await.unwrap();
    (completion.result.unwrap().text, completion.usage.retries)
}

/// Asks once with two retries and returns why the row failed.
async fn fails(server: &Server, change: impl FnOnce(&mut RemoteConfig)) -> RowFailure {
    let backend = backend(server, |config| {
        config.max_retries = 2;
        change(config);
    });
    failure(ask_one(&backend, "q", OutputShape::Text).await)
}

#[track_caller]
fn fatal<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let Err(Error::Http(message)) = result else { panic!("{result:?} is no error of the batch") };
    for part in parts {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("sk-hidden"), "{message}");
}

#[tokio::test]
async fn rate_limits_are_waited_out() {
    let server = Server::start(|index, _| match index {
        0 => Reply::error(429, "slow down", "rate_limit_exceeded").with("retry-after", "0"),
        1 => Reply::error(429, "slow down", "rate_limit_exceeded"),
        2 => Reply::error(429, "slow down", "")
            .with("date", "Sun, 06 Nov 1994 08:49:37 GMT")
            .with("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
        // The wait is capped by the configuration: an hour would outlast any test.
        3 => Reply::error(503, "busy", "").with("retry-after", "3600"),
        _ => Reply::chat("fine"),
    })
    .await;
    assert_eq!(answer(&server).await, ("fine".to_string(), 4));
}

#[tokio::test]
async fn rate_limits_that_hold_cost_the_row() {
    let server = Server::start(|_, _| Reply::error(429, "slow down", "rate_limit_exceeded")).await;
    let failure = fails(&server, |_| {}).await;
    assert_eq!(failure.reason(), "rate_limit");
    assert!(failure.to_string().ends_with("limits the rate of requests: slow down"), "{failure}");
    assert_eq!(server.counts().received, 3);
}

#[tokio::test]
async fn a_used_up_quota_ends_the_batch() {
    let server = Server::start(|_, _| Reply::error(429, "You exceeded your current quota", "insufficient_quota")).await;
    fatal(ask_one(&backend(&server, |_| {}), "q", OutputShape::Text).await, &["has no credit left", "use another key"]);
    assert_eq!(server.counts().received, 1);
}

#[tokio::test]
async fn failures_of_the_server_are_tried_again() {
    let server = Server::start(|index, _| match index {
        0 => Reply::error(500, "oops", ""),
        1 => Reply::json(502, &json!("<html>")),
        _ => Reply::chat("fine"),
    })
    .await;
    assert_eq!(answer(&server).await, ("fine".to_string(), 2));
    let server = Server::start(|_, _| Reply::error(500, "oops", "")).await;
    let failure = fails(&server, |_| {}).await;
    assert!(matches!(&failure, RowFailure::Transport(message) if message.ends_with("failed (HTTP 500: oops)")), "{failure}");
    assert_eq!(server.counts().received, 3);
}

#[tokio::test]
async fn answers_that_are_none_are_tried_again() {
    let server = Server::start(|index, _| match index {
        0 => Reply::Whole { status: 200, headers: vec![], body: b"{\"choices\": [".to_vec() },
        1 => Reply::json(200, &json!({"choices": []})),
        2 => Reply::Broken(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"choices\": [".to_vec()),
        3 => Reply::Broken(vec![]),
        4 => Reply::json(200, &json!({"error": {"message": "upstream", "code": 502}})),
        _ => Reply::chat("fine"),
    })
    .await;
    assert_eq!(answer(&server).await, ("fine".to_string(), 5));
    let server = Server::start(|_, _| Reply::Whole { status: 200, headers: vec![], body: b"sk-hidden?".to_vec() }).await;
    let failure = fails(&server, |_| {}).await;
    assert!(failure.to_string().ends_with("sent something that is not JSON: [secret]?"), "{failure}");
}

#[tokio::test]
async fn silence_ends_in_a_timeout() {
    for beginning in ["", "HTTP/1.1 200 OK\r\ncontent-le", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"] {
        let server = Server::start(move |_, _| Reply::Hanging(beginning.as_bytes().to_vec())).await;
        let failure = fails(&server, |config| {
            config.max_retries = 1;
            config.first_byte_timeout = Duration::from_millis(100);
            config.request_timeout = Duration::from_millis(150);
        })
        .await;
        let RowFailure::Transport(message) = failure else { panic!("{failure}") };
        assert!(
            message.contains("did not begin to answer within 100ms") || message.contains("did not finish within 150ms"),
            "{message}"
        );
        server.wait_for(|counts| counts.abandoned == 2).await;
    }
}

#[tokio::test]
async fn responses_without_end_are_not_read() {
    let endless = |head: &str| [head.as_bytes(), &vec![b'x'; 100_000]].concat();
    let announced = endless("HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n");
    let chunked = [&endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n186a0\r\n")[..], b"\r\n"].concat();
    for bytes in [announced, chunked] {
        let server = Server::start(move |_, _| Reply::Hanging(bytes.clone())).await;
        let failure = fails(&server, |config| config.response_bytes_max = 50_000).await;
        assert!(failure.to_string().contains("sent more than response_bytes_max = 50000 bytes"), "{failure}");
        server.wait_for(|counts| counts.abandoned == 1).await;
        assert_eq!(server.counts().received, 1);
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Server::start(|_, _| Reply::chat("stolen")).await;
    let target = format!("{}/chat/completions", elsewhere.url);
    let server = Server::start(move |_, _| Reply::json(307, &json!({})).with("location", &target)).await;
    fatal(ask_one(&backend(&server, |_| {}), "q", OutputShape::Text).await, &["redirects to", "is not followed"]);
    assert_eq!((server.counts().received, elsewhere.counts().received), (1, 0));
}

#[tokio::test]
async fn wrong_keys_end_the_batch_unseen() {
    let server = Server::start(|_, _| Reply::error(401, "Incorrect API key provided: sk-hidden", "invalid_api_key")).await;
    let backend = backend(&server, |config| config.max_concurrency = 2);
    let completions = ask(&backend, &["q"; 100], OutputShape::Text).await;
    assert_eq!(completions.len(), 1);
    let parts = ["does not accept the key (HTTP 401: Incorrect API key provided: [secret])", "check the secret"];
    fatal(completions.into_iter().next().unwrap(), &parts);
    assert!(server.counts().received <= 2);
    assert_eq!((backend.stats().cancelled, backend.stats().pending), (100, 0));
    assert!(!format!("{backend:?} {:?}", config(&server)).contains("sk-hidden"));
}

#[tokio::test]
async fn unknown_models_end_the_batch() {
    let server = Server::start(|_, _| Reply::error(404, "The model `test` does not exist", "model_not_found")).await;
    let parts = ["(HTTP 404: The model `test` does not exist)", "check the location", "model's name"];
    fatal(ask_one(&backend(&server, |_| {}), "q", OutputShape::Text).await, &parts);
}

#[tokio::test]
async fn unknown_fields_are_left_out_from_then_on() {
    let server = Server::start(|_, received| {
        if received.body.get("top_k").is_some() {
            return Reply::error(400, "Unrecognized request argument supplied: top_k", "");
        }
        if received.body.get("max_tokens").is_some() {
            return Reply::error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "");
        }
        Reply::chat("fine")
    })
    .await;
    let backend = backend(&server, |config| config.max_retries = 0);
    for (retries, received) in [(2, 3), (0, 4)] {
        let mut asked = batch(&backend, &["q"], OutputShape::Text);
        asked.requests[0].sampling = Sampling { top_k: 5, ..Sampling::GREEDY };
        let mut completions: Vec<_> = futures::StreamExt::collect::<Vec<_>>(backend.submit(asked)).await;
        let completion = completions.remove(0).unwrap();
        assert_eq!((completion.usage.retries, completion.result.is_ok()), (retries, true));
        assert_eq!(server.counts().received, received);
    }
    assert_eq!(server.received()[3].body["max_completion_tokens"], 64);
}

#[tokio::test]
async fn rejected_requests_end_the_batch_until_one_was_answered() {
    let server = Server::start(|_, received| match received.question() {
        "bad" => Reply::error(400, "bad request", ""),
        _ => Reply::chat("fine"),
    })
    .await;
    let backend = backend(&server, |_| {});
    fatal(
        ask_one(&backend, "bad", OutputShape::Text).await,
        &["rejects the request (HTTP 400: bad request)", "check its options"],
    );
    assert_eq!(text(ask_one(&backend, "good", OutputShape::Text).await), "fine");
    assert_eq!(failure(ask_one(&backend, "bad", OutputShape::Text).await).reason(), "refused");
}

#[tokio::test]
async fn long_prompts_cost_the_row() {
    let server = Server::start(|_, _| Reply::error(400, "too long", "context_length_exceeded")).await;
    let backend = backend(&server, |config| config.max_context = 100);
    let short = failure(ask_one(&backend, "q", OutputShape::Text).await);
    assert_eq!(short, RowFailure::Overflow { tokens: 67, limit: 100 }, "10 bytes are 3 tokens, and 64 for the answer");
    let long = failure(ask_one(&backend, &"x".repeat(200), OutputShape::Text).await);
    assert_eq!(long, RowFailure::Overflow { tokens: 117, limit: 100 }, "212 bytes are 53 tokens, and 64 for the answer");
    assert_eq!(server.counts().received, 1);
}

#[tokio::test]
async fn a_dead_service_ends_the_batch_soon() {
    let server = Server::start(|_, _| Reply::error(500, "oops", "")).await;
    let backend = backend(&server, |config| {
        (config.failures_in_a_row, config.max_retries, config.max_concurrency) = (3, 1, 2);
    });
    let completions = ask(&backend, &["q"; 10_000], OutputShape::Text).await;
    let mut failed = completions.into_iter();
    let rows = failed.by_ref().take_while(Result::is_ok).count();
    assert!(rows <= 3, "{rows}");
    assert!(server.counts().received <= 10, "{:?}", server.counts());
    // Later batches do not find out again.
    let before = server.counts().received;
    let parts = ["3 requests in a row failed", "HTTP 500: oops", "check that it is up"];
    fatal(ask_one(&backend, "q", OutputShape::Text).await, &parts);
    assert_eq!(server.counts().received, before);
}

#[tokio::test]
async fn nobody_listens() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut config = RemoteConfig::new(format!("http://{address}/v1"), "test");
    (config.max_retries, config.backoff_base) = (1, Duration::from_millis(1));
    let failure = failure(ask_one(&RemoteBackend::new(config).unwrap(), "q", OutputShape::Text).await);
    assert!(
        matches!(&failure, RowFailure::Transport(message) if message.contains(&format!("{address} cannot be reached"))),
        "{failure}"
    );
}

#[tokio::test]
async fn servers_that_cannot_be_trusted_get_nothing() {
    let server = Server::start(|_, _| Reply::chat("fine")).await;
    let mut config = RemoteConfig::new(server.url.replace("http://", "https://"), "test");
    (config.max_retries, config.backoff_base) = (0, Duration::from_millis(1));
    match RemoteBackend::new(config) {
        Ok(backend) => {
            let failure = failure(ask_one(&backend, "q", OutputShape::Text).await);
            assert!(failure.to_string().contains("cannot be reached"), "{failure}");
        }
        // A machine without certificates cannot trust anyone.
        Err(error) => assert!(error.to_string().contains("cannot prepare the connection"), "{error}"),
    }
    assert_eq!(server.counts().received, 0);
}

#[test]
fn a_runtime_is_needed() {
    let backend = RemoteBackend::new(RemoteConfig::new("http://localhost:1", "m")).unwrap();
    let mut completions = backend.submit(batch(&backend, &["q"], OutputShape::Text));
    let first = futures::executor::block_on(futures::StreamExt::next(&mut completions)).unwrap();
    fatal(first, &["tokio runtime"]);
}
