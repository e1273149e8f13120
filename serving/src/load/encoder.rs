//! An encoder from a Hugging Face or sentence-transformers folder: BERT, and RoBERTa, which differs in its positions.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::embedding_tokenizer::EmbeddingTokenizer;
use super::folder::{CONFIG_MAX, TOKENIZER_MAX, digest_of, read_json};
use super::safetensors::SafetensorsFiles;
use super::sentence::SentenceConfig;
use super::storage::{read_text, weights_error};
use super::weights::WeightFiles;
use crate::error::{Error, Result};
use crate::model::{Activation, EncoderConfig, Pooling, TensorSource};

/// Architectures whose configuration is understood: BERT's layout, and RoBERTa's.
const BERT: [&str; 4] = ["BertModel", "BertForMaskedLM", "BertForPreTraining", "bert"];
const ROBERTA: [&str; 6] =
    ["RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM", "roberta", "xlm-roberta"];

/// An encoder that is ready for a device.
#[derive(Debug)]
pub struct LoadedEncoder {
    /// Its sizes and constants.
    pub config: EncoderConfig,
    /// Its weights, every tensor of `config.tensors()` among them. They are read from the files on demand.
    pub weights: Box<dyn TensorSource>,
    /// Its tokenizer.
    pub tokenizer: Arc<EmbeddingTokenizer>,
    /// BLAKE3 digest of configuration, tokenizer and weight files, in hexadecimal digits, as that of
    /// [`LoadedModel`](super::LoadedModel).
    pub digest: String,
}

/// Returns whether a config.json is that of an encoder, supported or not, by its architecture.
pub(super) fn is_encoder(config: &Value) -> bool {
    let architecture = architecture(config);
    let family = ["bert", "mpnet", "electra"].iter().any(|family| architecture.to_lowercase().contains(family));
    family && !architecture.contains("ForCausalLM") && !architecture.contains("LMHeadModel")
}

fn architecture(config: &Value) -> &str {
    config["architectures"][0].as_str().or(config["model_type"].as_str()).unwrap_or("none")
}

/// Loads an encoder from a folder with config.json, tokenizer.json and `*.safetensors`; sentence-transformers' modules.json,
/// 1_Pooling/config.json and sentence_bert_config.json are used where present. Without them the states of all tokens are
/// averaged.
///
/// Fails with [`Error::Weights`], naming the file and what to do, if anything is missing, damaged or not supported.
pub fn load_encoder(folder: impl AsRef<Path>) -> Result<LoadedEncoder> {
    let folder = folder.as_ref();
    let path = folder.join("config.json");
    let text = read_text(&path, CONFIG_MAX)?;
    let sentence = SentenceConfig::read(folder)?;
    let mut config = parse(&text, &sentence).map_err(|reason| weights_error(&path, reason))?;
    if sentence.max_tokens.is_none()
        && let Some((_, json)) = read_json(&folder.join("tokenizer_config.json"))?
        && let Some(limit) = json["model_max_length"].as_u64()
    {
        // Where there is no limit the file has a number like 1e30, which is none here.
        config.max_tokens = config.max_tokens.min(usize::try_from(limit).unwrap_or(usize::MAX)).max(1);
    }
    let weights = open_weights(folder)?;
    config.tensor_prefix = tensor_prefix(&weights);
    config.tensors().iter().try_for_each(|(name, shape)| weights.check(name, shape))?;
    let (tokenizer, texts) = read_tokenizer(folder, config.vocab_size, sentence.lower_case)?;
    let texts: Vec<String> = sentence.texts.into_iter().chain([text]).chain(texts).collect();
    let digest = digest_of(&texts, &weights)?;
    Ok(LoadedEncoder { config, weights: Box::new(weights), tokenizer: Arc::new(tokenizer), digest })
}

/// Reads the tokenizer of an embedding model, and returns the texts of its files as well.
pub(super) fn read_tokenizer(
    folder: &Path,
    vocab_size: usize,
    lower_case: bool,
) -> Result<(EmbeddingTokenizer, [String; 2])> {
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        let reason = "the file is missing: copy it from the model's page, or convert vocab.txt with transformers: \
            AutoTokenizer.from_pretrained('folder').save_pretrained('folder')";
        return Err(weights_error(&path, reason));
    }
    let text = read_text(&path, TOKENIZER_MAX)?;
    let tokenizer = EmbeddingTokenizer::new(&text, vocab_size, lower_case).map_err(|error| match error {
        Error::Invalid(reason) => weights_error(&path, reason),
        other => other,
    })?;
    let (config, _) = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    Ok((tokenizer, [config, text]))
}

/// Opens the safetensors files of an embedding model.
pub(super) fn open_weights(folder: &Path) -> Result<SafetensorsFiles> {
    let has_safetensors = std::fs::read_dir(folder).is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|file| file.path().extension().is_some_and(|e| e == "safetensors")))
    });
    let pickled = folder.join("pytorch_model.bin");
    if !has_safetensors && pickled.exists() {
        return Err(weights_error(
            &pickled,
            "weights in Python's pickle format are not read, since opening them may run code: take model.safetensors from the \
             model's page, or convert with transformers: AutoModel.from_pretrained('folder').save_pretrained('folder')",
        ));
    }
    if !has_safetensors {
        return Err(weights_error(folder, "the folder holds no *.safetensors file"));
    }
    SafetensorsFiles::open(folder)
}

