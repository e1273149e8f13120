//! Statements of our own beside DataFusion's: models and `RESET refrain.*`.
//!
//! ```sql
//! CREATE [OR REPLACE] MODEL [IF NOT EXISTS] qwen FROM 'models/qwen3-8b' [WITH (type = 'completion')];
//! DROP MODEL [IF EXISTS] qwen;
//! SHOW MODELS;
//! DESCRIBE MODEL qwen;
//! LOAD MODEL qwen;
//! RESET refrain.temperature;
//! ```

use std::collections::HashMap;

use datafusion::common::{Result, plan_err};
use datafusion::sql::parser::{DFParser, DFParserBuilder, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

/// One parsed statement.
#[derive(Debug)]
pub enum Statement {
    /// A statement that DataFusion plans.
    DataFusion(Box<DataFusionStatement>),
    /// `CREATE MODEL`.
    CreateModel {
        /// The name.
        name: String,
        /// A folder or file.
        path: String,
        /// `OR REPLACE`.
        replace: bool,
        /// `IF NOT EXISTS`.
        if_not_exists: bool,
        /// `WITH (key = value, …)`, keys in lower case.
        options: HashMap<String, String>,
    },
    /// `DROP MODEL`.
    DropModel {
        /// The name.
        name: String,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `SHOW MODELS`.
    ShowModels,
    /// `DESCRIBE MODEL`.
    DescribeModel {
        /// The name.
        name: String,
    },
    /// `LOAD MODEL`.
    LoadModel {
        /// The name.
        name: String,
    },
    /// `RESET refrain.x`.
    Reset {
        /// The setting, without its prefix.
        setting: String,
    },
}

/// Parses exactly one statement.
pub fn parse(sql: &str, dialect: &dyn Dialect) -> Result<Statement> {
    let mut parser = StatementParser { inner: DFParserBuilder::new(sql).with_dialect(dialect).build()? };
    let statement = parser.statement()?;
    while parser.next_is(&Token::SemiColon) {
        parser.inner.parser.next_token();
    }
    match parser.inner.parser.peek_token().token {
        Token::EOF => Ok(statement),
        token => plan_err!("unexpected {token} after the statement; statements are separated by `;`"),
    }
}

/// Splits a script at its semicolons; those in strings, quoted names and comments do not count. Empty statements are left out.
pub fn split(script: &str, dialect: &dyn Dialect) -> Result<Vec<String>> {
    let tokens = Tokenizer::new(dialect, script)
        .tokenize_with_location()
        .map_err(|e| datafusion::common::plan_datafusion_err!("cannot read the script: {e}"))?;
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

struct StatementParser<'a> {
    inner: DFParser<'a>,
}

impl StatementParser<'_> {
    fn statement(&mut self) -> Result<Statement> {
        let words: Vec<String> = (0..4).map(|n| self.word(n)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["CREATE", "MODEL", ..] => self.skip(2).create_model(false),
            ["CREATE", "OR", "REPLACE", "MODEL"] => self.skip(4).create_model(true),
            ["DROP", "MODEL", ..] => self.skip(2).drop_model(),
            ["SHOW", "MODELS", ..] => {
                self.skip(2);
                Ok(Statement::ShowModels)
            }
            ["DESCRIBE" | "DESC", "MODEL", ..] => Ok(Statement::DescribeModel { name: self.skip(2).name()? }),
            ["LOAD", "MODEL", ..] => Ok(Statement::LoadModel { name: self.skip(2).name()? }),
            ["RESET", "REFRAIN", ..] => self.skip(2).reset(),
            _ => Ok(Statement::DataFusion(Box::new(self.inner.parse_statement()?))),
        }
    }

    fn create_model(&mut self, replace: bool) -> Result<Statement> {
        let if_not_exists = self.words(&["IF", "NOT", "EXISTS"]);
        let name = self.name()?;
        if !self.words(&["FROM"]) {
            return plan_err!("CREATE MODEL {name} needs FROM 'folder'");
        }
        let path = self.inner.parser.parse_literal_string()?;
        let mut options = HashMap::new();
        if self.words(&["WITH"]) {
            self.inner.parser.expect_token(&Token::LParen)?;
            loop {
                let key = self.name()?.to_lowercase();
                self.inner.parser.expect_token(&Token::Eq)?;
                let value = self.inner.parser.next_token().token;
                let value = match value {
                    Token::SingleQuotedString(text) | Token::Number(text, _) => text,
                    Token::Word(word) => word.value,
                    other => return plan_err!("option {key} of model {name}: expected a value, found {other}"),
                };
                options.insert(key, value);
                if !self.inner.parser.consume_token(&Token::Comma) {
                    break;
                }
            }
            self.inner.parser.expect_token(&Token::RParen)?;
        }
        Ok(Statement::CreateModel { name, path, replace, if_not_exists, options })
    }

    fn drop_model(&mut self) -> Result<Statement> {
        let if_exists = self.words(&["IF", "EXISTS"]);
        Ok(Statement::DropModel { name: self.name()?, if_exists })
    }

    fn reset(&mut self) -> Result<Statement> {
        self.inner.parser.expect_token(&Token::Period)?;
        Ok(Statement::Reset { setting: self.name()?.to_lowercase() })
    }

    fn name(&mut self) -> Result<String> {
        Ok(self.inner.parser.parse_identifier()?.value)
    }

    /// Returns the unquoted word `n` tokens ahead in upper case, or an empty string.
    fn word(&self, n: usize) -> String {
        match self.inner.parser.peek_nth_token(n).token {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_uppercase(),
            _ => String::new(),
        }
    }

    /// Consumes these words if they come next, all of them.
    fn words(&mut self, words: &[&str]) -> bool {
        let all = words.iter().enumerate().all(|(n, word)| self.word(n) == *word);
        if all {
            self.skip(words.len());
        }
        all
    }

    fn skip(&mut self, n: usize) -> &mut Self {
        for _ in 0..n {
            self.inner.parser.next_token();
        }
        self
    }

    fn next_is(&self, token: &Token) -> bool {
        self.inner.parser.peek_token().token == *token
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

    #[track_caller]
    fn check(sql: &str, expected: &str) {
        let shown = match parse(sql, &GenericDialect {}) {
            Ok(statement) => format!("{statement:?}"),
            Err(error) => error.strip_backtrace(),
        };
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn parses_statements_of_our_own() {
        check(
            "create model m from 'a/b'",
            r#"CreateModel { name: "m", path: "a/b", replace: false, if_not_exists: false, options: {} }"#,
        );
        check("CREATE OR REPLACE MODEL m FROM 'x' WITH (max_context = 512);", r#"options: {"max_context": "512"}"#);
        check("create model if not exists m from 'x'", "if_not_exists: true");
        check("drop model if exists m", r#"DropModel { name: "m", if_exists: true }"#);
        check("show models;", "ShowModels");
        check("reset refrain.Temperature", r#"Reset { setting: "temperature" }"#);
        check("create model m", "CREATE MODEL m needs FROM 'folder'");
        check("select 1 select 2", "unexpected");
        check("create table model as select 1", "DataFusion");
    }
}
