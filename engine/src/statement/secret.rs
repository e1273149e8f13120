//! The fields of `CREATE SECRET`.

use datafusion::common::{Result, plan_err};
use datafusion::sql::sqlparser::tokenizer::Token;

use super::kinds::SecretFields;
use super::parser::StatementParser;

impl StatementParser<'_> {
    /// Reads `(KEY value, …)`; an equals sign between them is allowed. Messages name keys and never values.
    pub(super) fn secret_fields(&mut self, secret: &str) -> Result<SecretFields> {
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
}
