//! A tokenizer without a vocabulary file: each byte is a token, and a few more tokens are control tokens.

use crate::error::Result;
use crate::request::TokenId;
use crate::tokenizer::Tokenizer;

/// The control tokens; the first has the number 256.
const CONTROL: [&str; 5] = ["<|begin|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// The token that ends an answer: the last control token.
const END: TokenId = 256 + CONTROL.len() as TokenId - 1;

/// Every byte, so that a token's bytes can be borrowed.
const BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        bytes[byte] = byte as u8;
        byte += 1;
    }
    bytes
};

/// Bytes as tokens `0..256`, then the control tokens `<|begin|>`, `<|system|>`, `<|user|>`, `<|assistant|>` and `<|end|>`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByteTokenizer;

impl ByteTokenizer {
    /// Decodes what stands behind the last `<|user|>`; all of it if there is none.
    pub fn user_text(&self, tokens: &[TokenId]) -> String {
        let start = tokens.iter().rposition(|token| control_name(*token) == Some("<|user|>")).map_or(0, |at| at + 1);
        self.decode(&tokens[start..])
    }

    /// Decodes tokens with control tokens spelled out, as they stand in the chat template.
    pub fn spell(&self, tokens: &[TokenId]) -> String {
        let mut bytes = Vec::with_capacity(tokens.len());
        for token in tokens {
            match control_name(*token) {
                Some(name) => bytes.extend_from_slice(name.as_bytes()),
                None => bytes.extend_from_slice(self.token_bytes(*token)),
            }
        }
        lossy(bytes)
    }
}

impl Tokenizer for ByteTokenizer {
    fn encode(&self, text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }

    fn encode_control(&self, text: &str) -> Vec<TokenId> {
        let mut tokens = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("<|") {
            tokens.extend(self.encode(&rest[..start]));
            rest = &rest[start..];
            let index = CONTROL.iter().position(|name| rest.starts_with(name));
            let (token, len) = match index {
                Some(index) => (256 + index as TokenId, CONTROL[index].len()),
                None => (TokenId::from(b'<'), 1),
            };
            tokens.push(token);
            rest = &rest[len..];
        }
        tokens.extend(self.encode(rest));
        tokens
    }

    fn decode(&self, tokens: &[TokenId]) -> String {
        lossy(tokens.iter().flat_map(|token| self.token_bytes(*token)).copied().collect())
    }

    fn token_bytes(&self, token: TokenId) -> &[u8] {
        let index = token as usize;
        BYTES.get(index..index + 1).unwrap_or_default()
    }

    fn vocab_size(&self) -> usize {
        256 + CONTROL.len()
    }

    fn end_tokens(&self) -> &[TokenId] {
        &[END]
    }

    fn render_chat(&self, system: &str, user: &str) -> Result<String> {
        Ok(format!("<|begin|><|system|>{system}<|user|>{user}<|assistant|>"))
    }
}

fn control_name(token: TokenId) -> Option<&'static str> {
    CONTROL.get((token as usize).checked_sub(256)?).copied()
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
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
