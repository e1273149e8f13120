//! `CREATE PROMPT`: its parameters, its types and its template.

use datafusion::common::{Result, plan_err};
use datafusion::sql::sqlparser::tokenizer::Token;
use refrain_udf::{Parameter, PromptDefinition};

use super::parser::StatementParser;

impl StatementParser<'_> {
    /// Reads `(parameter TYPE, …) RETURNS type [MODEL model] AS 'template'`.
    pub(super) fn prompt(&mut self, name: String) -> Result<PromptDefinition> {
        let parameters = self.parameters(&name)?;
        if !self.words(&["RETURNS"]) {
            return plan_err!("CREATE PROMPT {name} needs the type of its answer: RETURNS BOOLEAN, or another type");
        }
        let return_type = match self.inner.parser.peek_token().token {
            Token::SingleQuotedString(_) => self.inner.parser.parse_literal_string()?,
            _ => self.sql_type(),
        };
        if return_type.is_empty() {
            return plan_err!("CREATE PROMPT {name}: a type must follow RETURNS, such as BOOLEAN or STRUCT(name VARCHAR)");
        }
        let model = if self.words(&["MODEL"]) { Some(self.name()?) } else { None };
        if !self.words(&["AS"]) {
            return plan_err!("CREATE PROMPT {name} needs what it asks: AS '… {{parameter}} …'");
        }
        let template = self.inner.parser.parse_literal_string()?;
        Ok(PromptDefinition { name, parameters, return_type, model, template })
    }

    fn parameters(&mut self, prompt: &str) -> Result<Vec<Parameter>> {
        if !self.inner.parser.consume_token(&Token::LParen) {
            return plan_err!(
                "CREATE PROMPT {prompt} needs its parameters in brackets: {prompt}(text VARCHAR), or {prompt}()"
            );
        }
        let mut parameters = vec![];
        if self.inner.parser.consume_token(&Token::RParen) {
            return Ok(parameters);
        }
        loop {
            let name = self.name()?.to_lowercase();
            let sql_type = self.sql_type();
            if sql_type.is_empty() {
                return plan_err!("CREATE PROMPT {prompt}: parameter {name} needs a type, such as {name} VARCHAR");
            }
            parameters.push(Parameter { name, sql_type });
            if self.inner.parser.consume_token(&Token::RParen) {
                return Ok(parameters);
            }
            if !self.inner.parser.consume_token(&Token::Comma) {
                return plan_err!("CREATE PROMPT {prompt}: a comma or a bracket must follow each parameter");
            }
        }
    }

    /// Reads a type up to what follows it, as text: whether there is such a type is not asked here. Empty if there is none.
    fn sql_type(&mut self) -> String {
        let (mut text, mut depth) = (String::new(), 0_usize);
        loop {
            let token = self.inner.parser.peek_token().token;
            match &token {
                Token::EOF | Token::SemiColon => return text,
                Token::Comma | Token::RParen if depth == 0 => return text,
                Token::Word(_) if depth == 0 && matches!(self.word(0).as_str(), "MODEL" | "AS") => return text,
                Token::LParen | Token::LBracket => depth += 1,
                Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
                _ => {}
            }
            let is_word = matches!(token, Token::Word(_) | Token::Number(..));
            if is_word && text.ends_with(|end: char| !matches!(end, '(' | '[')) {
                text.push(' ');
            }
            text += &token.to_string();
            self.skip(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;

    use crate::statement::{Statement, parse};

    #[track_caller]
    fn check(sql: &str, expected: Result<&str, &str>) {
        let shown = match parse(sql, &GenericDialect {}) {
            Ok(Statement::CreatePrompt { definition, existing }) => Ok(format!(
                "{existing:?} {} {} {:?} {}",
                definition.signature(),
                definition.return_type,
                definition.model,
                definition.template
            )),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.strip_backtrace()),
        };
        match (shown, expected) {
            (Ok(shown), Ok(expected)) => assert_eq!(shown, expected),
            (Err(shown), Err(expected)) => assert!(shown.contains(expected), "{shown}"),
            (shown, _) => panic!("{shown:?}"),
        }
    }

    #[test]
    fn prompts_are_read() {
        check(
            "create prompt Refund(Ticket varchar) returns boolean model qwen as 'Is {ticket} so?'",
            Ok("Refuse refund(ticket varchar) boolean Some(\"qwen\") Is {ticket} so?"),
        );
        check(
            "CREATE OR REPLACE PROMPT p(a DECIMAL(10, 2), b STRUCT(x INT, y VARCHAR[])) RETURNS STRUCT(model VARCHAR) AS '{a} {b}';",
            Ok("Replace p(a DECIMAL(10, 2), b STRUCT(x INT, y VARCHAR[])) STRUCT(model VARCHAR) None {a} {b}"),
        );
        check("create prompt if not exists p() returns varchar as 'it''s'", Ok("Keep p() varchar None it's"));
        check("create prompt p() returns '{\"type\": \"number\"}' as 'n'", Ok("Refuse p() {\"type\": \"number\"} None n"));
    }

    #[test]
    fn what_is_missing_is_named() {
        check("create prompt p returns varchar as 'x'", Err("needs its parameters in brackets: p(text VARCHAR)"));
        check("create prompt p(a) returns varchar as '{a}'", Err("parameter a needs a type, such as a VARCHAR"));
        check("create prompt p(a varchar as '{a}'", Err("a comma or a bracket must follow each parameter"));
        check("create prompt p() as 'x'", Err("needs the type of its answer"));
        check("create prompt p() returns as 'x'", Err("a type must follow RETURNS"));
        check("create prompt p() returns varchar", Err("needs what it asks"));
        check("create or replace prompt if not exists p() returns varchar as 'x'", Err("contradict each other"));
    }
}
