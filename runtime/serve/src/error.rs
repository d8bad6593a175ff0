//! What a request, a job or the client's round trip can fail with: an HTTP status, a code for `thex explain`, a sentence.

use std::io::ErrorKind as Io;

use axum::http::StatusCode;
use thex_circuit::CircuitError;
use thex_runtime::{ErrorKind, RuntimeError};

use crate::wire::ErrorBody;

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, ServeError>;

/// What went wrong. Messages are for the client's eyes: they name no path of the server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no such circuit, key or job, or it is another client's.
    #[error("{0}")]
    NotFound(String),
    /// The bearer token is missing, unknown or expired.
    #[error("{0}")]
    Denied(String),
    /// The body is larger than anything that could be meant.
    #[error("{0}")]
    TooLarge(String),
    /// The client was too slow.
    #[error("{0}")]
    TooSlow(String),
    /// The body ended early, or is not what its digest says.
    #[error("{0}")]
    BadUpload(String),
    /// The queue is full, or a quota of the client is used up.
    #[error("{0}")]
    Busy(String),
    /// The request contradicts what is there: an id in use, a job that has no result yet.
    #[error("{0}")]
    Conflict(String),
    /// The disk, or the room granted to the service, is full.
    #[error("{0}")]
    Full(String),
    /// The server is shutting down.
    #[error("{0}")]
    Closing(String),
    /// A parameter of the request or of the command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A key, input or result is not usable.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The server cannot be reached, or does not answer as thex does.
    #[error("{0}")]
    Unreachable(String),
    /// The server refused a request of this client.
    #[error("the server answers {status}: {message}")]
    Remote {
        /// HTTP status.
        status: u16,
        /// The code that the server gave, if it is one that this version knows.
        code: &'static str,
        /// The server's sentence.
        message: String,
    },
    /// A bug, or a part of the machine that failed.
    #[error("internal error of the service: {0}")]
    Internal(String),
}

/// Codes that a server may send, so that a client's exit status and `thex explain` follow them.
const REMOTE_CODES: &[&str] = &[
    "TX0001", "TX0002", "TX0003", "TX0010", "TX0011", "TX0103", "TX0303", "TX0601", "TX0602", "TX0603", "TX0604",
    "TX0605", "TX0606", "TX0607", "TX0608", "TX0609", "TX0610",
];

impl ServeError {
    /// Stable code of the error, for `thex explain`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "TX0601",
            Self::Denied(_) => "TX0602",
            Self::TooLarge(_) => "TX0603",
            Self::TooSlow(_) => "TX0604",
            Self::BadUpload(_) => "TX0605",
            Self::Busy(_) => "TX0606",
            Self::Conflict(_) => "TX0607",
            Self::Full(_) => "TX0608",
            Self::Closing(_) => "TX0609",
            Self::Unreachable(_) => "TX0610",
            Self::Usage(_) => "TX0011",
            Self::Runtime(error) => error.code(),
            Self::Remote { code, .. } => code,
            Self::Internal(_) => "TX0303",
        }
    }

    /// Whether the error is a bug of thex.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        match self {
            Self::Internal(_) => true,
            Self::Runtime(error) => error.kind() == ErrorKind::Internal,
            _ => false,
        }
    }

    /// Whether the service itself refused or was out of reach, as opposed to unusable files and arguments.
    #[must_use]
    pub fn is_service(&self) -> bool {
        self.code().starts_with("TX06")
    }

    /// Exit status of a program: 7 for the service's own refusals, otherwise that of the runtime's kinds.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            _ if self.is_service() => 7,
            Self::Runtime(error) => error.kind().exit_status(),
            Self::Internal(_) => ErrorKind::Internal.exit_status(),
            _ => ErrorKind::InvalidInput.exit_status(),
        }
    }

    /// Status of the HTTP answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Denied(_) => StatusCode::UNAUTHORIZED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::BadUpload(_) | Self::Usage(_) => StatusCode::BAD_REQUEST,
            Self::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Closing(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Runtime(error) => runtime_status(error),
            Self::Unreachable(_) => StatusCode::BAD_GATEWAY,
            Self::Remote { status, .. } => StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY),
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The JSON that goes with the status. Paths of the server stay in its log.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let message = match self {
            Self::Runtime(RuntimeError::Malformed { kind, reason, .. })
            | Self::Runtime(RuntimeError::Circuit(CircuitError::Malformed { kind, reason, .. })) => {
                format!("this is not a usable {kind}: {reason}")
            }
            Self::Runtime(RuntimeError::Io { action, source, .. })
            | Self::Runtime(RuntimeError::Circuit(CircuitError::Io { action, source, .. })) => {
                format!("the server cannot {action} one of its files: {source}")
            }
            other => other.to_string(),
        };
        ErrorBody { code: self.code().to_owned(), message }
    }

    /// From an answer of the server.
    #[must_use]
    pub fn remote(status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(ErrorBody { code, message }) => {
                let code = REMOTE_CODES.iter().find(|c| **c == code).copied().unwrap_or("TX0610");
                Self::Remote { status, code, message }
            }
            Err(_) => {
                Self::Unreachable(format!("the server answers {status}, and not as thex does; is the URL right?"))
            }
        }
    }
}

fn runtime_status(error: &RuntimeError) -> StatusCode {
    match error {
        RuntimeError::Io { .. } | RuntimeError::Circuit(CircuitError::Io { .. }) | RuntimeError::Internal(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

/// The error of an operation on the service's own files.
pub(crate) fn disk(what: &str, error: &std::io::Error) -> ServeError {
    match error.kind() {
        Io::StorageFull | Io::QuotaExceeded => {
            ServeError::Full("the server's disk is full: nothing was kept; try again later".into())
        }
        _ => ServeError::Internal(format!("cannot {what}: {error}")),
    }
}

/// Whether an error of the runtime says that the disk is full.
pub(crate) fn disk_is_full(error: &RuntimeError) -> bool {
    match error {
        RuntimeError::Io { source, .. } | RuntimeError::Circuit(CircuitError::Io { source, .. }) => {
            matches!(source.kind(), Io::StorageFull | Io::QuotaExceeded)
        }
        _ => false,
    }
}

impl From<CircuitError> for ServeError {
    fn from(error: CircuitError) -> Self {
        Self::Runtime(error.into())
    }
}

impl From<rusqlite::Error> for ServeError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => {
                Self::Full("the server's disk is full: nothing was kept; try again later".into())
            }
            _ => Self::Internal(format!("the store of jobs: {error}")),
        }
    }
}
