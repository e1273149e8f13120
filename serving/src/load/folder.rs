//! A model from a Hugging Face folder or a GGUF file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::chat_template::{ChatTemplate, token_content};
use super::gguf::GgufFile;
use super::hf_config;
use super::safetensors::SafetensorsFiles;
use super::storage::{read_text, weights_error};
use super::tokenizer::HfTokenizer;
use super::weights::{WeightFiles, check_all};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, TensorSource};
use crate::request::TokenId;

/// The longest configuration or template that is read. Parsed JSON takes up to sixteen times its length.
pub(super) const CONFIG_MAX: u64 = 8 << 20;
/// The longest tokenizer.json that is read.
pub(super) const TOKENIZER_MAX: u64 = 256 << 20;

/// A model that is ready for a device.
#[derive(Debug)]
pub struct LoadedModel {
    /// Its sizes, constants and end tokens.
    pub config: ModelConfig,
    /// Its weights, every tensor of `config.tensors()` among them. They are read from the files on demand.
    pub weights: Box<dyn TensorSource>,
    /// Its tokenizer and chat template.
    pub tokenizer: Arc<HfTokenizer>,
    /// BLAKE3 digest of configuration, tokenizer and weight files, in hexadecimal digits. Files above 64 MiB enter with their
    /// length, their header and 64 samples of 1 MiB spread through them. Of a random model its shape, seed and tokenizer.
    pub digest: String,
}

/// Loads a model from a folder or from a GGUF file.
///
/// A folder holds tokenizer.json and either config.json with `*.safetensors`, or one `*.gguf`; tokenizer_config.json,
/// generation_config.json and chat_template.jinja are used where present. Safetensors may be of the Llama, Mistral, Phi-3,
/// Qwen2, Qwen3 or SmolLM3 architecture in bf16, f16 or f32. GGUF may be of llama, qwen2, qwen3, phi3 or smollm3, in F32, F16,
/// BF16, Q8_0, Q4_0 to Q5_1 or Q2_K to Q6_K. If tokenizer.json lies beside a GGUF file, the tokenizer files of the folder are
/// used, else the tokenizer and the chat template in the file; the template also where the folder has no tokenizer_config.json.
///
/// Fails with [`Error::Weights`], naming the file and what to do, if anything is missing, damaged or not supported.
pub fn load_folder(path: impl AsRef<Path>) -> Result<LoadedModel> {
    let path = path.as_ref();
    if path.extension().is_some_and(|end| end == "gguf") && !path.is_dir() {
        return load_gguf(path, path.parent().unwrap_or(Path::new("")));
    }
    let entries = std::fs::read_dir(path).map_err(|error| {
        weights_error(path, format!("the folder cannot be listed: {error}; name a folder with a model, or a .gguf file"))
    })?;
    let files: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    let with_end = |end: &str| files.iter().filter(|file| file.extension().is_some_and(|e| e == end)).collect::<Vec<_>>();
    match (with_end("safetensors").is_empty(), with_end("gguf").as_slice()) {
        (false, _) => load_safetensors(path),
        (true, [gguf]) => load_gguf(gguf, path),
        (true, []) => Err(weights_error(path, "the folder holds neither *.safetensors nor a *.gguf file")),
        (true, several) => {
            Err(weights_error(path, format!("the folder holds {} .gguf files: name one of them", several.len())))
        }
    }
}

fn load_safetensors(folder: &Path) -> Result<LoadedModel> {
    let path = folder.join("config.json");
    let text = read_text(&path, CONFIG_MAX)?;
    let mut config = hf_config::parse(&text).map_err(|reason| weights_error(&path, reason))?;
    let mut files = ModelFiles::read(folder, Value::default)?;
    if let Some((text, json)) = read_json(&folder.join("generation_config.json"))? {
        config.end_tokens.extend(hf_config::end_tokens(&json));
        files.texts.push(text);
    }
    files.texts.push(text);
    let weights = SafetensorsFiles::open(folder)?.with_split_projections(&config)?;
    weights.check_nothing_unused(&config)?;
    files.assemble(config, weights)
}

fn load_gguf(path: &Path, folder: &Path) -> Result<LoadedModel> {
    let weights = GgufFile::open(path)?;
    let mut config = weights.config().clone();
    let inside = if folder.join("tokenizer.json").exists() { None } else { weights.vocabulary()? };
    let files = match inside {
        Some(vocabulary) => {
            config.end_tokens.extend(vocabulary.end_tokens);
            // The file's own digest covers its metadata.
            let chat = (String::new(), vocabulary.tokenizer_config);
            ModelFiles::new(path.to_owned(), vocabulary.tokenizer_json, chat, None)
                .map_err(|error| weights_error(path, error.to_string()))?
        }
        None => ModelFiles::read(folder, || weights.tokenizer_config())?,
    };
    files.assemble(config, weights)
}

