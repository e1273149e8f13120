//! GGUF files, versions 2 and 3, little-endian: the header is read once, arrays and tensors when they are asked for.
//!
//! Layout: magic, version, number of tensors, number of metadata pairs; the pairs; for each tensor its name, dimensions
//! (innermost first), type and offset; padding up to the alignment; tensor data. Names are mapped to those of Hugging Face.
//! llama.cpp's converter stores the rows of each query and key head of a Llama model as interleaved rotary pairs; reading puts
//! them back into the two halves in which Hugging Face, and our devices, rotate.
//!
//! The vocabulary inside is written as the tokenizer.json that the model would have, so that one tokenizer serves both.

mod config;
mod file;
mod header;
mod pre_tokenizer;
mod vocabulary;

pub use file::GgufFile;
