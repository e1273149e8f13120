//! Statements of our own beside DataFusion's: models, secrets, running queries and `RESET refrain.*`.
//!
//! ```sql
//! CREATE [OR REPLACE] MODEL [IF NOT EXISTS] qwen FROM 'models/qwen3-8b' [WITH (type = 'completion')];
//! CREATE [OR REPLACE] EXTERNAL MODEL [IF NOT EXISTS] gpt WITH (location = 'https://…/v1', model = '…', credential = openai_key);
//! DROP MODEL [IF EXISTS] qwen;
//! SHOW MODELS;
//! DESCRIBE MODEL qwen;
//! LOAD MODEL qwen;
//! UNLOAD MODEL qwen;
//! CREATE [OR REPLACE] [PERSISTENT] SECRET [IF NOT EXISTS] openai_key (TYPE openai, API_KEY '…');
//! DROP SECRET [IF EXISTS] openai_key;
//! SHOW SECRETS;
//! KILL QUERY 7;
//! CALL ai_cache_clear(['persistent']);
//! RESET refrain.temperature;
//! EXPLAIN (SAMPLE 20, FORMAT json) SELECT …;
//! ```

use std::borrow::Cow;
use std::fmt;

use datafusion::common::{Result, plan_datafusion_err, plan_err};
use datafusion::sql::parser::{DFParser, DFParserBuilder, Statement as DataFusionStatement};
use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use crate::explain::ExplainOptions;
use crate::redact;

/// One parsed statement.
#[derive(Clone, Debug)]
pub enum Statement {
    /// A statement that DataFusion plans.
    DataFusion(Box<DataFusionStatement>),
    /// `CREATE MODEL`.
    CreateModel {
        /// The name.
        name: String,
        /// A folder or file, or the shape of a random model.
        location: String,
        /// What happens to a model of this name.
        existing: Existing,
        /// `WITH (key = value, …)`.
        options: Vec<(String, String)>,
    },
    /// `CREATE EXTERNAL MODEL`.
    CreateExternalModel {
        /// The name.
        name: String,
        /// What happens to a model of this name.
        existing: Existing,
        /// `WITH (key = value, …)`.
        options: Vec<(String, String)>,
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
    /// `UNLOAD MODEL`.
    UnloadModel {
        /// The name.
        name: String,
    },
    /// `CREATE SECRET`.
    CreateSecret {
        /// The name.
        name: String,
        /// `PERSISTENT`.
        persistent: bool,
        /// What happens to a secret of this name.
        existing: Existing,
        /// `(KEY value, …)`.
        fields: SecretFields,
    },
    /// `DROP SECRET`.
    DropSecret {
        /// The name.
        name: String,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `SHOW SECRETS`.
    ShowSecrets,
    /// `KILL QUERY`.
    KillQuery {
        /// The number of the query.
        id: u64,
    },
    /// `CALL ai_cache_clear([tier])`.
    ClearCache {
        /// The tier; all of them if there is none.
        tier: Option<String>,
    },
    /// `EXPLAIN` in a form of ours: with `SAMPLE n` or `FORMAT json`.
    Explain {
        /// The form.
        options: ExplainOptions,
        /// The statement that is explained.
        statement: Box<DataFusionStatement>,
    },
    /// `RESET refrain.x`.
    Reset {
        /// The setting, without its prefix.
        setting: String,
    },
}

/// What a `CREATE` does where the name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Fails.
    Refuse,
    /// Replaces what is there: `OR REPLACE`.
    Replace,
    /// Leaves what is there: `IF NOT EXISTS`.
    Keep,
}

/// The fields of a secret, keys in lower case. Never shown.
#[derive(Clone)]
pub struct SecretFields(pub Vec<(String, String)>);

impl fmt::Debug for SecretFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}

/// Parses exactly one statement. An error does not repeat the values of a secret.
pub fn parse(sql: &str, dialect: &dyn Dialect) -> Result<Statement> {
    parse_whole(sql, dialect).map_err(|error| match redact::holds_secret(sql) {
        true => {
            let message = error.strip_backtrace();
            let message = message.strip_prefix("Error during planning: ").unwrap_or(&message);
            plan_datafusion_err!("{}", redact::message(sql, message))
        }
        false => error,
    })
}

fn parse_whole(sql: &str, dialect: &dyn Dialect) -> Result<Statement> {
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
pub fn number_placeholders<'a>(sql: &'a str, dialect: &dyn Dialect) -> Result<Cow<'a, str>> {
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

