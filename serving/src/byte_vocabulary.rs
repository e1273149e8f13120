//! A vocabulary without a file: each byte is a token, and a few control tokens follow.

use crate::request::TokenId;

/// The number of the first control token.
pub(crate) const FIRST_CONTROL: TokenId = 256;

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

/// Bytes as tokens `0..256`, then control tokens, each spelled `<|…|>`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByteVocabulary {
    pub(crate) control: &'static [&'static str],
}

impl ByteVocabulary {
    /// Encodes ordinary text.
    pub(crate) fn encode(self, text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }

    /// Encodes text in which control tokens are control tokens.
    pub(crate) fn encode_control(self, text: &str) -> Vec<TokenId> {
        let mut tokens = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("<|") {
            tokens.extend(self.encode(&rest[..start]));
            rest = &rest[start..];
            let index = self.control.iter().position(|name| rest.starts_with(name));
            let (token, len) = match index {
                Some(index) => (FIRST_CONTROL + index as TokenId, self.control[index].len()),
                None => (TokenId::from(b'<'), 1),
            };
            tokens.push(token);
            rest = &rest[len..];
        }
        tokens.extend(self.encode(rest));
        tokens
    }

    /// Decodes tokens; control tokens are left out.
    pub(crate) fn decode(self, tokens: &[TokenId]) -> String {
        lossy(tokens.iter().filter_map(|token| u8::try_from(*token).ok()).collect())
    }

    /// Returns the byte that a token stands for; nothing for control tokens.
    pub(crate) fn token_bytes(self, token: TokenId) -> &'static [u8] {
        let index = token as usize;
        BYTES.get(index..index + 1).unwrap_or_default()
    }

    /// Returns how a control token is spelled.
    pub(crate) fn control_name(self, token: TokenId) -> Option<&'static str> {
        self.control.get(token.checked_sub(FIRST_CONTROL)? as usize).copied()
    }

    /// Returns the number of tokens.
    pub(crate) fn size(self) -> usize {
        FIRST_CONTROL as usize + self.control.len()
    }
}

/// Returns bytes as text, what is no UTF-8 as U+FFFD.
pub(crate) fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
