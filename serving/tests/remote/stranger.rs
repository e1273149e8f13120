//! Servers that others wrote. `REFRAIN_REMOTE_URL` names one that runs on this machine, such as
//!
//! ```text
//! python serving/scripts/mini_gguf.py serving/models/mini mini.gguf
//! python -m llama_cpp.server --model mini.gguf --n_ctx 2048 --logits_all true --interrupt_requests false --port 8000
//! REFRAIN_REMOTE_URL=http://127.0.0.1:8000/v1 REFRAIN_REMOTE_STRUCTURE=json_object \
//!     cargo test -p refrain-serving --test remote stranger -- --nocapture
//! ```
//!
//! which `tests/clients/stranger.py` does, from the installation on. `REFRAIN_REMOTE_STRUCTURE` names how it takes shapes
//! (`json_schema` otherwise), `REFRAIN_REMOTE_MODEL` the model.

use futures::StreamExt;
use refrain_serving::remote::{ApiFormat, RemoteBackend, RemoteConfig};
use refrain_serving::{Backend, OutputShape, RowFailure};
use serde_json::json;

use super::{batch, labels};

const QUESTIONS: [&str; 3] = ["Is water wet?", "Is fire cold?", "Is the sky green?"];

/// Asks the questions. Rows may fail only because the model, which nothing but its prompt may guide, misses the shape.
#[allow(clippy::print_stderr, reason = "shows what a strange server answered")]
async fn check(config: &RemoteConfig, shape: OutputShape) {
    let backend = RemoteBackend::new(config.clone()).unwrap();
    let mut asked = batch(&backend, &QUESTIONS, shape.clone());
    asked.requests.iter_mut().for_each(|request| request.logprobs = Some(2));
    let completions: Vec<_> = backend.submit(asked).collect().await;
    assert_eq!(completions.len(), QUESTIONS.len());
    for completion in completions {
        let completion = completion.unwrap();
        assert!(completion.usage.prompt > 0 && completion.usage.output > 0);
        let found = match &completion.result {
            Ok(answer) => {
                let probabilities = answer.logprobs.len();
                assert!(probabilities == 0 || probabilities == answer.tokens.len());
                format!("{:?}, probabilities of {probabilities} bytes", answer.text)
            }
            Err(RowFailure::Schema(text)) => format!("not of the shape: {text:?}"),
            Err(failure) => panic!("{failure}"),
        };
        let RemoteConfig { api_format, structured_output, streaming, .. } = config;
        let usage = completion.usage;
        eprintln!("{api_format:?} {structured_output:?} streaming {streaming}, {shape:?}: {found}; {usage:?}");
    }
}

#[tokio::test]
#[allow(clippy::print_stderr, reason = "says that the test was left out")]
async fn a_server_of_others() {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(url) = variable("REFRAIN_REMOTE_URL") else {
        eprintln!("skipped: REFRAIN_REMOTE_URL names no server");
        return;
    };
    let mut config = RemoteConfig::new(url, variable("REFRAIN_REMOTE_MODEL").unwrap_or_else(|| "default".to_string()));
    let structure = variable("REFRAIN_REMOTE_STRUCTURE");
    config.structured_output = structure.map_or(Ok(config.structured_output), |text| text.parse()).unwrap();
    let schema = json!({
        "type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"], "additionalProperties": false,
    });
    let score = OutputShape::Number { min: 1.0, max: 5.0, integer: true };
    for streaming in [false, true] {
        config.streaming = streaming;
        for shape in [OutputShape::Text, labels(), score.clone(), OutputShape::Json(schema.clone())] {
            check(&config, shape).await;
        }
    }
    config.api_format = ApiFormat::Completions;
    check(&config, OutputShape::Text).await;
}
