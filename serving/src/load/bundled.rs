//! The models that are compiled into the binary: for demonstration and tests, see `models/README.md`.

use std::path::PathBuf;

use serde_json::Value;

use super::folder::{LoadedModel, ModelFiles};
use super::gguf::GgufFile;
use super::storage::weights_error;
use crate::error::Result;

/// A model inside the binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BundledModel {
    /// 31 million parameters: short answers about one row.
    Mini,
    /// 5 million parameters: drafts for `Mini`, with the same tokenizer.
    MiniDraft,
}

impl BundledModel {
    /// Returns the name by which users ask for the model.
    pub fn name(self) -> &'static str {
        match self {
            BundledModel::Mini => "mini",
            BundledModel::MiniDraft => "mini-draft",
        }
    }

    fn weights(self) -> &'static [u8] {
        match self {
            BundledModel::Mini => include_bytes!("../../models/mini/model.gguf"),
            BundledModel::MiniDraft => include_bytes!("../../models/mini-draft/model.gguf"),
        }
    }
}

// Both models have the same tokenizer; a test compares the files.
pub(super) const TOKENIZER: &str = include_str!("../../models/mini/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../models/mini/tokenizer_config.json");

/// Loads a bundled model. Its files in memory are checked like any others, though a build without damage cannot fail here.
pub fn bundled(name: BundledModel) -> Result<LoadedModel> {
    let place = |file: &str| PathBuf::from(format!("bundled {}/{file}", name.name()));
    let config: Value = serde_json::from_str(TOKENIZER_CONFIG)
        .map_err(|error| weights_error(&place("tokenizer_config.json"), error.to_string()))?;
    let config = (TOKENIZER_CONFIG.to_owned(), config);
    let files = ModelFiles::new(place("tokenizer.json"), TOKENIZER.to_owned(), config, None)?;
    let weights = GgufFile::from_static(&place("model.gguf").to_string_lossy(), name.weights())?;
    files.assemble(weights.config().clone(), weights)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Tokenizer;
    use crate::load::load_folder;

    fn folder(name: BundledModel) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name.name())
    }

    #[test]
    fn equals_the_model_loaded_from_its_folder() {
        for name in [BundledModel::Mini, BundledModel::MiniDraft] {
            let (inside, outside) = (bundled(name).unwrap(), load_folder(folder(name)).unwrap());
            assert_eq!(inside.digest, outside.digest);
            assert_eq!(inside.config, outside.config);
            for (tensor, shape) in inside.config.tensors() {
                let read = |model: &LoadedModel| model.weights.read(&tensor, &shape).unwrap();
                assert_eq!(read(&inside), read(&outside), "{tensor}");
            }
        }
    }

    #[test]
    fn both_models_have_one_tokenizer() {
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            let read = |name| std::fs::read(folder(name).join(file)).unwrap();
            assert_eq!(read(BundledModel::Mini), read(BundledModel::MiniDraft), "{file}");
        }
    }

    #[test]
    fn golden_prompts_are_encoded_as_in_training() {
        let model = bundled(BundledModel::Mini).unwrap();
        let golden = std::fs::read_to_string(folder(BundledModel::Mini).join("golden.json")).unwrap();
        let golden: Vec<Value> = serde_json::from_str(&golden).unwrap();
        assert_eq!(golden.len(), 40);
        for item in golden {
            let prompt = item["prompt"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(item["ids"].clone()).unwrap();
            assert_eq!(model.tokenizer.encode_control(prompt), ids, "{prompt}");
        }
    }

    #[test]
    fn the_chat_template_is_the_one_of_training() {
        let rendered = bundled(BundledModel::Mini).unwrap().tokenizer.render_chat("S", "U").unwrap();
        assert_eq!(rendered, "<|begin|><|system|>S<|user|>U<|assistant|>");
    }
}
