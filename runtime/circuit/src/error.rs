//! Errors of reading, writing and checking circuits and bundles.

use std::path::PathBuf;

/// What can go wrong with a circuit or bundle file.
#[derive(Debug, thiserror::Error)]
pub enum CircuitError {
    /// The operating system refused.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried: "read", "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("`{path}` is not a usable {kind}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// "circuit", "client bundle", "server key", ...
        kind: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Two things that must belong together do not.
    #[error("{left} and {right} do not belong together: {reason}")]
    Mismatch {
        /// One of them.
        left: String,
        /// The other.
        right: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The parameters are below 128-bit security or outside what the program supports.
    #[error("refused parameters: {0}")]
    Parameters(String),
    /// An operation in a clear graph cannot be evaluated.
    #[error("{op}: {reason}")]
    Eval {
        /// The operation.
        op: String,
        /// Why.
        reason: String,
    },
}

impl CircuitError {
    /// Stable code of the error, for `thex explain`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "TX0001",
            Self::Malformed { .. } => "TX0002",
            Self::Mismatch { .. } => "TX0003",
            Self::Eval { .. } => "TX0013",
            Self::Parameters(_) => "TX0103",
        }
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, CircuitError>;
