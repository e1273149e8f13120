//! Models from files: weights, configuration, tokenizer and chat template.
//!
//! [`load_folder`] takes a Hugging Face folder or a GGUF file, [`load_encoder`] the folder of an encoder and
//! [`load_embedding_decoder`] that of a decoder which makes vectors; [`bundled`](bundled::bundled) takes what is compiled into the
//! binary, and [`random()`] draws weights for the shape of a real model. All end in a configuration, weights that are read tensor
//! by tensor, and a tokenizer. A file is foreign input: whatever is wrong with one is an [`Error::Weights`](crate::Error::Weights)
//! that names the file and how to mend it.

#[cfg(feature = "bundled-model")]
pub mod bundled;
pub mod chat_template;
mod embedding_decoder;
mod embedding_tokenizer;
mod encoder;
pub mod folder;
pub mod gguf;
mod hf_config;
mod hf_rope;
mod kind;
mod random;
pub mod safetensors;
mod sentence;
mod storage;
mod token_bytes;
pub mod tokenizer;
mod weights;

#[cfg(feature = "bundled-model")]
pub use bundled::{BundledModel, bundled};
pub use chat_template::ChatTemplate;
pub use embedding_decoder::{LoadedEmbeddingDecoder, load_embedding_decoder};
pub use embedding_tokenizer::EmbeddingTokenizer;
pub use encoder::{LoadedEncoder, load_encoder};
pub use folder::{LoadedModel, load_folder};
pub use gguf::GgufFile;
pub(crate) use kind::{FolderKind, folder_kind};
pub use random::{RandomShape, random};
pub use safetensors::SafetensorsFiles;
pub use tokenizer::HfTokenizer;
