//! A text that is never shown: the key of a remote service.

use std::fmt;
use std::sync::Arc;

/// What is shown in place of a secret.
const HIDDEN: &str = "[secret]";

/// A text that neither `Debug` nor `Display` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Secret(text.into())
    }

    /// Returns the text. Whoever calls this must not show it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns `text` with each occurrence of the secret hidden, for messages of a server that repeats what it was sent.
    pub fn redact(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_string() } else { text.replace(&*self.0, HIDDEN) }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_not_shown() {
        let secret = Secret::new("sk-123");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "[secret] [secret] Some([secret])");
        assert_eq!(secret.redact("wrong key sk-123."), "wrong key [secret].");
        assert_eq!(Secret::new("").redact("text"), "text");
    }
}