/// What a `CREATE` of ours creates.
enum Created {
    Model,
    ExternalModel,
    Secret { persistent: bool },
}

struct StatementParser<'a> {
    inner: DFParser<'a>,
}

impl StatementParser<'_> {
    fn statement(&mut self) -> Result<Statement> {
        let words: Vec<String> = (0..2).map(|n| self.word(n)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["CREATE", _] => match self.created() {
                Some((skip, created, replace)) => self.skip(skip).create(created, replace),
                None => self.datafusion(),
            },
            ["DROP", "MODEL"] => self.skip(2).drop_model(),
            ["DROP", "SECRET"] => self.skip(2).drop_secret(),
            ["SHOW", "MODELS"] => {
                self.skip(2);
                Ok(Statement::ShowModels)
            }
            ["SHOW", "SECRETS"] => {
                self.skip(2);
                Ok(Statement::ShowSecrets)
            }
            ["DESCRIBE" | "DESC", "MODEL"] => Ok(Statement::DescribeModel { name: self.skip(2).name()? }),
            ["LOAD", "MODEL"] => Ok(Statement::LoadModel { name: self.skip(2).name()? }),
            ["UNLOAD", "MODEL"] => Ok(Statement::UnloadModel { name: self.skip(2).name()? }),
            ["KILL", "QUERY"] => self.skip(2).kill(),
            ["CALL", _] => self.skip(1).call(),
            ["RESET", "REFRAIN"] => self.skip(2).reset(),
            ["EXPLAIN", _] => self.explain(),
            _ => self.datafusion(),
        }
    }

    fn datafusion(&mut self) -> Result<Statement> {
        Ok(Statement::DataFusion(Box::new(self.inner.parse_statement()?)))
    }

    /// Looks past `CREATE [OR REPLACE]` for something of ours. Returns how many words say so, what it is, and `OR REPLACE`.
    fn created(&self) -> Option<(usize, Created, bool)> {
        let replace = self.word(1) == "OR" && self.word(2) == "REPLACE";
        let at = if replace { 3 } else { 1 };
        let (first, second) = (self.word(at), self.word(at + 1));
        let (words, created) = match (first.as_str(), second.as_str()) {
            ("MODEL", _) => (1, Created::Model),
            ("EXTERNAL", "MODEL") => (2, Created::ExternalModel),
            ("SECRET", _) => (1, Created::Secret { persistent: false }),
            ("PERSISTENT", "SECRET") => (2, Created::Secret { persistent: true }),
            _ => return None,
        };
        Some((at + words, created, replace))
    }

    fn create(&mut self, created: Created, replace: bool) -> Result<Statement> {
        let if_not_exists = self.words(&["IF", "NOT", "EXISTS"]);
        let name = self.name()?;
        let existing = match (replace, if_not_exists) {
            (true, true) => return plan_err!("{name}: OR REPLACE and IF NOT EXISTS contradict each other; use one of them"),
            (true, false) => Existing::Replace,
            (false, true) => Existing::Keep,
            (false, false) => Existing::Refuse,
        };
        match created {
            Created::Model => {
                if !self.words(&["FROM"]) {
                    return plan_err!("CREATE MODEL {name} needs FROM 'folder'");
                }
                let location = self.inner.parser.parse_literal_string()?;
                Ok(Statement::CreateModel { location, existing, options: self.options(&name)?, name })
            }
            Created::ExternalModel => Ok(Statement::CreateExternalModel { existing, options: self.options(&name)?, name }),
            Created::Secret { persistent } => {
                Ok(Statement::CreateSecret { persistent, existing, fields: self.secret_fields(&name)?, name })
            }
        }
    }

    /// Reads `[WITH (key = value, …)]`.
    fn options(&mut self, model: &str) -> Result<Vec<(String, String)>> {
        let mut options = vec![];
        if !self.words(&["WITH"]) {
            return Ok(options);
        }
        self.inner.parser.expect_token(&Token::LParen)?;
        loop {
            let key = self.name()?.to_lowercase();
            self.inner.parser.expect_token(&Token::Eq)?;
            let Some(value) = self.value() else {
                return plan_err!("model {model:?}: option {key} needs a value: a text in quotes, a number or a name");
            };
            options.push((key, value));
            if !self.inner.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.inner.parser.expect_token(&Token::RParen)?;
        Ok(options)
    }

    /// Reads `(KEY value, …)`; an equals sign between them is allowed. Messages name keys and never values.
    fn secret_fields(&mut self, secret: &str) -> Result<SecretFields> {
        let form = "(TYPE openai, API_KEY '…')";
        let mut fields = vec![];
        if !self.inner.parser.consume_token(&Token::LParen) {
            return plan_err!("CREATE SECRET {secret} needs its fields in brackets: {form}");
        }
        loop {
            let Token::Word(key) = self.inner.parser.next_token().token else {
                return plan_err!("CREATE SECRET {secret}: a field begins with its name: {form}");
            };
            let key = key.value.to_lowercase();
            let _ = self.inner.parser.consume_token(&Token::Eq);
            let Some(value) = self.value() else {
                return plan_err!("CREATE SECRET {secret}: field {key} needs a value in quotes: {form}");
            };
            fields.push((key, value));
            if self.inner.parser.consume_token(&Token::RParen) {
                return Ok(SecretFields(fields));
            }
            if !self.inner.parser.consume_token(&Token::Comma) {
                return plan_err!("CREATE SECRET {secret}: a comma or a bracket must follow each field: {form}");
            }
        }
    }

    /// Reads a value: a string, a number or a word.
    fn value(&mut self) -> Option<String> {
        match self.inner.parser.next_token().token {
            Token::SingleQuotedString(text) | Token::Number(text, _) => Some(text),
            Token::Word(word) => Some(word.value),
            _ => None,
        }
    }

    fn drop_model(&mut self) -> Result<Statement> {
        let if_exists = self.words(&["IF", "EXISTS"]);
        Ok(Statement::DropModel { name: self.name()?, if_exists })
    }

    fn drop_secret(&mut self) -> Result<Statement> {
        let if_exists = self.words(&["IF", "EXISTS"]);
        Ok(Statement::DropSecret { name: self.name()?, if_exists })
    }

    fn kill(&mut self) -> Result<Statement> {
        let token = self.inner.parser.next_token().token;
        let number = if let Token::Number(text, _) = &token { text.parse().ok() } else { None };
        match number {
            Some(id) => Ok(Statement::KillQuery { id }),
            None => plan_err!("KILL QUERY needs the number of a query, not {token}; SELECT * FROM ai_queries() lists them"),
        }
    }

    fn call(&mut self) -> Result<Statement> {
        let procedure = self.name()?;
        if !procedure.eq_ignore_ascii_case("ai_cache_clear") {
            return plan_err!("there is no procedure {procedure}; known: ai_cache_clear(['session' or 'persistent'])");
        }
        self.inner.parser.expect_token(&Token::LParen)?;
        let tier = match self.next_is(&Token::RParen) {
            true => None,
            false => Some(self.inner.parser.parse_literal_string()?.to_lowercase()),
        };
        self.inner.parser.expect_token(&Token::RParen)?;
        Ok(Statement::ClearCache { tier })
    }

    /// Reads `EXPLAIN`; forms that DataFusion knows are left to it.
    fn explain(&mut self) -> Result<Statement> {
        let mut options = ExplainOptions::default();
        let in_brackets = self.inner.parser.peek_nth_token(1).token == Token::LParen;
        let is_option = |word: &str| matches!(word, "SAMPLE" | "FORMAT" | "ANALYZE" | "VERBOSE");
        if in_brackets && is_option(&self.word(2)) {
            let of_ours = |n: usize| self.word(n) == "SAMPLE" || (self.word(n) == "FORMAT" && self.is_json(n + 1));
            let closes = |n: &usize| self.inner.parser.peek_nth_token(*n).token != Token::RParen;
            if !(2..64).take_while(closes).any(of_ours) {
                return self.datafusion();
            }
            self.skip(2);
            loop {
                self.explain_option(&mut options)?;
                if !self.inner.parser.consume_token(&Token::Comma) {
                    break;
                }
            }
            self.inner.parser.expect_token(&Token::RParen)?;
        } else {
            let before = (1..3).take_while(|n| matches!(self.word(*n).as_str(), "ANALYZE" | "VERBOSE")).count();
            if self.word(1 + before) != "FORMAT" || !self.is_json(2 + before) {
                return self.datafusion();
            }
            self.skip(1);
            options.analyze = self.words(&["ANALYZE"]);
            options.verbose = self.words(&["VERBOSE"]);
            self.skip(2);
            options.json = true;
        }
        if options.analyze && options.sample.is_some() {
            return plan_err!("EXPLAIN: SAMPLE estimates a query and ANALYZE runs it; use one of them");
        }
        Ok(Statement::Explain { options, statement: Box::new(self.inner.parse_statement()?) })
    }

    fn explain_option(&mut self, options: &mut ExplainOptions) -> Result<()> {
        let name = self.name()?.to_uppercase();
        match name.as_str() {
            "ANALYZE" => options.analyze = self.flag(),
            "VERBOSE" => options.verbose = self.flag(),
            "SAMPLE" => {
                let token = self.inner.parser.next_token().token;
                let count = if let Token::Number(text, _) = &token { text.parse().ok() } else { None };
                match count.filter(|count| *count > 0) {
                    Some(count) => options.sample = Some(count),
                    None => return plan_err!("EXPLAIN: SAMPLE needs a number of questions above 0, not {token}"),
                }
            }
            "FORMAT" => match self.value().unwrap_or_default().to_lowercase().as_str() {
                "json" => options.json = true,
                "text" | "indent" => options.json = false,
                other => return plan_err!("EXPLAIN: FORMAT '{other}' does not go with SAMPLE; use json or text"),
            },
            other => return plan_err!("EXPLAIN has no option {other}; known: SAMPLE, FORMAT, ANALYZE, VERBOSE"),
        }
        Ok(())
    }

    /// Reads the value of an option that is on where none is given.
    fn flag(&mut self) -> bool {
        let is_off = ["FALSE", "OFF"].iter().any(|word| self.words(&[word]));
        if !is_off {
            let _ = ["TRUE", "ON"].iter().any(|word| self.words(&[word]));
        }
        !is_off
    }

    /// Returns whether the token `n` ahead says `json`, as a word or a string.
    fn is_json(&self, n: usize) -> bool {
        match self.inner.parser.peek_nth_token(n).token {
            Token::Word(word) => word.value.eq_ignore_ascii_case("json"),
            Token::SingleQuotedString(text) => text.eq_ignore_ascii_case("json"),
            _ => false,
        }
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
        check("create model m from 'a/b'", r#"CreateModel { name: "m", location: "a/b", existing: Refuse, options: [] }"#);
        check("CREATE OR REPLACE MODEL m FROM 'x' WITH (max_context = 512);", r#"options: [("max_context", "512")]"#);
        check("create model if not exists m from 'x'", "existing: Keep");
        check("create or replace model if not exists m from 'x'", "contradict each other");
        check(
            "create external model gpt with (location = 'https://x/v1', credential = k)",
            r#"options: [("location", "https://x/v1"), ("credential", "k")]"#,
        );
        check("create or replace external model m", "CreateExternalModel { name: \"m\", existing: Replace");
        check("create external model m with (location = )", "option location needs a value");
        check("drop model if exists m", r#"DropModel { name: "m", if_exists: true }"#);
        check("show models;", "ShowModels");
        check("reset refrain.Temperature", r#"Reset { setting: "temperature" }"#);
        check("create model m", "CREATE MODEL m needs FROM 'folder'");
        check("select 1 select 2", "unexpected");
        check("create table model as select 1", "DataFusion");
        check("create external table t stored as csv location 'x'", "DataFusion");
        check("unload model m", "UnloadModel");
        check("kill query 7", "KillQuery { id: 7 }");
        check("kill query x", "needs the number of a query, not x");
        check("call ai_cache_clear()", "ClearCache { tier: None }");
        check("call ai_cache_clear('Persistent')", r#"ClearCache { tier: Some("persistent") }"#);
        check("call nothing()", "there is no procedure nothing");
    }

    #[test]
    fn secrets_do_not_show() {
        check(
            "create secret k (TYPE openai, API_KEY 'sk-1')",
            r#"CreateSecret { name: "k", persistent: false, existing: Refuse, fields: ["type", "api_key"] }"#,
        );
        check("create or replace persistent secret k (type = openai)", "persistent: true, existing: Replace");
        check("create secret k", "needs its fields in brackets");
        check("create secret k ('sk-1')", "a field begins with its name");
        check("create secret k (type openai 'sk-1')", "a comma or a bracket must follow");
        let error = parse("create secret k (api_key 'a' 'sk-1')", &GenericDialect {}).unwrap_err().to_string();
        assert!(!error.contains("sk-1"), "{error}");
        let error = parse("create secret k (api_key 'a') 'sk-1'", &GenericDialect {}).unwrap_err().to_string();
        assert!(error.contains("unexpected '***' after the statement"), "{error}");
        check("drop secret if exists k", r#"DropSecret { name: "k", if_exists: true }"#);
        check("show secrets", "ShowSecrets");
    }
}
