//! Errors as gRPC says them.

use datafusion::common::DataFusionError;
use tonic::{Code, Status};

use crate::Error;

/// The longest message, in bytes: it travels in a header, and clients limit those.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut message = error.to_string();
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        Status::new(code(&error), message)
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::Sql(error) => match error.find_root() {
            DataFusionError::NotImplemented(_) => Code::Unimplemented,
            DataFusionError::ResourcesExhausted(_) => Code::ResourceExhausted,
            DataFusionError::Internal(_) => Code::Internal,
            _ => Code::InvalidArgument,
        },
        Error::Model(_) => Code::FailedPrecondition,
        Error::RowErrors { .. } => Code::Aborted,
        Error::Budget { .. } => Code::ResourceExhausted,
        Error::Cancelled => Code::Cancelled,
        Error::Backend { .. } => Code::Unavailable,
    }
}

/// As above, for errors of DataFusion and Arrow.
pub(super) fn sql(error: impl Into<DataFusionError>) -> Status {
    Error::from(error.into()).into()
}

/// A message that does not hold what the protocol demands.
pub(super) fn malformed(what: &str, error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("cannot read {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_code() {
        let code = |error: Error| Status::from(error).code();
        assert_eq!(code(Error::Cancelled), Code::Cancelled);
        assert_eq!(code(Error::Model(String::new())), Code::FailedPrecondition);
        assert_eq!(code(Error::Backend { fatal: true, message: String::new() }), Code::Unavailable);
        assert_eq!(code(DataFusionError::Plan(String::new()).into()), Code::InvalidArgument);
        assert_eq!(code(DataFusionError::NotImplemented(String::new()).into()), Code::Unimplemented);
        let long = Status::from(Error::Model("é".repeat(MESSAGE_BYTES_MAX)));
        assert!(long.message().len() <= MESSAGE_BYTES_MAX);
    }
}
