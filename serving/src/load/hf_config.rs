//! config.json and generation_config.json of a Hugging Face folder.

use std::num::NonZeroUsize;

use serde_json::Value;

use super::hf_rope;
use crate::model::{LayerAttention, ModelConfig, RopeScaling};
use crate::request::TokenId;

/// Decoders whose configuration is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Architecture {
    Llama,
    Mistral,
    Phi3,
    Qwen2,
    Qwen3,
    SmolLm3,
}

/// The names of each: its class in transformers, and its model type, which stands alone in some files.
const ARCHITECTURES: [(&str, &str, Architecture); 6] = [
    ("LlamaForCausalLM", "llama", Architecture::Llama),
    ("MistralForCausalLM", "mistral", Architecture::Mistral),
    ("Phi3ForCausalLM", "phi3", Architecture::Phi3),
    ("Qwen2ForCausalLM", "qwen2", Architecture::Qwen2),
    ("Qwen3ForCausalLM", "qwen3", Architecture::Qwen3),
    ("SmolLM3ForCausalLM", "smollm3", Architecture::SmolLm3),
];

/// Reads a config.json. Its end tokens are those of this file alone. The error says what is wrong with the file.
pub(super) fn parse(text: &str) -> Result<ModelConfig, String> {
    let json: Value =
        serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}; fetch the file again"))?;
    let architecture = architecture(&json)?;
    refuse_variants(&json)?;

    let hidden_size = size(&json, "hidden_size")?;
    let heads = size(&json, "num_attention_heads")?;
    let head_dim = optional_size(&json, "head_dim")?.unwrap_or(hidden_size / heads.max(1));
    let rope = hf_rope::parse(&json)?;
    let (attention_bias, mlp_bias) = biases(&json, architecture);
    let mut config = ModelConfig {
        vocab_size: size(&json, "vocab_size")?,
        hidden_size,
        intermediate_size: size(&json, "intermediate_size")?,
        layers: size(&json, "num_hidden_layers")?,
        heads,
        kv_heads: optional_size(&json, "num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        rotary_dim: (head_dim as f64 * rope.partial_factor) as usize,
        rms_norm_eps: number(&json, "rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta: rope.theta.unwrap_or(if architecture == Architecture::SmolLm3 { 2e6 } else { 1e4 }),
        max_context: max_context(&json, rope.scaling.as_ref())?,
        rope_scaling: rope.scaling,
        layer_attention: vec![],
        qk_norm: architecture == Architecture::Qwen3,
        qkv_bias: attention_bias || architecture == Architecture::Qwen2,
        output_bias: attention_bias,
        mlp_bias,
        tie_word_embeddings: json["tie_word_embeddings"].as_bool().unwrap_or(architecture == Architecture::SmolLm3),
        end_tokens: end_tokens(&json),
    };
    config.check()?;
    config.layer_attention = layer_attention(&json, architecture, config.layers)?;
    Ok(config)
}

fn architecture(json: &Value) -> Result<Architecture, String> {
    let named = json["architectures"][0].as_str().or(json["model_type"].as_str()).unwrap_or("none");
    let known = ARCHITECTURES.iter().find(|(class, model_type, _)| named == *class || named == *model_type);
    known.map(|(_, _, architecture)| *architecture).ok_or_else(|| {
        let supported = ARCHITECTURES.map(|(class, _, _)| class).join(", ");
        format!("the architecture is {named}; supported are {supported}")
    })
}

/// Returns whether the projections of attention have biases, and those of the feed-forward layer.
fn biases(json: &Value, architecture: Architecture) -> (bool, bool) {
    let flag = |key: &str| json[key].as_bool().unwrap_or(false);
    match architecture {
        Architecture::Llama | Architecture::SmolLm3 => (flag("attention_bias"), flag("mlp_bias")),
        Architecture::Qwen3 => (flag("attention_bias"), false),
        Architecture::Mistral | Architecture::Phi3 | Architecture::Qwen2 => (false, false),
    }
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
    match json["hidden_act"].as_str() {
        None | Some("silu" | "swish") => Ok(()),
        Some(activation) => Err(format!("the activation is {activation}; only silu is supported")),
    }
}

/// Returns the longest context. YaRN is often switched on in files that still name the context before it.
fn max_context(json: &Value, scaling: Option<&RopeScaling>) -> Result<usize, String> {
    let positions = size(json, "max_position_embeddings")?;
    Ok(match scaling {
        Some(RopeScaling::Yarn { factor, original_max_position, .. }) => {
            positions.max((*original_max_position as f64 * f64::from(*factor)) as usize)
        }
        _ => positions,
    })
}

/// Returns how each layer attends; nothing if all see the whole context.
fn layer_attention(json: &Value, architecture: Architecture, layers: usize) -> Result<Vec<LayerAttention>, String> {
    let window = window(json, architecture)?;
    let slides = |layer: usize| match architecture {
        Architecture::Llama => Ok(false),
        Architecture::Mistral | Architecture::Phi3 => Ok(true),
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::SmolLm3 => slides(json, architecture, layer),
    };
    let mut attention = Vec::new();
    for layer in 0..layers {
        let window = if window.is_some() && slides(layer)? { window } else { None };
        attention.push(LayerAttention { window, rotary: is_rotary(json, architecture, layer)? });
    }
    Ok(if attention.iter().all(|layer| *layer == LayerAttention::FULL) { vec![] } else { attention })
}

fn window(json: &Value, architecture: Architecture) -> Result<Option<NonZeroUsize>, String> {
    let used = match architecture {
        Architecture::Llama => false,
        Architecture::Mistral | Architecture::Phi3 => true,
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::SmolLm3 => {
            json["use_sliding_window"].as_bool() == Some(true)
        }
    };
    match optional_size(json, "sliding_window")? {
        Some(window) if used => NonZeroUsize::new(window).map(Some).ok_or("sliding_window is 0".to_owned()),
        _ => Ok(None),
    }
}

/// Returns whether a layer of a model with a sliding window sees the window only.
fn slides(json: &Value, architecture: Architecture, layer: usize) -> Result<bool, String> {
    if json["layer_types"].is_array() {
        return match json["layer_types"][layer].as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            Some(kind) => {
                Err(format!("layer {layer} is of type {kind}; supported are full_attention and sliding_attention"))
            }
            None => Err(format!("layer_types lacks the type of layer {layer}")),
        };
    }
    match architecture {
        Architecture::SmolLm3 => is_rotary(json, architecture, layer).map(|rotary| !rotary),
        _ => Ok(layer >= optional_size(json, "max_window_layers")?.unwrap_or(28)),
    }
}

