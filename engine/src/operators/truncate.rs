//! `on_overflow => 'truncate'`: cuts the longest text of a prompt until the prompt leaves room for its answer.

use refrain_serving::Tokenizer;

/// Bytes that a token has at most where its text is looked at first.
const TOKEN_BYTES: usize = 8;

/// Beginnings of a text that are tried before one with about as many tokens as wanted is taken.
const BEGINNINGS_MAX: usize = 24;

/// Cuts that are tried for one prompt. The first one or two suffice; tokens may join anew where a text was cut.
const CUTS_MAX: usize = 32;

/// Cuts strings among `values` (JSON texts of the inputs), the longest first, until `tokens` finds at most `limit` tokens in the
/// prompt that they make. Returns `false` if that cannot be reached, as where the instruction alone is too long.
pub(super) fn cut(
    values: &mut [String],
    limit: usize,
    tokenizer: &dyn Tokenizer,
    mut tokens: impl FnMut(&[String]) -> usize,
) -> bool {
    for _ in 0..CUTS_MAX {
        let excess = tokens(values).saturating_sub(limit);
        if excess == 0 {
            return true;
        }
        let texts = values.iter().enumerate().filter_map(|(idx, json)| Some((idx, text_of(json)?)));
        let Some((idx, text)) = texts.max_by_key(|(_, text)| text.len()).filter(|(_, text)| !text.is_empty()) else {
            return false;
        };
        values[idx] = serde_json::Value::from(without_last(&text, excess, tokenizer)).to_string();
    }
    false
}

/// Returns the string that a JSON text is; `None` for other values, which mean nothing when cut.
pub(super) fn text_of(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

/// Returns a text without its last tokens.
fn without_last<'t>(text: &'t str, count: usize, tokenizer: &dyn Tokenizer) -> &'t str {
    first_tokens(text, tokenizer.encode(text).len().saturating_sub(count), tokenizer)
}

/// Returns the beginning of a text that has at most `count` tokens, and hardly fewer; all of it where it has no more. It is found by
/// encoding beginnings: tokens do not always spell the text that they stand for.
pub(super) fn first_tokens<'t>(text: &'t str, count: usize, tokenizer: &dyn Tokenizer) -> &'t str {
    let n_tokens = |end: usize| tokenizer.encode(&text[..end]).len();
    let mut end = text.floor_char_boundary(count.saturating_add(1).saturating_mul(TOKEN_BYTES));
    let (mut fits, mut tokens) = (0, n_tokens(end));
    while tokens <= count {
        if end == text.len() {
            return text;
        }
        fits = end;
        end = text.floor_char_boundary(end.saturating_mul(2));
        tokens = n_tokens(end);
    }
    // The first `fits` bytes have no more tokens than wanted, and the first `end` have more: `tokens`.
    for attempt in 0..BEGINNINGS_MAX {
        // In proportion, which is nearly right; where it is not, halfway.
        let guess = if attempt % 4 < 3 { end * count / tokens } else { (fits + end) / 2 };
        let guess = text.floor_char_boundary(guess.clamp(fits, end - 1));
        if guess == fits {
            break;
        }
        match n_tokens(guess) {
            found if found > count => (end, tokens) = (guess, found),
            found => {
                fits = guess;
                if found * 50 >= count * 49 {
                    break;
                }
            }
        }
    }
    &text[..fits]
}

#[cfg(test)]
mod tests {
    use refrain_serving::mock::ByteTokenizer;

    use super::*;

    #[track_caller]
    fn check(values: &[&str], limit: usize, expected: Option<&[&str]>) {
        let mut values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        let fits = cut(&mut values, limit, &ByteTokenizer, |values| values.concat().len());
        assert_eq!(fits.then_some(values.iter().map(String::as_str).collect::<Vec<_>>()).as_deref(), expected);
    }

    #[test]
    fn the_longest_text_is_cut() {
        check(&[r#""abc""#, r#""de""#], 9, Some(&[r#""abc""#, r#""de""#]));
        check(&[r#""abcdef""#, r#""de""#], 9, Some(&[r#""abc""#, r#""de""#]));
        check(&[r#""abcd""#, r#""efgh""#], 8, Some(&[r#""abcd""#, r#""""#]));
        check(&[r#""aéé""#, "[1,2,3,4]"], 14, Some(&[r#""aé""#, "[1,2,3,4]"]));
        check(&[r#""a""#, "[1,2,3,4]"], 5, None);
    }

    #[test]
    fn beginnings_have_as_many_tokens_as_wanted() {
        for (text, count, expected) in
            [("abcdef", 4, "abcd"), ("abc", 9, "abc"), ("", 3, ""), ("aéé", 2, "a"), ("é", 1, ""), ("ab", 0, "")]
        {
            assert_eq!(first_tokens(text, count, &ByteTokenizer), expected);
        }
        let long = "word ".repeat(1000);
        assert!((980..=1000).contains(&first_tokens(&long, 1000, &ByteTokenizer).len()));
    }
}