/// The small files of a model.
pub(super) struct ModelFiles {
    /// Where tokenizer.json is, for messages.
    tokenizer_path: PathBuf,
    tokenizer: String,
    tokenizer_config: Value,
    chat: ChatTemplate,
    /// All texts that belong to the model's identity, besides the tokenizer.
    texts: Vec<String>,
}

impl ModelFiles {
    /// Reads the tokenizer files of a folder. `configuration` stands for tokenizer_config.json where there is none.
    fn read(folder: &Path, configuration: impl FnOnce() -> Value) -> Result<Self> {
        let tokenizer_path = folder.join("tokenizer.json");
        if !tokenizer_path.exists() {
            return Err(weights_error(
                &tokenizer_path,
                "the file is missing: copy it from the model's page (models with tokenizer.model alone must be converted)",
            ));
        }
        let tokenizer = read_text(&tokenizer_path, TOKENIZER_MAX)?;
        let config = read_json(&folder.join("tokenizer_config.json"))?;
        let config = config.unwrap_or_else(|| (String::new(), configuration()));
        let template_path = folder.join("chat_template.jinja");
        let template = template_path.exists().then(|| read_text(&template_path, CONFIG_MAX)).transpose()?;
        let named = if template.is_some() { template_path } else { folder.join("tokenizer_config.json") };
        Self::new(tokenizer_path, tokenizer, config, template).map_err(|error| weights_error(&named, error.to_string()))
    }

    /// Takes the files' contents; a configuration is its text and its value. Fails if the chat template is not valid.
    pub(super) fn new(
        tokenizer_path: PathBuf,
        tokenizer: String,
        (config_text, tokenizer_config): (String, Value),
        chat_template: Option<String>,
    ) -> Result<Self> {
        let chat = ChatTemplate::new(&tokenizer_config, chat_template.as_deref())?;
        let texts = vec![config_text, chat_template.unwrap_or_default()];
        Ok(ModelFiles { tokenizer_path, tokenizer, tokenizer_config, chat, texts })
    }

    /// Joins them with weights. Fails if they do not belong together.
    pub(super) fn assemble(self, mut config: ModelConfig, weights: impl WeightFiles + 'static) -> Result<LoadedModel> {
        check_all(&weights, &config)?;
        let digest = self.digest(&weights)?;
        let unusable = |error: Error| match error {
            Error::Invalid(reason) => weights_error(&self.tokenizer_path, reason),
            other => other,
        };
        let tokenizer = HfTokenizer::from_bytes(self.tokenizer.as_bytes(), self.chat, vec![]).map_err(unusable)?;
        config.end_tokens.extend(named_end_token(&self.tokenizer_config, &tokenizer));
        config.end_tokens.sort_unstable();
        config.end_tokens.dedup();
        if config.end_tokens.is_empty() {
            let reason =
                "no end token is named: add eos_token_id to generation_config.json, or eos_token to tokenizer_config.json";
            return Err(weights_error(&self.tokenizer_path, reason));
        }
        let tokenizer = tokenizer
            .padded_to(config.vocab_size)
            .and_then(|tokenizer| tokenizer.with_end_tokens(config.end_tokens.clone()))
            .map_err(unusable)?;
        Ok(LoadedModel { config, weights: Box::new(weights), tokenizer: Arc::new(tokenizer), digest })
    }

    fn digest(&self, weights: &impl WeightFiles) -> Result<String> {
        digest_of(self.texts.iter().chain([&self.tokenizer]), weights)
    }
}

