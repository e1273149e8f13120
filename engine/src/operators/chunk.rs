//! `on_overflow => 'chunk'`: cuts the longest text of a prompt into chunks, each of which makes a prompt that fits.

use refrain_serving::Tokenizer;

use crate::operators::truncate::{first_tokens, text_of};

/// Tries to make a chunk fit. The first one or two suffice; tokens may join anew where a text was cut.
const CUTS_MAX: usize = 32;

/// A text is cut where at least one in so many tokens of a prompt is left for it; otherwise its chunks would be too many.
const ROOM_SHARE_MIN: usize = 8;

/// One chunk of a text, in the place of that text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The JSON texts of the inputs.
    pub values: Vec<String>,
    /// The text of the chunk.
    pub text: String,
    /// How many tokens that is.
    pub tokens: usize,
}

/// A text that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CutText {
    /// The input that it is.
    pub input: usize,
    /// Its chunks in order: one after the other they are the text.
    pub chunks: Vec<Chunk>,
}

/// How long prompts and chunks may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkLimits {
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Tokens of the text of a chunk.
    pub text: usize,
}

/// Cuts the longest string among `values` (JSON texts of the inputs) into chunks for which `tokens` finds prompts within the limits;
/// the other values are repeated with each. Returns `None` if that cannot be reached, as where the others leave hardly any room.
pub(super) fn split(
    values: &[String],
    limits: ChunkLimits,
    tokenizer: &dyn Tokenizer,
    mut tokens: impl FnMut(&[String]) -> usize,
) -> Option<CutText> {
    let texts = values.iter().enumerate().filter_map(|(input, json)| Some((input, text_of(json)?)));
    let (input, text) = texts.max_by_key(|(_, text)| text.len())?;
    let with = |chunk: &str| {
        let mut values = values.to_vec();
        values[input] = serde_json::Value::from(chunk).to_string();
        values
    };
    let fixed = tokens(&with(""));
    let room = limits.prompt.checked_sub(fixed)?;
    if room * ROOM_SHARE_MIN < limits.prompt {
        return None;
    }
    let mut chunks = vec![];
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let mut count = room.min(limits.text);
        let mut fitting = None;
        for _ in 0..CUTS_MAX {
            let chunk = first_tokens(rest, count, tokenizer);
            let chunk = &rest[..boundary(rest, chunk.len())];
            let values = with(chunk);
            let used = tokens(&values).saturating_sub(fixed);
            if used <= room {
                fitting = Some((chunk, values));
                break;
            }
            // Line breaks and quotes are longer in JSON than they are in the text.
            count = (count * room / used).min(count.saturating_sub(1));
        }
        let (chunk, values) = fitting.filter(|(chunk, _)| !chunk.is_empty())?;
        chunks.push(Chunk { values, text: chunk.to_owned(), tokens: tokenizer.encode(chunk).len() });
        rest = &rest[chunk.len()..];
    }
    Some(CutText { input, chunks })
}

/// Returns where to cut a text that must be cut at `end` or before: behind the last sentence of the second half, else behind its last
/// word, else at `end`.
fn boundary(text: &str, end: usize) -> usize {
    if end == text.len() {
        return end;
    }
    let near = text.floor_char_boundary(end - end / 2);
    let (mut sentence, mut word) = (None, None);
    let mut ends_sentence = ends_with_sentence(&text[..near]);
    // What follows tells whether a word or a sentence ends right there.
    let following = text[end..].chars().next();
    for (at, letter) in
        text[near..end].char_indices().map(|(at, letter)| (near + at, letter)).chain(following.map(|c| (end, c)))
    {
        if letter.is_whitespace() {
            // White space belongs to the chunk before it, as far as that reaches.
            let behind = (at + letter.len_utf8()).min(end);
            word = Some(behind);
            if ends_sentence || letter == '\n' {
                sentence = Some(behind);
            }
        } else if at < end {
            ends_sentence = is_end(letter) || (ends_sentence && is_closing(letter));
            if is_wide_end(letter) {
                sentence = Some(at + letter.len_utf8());
            }
        }
    }
    sentence.or(word).filter(|at| *at > 0).unwrap_or(end)
}

