//! `\copy (query|table) TO 'file'`: all rows of a result in a file of this machine, wherever the statement runs.

use std::path::PathBuf;

use super::commands::unquoted;
use super::error::{Failure, Outcome};
use super::output::Format;
use crate::lex::{self, Token, TokenKind};

/// What is copied, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// The query.
    pub(crate) sql: String,
    /// The file.
    pub(crate) file: PathBuf,
    /// The format that its ending names.
    pub(crate) format: Format,
}

/// Reads what stands behind `\copy`.
pub(crate) fn parse(text: &str) -> Outcome<Copy> {
    let wrong = || {
        Failure::usage("\\copy needs rows and a file, as in \\copy (SELECT …) TO 'file.csv' or \\copy TABLE TO 'file.csv'")
    };
    let to = last_to(text).ok_or_else(wrong)?;
    let (source, file) = (text[..to.start].trim(), text[to.end..].trim());
    if source.is_empty() || file.is_empty() {
        return Err(wrong());
    }
    let file = PathBuf::from(unquoted(file));
    let format = Format::of_file(&file)?;
    let sql = enclosed(source).map_or_else(|| format!("SELECT * FROM {source}"), str::to_owned);
    Ok(Copy { sql, file, format })
}

/// Returns the last word TO outside brackets.
fn last_to(text: &str) -> Option<Token> {
    let mut depth = 0_usize;
    let mut found = None;
    for token in lex::tokens(text) {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth = depth.saturating_sub(1),
            TokenKind::Word if depth == 0 && token.text(text).eq_ignore_ascii_case("to") => found = Some(token),
            _ => {}
        }
    }
    found
}

/// Returns what stands between the brackets that enclose all of a text, if some do.
fn enclosed(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('(')?.strip_suffix(')')?;
    let mut depth = 0_usize;
    for token in lex::tokens(inner) {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    (depth == 0).then(|| inner.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, sql: &str, file: &str, format: Format) {
        assert_eq!(parse(text).unwrap(), Copy { sql: sql.into(), file: file.into(), format });
    }

    #[test]
    fn queries_and_tables_are_copied() {
        check("(select 'to' as a) TO 'a file.csv'", "select 'to' as a", "a file.csv", Format::Csv);
        check("reviews to out.parquet", "SELECT * FROM reviews", "out.parquet", Format::Parquet);
        check("\"to\" To 'x.NDJSON'", "SELECT * FROM \"to\"", "x.NDJSON", Format::Ndjson);
        check("(select 1) union (select 2) to a.md", "SELECT * FROM (select 1) union (select 2)", "a.md", Format::Markdown);
    }

    #[test]
    fn what_is_incomplete_is_refused() {
        for wrong in ["", "t", "t to", "to 'a.csv'", "(select 1 to 'a.csv')"] {
            assert!(parse(wrong).unwrap_err().to_string().contains("needs rows and a file"), "{wrong}");
        }
        assert!(parse("t to 'a.xml'").unwrap_err().to_string().contains(".parquet"));
    }
}
