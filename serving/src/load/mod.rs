//! Models from files: weights, configuration, tokenizer and chat template.
//!
//! [`load_folder`] takes a Hugging Face folder or a GGUF file; [`bundled`](bundled::bundled) takes what is compiled into the
//! binary. Both end in a [`LoadedModel`]. A file is foreign input: whatever is wrong with one is an
//! [`Error::Weights`](crate::Error::Weights) that names the file and how to mend it.

#[cfg(feature = "bundled-model")]
pub mod bundled;
pub mod chat_template;
pub mod folder;
pub mod gguf;
mod hf_config;
mod progress;
pub mod safetensors;
mod storage;
mod token_bytes;
pub mod tokenizer;
mod weights;

#[cfg(feature = "bundled-model")]
pub use bundled::{BundledModel, bundled};
pub use chat_template::ChatTemplate;
pub use folder::{LoadedModel, load_folder};
pub use gguf::GgufFile;
pub use progress::{LoadProgress, WatchedTensors};
pub use safetensors::SafetensorsFiles;
pub use tokenizer::HfTokenizer;