/// Returns whether a text ends with the end of a sentence, white space and closing quotes aside.
fn ends_with_sentence(text: &str) -> bool {
    text.trim_end().trim_end_matches(is_closing).ends_with(is_end)
}

fn is_end(letter: char) -> bool {
    matches!(letter, '.' | '!' | '?' | '…') || is_wide_end(letter)
}

/// Ends of sentences that no white space follows.
fn is_wide_end(letter: char) -> bool {
    matches!(letter, '。' | '！' | '？' | '｡')
}

fn is_closing(letter: char) -> bool {
    matches!(letter, '"' | '\'' | ')' | ']' | '”' | '’' | '»')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use refrain_serving::mock::ByteTokenizer;

    use super::*;

    fn split_bytes(values: &[String], prompt: usize, text: usize) -> Option<CutText> {
        split(values, ChunkLimits { prompt, text }, &ByteTokenizer, |values| values.concat().len())
    }

    /// Cuts a text so that chunks have at most `room` bytes; they are shown joined by `|`.
    #[track_caller]
    fn check(text: &str, room: usize, expected: &str) {
        let values = [serde_json::Value::from(text).to_string()];
        let cut = split_bytes(&values, room + 2, usize::MAX).unwrap();
        let chunks: Vec<&str> = cut.chunks.iter().map(|chunk| chunk.text.as_str()).collect();
        assert_eq!(chunks.join("|"), expected);
    }

    #[test]
    fn chunks_end_at_sentences_and_words() {
        check("One two. Three four five", 12, "One two. |Three four |five");
        check("One two. Three four five", 9, "One two. |Three |four five");
        check("He said \"no.\" And left", 16, "He said \"no.\" |And left");
        check("abcdefghij", 4, "abcd|efgh|ij");
        check("ab cdefghij", 4, "ab |cdef|ghij");
        check("größe", 4, "grö|ße");
        check("今日。明日。", 12, "今日。|明日。");
        check("ab     cd", 4, "ab  |   |cd");
        check("fits", 4, "fits");
    }

    #[test]
    fn the_longest_text_is_cut_and_the_others_stay() {
        let values = [r#""abc""#, "[1, 2, 3, 4]", r#""word word word""#].map(str::to_owned);
        let cut = split_bytes(&values, 27, usize::MAX).unwrap();
        assert_eq!(cut.input, 2);
        let shown: Vec<String> = cut.chunks.iter().map(|chunk| chunk.values.concat()).collect();
        assert_eq!(shown, [r#""abc"[1, 2, 3, 4]"word ""#, r#""abc"[1, 2, 3, 4]"word ""#, r#""abc"[1, 2, 3, 4]"word""#]);
        assert_eq!(split_bytes(&values, 19, usize::MAX), None, "the others take all");
        assert_eq!(split_bytes(&values, 21, usize::MAX), None, "the others leave hardly any room");
        assert_eq!(split_bytes(&["12345".to_owned()], 2, usize::MAX), None, "a number is not cut");
    }

    proptest! {
        #[test]
        fn chunks_joined_are_the_text_and_each_fits(
            text in "[a-z .,\n\"\\\\é漢🙂]{0,200}",
            other in "[a-z]{0,10}",
            prompt in 60_usize..120,
            most in 8_usize..100,
        ) {
            let values = [&text, &other].map(|value| serde_json::Value::from(value.as_str()).to_string());
            let cut = split_bytes(&values, prompt, most).unwrap();
            let joined: String = cut.chunks.iter().map(|chunk| chunk.text.as_str()).collect();
            prop_assert_eq!(&joined, if cut.input == 0 { &text } else { &other });
            for chunk in &cut.chunks {
                prop_assert!(!chunk.text.is_empty());
                prop_assert!(chunk.values.concat().len() <= prompt && chunk.tokens <= most);
                prop_assert_eq!(&chunk.values[cut.input], &serde_json::Value::from(chunk.text.as_str()).to_string());
                prop_assert_eq!(&chunk.values[1 - cut.input], &values[1 - cut.input]);
            }
        }
    }
}
