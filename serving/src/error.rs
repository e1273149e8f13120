//! What can go wrong in serving: one small enum.

use std::path::PathBuf;

/// An error of the serving crate. Failures of a single request are not errors but [`RowFailure`](crate::RowFailure)s.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model folder or file cannot be used; the message names the file and what is wrong with it.
    #[error("cannot load model from {path}: {reason}")]
    Weights {
        /// The file or folder that was read.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The text of a chat template, a label, a schema or an expression cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The device cannot hold what was asked of it.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The device or its thread is gone; every waiting request fails.
    #[error("device failed: {0}")]
    Device(String),
    /// A remote service cannot be used: it does not answer, or refuses every request; the message says what to do.
    #[error("{0}")]
    Http(String),
    /// The request was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
