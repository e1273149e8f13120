//! What ends a statement or the program, and the exit code that says so.

use std::io::{self, Write};
use std::path::Path;

use datafusion::arrow::error::ArrowError;

use crate::Error;

/// Why the shell could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] Error),
    /// A file could not be read or written.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, such as `cannot open out.csv`.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A shell command or an option is wrong.
    #[error("{0}")]
    Usage(String),
    /// A server refused or failed.
    #[cfg(feature = "flight")]
    #[error("{message}")]
    Server {
        /// What it says.
        message: String,
        /// The exit code that an engine of this process would end with.
        exit_code: u8,
    },
    /// Rows failed although `--strict-rows` forbids it.
    #[error("{0} rows failed and --strict-rows is set")]
    RowsFailed(u64),
    /// A statement would change something although `--readonly` forbids it.
    #[error("the statement changes something, and --readonly is set")]
    ReadOnly,
    /// The user was asked, and does not want the statement to run.
    #[error("not run")]
    Declined,
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// Statements of a script failed and were told one by one; the exit code is that of the first.
    #[error("statements failed")]
    Told(u8),
    /// Whoever read our output has stopped reading; that is their right, not an error.
    #[error("output closed")]
    OutputClosed,
}

/// What a step of the program comes to.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A shell command or an option that is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// An input or output error; a broken pipe is told apart.
    pub(crate) fn io(action: impl Into<String>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Io { action: action.into(), source },
        }
    }

    /// A file that cannot be read or opened.
    pub(crate) fn file(verb: &str, path: &Path, source: io::Error) -> Self {
        Self::io(format!("cannot {verb} {}", path.display()), source)
    }

    /// Tells the error on standard error, unless it has been told or needs no words.
    pub(crate) fn tell(&self) {
        match self {
            Self::Told(_) | Self::OutputClosed => {}
            Self::Declined => complain(&self.to_string()),
            error => complain(&format!("error: {error}")),
        }
    }

    /// Whether a script stops at this error even if it was told to go on.
    pub(crate) fn stops_any_script(&self) -> bool {
        matches!(self, Self::Interrupted | Self::Declined | Self::OutputClosed)
    }

    /// The exit code of a program that ends with this error.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Told(code) => *code,
            #[cfg(feature = "flight")]
            Self::Server { exit_code, .. } => *exit_code,
            Self::Usage(_) => 2,
            Self::Engine(Error::Budget { .. }) => 3,
            Self::RowsFailed(_) | Self::Engine(Error::RowErrors { .. }) => 4,
            Self::Interrupted | Self::Declined | Self::Engine(Error::Cancelled) => 130,
            Self::Engine(_) | Self::ReadOnly | Self::Io { .. } => 1,
        }
    }
}

/// Writes a line on standard error; that it cannot be written is no reason to stop.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Self::io("cannot write the output", source)
    }
}

impl From<ArrowError> for Failure {
    fn from(error: ArrowError) -> Self {
        Self::Engine(Error::from(datafusion::error::DataFusionError::from(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        let broken_pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::from(broken_pipe()).exit_code(), 0);
        assert_eq!(Failure::from(ArrowError::CsvError("bad".into())).exit_code(), 1);
        assert_eq!(Failure::Usage(String::new()).exit_code(), 2);
        assert_eq!(Failure::RowsFailed(1).exit_code(), 4);
        assert_eq!(Failure::from(Error::Cancelled).exit_code(), 130);
    }
}