/// Returns whether a layer turns queries and keys. SmolLM3 leaves it out in some.
fn is_rotary(json: &Value, architecture: Architecture, layer: usize) -> Result<bool, String> {
    if architecture != Architecture::SmolLm3 {
        return Ok(true);
    }
    match &json["no_rope_layers"] {
        Value::Null => {
            let interval = optional_size(json, "no_rope_layer_interval")?.unwrap_or(4).max(1);
            Ok((layer + 1) % interval != 0)
        }
        // A layer marked with 1 turns, in spite of the name of the list.
        layers => match &layers[layer] {
            Value::Bool(rotary) => Ok(*rotary),
            Value::Number(number) => Ok(number.as_u64() != Some(0)),
            _ => Err(format!("no_rope_layers lacks layer {layer}")),
        },
    }
}

/// Reads a whole number that must be there.
pub(super) fn size(json: &Value, key: &str) -> Result<usize, String> {
    optional_size(json, key)?.ok_or(format!("{key} is missing; is this the config.json of a decoder?"))
}

/// Reads a whole number that may be missing or null.
pub(super) fn optional_size(json: &Value, key: &str) -> Result<Option<usize>, String> {
    match &json[key] {
        Value::Null => Ok(None),
        value => match value.as_u64().and_then(|value| usize::try_from(value).ok()) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("{key} is {value}, which is no size")),
        },
    }
}

