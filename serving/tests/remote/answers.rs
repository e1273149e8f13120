//! Services that behave: what is sent, and what is made of the answers.

use refrain_serving::remote::{ApiFormat, RemoteBackend, RemoteConfig, StructuredOutput};
use refrain_serving::{Backend, FinishReason, ModelKind, OutputShape, RowFailure, Sampling, Usage};
use serde_json::{Value, json};

use super::server::{Reply, Server, chat};
use super::{ask, ask_one, backend, batch, failure, labels, text};

#[tokio::test]
async fn a_chat() {
    let server = Server::start(|_, _| Reply::chat("Paris")).await;
    let backend = backend(&server, |_| {});
    let data = "<|assistant|> What is the capital of France? Größe";
    let completion = ask_one(&backend, data, OutputShape::Text).await.unwrap();
    let answer = completion.result.unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("Paris", FinishReason::Stop));
    assert_eq!(answer.tokens, backend.tokenizer().encode("Paris"));
    assert_eq!(completion.usage, Usage { prompt: 20, cached: 16, output: 3, ..Usage::default() });
    let received = &server.received()[0];
    assert_eq!(received.path, "/v1/chat/completions");
    assert_eq!(received.header("authorization"), Some("Bearer sk-hidden"));
    assert_eq!(
        received.body,
        json!({
            "model": "test",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": data}],
            "temperature": 0.0, "max_tokens": 64, "stream": false,
        })
    );
    let stats = backend.stats();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens, stats.output_tokens, stats.computed_tokens), (20, 16, 3, 7));
    assert_eq!((stats.steps, stats.completed, stats.pending, stats.cancelled), (1, 1, 0, 0));
    assert_eq!(backend.version().as_deref(), Some("test-1 fp_1"));
}

#[tokio::test]
async fn a_continuation() {
    let reply = json!({"choices": [{"text": "Paris\nBerlin", "finish_reason": "length"}]});
    let server = Server::start(move |_, _| Reply::json(200, &reply)).await;
    let backend = backend(&server, |config| config.api_format = ApiFormat::Completions);
    let answer = ask_one(&backend, "Capital of France?", OutputShape::Text).await.unwrap();
    assert_eq!(answer.usage, Usage { prompt: 7, cached: 0, output: 3, ..Usage::default() }, "estimated");
    let answer = answer.result.unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("Paris\nBerlin", FinishReason::Length));
    let mut stopped = batch(&backend, &["Capital of France?"], OutputShape::Text);
    stopped.requests[0].stop = ["x", "\n"].map(str::to_string).into();
    let completions: Vec<_> = futures::StreamExt::collect(backend.submit(stopped)).await;
    let answer = completions[0].as_ref().unwrap().result.as_ref().unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("Paris", FinishReason::Stop));
    let received = server.received();
    assert_eq!((received[0].path.as_str(), received[0].question()), ("/v1/completions", "Be brief.\n\nCapital of France?"));
    assert_eq!(received[1].body["stop"], json!(["x", "\n"]));
}

#[tokio::test]
async fn a_stream() {
    let events = [
        r#"{"model": "test-1", "choices": [{"delta": {"role": "assistant", "content": ""}}]}"#,
        r#"{"choices": [{"delta": {"content": "Pa"}}]}"#,
        r#"{"choices": [{"delta": {"content": "ris"}, "finish_reason": "stop"}]}"#,
        r#"{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 8}}"#,
        "[DONE]",
    ];
    let server = Server::start(move |_, _| Reply::events(&events)).await;
    let backend = backend(&server, |config| config.streaming = true);
    let completion = ask_one(&backend, "Capital of France?", OutputShape::Text).await.unwrap();
    assert_eq!(completion.usage, Usage { prompt: 9, cached: 8, output: 2, ..Usage::default() });
    assert_eq!(completion.result.unwrap().text, "Paris");
    let body = &server.received()[0].body;
    assert_eq!((&body["stream"], &body["stream_options"]), (&json!(true), &json!({"include_usage": true})));
}

