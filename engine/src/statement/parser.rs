//! The parser: what is ours is read here, the rest is left to DataFusion.

use datafusion::common::{Result, plan_datafusion_err, plan_err};
use datafusion::sql::parser::{DFParser, DFParserBuilder};
use datafusion::sql::sqlparser::dialect::Dialect;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::kinds::{Existing, Statement};
use crate::redact;

/// Parses exactly one statement. An error does not repeat the values of a secret.
pub(crate) fn parse(sql: &str, dialect: &dyn Dialect) -> Result<Statement> {
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

/// What a `CREATE` of ours creates.
enum Created {
    Model,
    ExternalModel,
    Prompt,
    Secret { persistent: bool },
}

pub(super) struct StatementParser<'a> {
    pub(super) inner: DFParser<'a>,
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
            ["DROP", "SECRET"] => self.skip(2).drop_secret(false),
            ["DROP", "PERSISTENT"] if self.word(2) == "SECRET" => self.skip(3).drop_secret(true),
            ["DROP", "PROMPT"] => self.skip(2).drop_prompt(),
            ["SHOW", "MODELS"] => {
                self.skip(2);
                Ok(Statement::ShowModels)
            }
            ["SHOW", "SECRETS"] => {
                self.skip(2);
                Ok(Statement::ShowSecrets)
            }
            ["SHOW", "PROMPTS"] => {
                self.skip(2);
                Ok(Statement::ShowPrompts)
            }
            ["DESCRIBE" | "DESC", "PROMPT"] => Ok(Statement::DescribePrompt { name: self.skip(2).function_name()? }),
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

    pub(super) fn datafusion(&mut self) -> Result<Statement> {
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
            ("PROMPT", _) => (1, Created::Prompt),
            ("SECRET", _) => (1, Created::Secret { persistent: false }),
            ("PERSISTENT", "SECRET") => (2, Created::Secret { persistent: true }),
            _ => return None,
        };
        Some((at + words, created, replace))
    }

    fn create(&mut self, created: Created, replace: bool) -> Result<Statement> {
        let if_not_exists = self.words(&["IF", "NOT", "EXISTS"]);
        let name = match created {
            Created::Prompt => self.function_name()?,
            _ => self.name()?,
        };
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
            Created::Prompt => Ok(Statement::CreatePrompt { definition: self.prompt(name)?, existing }),
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

    /// Reads a value: a string, a number or a word.
    pub(super) fn value(&mut self) -> Option<String> {
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

    fn drop_secret(&mut self, persistent: bool) -> Result<Statement> {
        let if_exists = self.words(&["IF", "EXISTS"]);
        Ok(Statement::DropSecret { name: self.name()?, persistent, if_exists })
    }

    fn drop_prompt(&mut self) -> Result<Statement> {
        let if_exists = self.words(&["IF", "EXISTS"]);
        Ok(Statement::DropPrompt { name: self.function_name()?, if_exists })
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
            let known = "ai_cache_clear(['session', 'persistent' or 'checkpoint'])";
            return plan_err!("there is no procedure {procedure}; known: {known}");
        }
        self.inner.parser.expect_token(&Token::LParen)?;
        let tier = match self.next_is(&Token::RParen) {
            true => None,
            false => Some(self.inner.parser.parse_literal_string()?.to_lowercase()),
        };
        self.inner.parser.expect_token(&Token::RParen)?;
        Ok(Statement::ClearCache { tier })
    }

    fn reset(&mut self) -> Result<Statement> {
        self.inner.parser.expect_token(&Token::Period)?;
        Ok(Statement::Reset { setting: self.name()?.to_lowercase() })
    }

    pub(super) fn name(&mut self) -> Result<String> {
        Ok(self.inner.parser.parse_identifier()?.value)
    }

    /// Reads the name of a function, as calls are looked up: in lower case unless it is quoted.
    fn function_name(&mut self) -> Result<String> {
        let name = self.inner.parser.parse_identifier()?;
        Ok(if name.quote_style.is_some() { name.value } else { name.value.to_lowercase() })
    }

    /// Returns the unquoted word `n` tokens ahead in upper case, or an empty string.
    pub(super) fn word(&self, n: usize) -> String {
        match self.inner.parser.peek_nth_token(n).token {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_uppercase(),
            _ => String::new(),
        }
    }

    /// Consumes these words if they come next, all of them.
    pub(super) fn words(&mut self, words: &[&str]) -> bool {
        let all = words.iter().enumerate().all(|(n, word)| self.word(n) == *word);
        if all {
            self.skip(words.len());
        }
        all
    }

    pub(super) fn skip(&mut self, n: usize) -> &mut Self {
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
        check("show prompts", "ShowPrompts");
        check("describe prompt Refund", r#"DescribePrompt { name: "refund" }"#);
        check("drop prompt if exists \"Refund\"", r#"DropPrompt { name: "Refund", if_exists: true }"#);
        check("kill query 7", "KillQuery { id: 7 }");
        check("kill query x", "needs the number of a query, not x");
        check("call ai_cache_clear()", "ClearCache { tier: None }");
        check("call ai_cache_clear('Persistent')", r#"ClearCache { tier: Some("persistent") }"#);
        check(
            "call nothing()",
            "there is no procedure nothing; known: ai_cache_clear(['session', 'persistent' or 'checkpoint'])",
        );
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
        check("drop secret if exists k", r#"DropSecret { name: "k", persistent: false, if_exists: true }"#);
        check("drop persistent secret k", r#"DropSecret { name: "k", persistent: true, if_exists: false }"#);
        check("show secrets", "ShowSecrets");
    }
}
