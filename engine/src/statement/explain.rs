//! `EXPLAIN` in forms of our own: with `SAMPLE n` or `FORMAT json`.

use datafusion::common::{Result, plan_err};
use datafusion::sql::sqlparser::tokenizer::Token;

use super::kinds::Statement;
use super::parser::StatementParser;
use crate::explain::ExplainOptions;

impl StatementParser<'_> {
    /// Reads `EXPLAIN`; forms that DataFusion knows are left to it.
    pub(super) fn explain(&mut self) -> Result<Statement> {
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
}
