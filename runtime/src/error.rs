//! Errors of the runtime, sorted by who can mend them.

use std::path::{Path, PathBuf};

use thex_circuit::CircuitError;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A circuit, bundle or parameter set is at fault.
    #[error(transparent)]
    Circuit(#[from] CircuitError),
    /// The data to encrypt is not what the model takes.
    #[error("{0}")]
    Input(String),
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
    /// A file cannot be read, or holds something else.
    #[error("`{path}` is not a usable {kind}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// "server key", "ciphertext", ...
        kind: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A result has not enough precision to be made safe to share.
    #[error("this result cannot be made safe to share: {0}")]
    NotShareable(String),
    /// The operating system refused.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried: "read", "write to".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A GPU was asked for, and cannot be used.
    #[error("{0}")]
    Device(String),
    /// The processes that should share a run cannot.
    #[error("{0}")]
    Ranks(String),
    /// The run does not fit into memory.
    #[error(
        "the run needs about {} MB of memory, more than {}: {advice}",
        needed.div_ceil(1_000_000), limit_of(*limit, *given)
    )]
    Memory {
        /// Predicted peak, in bytes.
        needed: u64,
        /// What there is, in bytes.
        limit: u64,
        /// Whether the user said so.
        given: bool,
        /// What takes it, and what to do.
        advice: String,
    },
    /// A run was asked to stop.
    #[error("stopped on request after {done} of {total} PBS; {}", going_on(checkpoint.as_deref()))]
    Stopped {
        /// Blind rotations done.
        done: u64,
        /// Of so many.
        total: u64,
        /// Where it goes on from.
        checkpoint: Option<PathBuf>,
    },
    /// A bug of this program.
    #[error("internal error (a bug of thex, not of your model or data): {0}")]
    Internal(String),
}

fn limit_of(limit: u64, given: bool) -> String {
    let megabytes = limit / 1_000_000;
    if given {
        format!("the {megabytes} MB that --memory allows")
    } else {
        format!("the {megabytes} MB of this machine")
    }
}

fn going_on(checkpoint: Option<&Path>) -> String {
    checkpoint.map_or_else(
        || "there is no checkpoint to go on from".to_owned(),
        |folder| format!("the same command goes on from the checkpoint in `{}`", folder.display()),
    )
}

/// Kinds of failure; each has its own exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A file or value given by the user is not usable.
    InvalidInput,
    /// What is asked for cannot be done.
    Unsupported,
    /// It needs more than there is.
    Infeasible,
    /// It was stopped, and can go on.
    Stopped,
    /// A bug.
    Internal,
}

impl ErrorKind {
    /// Exit status of the program. 2 is left to the command line's own errors.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::InvalidInput => 3,
            Self::Unsupported => 4,
            Self::Infeasible => 5,
            Self::Stopped => 75,
            Self::Internal => 70,
        }
    }
}

impl RuntimeError {
    /// Whose turn it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Circuit(CircuitError::Parameters(_)) | Self::NotShareable(_) | Self::Device(_) | Self::Ranks(_) => {
                ErrorKind::Unsupported
            }
            Self::Internal(_) => ErrorKind::Internal,
            Self::Memory { .. } => ErrorKind::Infeasible,
            Self::Stopped { .. } => ErrorKind::Stopped,
            Self::Circuit(_) | Self::Input(_) | Self::Mismatch { .. } | Self::Malformed { .. } | Self::Io { .. } => {
                ErrorKind::InvalidInput
            }
        }
    }
}

impl RuntimeError {
    /// Stable code of the error, for `thex explain`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Circuit(error) => error.code(),
            Self::Io { .. } => "TX0001",
            Self::Malformed { .. } => "TX0002",
            Self::Mismatch { .. } => "TX0003",
            Self::Input(_) => "TX0010",
            Self::Device(_) => "TX0110",
            Self::Ranks(_) => "TX0111",
            Self::Memory { .. } => "TX0202",
            Self::NotShareable(_) => "TX0104",
            Self::Internal(_) => "TX0303",
            Self::Stopped { .. } => "TX0401",
        }
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, RuntimeError>;
