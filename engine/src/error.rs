//! The error of the public API.

use datafusion::common::DataFusionError;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The statement is wrong, or its data is.
    #[error("{}", describe(.0))]
    Sql(#[source] DataFusionError),
    /// A model cannot be found or loaded.
    #[error("{0}")]
    Model(String),
    /// More rows failed than `refrain.max_error_ratio` allows.
    #[error(
        "{failed} of {rows} rows of {function} failed, more than refrain.max_error_ratio = {limit} allows; \
         raise it to get NULL for such rows"
    )]
    RowErrors {
        /// The function whose rows failed.
        function: String,
        /// Failed rows.
        failed: u64,
        /// Rows asked about so far.
        rows: u64,
        /// The setting.
        limit: f64,
    },
    /// A budget of the query is used up.
    #[error("the budget {which} is used up: {spent}")]
    Budget {
        /// The setting that names the budget.
        which: String,
        /// What was spent.
        spent: String,
    },
    /// The query was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The backend failed.
    #[error("{message}")]
    Backend {
        /// Whether every query of this backend fails.
        fatal: bool,
        /// What happened.
        message: String,
    },
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        from_shared(error)
    }
}

impl From<refrain_serving::Error> for Error {
    fn from(error: refrain_serving::Error) -> Self {
        use refrain_serving::Error as Serving;
        match error {
            Serving::Weights { .. } => Error::Model(error.to_string()),
            Serving::Cancelled => Error::Cancelled,
            Serving::Device(_) | Serving::Http(_) => Error::Backend { fatal: true, message: error.to_string() },
            Serving::Invalid(_) => Error::Sql(DataFusionError::Plan(error.to_string())),
            _ => Error::Backend { fatal: false, message: error.to_string() },
        }
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        match error {
            Error::Sql(error) => error,
            other => DataFusionError::External(Box::new(other)),
        }
    }
}

impl Error {
    /// Returns a copy of an error of our own; `None` for one of DataFusion's, which cannot be copied.
    fn copied(&self) -> Option<Error> {
        Some(match self {
            Error::Sql(_) => return None,
            Error::Model(message) => Error::Model(message.clone()),
            Error::RowErrors { function, failed, rows, limit } => {
                Error::RowErrors { function: function.clone(), failed: *failed, rows: *rows, limit: *limit }
            }
            Error::Budget { which, spent } => Error::Budget { which: which.clone(), spent: spent.clone() },
            Error::Cancelled => Error::Cancelled,
            Error::Backend { fatal, message } => Error::Backend { fatal: *fatal, message: message.clone() },
        })
    }
}

/// Finds our own errors inside the layers that DataFusion puts around them.
fn from_shared(error: DataFusionError) -> Error {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner)
            if matches!(inner.find_root(), DataFusionError::External(_)) =>
        {
            from_shared(*inner)
        }
        DataFusionError::Shared(shared) => match std::sync::Arc::try_unwrap(shared) {
            Ok(inner) => from_shared(inner),
            Err(shared) => match shared.find_root() {
                DataFusionError::External(external) => match external.downcast_ref::<refrain_serving::Error>() {
                    Some(error) => error.clone().into(),
                    None => match external.downcast_ref::<Error>().and_then(Error::copied) {
                        Some(own) => own,
                        None => Error::Sql(DataFusionError::Shared(shared)),
                    },
                },
                _ => Error::Sql(DataFusionError::Shared(shared)),
            },
        },
        DataFusionError::External(external) => match external.downcast::<Error>() {
            Ok(own) => *own,
            Err(external) => match external.downcast::<refrain_serving::Error>() {
                Ok(serving) => (*serving).into(),
                Err(external) => match external.downcast::<DataFusionError>() {
                    Ok(inner) => from_shared(*inner),
                    Err(external) => Error::Sql(DataFusionError::External(external)),
                },
            },
        },
        other => Error::Sql(other),
    }
}

/// What a user reads: the message without the backtrace and without DataFusion's invitation to report a bug in it.
fn describe(error: &DataFusionError) -> String {
    // Which rule of ours found a mistake in the query is nothing to the user.
    if let DataFusionError::Context(context, inner) = error
        && context.starts_with("Optimizer rule 'extract_llm'")
    {
        return describe(inner);
    }
    let message = error.strip_backtrace();
    let message = message.strip_prefix("Error during planning: ").unwrap_or(&message);
    match message.split_once(".\nThis issue was likely caused by a bug in DataFusion's code.") {
        Some((message, _)) => message.to_owned(),
        None => message.to_owned(),
    }
}
