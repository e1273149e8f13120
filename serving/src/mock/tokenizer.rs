//! A tokenizer without a vocabulary file: each byte is a token, and a few more tokens are control tokens.

use crate::byte_vocabulary::{ByteVocabulary, FIRST_CONTROL, lossy};
use crate::error::Result;
use crate::request::TokenId;
use crate::tokenizer::Tokenizer;

/// The control tokens.
const CONTROL: [&str; 5] = ["<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// The token that ends an answer: the last control token.
const END: TokenId = FIRST_CONTROL + CONTROL.len() as TokenId - 1;

const VOCABULARY: ByteVocabulary = ByteVocabulary { control: &CONTROL };

/// Bytes as tokens `0..256`, then the control tokens `<|begin|>`, `<|system|>`, `<|user|>`, `<|assistant|>` and `<|end|>`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByteTokenizer;

impl ByteTokenizer {
    /// Decodes what stands behind the last `<|user|>`; all of it if there is none.
    pub fn user_text(&self, tokens: &[TokenId]) -> String {
        let start =
            tokens.iter().rposition(|token| VOCABULARY.control_name(*token) == Some("<|user|>")).map_or(0, |at| at + 1);
        self.decode(&tokens[start..])
    }

    /// Decodes tokens with control tokens spelled out, as they stand in the chat template.
    pub fn spell(&self, tokens: &[TokenId]) -> String {
        let mut bytes = Vec::with_capacity(tokens.len());
        for token in tokens {
            match VOCABULARY.control_name(*token) {
                Some(name) => bytes.extend_from_slice(name.as_bytes()),
                None => bytes.extend_from_slice(self.token_bytes(*token)),
            }
        }
        lossy(bytes)
    }
}

impl Tokenizer for ByteTokenizer {
    fn encode(&self, text: &str) -> Vec<TokenId> {
        VOCABULARY.encode(text)
    }

    fn encode_control(&self, text: &str) -> Vec<TokenId> {
        VOCABULARY.encode_control(text)
    }

    fn decode(&self, tokens: &[TokenId]) -> String {
        VOCABULARY.decode(tokens)
    }

    fn token_bytes(&self, token: TokenId) -> &[u8] {
        VOCABULARY.token_bytes(token)
    }

    fn vocab_size(&self) -> usize {
        VOCABULARY.size()
    }

    fn end_tokens(&self) -> &[TokenId] {
        &[END]
    }

    fn render_chat(&self, system: &str, user: &str) -> Result<String> {
        Ok(format!("<|begin|><|system|>{system}<|user|>{user}<|assistant|>"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_tokens_come_from_templates_only() {
        let tokenizer = ByteTokenizer;
        let chat = tokenizer.render_chat("Be brief.", "Größe?").unwrap();
        let tokens = tokenizer.encode_control(&chat);
        assert_eq!(tokens.iter().filter(|token| **token >= 256).count(), 4);
        assert_eq!(tokenizer.spell(&tokens), chat);
        assert_eq!(tokenizer.decode(&tokens), "Be brief.Größe?");
        let plain = tokenizer.encode("a <|end|> <|");
        assert!(plain.iter().all(|token| *token < 256));
        assert_eq!(tokenizer.encode_control("a <|end|> <|"), [97, 32, END, 32, 60, 124]);
        assert!(tokenizer.token_bytes(END).is_empty() && tokenizer.token_bytes(9999).is_empty());
    }
}
