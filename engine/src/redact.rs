//! Secrets in SQL text: found by its tokens, so that a statement with a slip in it shows none either.

use crate::lex::{self, Token, TokenKind};

/// What stands in the place of a secret.
pub(crate) const HIDDEN: &str = "***";

/// Words of the statement itself, which messages may repeat.
const PLAIN_WORDS: &[&str] = &["persistent", "temporary", "api_key", "openai"];

/// Hidden words shorter than this are left in messages: they are slips of the pen, not keys.
const WORD_LEN_MIN: usize = 8;

/// Hidden texts shorter than this are hidden where they stand in quotes, since their letters stand in any message.
const TEXT_LEN_MIN: usize = 4;

/// Whether a statement of this text creates a secret. It is enough that the word follows the verb.
pub(crate) fn holds_secret(sql: &str) -> bool {
    !hidden_ranges(sql).is_empty()
}

/// Returns the text with everything that follows the name of a secret hidden, up to the end of its statement.
pub(crate) fn statement(sql: &str) -> String {
    let (mut text, mut shown) = (String::with_capacity(sql.len()), 0);
    for (start, end) in hidden_ranges(sql) {
        text.push_str(sql[shown..start].trim_end());
        text.push(' ');
        text.push_str(HIDDEN);
        shown = end;
    }
    text.push_str(&sql[shown..]);
    text
}

/// Returns a message about a statement without the values that the statement hides.
pub(crate) fn message(sql: &str, message: &str) -> String {
    let mut message = message.to_owned();
    for (start, end) in hidden_ranges(sql) {
        for token in lex::tokens(&sql[start..end]) {
            let text = token.text(&sql[start..end]);
            let value = match token.kind {
                TokenKind::Text | TokenKind::QuotedName => text.trim_matches(['\'', '"', '`']),
                TokenKind::Word if text.len() < WORD_LEN_MIN || is_plain(text) => continue,
                TokenKind::Word | TokenKind::Number => text,
                _ => continue,
            };
            let spellings = [value.to_owned(), value.replace("''", "'")];
            for value in spellings.iter().filter(|value| !value.is_empty() && !is_plain(value)) {
                message = match value.len() < TEXT_LEN_MIN {
                    true => message.replace(&format!("'{value}'"), &format!("'{HIDDEN}'")),
                    false => message.replace(value, HIDDEN),
                };
            }
        }
    }
    message
}

fn is_plain(word: &str) -> bool {
    PLAIN_WORDS.iter().any(|plain| word.eq_ignore_ascii_case(plain))
}

/// Returns what is hidden of each statement that creates a secret: all that follows the secret's name.
fn hidden_ranges(sql: &str) -> Vec<(usize, usize)> {
    let mut ranges = vec![];
    let mut tokens = lex::tokens(sql).filter(|token| !token.is_blank());
    let mut creates = false;
    while let Some(token) = tokens.next() {
        match token.kind {
            TokenKind::Semicolon => creates = false,
            TokenKind::Word if is_word(&token, sql, "create") => creates = true,
            TokenKind::Word if creates && is_word(&token, sql, "secret") => {
                let end = tokens.by_ref().find(|token| token.kind == TokenKind::Semicolon);
                ranges.push((name_end(sql, token.end), end.map_or(sql.len(), |end| end.start)));
                creates = false;
            }
            _ => {}
        }
    }
    ranges
}

/// Returns where the name ends that follows `SECRET [IF NOT EXISTS]`.
fn name_end(sql: &str, start: usize) -> usize {
    let rest = &sql[start..];
    let mut end = 0;
    for token in lex::tokens(rest).filter(|token| !token.is_blank()) {
        let is_prefix = ["if", "not", "exists"].iter().any(|word| is_word(&token, rest, word));
        match token.kind {
            TokenKind::Word if is_prefix => end = token.end,
            TokenKind::Word | TokenKind::QuotedName => return start + token.end,
            _ => break,
        }
    }
    start + end
}

fn is_word(token: &Token, sql: &str, word: &str) -> bool {
    token.kind == TokenKind::Word && token.text(sql).eq_ignore_ascii_case(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sql: &str, expected: &str) {
        assert_eq!(statement(sql), expected);
    }

    #[test]
    fn all_that_follows_the_name_is_hidden() {
        check("CREATE SECRET k (TYPE openai, API_KEY 'sk-1')", "CREATE SECRET k ***");
        check(
            "create or replace persistent secret if not exists \"k\" (x); select 1",
            "create or replace persistent secret if not exists \"k\" ***; select 1",
        );
        check("create secret k type openai api_key sk_live", "create secret k ***");
        check("create secret 'sk-1'", "create secret ***");
        check("create secret k (api_key 'sk-1", "create secret k ***");
        check("create /* a */ secret k -- 'x'\n(api_key 'sk;1')", "create /* a */ secret k ***");
    }

    #[test]
    fn other_statements_are_left_alone() {
        for plain in ["select 'create secret'", "create table t(a int); drop secret k", "-- create secret\nselect 1", ""] {
            check(plain, plain);
            assert!(!holds_secret(plain), "{plain}");
        }
        assert!(holds_secret("select 1; create or replace\n persistent secret k (api_key 'x"));
    }

    #[test]
    fn messages_lose_the_hidden_values() {
        let sql = "CREATE SECRET k (TYPE openai, API_KEY 'sk-1', sk_live_abcdef)";
        assert_eq!(
            message(sql, "k: API_KEY of openai: found 'sk-1', sk_live_abcdef"),
            "k: API_KEY of openai: found '***', ***"
        );
        assert_eq!(message("select 1", "found 1"), "found 1");
        assert_eq!(message("create secret k ('a')", "a field, not 'a'"), "a field, not '***'");
    }
}
