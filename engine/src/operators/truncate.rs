//! `on_overflow => 'truncate'`: cuts the longest text of a prompt until the prompt leaves room for its answer.

use refrain_serving::{Capabilities, Tokenizer};
use refrain_udf::OnOverflow;

use crate::operators::call::PhysicalCall;

/// Cuts that are tried for one prompt. The first one or two suffice; tokens may join anew where a text was cut.
const CUTS_MAX: usize = 32;

/// Returns the most tokens that a prompt may have, as this side counts them, where longer ones are to be cut: what the context
/// leaves when the longest answer, or a quarter of it, is taken off.
pub(super) fn prompt_limit(call: &PhysicalCall, capabilities: &Capabilities) -> Option<usize> {
    if call.options.on_overflow != OnOverflow::Truncate {
        return None;
    }
    let context = capabilities.max_context;
    let answer = (call.options.max_tokens as usize).min(context / 4).max(1);
    Some((context.saturating_sub(answer) as f64 / capabilities.token_scale) as usize)
}

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
fn text_of(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

/// Returns a text without its last tokens, and without a character that would be cut in two.
fn without_last(text: &str, count: usize, tokenizer: &dyn Tokenizer) -> String {
    let mut tokens = tokenizer.encode(text);
    tokens.truncate(tokens.len().saturating_sub(count));
    let kept = tokenizer.decode(&tokens);
    // Only a true beginning of the text is kept, whatever decoding made of the seam.
    let common = text.char_indices().zip(kept.chars()).take_while(|((_, a), b)| a == b).last();
    common.map_or(String::new(), |((start, last), _)| text[..start + last.len_utf8()].to_owned())
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
}
