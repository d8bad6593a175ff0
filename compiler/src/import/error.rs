//! What can go wrong when importing a model.

use std::fmt;
use std::path::PathBuf;

/// Errors of [`import`](super::import).
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The operating system refused to read the file.
    #[error("cannot read `{path}`: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is no ONNX model, or a damaged one.
    #[error("`{path}` is not a usable ONNX model: {reason}")]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is an ONNX model with faults, or asks for more than it may: all of them, and unsupported operators as well.
    #[error("`{path}` is not a usable ONNX model: {}", list_faults(.faults, .unsupported))]
    Faulty {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        faults: Vec<String>,
        /// Operators that could not be compiled either.
        unsupported: Vec<UnsupportedNode>,
    },
    /// Weights are kept in a file that is not there, or lies outside the model's folder.
    #[error("`{path}` keeps the weights `{tensor}` in `{location}`, which {reason}")]
    ExternalData {
        /// The model.
        path: PathBuf,
        /// The first tensor that is affected.
        tensor: String,
        /// The file that the model refers to.
        location: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Some dimensions are symbols and were not given.
    #[error(
        "input shapes are not known: {}; give every input a shape, for example `{example}`",
        .missing.join(", ")
    )]
    MissingShapes {
        /// `name[batch,sequence]` for each input that needs a shape.
        missing: Vec<String>,
        /// The options to add to the command line.
        example: String,
    },
    /// A given shape does not fit the model.
    #[error("shape {given:?} does not fit input `{input}`: {reason}")]
    BadShape {
        /// The input.
        input: String,
        /// The shape that was given.
        given: Vec<usize>,
        /// Why, and what to do.
        reason: String,
    },
    /// Operators that thex cannot compile: all of them, not only the first.
    #[error("{}", list(.0))]
    Unsupported(Vec<UnsupportedNode>),
    /// The frontend could not analyse the model.
    #[error("cannot analyse `{path}`: {reason}")]
    Analysis {
        /// The file.
        path: PathBuf,
        /// What the frontend said.
        reason: String,
    },
    /// A bug of thex.
    #[error("internal error: {0}; this is a bug of thex, please report it with the model")]
    Internal(String),
}

impl ImportError {
    /// Stable code of the error, for `thex explain`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "TX0001",
            Self::NotOnnx { .. } => "TX0004",
            Self::Faulty { .. } => "TX0015",
            Self::ExternalData { .. } => "TX0005",
            Self::MissingShapes { .. } => "TX0006",
            Self::BadShape { .. } => "TX0007",
            Self::Analysis { .. } => "TX0008",
            Self::Unsupported(_) => "TX0101",
            Self::Internal(_) => "TX0301",
        }
    }
}

/// A node that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedNode {
    /// Name of the ONNX node.
    pub node: String,
    /// The operator.
    pub op: String,
    /// Shapes of its operands, if they are known.
    pub shapes: Vec<Vec<usize>>,
    /// Why not.
    pub why: String,
    /// What the user can do.
    pub help: String,
}

impl fmt::Display for UnsupportedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, op, shapes, why, help } = self;
        if shapes.is_empty() {
            return write!(f, "node `{node}` ({op}): {why}; {help}");
        }
        write!(f, "node `{node}` ({op} on {shapes:?}): {why}; {help}")
    }
}

/// Most lines of one report.
const MOST_LINES: usize = 40;

fn lines<T: fmt::Display>(items: &[T]) -> String {
    let shown: Vec<String> = items.iter().take(MOST_LINES).map(|n| format!("\n  {n}")).collect();
    let rest = match items.len().saturating_sub(MOST_LINES) {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    shown.concat() + &rest
}

fn list(nodes: &[UnsupportedNode]) -> String {
    format!("{} unsupported node(s):{}", nodes.len(), lines(nodes))
}

fn list_faults(faults: &[String], nodes: &[UnsupportedNode]) -> String {
    match (faults, nodes) {
        ([fault], []) => fault.clone(),
        (faults, []) => format!("{} faults:{}", faults.len(), lines(faults)),
        (faults, nodes) => format!("{} fault(s):{}\n{}", faults.len(), lines(faults), list(nodes)),
    }
}

/// Shorthand.
pub(crate) type Result<T> = std::result::Result<T, ImportError>;
