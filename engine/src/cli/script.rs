//! A script as statements and shell commands.
//!
//! A statement ends at a `;` outside quotes, comments and brackets. A command (`\dt`, `.tables`) stands on a line of its own
//! where a statement could begin, and ends with that line. A backslash ends a statement too, which the command takes that begins
//! there: `SELECT 1 \gx`.

use crate::lex::{self, TokenKind};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A SQL statement, without its semicolon.
    Statement(String),
    /// A shell command, from its backslash or dot to the end of the line.
    Command(String),
    /// A statement, and the command that takes it.
    Given {
        /// The statement.
        sql: String,
        /// The command, from its backslash to the end of the line.
        command: String,
    },
}

/// Cuts a script that arrives in pieces into items.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    /// Text that has not become an item yet.
    buffer: String,
    /// Bytes of the buffer whose tokens are known and lie inside the current statement.
    scanned: usize,
    /// Brackets open at `scanned`.
    depth: usize,
    /// Whether the scanned part holds more than blanks and comments.
    started: bool,
}

impl Splitter {
    /// Adds `text`, which must end with a line end or the script, and returns the items that are now complete.
    pub(crate) fn feed(&mut self, text: &str) -> Vec<Item> {
        self.buffer.push_str(text);
        std::iter::from_fn(|| self.next_item()).collect()
    }

    /// Returns what is left at the end of the script: its last statement need not end with a semicolon.
    pub(crate) fn finish(&mut self) -> Option<Item> {
        let rest = std::mem::take(self).buffer;
        let is_blank = lex::tokens(&rest).all(|token| token.is_blank());
        (!is_blank).then(|| Item::Statement(rest.trim().to_owned()))
    }

    /// Whether nothing but blanks and comments waits for its end.
    pub(crate) fn is_idle(&self) -> bool {
        lex::tokens(&self.buffer).all(|token| token.is_blank() && token.closed)
    }

    fn next_item(&mut self) -> Option<Item> {
        if let Some(command) = self.next_command() {
            return Some(command);
        }
        let base = self.scanned;
        let pending = self.buffer.split_off(base);
        let (mut end, mut is_given) = (None, false);
        for token in lex::tokens(&pending) {
            if !token.closed {
                break;
            }
            match token.kind {
                TokenKind::Open => self.depth += 1,
                TokenKind::Close => self.depth = self.depth.saturating_sub(1),
                TokenKind::Semicolon if self.depth == 0 => {
                    end = Some(base + token.start);
                    break;
                }
                TokenKind::Symbol if self.depth == 0 && self.started && token.text(&pending) == "\\" => {
                    (end, is_given) = (Some(base + token.start), true);
                    break;
                }
                _ => {}
            }
            self.started |= !token.is_blank();
            self.scanned = base + token.end;
        }
        self.buffer.push_str(&pending);
        let end = end?;
        if is_given {
            let line = self.take(self.line_end(end));
            return Some(Item::Given { sql: line[..end].trim().to_owned(), command: line[end..].trim().to_owned() });
        }
        let statement = self.take(end + 1);
        let statement = statement[..end].trim();
        // An empty statement between two semicolons is nothing to run.
        if lex::tokens(statement).all(|token| token.is_blank()) {
            return self.next_item();
        }
        Some(Item::Statement(statement.to_owned()))
    }

    /// Takes a command that stands at the start of the buffer.
    fn next_command(&mut self) -> Option<Item> {
        if self.started {
            return None;
        }
        let start = lex::tokens(&self.buffer).find(|token| !token.is_blank())?.start;
        if !is_command(&self.buffer[start..]) {
            return None;
        }
        let line = self.take(self.line_end(start));
        Some(Item::Command(line[start..].trim().to_owned()))
    }

    /// Returns the end of the line that holds the byte `start`.
    fn line_end(&self, start: usize) -> usize {
        self.buffer[start..].find('\n').map_or(self.buffer.len(), |at| start + at)
    }

    /// Removes the first `length` bytes of the buffer; what follows starts a new statement.
    fn take(&mut self, length: usize) -> String {
        let rest = self.buffer.split_off(length);
        (self.scanned, self.depth, self.started) = (0, 0, false);
        std::mem::replace(&mut self.buffer, rest)
    }
}

/// Whether `line` begins with a shell command: a backslash, or a dot and a letter.
pub(crate) fn is_command(line: &str) -> bool {
    let mut chars = line.chars();
    match chars.next() {
        Some('\\') => true,
        Some('.') => chars.next().is_some_and(|c| c.is_ascii_alphabetic()),
        _ => false,
    }
}

/// Returns the items of a whole script.
pub(crate) fn items(script: &str) -> Vec<Item> {
    let mut splitter = Splitter::default();
    let mut items = splitter.feed(script);
    items.extend(splitter.finish());
    items
}

/// Whether `input` can be run as it stands: every statement in it has its end.
pub(crate) fn is_complete(input: &str) -> bool {
    let mut splitter = Splitter::default();
    splitter.feed(input);
    splitter.is_idle()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Compares the items of `script`; a command is written as it stands, a statement with its semicolon.
    #[track_caller]
    fn check(script: &str, expected: &[&str]) {
        let written = |item| match item {
            Item::Statement(sql) => format!("{sql};"),
            Item::Command(line) => line,
            Item::Given { sql, command } => format!("{sql} <- {command}"),
        };
        let found: Vec<String> = items(script).into_iter().map(written).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn statements_end_at_semicolons_outside_quotes_comments_and_brackets() {
        check("select 1; select ';' -- ;\n;", &["select 1;", "select ';' -- ;;"]);
        check("select (1;2);\nselect 3", &["select (1;2);", "select 3;"]);
        check("select 1)) ; select 2;", &["select 1));", "select 2;"]);
        check(";; -- nothing\n ; select 1;;", &["select 1;"]);
        check("-- a comment alone", &[]);
    }

    #[test]
    fn commands_take_a_line_where_a_statement_could_begin() {
        check("\\dt\nselect 1;\n  .mode csv\nselect\n.5;", &["\\dt", "select 1;", ".mode csv", "select\n.5;"]);
        check("select 1; \\x\nselect 2", &["select 1;", "\\x", "select 2;"]);
        check(".5;", &[".5;"]);
        check("-- first\n/* second */\n\\dt\n", &["\\dt"]);
    }

    #[test]
    fn a_backslash_gives_the_statement_before_it_to_a_command() {
        check("select 1 \\gx\nselect 2;", &["select 1 <- \\gx", "select 2;"]);
        check("select\n1\\watch 5", &["select\n1 <- \\watch 5"]);
        check("select '\\g' -- \\g\n;", &["select '\\g' -- \\g;"]);
        check("select 1; \\g", &["select 1;", "\\g"]);
    }

    #[test]
    fn input_is_complete_once_nothing_waits() {
        for complete in ["", "  ", "select 1;", "\\d t", "select 1; -- done", "a; b;", ".tables", "select 1 \\gx"] {
            assert!(is_complete(complete), "{complete}");
        }
        for open in ["select 1", "select ';", "select (1;", "/* x", "select 1; select", "select 'a;"] {
            assert!(!is_complete(open), "{open}");
        }
    }

    proptest! {
        #[test]
        fn lines_fed_one_by_one_give_the_items_of_the_whole(script in "[a-c;'\"(\\[)\\-/*$ \n.\\\\]{0,60}") {
            let mut splitter = Splitter::default();
            let mut found: Vec<Item> = script.split_inclusive('\n').flat_map(|line| splitter.feed(line)).collect();
            found.extend(splitter.finish());
            prop_assert_eq!(found, items(&script));
        }
    }
}
