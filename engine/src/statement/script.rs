//! Text before it is parsed: scripts of several statements, and parameters that are written `?`.

use std::borrow::Cow;

use datafusion::common::{Result, plan_datafusion_err, plan_err};
use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

/// Splits a script at its semicolons; those in strings, quoted names and comments do not count. Empty statements are left out.
pub(crate) fn split(script: &str, dialect: &dyn Dialect) -> Result<Vec<String>> {
    let tokens = Tokenizer::new(dialect, script)
        .tokenize_with_location()
        .map_err(|e| plan_datafusion_err!("cannot read the script: {e}"))?;
    let mut offsets = ByteOffsets::new(script);
    let (mut statements, mut start, mut is_empty) = (vec![], 0, true);
    for token in tokens {
        match token.token {
            Token::SemiColon => {
                let end = offsets.at(token.span.start);
                if !is_empty {
                    statements.push(script[start..end].trim().to_owned());
                }
                start = end + 1;
                is_empty = true;
            }
            Token::Whitespace(_) | Token::EOF => {}
            _ => is_empty = false,
        }
    }
    if !is_empty {
        statements.push(script[start..].trim().to_owned());
    }
    Ok(statements)
}

/// Numbers the parameters that are written `?`, from the left: DataFusion knows `$1` only.
pub(crate) fn number_placeholders<'a>(sql: &'a str, dialect: &dyn Dialect) -> Result<Cow<'a, str>> {
    if !sql.contains('?') {
        return Ok(Cow::Borrowed(sql));
    }
    // What cannot be read is left to the parser, which says so better.
    let Ok(tokens) = Tokenizer::new(dialect, sql).tokenize_with_location() else { return Ok(Cow::Borrowed(sql)) };
    let mut offsets = ByteOffsets::new(sql);
    let (mut numbered, mut start, mut count, mut has_numbers) = (String::new(), 0, 0, false);
    for token in tokens {
        match token.token {
            Token::Placeholder(name) if name == "?" => {
                let at = offsets.at(token.span.start);
                count += 1;
                numbered += &format!("{}${count}", &sql[start..at]);
                start = at + 1;
            }
            Token::Placeholder(_) => has_numbers = true,
            _ => {}
        }
    }
    if count > 0 && has_numbers {
        return plan_err!("parameters are written either ? or $1; this statement has both");
    }
    numbered += &sql[start..];
    Ok(Cow::Owned(numbered))
}

/// Turns the tokenizer's lines and columns, which count characters from 1, into byte offsets. Asked in ascending order.
struct ByteOffsets<'a> {
    rest: std::str::CharIndices<'a>,
    line: u64,
    column: u64,
    len: usize,
}

impl<'a> ByteOffsets<'a> {
    fn new(text: &'a str) -> Self {
        ByteOffsets { rest: text.char_indices(), line: 1, column: 1, len: text.len() }
    }

    fn at(&mut self, location: Location) -> usize {
        loop {
            let here = (self.line, self.column);
            let Some((offset, character)) = self.rest.clone().next() else { return self.len };
            if here >= (location.line, location.column) {
                return offset;
            }
            self.rest.next();
            if character == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;

    use super::*;

    #[track_caller]
    fn check_split(script: &str, expected: &[&str]) {
        assert_eq!(split(script, &GenericDialect {}).unwrap(), expected);
    }

    #[test]
    fn splits_at_semicolons_outside_of_quotes() {
        check_split("select 1; select ';' as \"a;b\" -- no; no\n; ;", &["select 1", "select ';' as \"a;b\" -- no; no"]);
        check_split("select 'é;ü';\nselect 2", &["select 'é;ü'", "select 2"]);
        check_split(" -- nothing\n", &[]);
    }
}