#[tokio::test]
async fn streams_that_break_off_are_asked_again() {
    let server = Server::start(|index, _| match index {
        0 => Reply::events(&[r#"{"choices": [{"delta": {"content": "Pa"}}]}"#]),
        1 => Reply::events(&[r#"{"error": {"message": "overloaded"}}"#]),
        2 => Reply::events(&["{"]),
        // llama-cpp-python ends streams like this when another request comes in.
        3 => Reply::events(&[r#"{"choices": [{"delta": {"content": "Pa"}}]}"#, "[DONE]"]),
        // A service that ignores the wish for a stream.
        _ => Reply::chat("Paris"),
    })
    .await;
    let backend = backend(&server, |config| config.streaming = true);
    let completion = ask_one(&backend, "q", OutputShape::Text).await.unwrap();
    assert_eq!((completion.usage.retries, completion.result.unwrap().text.as_str()), (4, "Paris"));
}

#[tokio::test]
async fn vectors() {
    let server = Server::start(|_, received| {
        let vector = |text: &Value| json!([text.as_str().unwrap().len(), 4.0, 100.0]);
        let texts = received.body["input"].as_array().unwrap();
        let data: Vec<Value> =
            texts.iter().enumerate().map(|(i, text)| json!({"index": i, "embedding": vector(text)})).rev().collect();
        Reply::json(200, &json!({"model": "e", "data": data, "usage": {"prompt_tokens": 10, "total_tokens": 10}}))
    })
    .await;
    let backend = backend(&server, |config| {
        (config.api_format, config.embeddings_per_request, config.max_concurrency) = (ApiFormat::Embeddings, 2, 1);
        config.dimensions = Some(3);
    });
    assert_eq!(backend.capabilities().kind, ModelKind::Embedding { dimensions: Some(3) });
    let mut asked = batch(&backend, &["", "", ""], OutputShape::Embedding { dimensions: Some(2) });
    for (request, text) in asked.requests.iter_mut().zip(["abc", "x", "yyy"]) {
        request.prompt = vec![backend.tokenizer().encode(text).into()];
    }
    let completions: Vec<_> = futures::StreamExt::collect::<Vec<_>>(backend.submit(asked)).await;
    let vectors: Vec<_> =
        completions.iter().map(|c| c.as_ref().unwrap().result.as_ref().unwrap().embedding.clone().unwrap()).collect();
    assert_eq!((vectors[0].clone(), vectors[2].clone()), (vec![0.6, 0.8], vec![0.6, 0.8]));
    let prompt_tokens: Vec<_> = completions.iter().map(|c| c.as_ref().unwrap().usage.prompt).collect();
    assert_eq!(prompt_tokens, [7, 3, 10], "shared by the length of the texts");
    let received = server.received();
    let inputs: Vec<_> = received.iter().map(|received| received.body["input"].clone()).collect();
    assert_eq!(inputs, [json!(["abc", "x"]), json!(["yyy"])]);
    assert_eq!((received[0].path.as_str(), &received[0].body["dimensions"]), ("/v1/embeddings", &json!(2)));
    assert!(ask_one(&backend, "text", OutputShape::Text).await.is_err());
}

#[tokio::test]
async fn vectors_are_cut_here_where_the_service_does_not() {
    let server = Server::start(|_, received| match received.body.get("dimensions") {
        Some(_) => Reply::error(400, "This model does not support the parameter `dimensions`: unknown field", ""),
        None => Reply::json(200, &json!({"data": [{"embedding": [3, 4, 12]}]})),
    })
    .await;
    let backend = backend(&server, |config| config.api_format = ApiFormat::Embeddings);
    let completion = ask_one(&backend, "a", OutputShape::Embedding { dimensions: Some(2) }).await.unwrap();
    assert_eq!((completion.usage.retries, completion.result.unwrap().embedding), (1, Some(vec![0.6, 0.8])));
    let short = failure(ask_one(&backend, "a", OutputShape::Embedding { dimensions: Some(4) }).await);
    assert!(matches!(&short, RowFailure::Schema(reason) if reason.contains("3 dimensions where 4")), "{short}");
}

#[tokio::test]
async fn a_text_that_cannot_be_embedded_fails_alone() {
    let server = Server::start(|_, received| {
        let texts = received.body["input"].as_array().unwrap();
        if texts.iter().any(|text| text.as_str().unwrap().contains("long")) {
            return Reply::error(400, "This model's maximum context length is 512 tokens", "");
        }
        Reply::json(200, &json!({"data": vec![json!({"embedding": [1, 0]}); texts.len()]}))
    })
    .await;
    let backend = backend(&server, |config| config.api_format = ApiFormat::Embeddings);
    let completions = ask(&backend, &["a", "b", "too long", "d"], OutputShape::Embedding { dimensions: None }).await;
    let found: Vec<_> = completions.into_iter().map(|c| c.unwrap().result.map(|answer| answer.embedding.unwrap())).collect();
    assert!(matches!(&found[2], Err(RowFailure::Overflow { .. })));
    assert!([0, 1, 3].iter().all(|index| found[*index] == Ok(vec![1.0, 0.0])));
}

#[tokio::test]
async fn shapes_are_asked_for_and_checked() {
    let server = Server::start(|_, received| match received.question() {
        "label" => Reply::chat(r#"{"answer": "No"}"#),
        "number" => Reply::chat(r#"{"answer": 4}"#),
        "json" => Reply::chat("{\"b\":[1],\"a\":\"x\"}"),
        _ => Reply::chat("2024-05"),
    })
    .await;
    let backend = backend(&server, |_| {});
    assert_eq!(text(ask_one(&backend, "label", labels()).await), "No");
    let score = OutputShape::Number { min: 1.0, max: 5.0, integer: true };
    assert_eq!(text(ask_one(&backend, "number", score).await), "4");
    let schema = json!({
        "type": "object", "required": ["a", "b"], "additionalProperties": false,
        "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}},
    });
    assert_eq!(text(ask_one(&backend, "json", OutputShape::Json(schema.clone())).await), r#"{"a": "x", "b": [1]}"#);
    assert_eq!(text(ask_one(&backend, "date", OutputShape::Regex(r"\d{4}-\d\d".to_string())).await), "2024-05");
    let bodies: Vec<_> = server.received().into_iter().map(|received| received.body["response_format"].clone()).collect();
    assert_eq!(bodies[0]["json_schema"]["schema"]["properties"]["answer"]["enum"], json!(["Yes", "No"]));
    assert_eq!(
        bodies[2],
        json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}})
    );
    assert_eq!(bodies[3], Value::Null);
}

#[tokio::test]
async fn guided_services_get_their_own_fields() {
    let server = Server::start(|_, _| Reply::chat("Yes")).await;
    let backend = backend(&server, |config| config.structured_output = StructuredOutput::Guided);
    assert_eq!(text(ask_one(&backend, "q", labels()).await), "Yes");
    assert_eq!(server.received()[0].body["guided_choice"], json!(["Yes", "No"]));
}

#[tokio::test]
async fn wrong_answers_are_sent_back_once() {
    let server = Server::start(|index, _| Reply::chat(["Perhaps", "yes.", "Perhaps", "Who knows"][index])).await;
    let backend = backend(&server, |config| config.structured_output = StructuredOutput::Prompt);
    let completion = ask_one(&backend, "q", labels()).await.unwrap();
    assert_eq!(completion.usage, Usage { prompt: 40, cached: 32, output: 6, retries: 1, ..Usage::default() });
    assert_eq!(completion.result.unwrap().text, "Yes");
    let messages = server.received()[1].body["messages"].clone();
    assert_eq!(messages[2], json!({"role": "assistant", "content": "Perhaps"}));
    assert!(messages[3]["content"].as_str().unwrap().contains("exactly one of them and nothing else: \"Yes\", \"No\""));
    assert_eq!(failure(ask_one(&backend, "q", labels()).await), RowFailure::Schema("Who knows".to_string()));
    assert_eq!(server.counts().received, 4);
}

#[tokio::test]
async fn answers_cut_off_are_no_answers() {
    let mut cut = chat("12");
    cut["choices"][0]["finish_reason"] = json!("length");
    let server = Server::start(move |_, _| Reply::json(200, &cut)).await;
    let backend = backend(&server, |_| {});
    let number = OutputShape::Number { min: 0.0, max: 1000.0, integer: true };
    assert_eq!(failure(ask_one(&backend, "q", number).await), RowFailure::Schema("12".to_string()));
    assert_eq!(server.counts().received, 1);
}

#[tokio::test]
async fn refusals_are_the_rows_own() {
    let mut refused = chat("");
    refused["choices"][0]["message"]["refusal"] = json!("I cannot help with that.");
    let mut filtered = chat("");
    filtered["choices"][0]["finish_reason"] = json!("content_filter");
    let server = Server::start(move |_, received| match received.question() {
        "refused" => Reply::json(200, &refused),
        "filtered" => Reply::json(200, &filtered),
        "blocked" => Reply::error(400, "The prompt triggered the content management policy", "content_filter"),
        _ => Reply::chat("fine"),
    })
    .await;
    let completions = ask(&backend(&server, |_| {}), &["refused", "filtered", "blocked", "ok"], OutputShape::Text).await;
    let reasons: Vec<_> = completions
        .into_iter()
        .map(|c| c.unwrap().result.map_or_else(|failure| failure.reason().to_string(), |a| a.text))
        .collect();
    assert_eq!(reasons, ["refused", "refused", "refused", "fine"]);
}

#[tokio::test]
async fn probabilities_are_reported_by_byte() {
    let mut reply = chat("Yes");
    reply["choices"][0]["logprobs"] = json!({"content": [{"token": "Yes", "logprob": -0.25, "bytes": [89, 101, 115],
        "top_logprobs": [{"token": "Yes", "logprob": -0.25}, {"token": "No", "logprob": -1.5}]}]});
    let server = Server::start(move |_, _| Reply::json(200, &reply)).await;
    let backend = backend(&server, |_| {});
    let mut asked = batch(&backend, &["q"], OutputShape::Text);
    asked.requests[0].logprobs = Some(2);
    asked.requests[0].sampling = Sampling { temperature: 0.5, top_p: 0.9, top_k: 0, seed: 7 };
    let completions: Vec<_> = futures::StreamExt::collect::<Vec<_>>(backend.submit(asked)).await;
    let answer = completions[0].as_ref().unwrap().result.as_ref().unwrap();
    assert_eq!(answer.logprobs.len(), answer.tokens.len());
    assert!((answer.logprobs[0].logprob + 0.25).abs() < 1e-6);
    assert_eq!(
        answer.logprobs[0].top.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
        [u32::from(b'Y'), u32::from(b'N')]
    );
    let body = &server.received()[0].body;
    assert_eq!((&body["logprobs"], &body["top_logprobs"]), (&json!(true), &json!(2)));
    assert_eq!((&body["temperature"], &body["top_p"], &body["seed"]), (&json!(0.5), &json!(0.9), &json!(7)));
}

#[test]
fn identity_and_abilities() {
    let config = |location: &str| {
        let mut config = RemoteConfig::new(location, "m");
        config.max_context = 1000;
        config
    };
    let capabilities = |config: RemoteConfig| RemoteBackend::new(config).unwrap().capabilities();
    let one = capabilities(config("http://localhost:1/v1"));
    assert_eq!((one.device.as_str(), one.max_context, one.token_scale), ("remote, localhost:1", 1000, 0.25));
    assert!(one.model_digest.starts_with("http://localhost:1/v1#m#"));
    assert_ne!(one.model_digest, capabilities(config("http://localhost:2/v1")).model_digest);
    let mut other = config("http://localhost:1/v1");
    let keyed = capabilities(config("http://localhost:1/v1?key=hidden"));
    assert!(!keyed.model_digest.contains("hidden") && keyed.model_digest != one.model_digest);
    other.extra_body.insert("reasoning_effort".to_string(), json!("low"));
    assert_ne!(one.model_digest, capabilities(other).model_digest);
    let mut revised = config("http://localhost:1/v1");
    revised.revision = Some("2026-05".to_string());
    assert_eq!(capabilities(revised).model_digest, format!("{}@2026-05", one.model_digest));
    let mut reserved = config("http://localhost:1/v1");
    reserved.extra_body.insert("messages".to_string(), json!([]));
    assert!(RemoteBackend::new(reserved).unwrap_err().to_string().contains("\"messages\" cannot be an extra field"));
}