/// Reads a number that may be missing or null.
pub(super) fn number(json: &Value, key: &str) -> Result<Option<f32>, String> {
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

    fn window(size: usize) -> LayerAttention {
        LayerAttention { window: NonZeroUsize::new(size), rotary: true }
    }

    /// A configuration of four layers.
    fn four_layers(architecture: &str, more: Value) -> ModelConfig {
        let mut json = json!({"architectures": [architecture], "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 4, "num_attention_heads": 2, "max_position_embeddings": 64, "sliding_window": 32});
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(&json.to_string()).unwrap()
    }

    #[test]
    fn qwen2_has_biases_and_no_window_unless_it_says_so() {
        let config = four_layers("Qwen2ForCausalLM", json!({"use_sliding_window": false}));
        assert_eq!((config.qkv_bias, config.output_bias, config.qk_norm), (true, false, false));
        assert_eq!((config.max_context, config.head_dim, config.kv_heads), (64, 4, 2));
        assert_eq!(config.layer_attention, []);
        let config = four_layers("Qwen2ForCausalLM", json!({"use_sliding_window": true, "max_window_layers": 3}));
        assert_eq!(config.layer_attention, [[LayerAttention::FULL; 3].as_slice(), &[window(32)]].concat());
        assert_eq!(four_layers("Qwen2ForCausalLM", json!({"use_sliding_window": true})).layer_attention, []);
    }

    #[test]
    fn qwen3_normalises_queries_and_keys_and_may_list_its_layers() {
        let kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];
        let more = json!({"use_sliding_window": true, "layer_types": kinds, "head_dim": 6});
        let config = four_layers("Qwen3ForCausalLM", more);
        assert_eq!((config.qkv_bias, config.qk_norm, config.head_dim), (false, true, 6));
        let (slides, full) = (window(32), LayerAttention::FULL);
        assert_eq!(config.layer_attention, [slides, full, slides, full]);
    }

    #[test]
    fn the_window_of_mistral_and_phi3_is_of_all_layers_and_llama_has_none() {
        for architecture in ["MistralForCausalLM", "Phi3ForCausalLM", "mistral"] {
            let config = four_layers(architecture, json!({}));
            assert_eq!((config.max_context, config.layer_attention), (64, vec![window(32); 4]));
        }
        assert_eq!(four_layers("MistralForCausalLM", json!({"sliding_window": null})).layer_attention, []);
        assert_eq!(four_layers("LlamaForCausalLM", json!({})).layer_attention, []);
    }

    #[test]
    fn smollm3_turns_three_layers_of_four() {
        let config = four_layers("SmolLM3ForCausalLM", json!({}));
        let rotary: Vec<_> = config.layer_attention.iter().map(|layer| layer.rotary).collect();
        assert_eq!((rotary, config.tie_word_embeddings, config.rope_theta), (vec![true, true, true, false], true, 2e6));
        let config = four_layers("SmolLM3ForCausalLM", json!({"no_rope_layers": [0, 1, true, false]}));
        let rotary: Vec<_> = config.layer_attention.iter().map(|layer| layer.rotary).collect();
        assert_eq!(rotary, [false, true, true, false]);
    }

    #[test]
    fn biases_are_where_the_configuration_says() {
        let bias = |architecture| {
            let config = four_layers(architecture, json!({"attention_bias": true, "mlp_bias": true}));
            (config.qkv_bias, config.output_bias, config.mlp_bias)
        };
        assert_eq!(bias("LlamaForCausalLM"), (true, true, true));
        assert_eq!(bias("Qwen3ForCausalLM"), (true, true, false));
        assert_eq!(bias("Phi3ForCausalLM"), (false, false, false));
    }

    #[test]
    fn reads_phi_4_mini() {
        let factors = vec![1.5; 48];
        let json = json!({"architectures": ["Phi3ForCausalLM"], "vocab_size": 200064, "hidden_size": 3072,
            "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8,
            "hidden_act": "silu", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 262144,
            "rope_scaling": {"type": "longrope", "long_factor": factors, "short_factor": factors},
            "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false, "torch_dtype": "bfloat16"});
        let config = parse(&json.to_string()).unwrap();
        assert_eq!((config.head_dim, config.rotary_dim, config.max_context), (128, 96, 131072));
        assert_eq!(config.layer_attention, vec![window(262144); 32]);
        let Some(RopeScaling::LongRope { original_max_position, attention_factor, .. }) = config.rope_scaling else {
            panic!("{config:?}")
        };
        assert_eq!((original_max_position, attention_factor), (4096, (1.0 + 32.0_f32.ln() / 4096.0_f32.ln()).sqrt()));
    }

    #[test]
    fn reads_qwen3_of_version_4() {
        let json = json!({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "bos_token_id": 151643,
            "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
            "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
            "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": null,
            "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "use_cache": true, "use_sliding_window": false, "vocab_size": 151936});
        let config = parse(&json.to_string()).unwrap();
        assert_eq!((config.head_dim, config.rotary_dim, config.qk_norm, config.qkv_bias), (128, 128, true, false));
        assert_eq!((config.rope_theta, config.rope_scaling, config.layer_attention), (1e6, None, vec![]));
    }

    #[test]
    fn yarn_extends_the_context_that_the_file_names() {
        let rope = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        assert_eq!(four_layers("Qwen2ForCausalLM", json!({"rope_scaling": rope})).max_context, 256);
        let partial = json!({"rope_type": "default", "partial_rotary_factor": 0.5});
        assert_eq!(four_layers("Phi3ForCausalLM", json!({"rope_parameters": partial})).rotary_dim, 2);
    }

    #[test]
    fn names_the_architecture_and_the_supported_ones() {
        let error = with("architectures", json!(["GPT2LMHeadModel"])).unwrap_err();
        assert!(error.contains("GPT2LMHeadModel") && error.contains("Qwen2ForCausalLM, Qwen3ForCausalLM"), "{error}");
    }

    #[test]
    fn refuses_what_it_cannot_compute() {
        for (key, value) in [
            ("hidden_act", json!("gelu")),
            ("quantization_config", json!({})),
            ("rope_scaling", json!({"type": "dynamic", "factor": 4.0})),
            ("partial_rotary_factor", json!(0.4)),
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
