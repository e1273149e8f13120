//! A deterministic, scriptable backend for tests.

mod backend;
mod script;
mod tokenizer;
mod answer;

pub use backend::MockBackend;
pub use script::{Gate, MockReply};
pub use tokenizer::ByteTokenizer;
