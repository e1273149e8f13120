//! The line editor: highlighting, completion and the end of input, as rustyline asks for them.

use std::borrow::Cow;

use rustyline::completion::Completer;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper, Hinter};

use super::complete::{KEYWORDS, Vocabulary};
use super::script;
use crate::lex::{self, TokenKind};

/// Answers the line editor's questions about the text being typed.
#[derive(Default, Helper, Hinter)]
pub(crate) struct SqlHelper {
    /// Names to complete.
    pub(crate) vocabulary: Vocabulary,
}

impl Completer for SqlHelper {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _ctx: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.vocabulary.complete(&line[..pos]))
    }
}

impl Validator for SqlHelper {
    fn validate(&self, ctx: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let done = is_bare_word(ctx.input()).is_some() || script::is_complete(ctx.input());
        Ok(if done { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

/// Returns the command that a bare word stands for: newcomers type `help` and `quit`.
pub(crate) fn is_bare_word(input: &str) -> Option<&'static str> {
    match input.trim().trim_end_matches(';').to_ascii_lowercase().as_str() {
        "help" => Some("\\?"),
        "quit" | "exit" => Some("\\q"),
        _ => None,
    }
}

// The editor leaves colours out by itself where NO_COLOR is set or the terminal has none.
impl Highlighter for SqlHelper {
    fn highlight<'l>(&self, line: &'l str, _pos: usize) -> Cow<'l, str> {
        if script::is_command(line) { Cow::Borrowed(line) } else { Cow::Owned(highlighted(line)) }
    }

    fn highlight_char(&self, _line: &str, _pos: usize, kind: CmdKind) -> bool {
        kind != CmdKind::MoveCursor
    }
}

/// Colours keywords, calls of models, texts and comments.
fn highlighted(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len() * 2);
    for token in lex::tokens(sql) {
        let word = token.text(sql);
        match colour(token.kind, word) {
            Some(code) => text += &format!("\x1b[{code}m{word}\x1b[0m"),
            None => text += word,
        }
    }
    text
}

/// Returns the terminal's code for a token, if it is coloured.
fn colour(kind: TokenKind, word: &str) -> Option<&'static str> {
    match kind {
        TokenKind::Word if KEYWORDS.binary_search(&word.to_ascii_uppercase().as_str()).is_ok() => Some("1;34"),
        TokenKind::Word if word.to_ascii_lowercase().starts_with("ai_") => Some("35"),
        TokenKind::Text => Some("32"),
        TokenKind::Comment => Some("2"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_texts_and_calls_are_coloured() {
        let expected = "\x1b[1;34mselect\x1b[0m \x1b[35mai_filter\x1b[0m(\x1b[32m'a b\x1b[0m";
        assert_eq!(highlighted("select ai_filter('a b"), expected);
        assert_eq!(highlighted("selected 1"), "selected 1");
    }

    #[test]
    fn bare_words_are_commands() {
        assert_eq!(is_bare_word(" Quit; "), Some("\\q"));
        assert_eq!(is_bare_word("help me"), None);
    }
}
