//! Servers that others wrote. `REFRAIN_REMOTE_URL` names one that runs on this machine, such as
//!
//! ```text
//! python -m llama_cpp.server --model mini.gguf --port 8000
//! REFRAIN_REMOTE_URL=http://127.0.0.1:8000/v1 cargo test -p refrain-serving --test remote stranger
//! ```
//!
//! `REFRAIN_REMOTE_STRUCTURE` names how it takes shapes (`json_schema` otherwise), `REFRAIN_REMOTE_MODEL` the model.

use refrain_serving::OutputShape;
use refrain_serving::remote::{RemoteBackend, RemoteConfig};
use serde_json::json;

use super::{ask, labels};

const QUESTIONS: [&str; 3] = ["Is water wet?", "Is fire cold?", "Is the sky green?"];

#[tokio::test]
#[allow(clippy::print_stderr, reason = "says that the test was left out, and what a strange server answered")]
async fn a_server_of_others() {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(url) = variable("REFRAIN_REMOTE_URL") else {
        eprintln!("skipped: REFRAIN_REMOTE_URL names no server");
        return;
    };
    let mut config = RemoteConfig::new(url, variable("REFRAIN_REMOTE_MODEL").unwrap_or_else(|| "default".to_string()));
    config.structured_output =
        variable("REFRAIN_REMOTE_STRUCTURE").map_or(Ok(config.structured_output), |text| text.parse()).unwrap();
    let schema = json!({
        "type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"], "additionalProperties": false,
    });
    let score = OutputShape::Number { min: 1.0, max: 5.0, integer: true };
    for streaming in [false, true] {
        config.streaming = streaming;
        let backend = RemoteBackend::new(config.clone()).unwrap();
        for shape in [OutputShape::Text, labels(), score.clone(), OutputShape::Json(schema.clone())] {
            for completion in ask(&backend, &QUESTIONS, shape.clone()).await {
                let completion = completion.unwrap();
                eprintln!("streaming {streaming}: {:?}: {:?} {:?}", shape, completion.result, completion.usage);
                assert!(completion.result.is_ok() && completion.usage.prompt > 0 && completion.usage.output > 0);
            }
        }
    }
}
