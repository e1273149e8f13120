//! Stop strings: where an answer ends because of what it says.
//!
//! Strings are searched byte by byte in what the tokens stand for, so token borders and characters of several bytes make no
//! difference. The first string to be complete ends the answer, the longest of those that are complete at the same byte. Each
//! byte costs a step of Knuth, Morris and Pratt's automaton for each string, however long the answer is.

use std::sync::Arc;

use crate::request::TokenId;
use crate::tokenizer::Tokenizer;

/// The stop strings of a request.
#[derive(Debug)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    tokenizer: Arc<dyn Tokenizer>,
}

#[derive(Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each count of matched bytes, how many are matched still when the next one differs: the longest proper suffix of the
    /// matched bytes with which the pattern begins.
    fallback: Vec<usize>,
}

impl StopStrings {
    /// Prepares the search; `None` if there is nothing to search for. Empty strings are left out.
    pub fn new(strings: &[String], tokenizer: &Arc<dyn Tokenizer>) -> Option<Arc<Self>> {
        let patterns: Vec<_> =
            strings.iter().filter(|string| !string.is_empty()).map(|string| Pattern::new(string)).collect();
        (!patterns.is_empty()).then(|| Arc::new(StopStrings { patterns, tokenizer: Arc::clone(tokenizer) }))
    }
}

impl Pattern {
    fn new(string: &str) -> Self {
        let mut pattern = Pattern { bytes: string.as_bytes().to_vec(), fallback: vec![0; string.len() + 1] };
        for end in 1..string.len() {
            pattern.fallback[end + 1] = pattern.step(pattern.fallback[end], pattern.bytes[end]);
        }
        pattern
    }

    /// Returns how many bytes are matched after one more.
    fn step(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes.get(matched) != Some(&byte) {
            matched = self.fallback[matched];
        }
        matched + usize::from(self.bytes[matched] == byte)
    }
}

/// How far the search has come in one answer.
#[derive(Debug)]
pub(super) struct StopState {
    strings: Arc<StopStrings>,
    /// Matched bytes of each pattern.
    matched: Vec<usize>,
}

/// What is left of an answer that a stop string ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Tokens of the answer before the one in which the stop string begins.
    pub(super) tokens: usize,
    /// Bytes of that one before the stop string.
    pub(super) rest: Vec<u8>,
}

impl StopState {
    /// Starts with nothing matched.
    pub(super) fn new(strings: &Arc<StopStrings>) -> Self {
        StopState { strings: Arc::clone(strings), matched: vec![0; strings.patterns.len()] }
    }

    /// Reads the last token of an answer. Returns what is left of the answer if the token completes a stop string.
    pub(super) fn push(&mut self, answer: &[TokenId]) -> Option<Cut> {
        let StopStrings { patterns, tokenizer } = self.strings.as_ref();
        let bytes = tokenizer.token_bytes(*answer.last()?);
        for (index, byte) in bytes.iter().enumerate() {
            let mut longest = 0;
            for (pattern, matched) in patterns.iter().zip(&mut self.matched) {
                *matched = pattern.step(*matched, *byte);
                if *matched == pattern.bytes.len() {
                    longest = longest.max(*matched);
                }
            }
            if longest > 0 {
                return Some(cut(answer, bytes.len() - index - 1 + longest, tokenizer.as_ref()));
            }
        }
        None
    }
}

