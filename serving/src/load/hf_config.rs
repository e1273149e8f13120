//! config.json and generation_config.json of a Hugging Face folder.

use serde_json::Value;

use crate::model::{ModelConfig, RopeScaling};
use crate::request::TokenId;

/// Architectures whose configuration is understood.
const SUPPORTED: &str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM";

/// Reads a config.json. Its end tokens are those of this file alone. The error says what is wrong with the file.
///
/// Attention over a sliding window is full attention while the context is no longer than the window, so `max_context` of such
/// a model is at most its window.
pub(super) fn parse(text: &str) -> Result<ModelConfig, String> {
    let json: Value =
        serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}; fetch the file again"))?;
    let architecture = json["architectures"][0].as_str().or(json["model_type"].as_str()).unwrap_or("none");
    let qwen2 = match architecture {
        "LlamaForCausalLM" | "MistralForCausalLM" => false,
        "Qwen2ForCausalLM" => true,
        _ => {
            return Err(format!("the architecture is {architecture}; supported are {SUPPORTED}"));
        }
    };
    refuse_variants(&json)?;

    let hidden_size = size(&json, "hidden_size")?;
    let heads = size(&json, "num_attention_heads")?;
    let rope = if json["rope_parameters"].is_object() { &json["rope_parameters"] } else { &json["rope_scaling"] };
    let config = ModelConfig {
        vocab_size: size(&json, "vocab_size")?,
        hidden_size,
        intermediate_size: size(&json, "intermediate_size")?,
        layers: size(&json, "num_hidden_layers")?,
        heads,
        kv_heads: optional_size(&json, "num_key_value_heads")?.unwrap_or(heads),
        head_dim: optional_size(&json, "head_dim")?.unwrap_or(hidden_size / heads.max(1)),
        rms_norm_eps: number(&json, "rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta: number(rope, "rope_theta")?.or(number(&json, "rope_theta")?).unwrap_or(10_000.0),
        rope_scaling: rope_scaling(rope)?,
        qkv_bias: qwen2,
        tie_word_embeddings: json["tie_word_embeddings"].as_bool().unwrap_or(false),
        max_context: max_context(&json, qwen2)?,
        end_tokens: end_tokens(&json),
    };
    config.check()?;
    Ok(config)
}

/// Returns the end tokens that a generation_config.json or config.json names.
pub(super) fn end_tokens(json: &Value) -> Vec<TokenId> {
    let named = match &json["eos_token_id"] {
        Value::Array(ids) => ids.iter().collect(),
        id => vec![id],
    };
    named.into_iter().filter_map(|id| TokenId::try_from(id.as_u64()?).ok()).collect()
}

/// Fails on what would change the computation.
fn refuse_variants(json: &Value) -> Result<(), String> {
    if !json["quantization_config"].is_null() {
        return Err(
            "quantised safetensors are not supported: use the folder of the unquantised model, or a GGUF file".to_owned()
        );
    }
    for key in ["attention_bias", "mlp_bias"] {
        if json[key].as_bool() == Some(true) {
            return Err(format!("{key} is true, which is not supported"));
        }
    }
    if json["partial_rotary_factor"].as_f64().is_some_and(|factor| factor != 1.0) {
        return Err("partial_rotary_factor is not supported".to_owned());
    }
    match json["hidden_act"].as_str() {
        None | Some("silu" | "swish") => Ok(()),
        Some(activation) => Err(format!("the activation is {activation}; only silu is supported")),
    }
}

fn max_context(json: &Value, qwen2: bool) -> Result<usize, String> {
    let positions = size(json, "max_position_embeddings")?;
    let slides = !qwen2 || json["use_sliding_window"].as_bool() == Some(true);
    let window = optional_size(json, "sliding_window")?.filter(|_| slides);
    Ok(positions.min(window.unwrap_or(positions)))
}