/// Returns the identity of a model: the digest of its texts and its weights.
pub(super) fn digest_of<'a>(texts: impl IntoIterator<Item = &'a String>, weights: &impl WeightFiles) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    weights.digest(&mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn named_end_token(tokenizer_config: &Value, tokenizer: &HfTokenizer) -> Option<TokenId> {
    tokenizer.token_id(token_content(&tokenizer_config["eos_token"])?)
}

/// Reads a JSON file that need not be there.
pub(super) fn read_json(path: &Path) -> Result<Option<(String, Value)>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_text(path, CONFIG_MAX)?;
    let json = serde_json::from_str(&text)
        .map_err(|error| weights_error(path, format!("it is not JSON: {error}; fetch the file again")))?;
    Ok(Some((text, json)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    /// A Hugging Face folder of a tiny Llama model with the tokenizer of the bundled one.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini");
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(bundled.join(name), folder.path().join(name)).unwrap();
        }
        let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 16400, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "eos_token_id": 2}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [2, 0]}"#).unwrap();
        write_weights(folder.path(), &hf_config::parse(config).unwrap());
        folder
    }

    fn write_weights(folder: &Path, config: &ModelConfig) {
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (name, shape) in config.tensors() {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            let entry = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
            header.insert(name, entry);
        }
        let header = Value::Object(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + end, 0);
        std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    }

    #[track_caller]
    fn check_refused(change: impl Fn(&Path), words: &str) {
        let folder = folder();
        change(folder.path());
        match load_folder(folder.path()) {
            Err(error @ Error::Weights { .. }) => {
                assert!(error.to_string().contains(words), "{error}")
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn loads_a_folder_with_all_its_end_tokens_and_a_padded_vocabulary() {
        let folder = folder();
        let model = load_folder(folder.path()).unwrap();
        assert_eq!(model.config.end_tokens, [0, 2]);
        assert_eq!(model.tokenizer.end_tokens(), [0, 2]);
        assert_eq!(model.tokenizer.vocab_size(), 16400);
        assert_eq!(model.weights.read("model.norm.weight", &[8]).unwrap().bytes.len(), 16);
        assert_eq!(model.digest, load_folder(folder.path()).unwrap().digest);
    }

    #[test]
    fn loads_gguf_by_folder_and_by_file() {
        let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini-draft");
        let by_folder = load_folder(&bundled).unwrap();
        let by_file = load_folder(bundled.join("model.gguf")).unwrap();
        assert_eq!(by_folder.digest, by_file.digest);
        assert_eq!((by_folder.config.layers, by_folder.config.kv_heads, by_folder.config.end_tokens), (4, 1, vec![2]));
    }

    #[test]
    fn any_change_changes_the_digest() {
        let folder = folder();
        let before = load_folder(folder.path()).unwrap().digest;
        let change = |name: &str, from: &str, to: &str| {
            let path = folder.path().join(name);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{name}");
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let digest = load_folder(folder.path()).unwrap().digest;
            std::fs::write(&path, text).unwrap();
            digest
        };
        assert_ne!(before, change("config.json", "1e-5", "1e-6"));
        assert_ne!(before, change("tokenizer_config.json", "2048", "2047"));
        assert_ne!(before, change("generation_config.json", "[2, 0]", "[2]"));
        let weights = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() = 1;
        std::fs::write(&weights, bytes).unwrap();
        assert_ne!(before, load_folder(folder.path()).unwrap().digest);
    }

    #[test]
    fn names_what_is_missing() {
        let remove = |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
        check_refused(remove("config.json"), "config.json");
        check_refused(remove("tokenizer.json"), "tokenizer.json: the file is missing");
        check_refused(remove("model.safetensors"), "neither *.safetensors nor a *.gguf");
        let error = load_folder("/nonexistent/folder").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/folder"), "{error}");
        let error = load_folder("/nonexistent/model.gguf").unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }

    #[test]
    fn names_what_is_damaged() {
        let write =
            |name: &'static str, text: &'static str| move |folder: &Path| std::fs::write(folder.join(name), text).unwrap();
        check_refused(write("config.json", "{"), "config.json: it is not JSON");
        check_refused(write("generation_config.json", "["), "generation_config.json");
        check_refused(write("tokenizer.json", "[]"), "tokenizer.json");
        check_refused(write("tokenizer.json", "{\"model\": 3}"), "tokenizer.json");
        check_refused(write("tokenizer_config.json", r#"{"chat_template": "{% if"}"#), "tokenizer_config.json");
        check_refused(write("chat_template.jinja", "{{"), "chat_template.jinja");
        check_refused(write("model.safetensors", "short"), "model.safetensors");
        check_refused(
            |folder| {
                let file = std::fs::File::options().write(true).open(folder.join("model.safetensors")).unwrap();
                file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            },
            "beyond the end",
        );
    }

    #[test]
    fn names_what_does_not_fit_together() {
        let edit = |from: &'static str, to: &'static str| {
            move |folder: &Path| {
                let path = folder.join("config.json");
                let text = std::fs::read_to_string(&path).unwrap().replace(from, to);
                std::fs::write(path, text).unwrap();
            }
        };
        check_refused(edit("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2"), "is missing");
        check_refused(edit("\"intermediate_size\": 8", "\"intermediate_size\": 9"), "has shape");
        check_refused(edit("16400", "16000"), "has shape");
        check_refused(edit("\"eos_token_id\": 2", "\"eos_token_id\": 99999"), "end token");
    }
}