/// Takes `count` bytes off the end of an answer.
fn cut(answer: &[TokenId], mut count: usize, tokenizer: &dyn Tokenizer) -> Cut {
    let mut tokens = answer.len();
    while count > 0 {
        tokens = tokens.checked_sub(1).expect("a match lies within the answer");
        let bytes = tokenizer.token_bytes(answer[tokens]);
        if count < bytes.len() {
            return Cut { tokens, rest: bytes[..bytes.len() - count].to_vec() };
        }
        count -= bytes.len();
    }
    Cut { tokens, rest: Vec::new() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Result;

    /// Tokens are the pieces of a text, by number.
    #[derive(Debug)]
    struct Pieces(Vec<Vec<u8>>);

    impl Tokenizer for Pieces {
        fn encode(&self, _text: &str) -> Vec<TokenId> {
            Vec::new()
        }

        fn encode_control(&self, _text: &str) -> Vec<TokenId> {
            Vec::new()
        }

        fn decode(&self, tokens: &[TokenId]) -> String {
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.token_bytes(*token)).copied().collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }

        fn token_bytes(&self, token: TokenId) -> &[u8] {
            &self.0[token as usize]
        }

        fn vocab_size(&self) -> usize {
            self.0.len()
        }

        fn end_tokens(&self) -> &[TokenId] {
            &[]
        }

        fn render_chat(&self, _system: &str, _user: &str) -> Result<String> {
            Ok(String::new())
        }
    }

    /// Reads `pieces` and returns the whole text that is left, and of it what whole tokens say.
    fn stopped(pieces: &[&[u8]], stop: &[&str]) -> (String, String) {
        let tokenizer: Arc<dyn Tokenizer> = Arc::new(Pieces(pieces.iter().map(|piece| piece.to_vec()).collect()));
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_string()).collect();
        let mut state = StopState::new(&StopStrings::new(&stop, &tokenizer).unwrap());
        let tokens: Vec<TokenId> = (0..pieces.len() as TokenId).collect();
        let found = (1..=tokens.len()).find_map(|end| state.push(&tokens[..end]));
        let Cut { tokens: kept, rest } = found.unwrap_or(Cut { tokens: tokens.len(), rest: Vec::new() });
        let whole = pieces[..kept].concat();
        (String::from_utf8([whole.clone(), rest].concat()).unwrap(), String::from_utf8_lossy(&whole).into_owned())
    }

    #[track_caller]
    fn check(pieces: &[&str], stop: &[&str], expected: (&str, &str)) {
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
        let (text, tokens) = stopped(&pieces, stop);
        assert_eq!((text.as_str(), tokens.as_str()), expected);
    }

    #[test]
    fn the_text_ends_before_the_first_stop_string() {
        check(&["one", "\n", "two"], &["\n"], ("one", "one"));
        check(&["one", " two", " three"], &["three", "two"], ("one ", "one"));
        check(&["a", "a", "a", "b"], &["aab"], ("a", "a"));
        check(&["abcabd"], &["abd"], ("abc", ""));
        check(&["", "ab", "", "c"], &["bc"], ("a", ""));
        check(&["none", "here"], &["hereafter"], ("nonehere", "nonehere"));
    }

    #[test]
    fn of_strings_that_end_together_the_longest_counts() {
        check(&["xabc"], &["c", "abc", "bc"], ("x", ""));
        check(&["xabc"], &["abc", "b"], ("xa", ""));
    }

    #[test]
    fn characters_may_be_spread_over_tokens() {
        let text = "größe日本".as_bytes();
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(stopped(&bytes, &["日本"]).0, "größe");
        assert_eq!(stopped(&bytes, &["ß", "本"]).0, "grö");
    }

    proptest! {
        /// However a text is cut into tokens, it ends where a search through the whole text says.
        #[test]
        fn token_borders_make_no_difference(
            text in "[abä]{0,24}", stop in prop::collection::vec("[abä]{1,4}", 1..4), cuts in prop::collection::vec(any::<bool>(), 48),
        ) {
            let bytes = text.as_bytes();
            let mut pieces = vec![Vec::new()];
            for (byte, cut) in bytes.iter().zip(cuts) {
                if cut {
                    pieces.push(Vec::new());
                }
                pieces.last_mut().unwrap().push(*byte);
            }
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
            let end = (1..=bytes.len()).find(|end| stop.iter().any(|stop| bytes[..*end].ends_with(stop.as_bytes())));
            let ending = |end: usize| stop.iter().filter(move |stop| bytes[..end].ends_with(stop.as_bytes())).map(|stop| stop.len());
            let expected = end.map_or(bytes.len(), |end| end - ending(end).max().unwrap());
            let (left, _) = stopped(&pieces, &stop);
            prop_assert_eq!(left.as_bytes(), &bytes[..expected]);
        }
    }
}