/// Finds out what the names of tensors begin with. Models with a head keep the encoder under the name of its family.
fn tensor_prefix(weights: &SafetensorsFiles) -> String {
    let holds_words = |prefix: &&str| weights.contains(&format!("{prefix}embeddings.word_embeddings.weight"));
    ["", "bert.", "roberta."].into_iter().find(holds_words).unwrap_or_default().to_owned()
}

/// Reads a config.json. The error says what is wrong with the file.
fn parse(text: &str, sentence: &SentenceConfig) -> Result<EncoderConfig, String> {
    let json: Value =
        serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}; fetch the file again"))?;
    let architecture = architecture(&json);
    let first_position = if BERT.contains(&architecture) {
        0
    } else if ROBERTA.contains(&architecture) {
        // Rows up to that of the padding token are left out.
        optional_size(&json, "pad_token_id")?.unwrap_or(1).saturating_add(1)
    } else {
        return Err(format!(
            "the architecture is {architecture}; supported are encoders of the layout of BertModel, RobertaModel and \
             XLMRobertaModel"
        ));
    };
    match json["position_embedding_type"].as_str() {
        None | Some("absolute") => {}
        Some(kind) => return Err(format!("position_embedding_type is {kind}; only absolute is supported")),
    }
    if json["is_decoder"].as_bool() == Some(true) {
        return Err("is_decoder is true, which is not supported".to_owned());
    }
    let positions = size(&json, "max_position_embeddings")?;
    let usable = positions.saturating_sub(first_position);
    let config = EncoderConfig {
        vocab_size: size(&json, "vocab_size")?,
        hidden_size: size(&json, "hidden_size")?,
        intermediate_size: size(&json, "intermediate_size")?,
        layers: size(&json, "num_hidden_layers")?,
        heads: size(&json, "num_attention_heads")?,
        positions,
        first_position,
        token_types: optional_size(&json, "type_vocab_size")?.unwrap_or(2),
        layer_norm_eps: json["layer_norm_eps"].as_f64().unwrap_or(1e-12) as f32,
        activation: activation(json["hidden_act"].as_str().unwrap_or("gelu"))?,
        pooling: sentence.pooling.unwrap_or(Pooling::Mean),
        max_tokens: sentence.max_tokens.map_or(usable, |tokens| tokens.min(usable)),
        tensor_prefix: String::new(),
    };
    config.check()?;
    Ok(config)
}

fn activation(name: &str) -> Result<Activation, String> {
    match name {
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(format!("the activation is {other}; supported are gelu, gelu_new and relu")),
    }
}

fn size(json: &Value, key: &str) -> Result<usize, String> {
    optional_size(json, key)?.ok_or(format!("{key} is missing; is this the config.json of an encoder?"))
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn minilm() -> Value {
        json!({"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": 384,
            "intermediate_size": 1536, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "num_attention_heads": 12,
            "num_hidden_layers": 6, "type_vocab_size": 2, "vocab_size": 30522, "position_embedding_type": "absolute"})
    }

    fn parsed(json: &Value, sentence: SentenceConfig) -> Result<EncoderConfig, String> {
        parse(&json.to_string(), &sentence)
    }

    #[test]
    fn reads_a_configuration() {
        let sentence = SentenceConfig { max_tokens: Some(256), pooling: Some(Pooling::First), ..SentenceConfig::default() };
        let config = parsed(&minilm(), sentence).unwrap();
        assert_eq!((config.hidden_size, config.heads, config.max_tokens, config.pooling), (384, 12, 256, Pooling::First));
        assert_eq!(parsed(&minilm(), SentenceConfig::default()).unwrap().max_tokens, 512);
        let mut roberta = minilm();
        roberta["architectures"] = json!(["XLMRobertaModel"]);
        roberta["pad_token_id"] = json!(1);
        let config = parsed(&roberta, SentenceConfig::default()).unwrap();
        assert_eq!((config.first_position, config.max_tokens), (2, 510));
    }

    #[test]
    fn names_what_is_not_supported() {
        for (key, value, words) in [
            ("architectures", json!(["MPNetModel"]), "the architecture is MPNetModel"),
            ("position_embedding_type", json!("relative_key"), "only absolute"),
            ("hidden_act", json!("silu"), "the activation is silu"),
            ("is_decoder", json!(true), "is_decoder"),
            ("hidden_size", Value::Null, "hidden_size is missing"),
            ("vocab_size", json!(-1), "which is no size"),
            ("num_attention_heads", json!(7), "among 7 heads"),
        ] {
            let mut config = minilm();
            config[key] = value;
            let error = parsed(&config, SentenceConfig::default()).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn tells_encoders_from_decoders() {
        for (name, expected) in [
            ("BertModel", true),
            ("MPNetForMaskedLM", true),
            ("DistilBertModel", true),
            ("LlamaForCausalLM", false),
            ("Qwen3ForCausalLM", false),
        ] {
            assert_eq!(is_encoder(&json!({"architectures": [name]})), expected, "{name}");
        }
    }
}
