//! The shape of an embedding: no token is decoded.

use super::{Constraint, Next};
use crate::error::{Error, Result};
use crate::request::TokenId;

/// Asks for the state of the prompt's last token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hidden {
    /// Leading dimensions to keep; `None` keeps all.
    pub(crate) dimensions: Option<u32>,
}

impl Constraint for Hidden {
    fn next(&mut self) -> Result<Next> {
        Ok(Next::Hidden { dimensions: self.dimensions })
    }

    fn accept(&mut self, token: TokenId) -> Result<()> {
        Err(Error::Invalid(format!("token {token} came where a vector was asked for")))
    }

    fn is_complete(&mut self) -> bool {
        false
    }
}
