//! SQL text as tokens, for the shell and for hiding secrets: where statements end, what to highlight, what is being typed.
//!
//! Unlike the parser's tokenizer this one never fails. Text that stops inside a string or a comment yields a last token that
//! says so, because that is the ordinary state of a statement while it is being typed.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// A keyword or a bare identifier.
    Word,
    /// A number.
    Number,
    /// `'…'`, `E'…'` or `$tag$…$tag$`.
    Text,
    /// `"…"` or `` `…` ``.
    QuotedName,
    /// `-- …` or `/* … */`.
    Comment,
    /// Blanks and line ends.
    Space,
    /// `(`, `[` or `{`.
    Open,
    /// `)`, `]` or `}`.
    Close,
    /// `;`
    Semicolon,
    /// Any other single character.
    Symbol,
}

/// A piece of SQL text; the tokens of a text cover it without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// What it is.
    pub(crate) kind: TokenKind,
    /// First byte.
    pub(crate) start: usize,
    /// One past the last byte.
    pub(crate) end: usize,
    /// False where the text ended inside a string, a quoted name or a block comment.
    pub(crate) closed: bool,
}

impl Token {
    /// The text of this token within `sql`.
    pub(crate) fn text<'a>(&self, sql: &'a str) -> &'a str {
        &sql[self.start..self.end]
    }

    /// Whether the token means nothing to SQL.
    pub(crate) fn is_blank(&self) -> bool {
        matches!(self.kind, TokenKind::Space | TokenKind::Comment)
    }
}

/// Yields the tokens of `sql`, one after the other.
pub(crate) fn tokens(sql: &str) -> impl Iterator<Item = Token> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        let token = token_at(sql, start)?;
        start = token.end;
        Some(token)
    })
}

/// Returns the token that begins at byte `start`, or `None` at the end of the text.
fn token_at(sql: &str, start: usize) -> Option<Token> {
    let rest = &sql[start..];
    let first = rest.chars().next()?;
    let (kind, length, closed) = match first {
        '\'' => quoted(rest, 1, '\'', false, TokenKind::Text),
        'e' | 'E' if rest[1..].starts_with('\'') => quoted(rest, 2, '\'', true, TokenKind::Text),
        '"' | '`' => quoted(rest, 1, first, false, TokenKind::QuotedName),
        '$' => dollar_quoted(rest).unwrap_or((TokenKind::Symbol, 1, true)),
        '-' if rest.starts_with("--") => (TokenKind::Comment, rest.find('\n').unwrap_or(rest.len()), true),
        '/' if rest.starts_with("/*") => block_comment(rest),
        '(' | '[' | '{' => (TokenKind::Open, 1, true),
        ')' | ']' | '}' => (TokenKind::Close, 1, true),
        ';' => (TokenKind::Semicolon, 1, true),
        c if c.is_whitespace() => (TokenKind::Space, length_while(rest, char::is_whitespace), true),
        c if c.is_ascii_digit() => (TokenKind::Number, length_while(rest, |c| c.is_ascii_alphanumeric() || c == '.'), true),
        c if is_word(c) => (TokenKind::Word, length_while(rest, |c| is_word(c) || c.is_ascii_digit() || c == '$'), true),
        c => (TokenKind::Symbol, c.len_utf8(), true),
    };
    Some(Token { kind, start, end: start + length, closed })
}

/// Whether `c` may begin a bare identifier.
fn is_word(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

/// Returns the length in bytes of the leading characters that satisfy `belongs`.
fn length_while(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// Measures a quoted text whose opening takes `opening` bytes. A doubled quote stands for itself; so does one behind a
/// backslash where `escapes` says so.
fn quoted(rest: &str, opening: usize, quote: char, escapes: bool, kind: TokenKind) -> (TokenKind, usize, bool) {
    let mut chars = rest[opening..].char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if escapes && c == '\\' {
            chars.next();
        } else if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return (kind, opening + at + c.len_utf8(), true);
        }
    }
    (kind, rest.len(), false)
}

/// Measures `$tag$ … $tag$`, or returns `None` where the dollar opens no such text (as in `$1`).
fn dollar_quoted(rest: &str) -> Option<(TokenKind, usize, bool)> {
    let tag_length = 1 + length_while(&rest[1..], |c| is_word(c) || c.is_ascii_digit());
    let is_tag = rest[tag_length..].starts_with('$') && !rest[1..].starts_with(|c: char| c.is_ascii_digit());
    let delimiter = is_tag.then(|| &rest[..=tag_length])?;
    Some(match rest[delimiter.len()..].find(delimiter) {
        Some(at) => (TokenKind::Text, delimiter.len() + at + delimiter.len(), true),
        None => (TokenKind::Text, rest.len(), false),
    })
}

/// Measures a block comment; they nest.
fn block_comment(rest: &str) -> (TokenKind, usize, bool) {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return (TokenKind::Comment, at, true);
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    (TokenKind::Comment, rest.len(), false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Compares the tokens of `sql`, blanks left out, written as `kind:text`, an unclosed one with `…` at its end.
    #[track_caller]
    fn check(sql: &str, expected: &[&str]) {
        let found: Vec<String> = tokens(sql)
            .filter(|token| token.kind != TokenKind::Space)
            .map(|token| format!("{:?}:{}{}", token.kind, token.text(sql), if token.closed { "" } else { "…" }))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn strings_may_hold_quotes_and_semicolons() {
        check("'it''s; so' x", &["Text:'it''s; so'", "Word:x"]);
        check(r"E'a\'b' 'a\'", &[r"Text:E'a\'b'", r"Text:'a\'"]);
        check(r#""a;b" `c`"#, &[r#"QuotedName:"a;b""#, "QuotedName:`c`"]);
        check("$$a;'b$$ $t$ $$ $t$", &["Text:$$a;'b$$", "Text:$t$ $$ $t$"]);
        check("$1", &["Symbol:$", "Number:1"]);
    }

    #[test]
    fn comments_end_at_the_line_or_where_they_are_closed() {
        check("-- a; b\nc", &["Comment:-- a; b", "Word:c"]);
        check("/* a /* ; */ b */ c", &["Comment:/* a /* ; */ b */", "Word:c"]);
    }

    #[test]
    fn unfinished_text_is_one_token() {
        check("select 'abc", &["Word:select", "Text:'abc…"]);
        check("a /* b", &["Word:a", "Comment:/* b…"]);
        check("$$ab$", &["Text:$$ab$…"]);
    }

    proptest! {
        #[test]
        fn tokens_cover_any_text(sql in "[a-zA-Z0-9'\"`$;/*\\-\\\\() \nä]{0,60}") {
            let joined: String = tokens(&sql).map(|token| token.text(&sql)).collect();
            prop_assert_eq!(joined, sql);
        }
    }
}
