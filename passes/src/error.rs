//! Why a pass could not do its work.

use thex_circuit::CircuitError;
use thex_ir::{Graph, NodeId};

/// One problem with one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// IR node.
    pub node: String,
    /// ONNX nodes that it came from.
    pub onnx: Vec<String>,
    /// What it computes.
    pub op: String,
    /// Shape of its result.
    pub shape: Vec<usize>,
    /// Why it cannot be compiled.
    pub why: String,
    /// What to do.
    pub help: String,
}

impl Problem {
    /// A problem with `id`.
    #[must_use]
    pub fn new(graph: &Graph, id: NodeId, why: impl Into<String>, help: impl Into<String>) -> Self {
        let node = graph.node(id);
        Self {
            node: node.name.clone(),
            onnx: node.origin.clone(),
            op: node.op.mnemonic().to_owned(),
            shape: node.shape.clone(),
            why: why.into(),
            help: help.into(),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let onnx = self.onnx.join(", ");
        write!(f, "`{}` ({} {:?}, from ONNX node {onnx}): {}; {}", self.node, self.op, self.shape, self.why, self.help)
    }
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|p| format!("\n  - {p}")).collect();
    lines.concat()
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The model holds what no pass can lower. All of it.
    #[error("{} node(s) cannot be compiled:{}", .0.len(), list(.0))]
    Unsupported(Vec<Problem>),
    /// The model could be lowered, but not at this precision with these parameters.
    #[error("no encoding satisfies the constraints:{}", list(.0))]
    Infeasible(Vec<Problem>),
    /// Calibration data do not fit the model.
    #[error("{0}")]
    Invalid(String),
    /// A setting `pass:option=value` names no option, or a value that it does not take.
    #[error("-x {setting}: {reason}")]
    Option {
        /// The setting.
        setting: String,
        /// What is wrong, and what there is.
        reason: String,
    },
    /// A request `NODE=FORM` names no node, or a form that the node does not take.
    #[error("--approximate {request}: {reason}")]
    Choice {
        /// The request.
        request: String,
        /// What is wrong, and what there is.
        reason: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Eval(#[from] CircuitError),
    /// A pass got or produced a graph that the verifier rejects. A bug of thex.
    #[error("internal error in pass `{pass}` ({when}): {violations}")]
    Internal {
        /// The pass.
        pass: String,
        /// "before" or "after".
        when: &'static str,
        /// What the verifier said.
        violations: String,
    },
}

impl PassError {
    /// Stable code of the error, for `thex explain`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "TX0009",
            Self::Option { .. } => "TX0012",
            Self::Choice { .. } => "TX0016",
            Self::Eval(error) => error.code(),
            Self::Unsupported(_) => "TX0102",
            Self::Infeasible(_) => "TX0201",
            Self::Internal { .. } => "TX0302",
        }
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, PassError>;
