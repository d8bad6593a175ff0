//! What can go wrong when compiling.

use thex_circuit::CircuitError;
use thex_passes::PassError;
use thex_runtime::{ErrorKind, RuntimeError};
use thex_serve::ServeError;

use crate::import::ImportError;

/// Errors of the compiler, by kind.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The model could not be read or holds unsupported operators.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A pass could not do its work.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// A file could not be read or written, or is damaged.
    #[error(transparent)]
    Circuit(#[from] CircuitError),
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] thex_runtime::RuntimeError),
    /// The service or its client refused.
    #[error(transparent)]
    Serve(#[from] thex_serve::ServeError),
    /// An argument is out of bounds, names nothing that exists, or does not go with the others.
    #[error("{0}")]
    Usage(String),
    /// Calibration or evaluation data do not fit the model.
    #[error("{0}")]
    Data(String),
    /// Anything else that is no bug: standard output is closed, circuit and model have different outputs.
    #[error("{0}")]
    Invalid(String),
    /// Training gave a loss that is no number.
    #[error(
        "training diverged: the loss is not finite in epoch {} of `{phase}`; lower --learning-rate (it was {rate}), or look for extreme \
         values in the training data",
        epoch + 1
    )]
    Diverged {
        /// What was trained.
        phase: String,
        /// Counts from 0.
        epoch: usize,
        /// The learning rate.
        rate: f64,
    },
    /// A node of a circuit does not do what was predicted of it.
    #[error("`{node}` departs from its prediction in the {lane} values: {reason}")]
    Departure {
        /// The first such node.
        node: String,
        /// Which values: quantised, simulated, decrypted.
        lane: &'static str,
        /// By how much.
        reason: String,
    },
    /// A bug of thex.
    #[error("internal error: {0}; this is a bug of thex, please report it with the model")]
    Internal(String),
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, CompileError>;

/// Kinds of error; each has its own exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, an argument or data is not usable.
    Invalid,
    /// The model holds what thex cannot compile.
    Unsupported,
    /// No encoding or parameters satisfy what was asked for.
    Infeasible,
    /// A service cannot be reached, or refuses what was asked of it.
    Service,
    /// It was stopped, and can go on.
    Stopped,
    /// A check was made, and failed.
    Departure,
    /// A bug of thex.
    Internal,
}

impl Kind {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid input",
            Self::Unsupported => "unsupported",
            Self::Infeasible => "infeasible",
            Self::Service => "service",
            Self::Stopped => "stopped",
            Self::Departure => "departure from the prediction",
            Self::Internal => "internal",
        }
    }

    /// Exit status of the program. 2 is left to the command line's own errors.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Invalid => 3,
            Self::Unsupported => 4,
            Self::Infeasible => 5,
            Self::Departure => 6,
            Self::Service => 7,
            Self::Stopped => 75,
            Self::Internal => 70,
        }
    }

    /// Advice that goes with every error of the kind.
    #[must_use]
    pub fn help(self) -> Option<&'static str> {
        match self {
            Self::Invalid | Self::Service | Self::Stopped | Self::Departure => None,
            Self::Unsupported => Some("see the README for the operators and models that compile today"),
            Self::Infeasible => Some("a larger --output-error or a smaller --margin may help"),
            Self::Internal => Some("please report this with the model, or a smaller one that shows it"),
        }
    }
}

/// candle fails only on graphs that our own interpreter refuses too.
impl From<candle_core::Error> for CompileError {
    fn from(error: candle_core::Error) -> Self {
        Self::Internal(format!("distillation: {}", crate::distill::brief(&error)))
    }
}

impl CompileError {
    /// Stable code of the error, which [`explain`](crate::explain) explains.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Import(error) => error.code(),
            Self::Pass(error) => error.code(),
            Self::Circuit(error) => error.code(),
            Self::Runtime(error) => error.code(),
            Self::Serve(error) => error.code(),
            Self::Data(_) => "TX0009",
            Self::Usage(_) => "TX0011",
            Self::Invalid(_) => "TX0014",
            Self::Diverged { .. } => "TX0017",
            Self::Internal(_) => "TX0301",
            Self::Departure { .. } => "TX0501",
        }
    }

    /// What to do next: [`help`](Self::help), where it is about the error, and where to read more.
    #[must_use]
    pub fn advice(&self) -> String {
        let code = self.code();
        let more = format!("`thex explain {code}` says more");
        // Refused parameters and results have nothing to do with operators.
        let of_model = !matches!(code, "TX0103" | "TX0104");
        self.help().filter(|_| of_model).map_or_else(|| more.clone(), |help| format!("{help}; {more}"))
    }

    /// Advice that goes with the error, where its message has none.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Runtime(RuntimeError::Memory { .. }) => None,
            other => other.kind().help(),
        }
    }

    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Import(ImportError::Unsupported(_)) | Self::Pass(PassError::Unsupported(_)) => Kind::Unsupported,
            Self::Import(ImportError::Internal(_)) | Self::Pass(PassError::Internal { .. }) | Self::Internal(_) => {
                Kind::Internal
            }
            Self::Pass(PassError::Infeasible(_)) => Kind::Infeasible,
            Self::Departure { .. } => Kind::Departure,
            Self::Runtime(error) | Self::Serve(ServeError::Runtime(error)) => match error.kind() {
                ErrorKind::InvalidInput => Kind::Invalid,
                ErrorKind::Unsupported => Kind::Unsupported,
                ErrorKind::Infeasible => Kind::Infeasible,
                ErrorKind::Stopped => Kind::Stopped,
                ErrorKind::Internal => Kind::Internal,
            },
            Self::Serve(error) if error.is_service() => Kind::Service,
            Self::Serve(error) if error.is_internal() => Kind::Internal,
            Self::Circuit(CircuitError::Parameters(_)) => Kind::Unsupported,
            Self::Import(_)
            | Self::Pass(_)
            | Self::Circuit(_)
            | Self::Serve(_)
            | Self::Usage(_)
            | Self::Data(_)
            | Self::Invalid(_)
            | Self::Diverged { .. } => Kind::Invalid,
        }
    }
}