fn rope_scaling(rope: &Value) -> Result<Option<RopeScaling>, String> {
    let factor = |key: &str| number(rope, key)?.ok_or(format!("rope_scaling lacks {key}"));
    match rope["rope_type"].as_str().or(rope["type"].as_str()) {
        None | Some("default") => Ok(None),
        Some("linear") => Ok(Some(RopeScaling::Linear { factor: factor("factor")? })),
        Some("llama3") => Ok(Some(RopeScaling::Llama3 {
            factor: factor("factor")?,
            low_freq_factor: factor("low_freq_factor")?,
            high_freq_factor: factor("high_freq_factor")?,
            original_max_position: size(rope, "original_max_position_embeddings")?,
        })),
        Some(kind) => Err(format!("the rotary scaling is {kind}; supported are linear and llama3")),
    }
}

fn size(json: &Value, key: &str) -> Result<usize, String> {
    optional_size(json, key)?.ok_or(format!("{key} is missing; is this the config.json of a decoder?"))
}

fn optional_size(json: &Value, key: &str) -> Result<Option<usize>, String> {
    match &json[key] {
        Value::Null => Ok(None),
        value => match value.as_u64().and_then(|value| usize::try_from(value).ok()) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("{key} is {value}, which is no size")),
        },
    }
}

fn number(json: &Value, key: &str) -> Result<Option<f32>, String> {
    match &json[key] {
        Value::Null => Ok(None),
        value => value.as_f64().map(|value| Some(value as f32)).ok_or(format!("{key} is {value}, which is no number")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu",
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true,
            "eos_token_id": [128001, 128008], "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        })
    }

    fn with(key: &str, value: Value) -> Result<ModelConfig, String> {
        let mut json = llama();
        json[key] = value;
        parse(&json.to_string())
    }

    #[test]
    fn reads_llama_3() {
        let config = parse(&llama().to_string()).unwrap();
        assert_eq!((config.layers, config.kv_heads, config.head_dim, config.qkv_bias), (16, 8, 64, false));
        assert_eq!(config.end_tokens, [128001, 128008]);
        assert!(matches!(config.rope_scaling, Some(RopeScaling::Llama3 { original_max_position: 8192, .. })));
    }

    #[test]
    fn qwen2_has_biases_and_no_window_unless_it_says_so() {
        let json = json!({"architectures": ["Qwen2ForCausalLM"], "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "sliding_window": 32,
            "use_sliding_window": false, "rope_theta": 1000000.0});
        let config = parse(&json.to_string()).unwrap();
        assert_eq!((config.qkv_bias, config.max_context, config.head_dim, config.kv_heads), (true, 64, 4, 2));
    }

    #[test]
    fn a_window_bounds_the_context_of_mistral() {
        let mut json = llama();
        json["architectures"] = json!(["MistralForCausalLM"]);
        json["sliding_window"] = json!(4096);
        assert_eq!(parse(&json.to_string()).unwrap().max_context, 4096);
    }

    #[test]
    fn reads_rope_parameters() {
        let config = with("rope_parameters", json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0})).unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling), (7.0, Some(RopeScaling::Linear { factor: 2.0 })));
    }

    #[test]
    fn names_the_architecture_and_the_supported_ones() {
        let error = with("architectures", json!(["GPT2LMHeadModel"])).unwrap_err();
        assert!(error.contains("GPT2LMHeadModel") && error.contains("Qwen2ForCausalLM"), "{error}");
    }

    #[test]
    fn refuses_what_it_cannot_compute() {
        for (key, value) in [
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("quantization_config", json!({})),
            ("rope_scaling", json!({"type": "yarn", "factor": 4.0})),
            ("rope_scaling", json!({"type": "linear"})),
            ("hidden_size", json!("many")),
            ("num_hidden_layers", json!(1e18)),
            ("num_hidden_layers", json!(u64::MAX)),
            ("num_attention_heads", json!(0)),
            ("max_position_embeddings", Value::Null),
        ] {
            assert!(with(key, value).is_err(), "{key}");
        }
        assert!(parse("{").is_err());
        assert!(parse("[]").is_err());
    }
}
