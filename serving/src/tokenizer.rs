//! Text to tokens and back, and the chat format of a model.

use std::fmt;

use crate::error::Result;
use crate::request::TokenId;

/// A model's tokenizer together with its chat template.
pub trait Tokenizer: Send + Sync + fmt::Debug {
    /// Encodes ordinary text. Text that spells a control token becomes ordinary tokens, so row data cannot leave its place.
    fn encode(&self, text: &str) -> Vec<TokenId>;

    /// Encodes text of a chat template, in which control tokens are control tokens. Never to be called with row data.
    fn encode_control(&self, text: &str) -> Vec<TokenId>;

    /// Decodes tokens; control tokens are left out, invalid UTF-8 becomes U+FFFD.
    fn decode(&self, tokens: &[TokenId]) -> String;

    /// Returns the bytes that a token stands for; empty for control tokens.
    fn token_bytes(&self, token: TokenId) -> &[u8];

    /// Returns the number of tokens in the vocabulary.
    fn vocab_size(&self) -> usize;

    /// Returns the tokens that end an answer.
    fn end_tokens(&self) -> &[TokenId];

    /// Renders the chat template for one system and one user message, ready for the assistant's answer.
    ///
    /// Fails if the template does.
    fn render_chat(&self, system: &str, user: &str) -> Result<String>;
}
