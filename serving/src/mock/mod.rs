//! A deterministic, scriptable backend for tests.

mod answer;
mod backend;
mod script;
mod tokenizer;

pub use backend::MockBackend;
pub use script::{Gate, MockReply};
pub use tokenizer::ByteTokenizer;
