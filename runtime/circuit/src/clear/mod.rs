//! Clear tensor operations: what a client bundle may carry, and what the compiler's IR is made of.
//!
//! An operation is pure: weights are constants, and constants are operands. [`evaluate`] is the only
//! interpreter of the project, in double precision.

pub mod bounds;
mod eval;
mod shapes;
mod unary;

use std::sync::Arc;

use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

pub use eval::{evaluate, infer_shape};
pub use shapes::LookUp;
pub use unary::{UnaryChain, UnaryFn};

/// A tensor of real values.
pub type Tensor = ArrayD<f64>;

/// How a reduction combines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Σ x.
    Sum,
    /// Σ x ÷ n.
    Mean,
    /// max x.
    Max,
}

/// A pure operation on tensors. Axes count from the front.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum ClearOp {
    /// Operands `x₁, W₁, x₂, W₂, …, b`: Σ xᵢ·Wᵢᵀ + b over the last axis; Wᵢ is [out, inᵢ] and b broadcasts.
    Linear,
    /// Operands `[.., m, k]`, `[.., k, n]`, equal leading axes.
    MatMul,
    /// Element-wise sum, numpy broadcasting.
    Add,
    /// Element-wise product, numpy broadcasting.
    Mul,
    /// A function of each element.
    Unary {
        /// Applied left to right.
        chain: UnaryChain,
    },
    /// Softmax over an axis.
    Softmax {
        /// The axis.
        axis: usize,
    },
    /// (x − mean) / sqrt(variance + ε) over the last axis, without gain and bias.
    LayerNorm {
        /// ε.
        epsilon: f64,
    },
    /// x / sqrt(mean(x²) + ε) over the last axis.
    RmsNorm {
        /// ε.
        epsilon: f64,
    },
    /// Reduction over one axis, which stays with length 1.
    Reduce {
        /// How.
        reduction: Reduction,
        /// The axis.
        axis: usize,
    },
    /// Same elements, row-major, other shape.
    Reshape {
        /// The new shape.
        shape: Vec<usize>,
    },
    /// `out.shape[i] = in.shape[permutation[i]]`.
    Transpose {
        /// The permutation.
        permutation: Vec<usize>,
    },
    /// Elements start..end of an axis.
    Slice {
        /// The axis.
        axis: usize,
        /// First.
        start: usize,
        /// One past the last.
        end: usize,
    },
    /// Operands one after another along an axis.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// numpy broadcast to a shape.
    Broadcast {
        /// The shape.
        shape: Vec<usize>,
    },
    /// Operands `table`, `indices`: `table[.., indices, ..]` along an axis of the table.
    Gather {
        /// The axis.
        axis: usize,
    },
}

impl ClearOp {
    /// Kebab-case name, as the text form and reports print it.
    #[must_use]
    pub fn mnemonic(&self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::MatMul => "matmul",
            Self::Add => "add",
            Self::Mul => "mul",
            Self::Unary { .. } => "unary",
            Self::Softmax { .. } => "softmax",
            Self::LayerNorm { .. } => "layer-norm",
            Self::RmsNorm { .. } => "rms-norm",
            Self::Reduce { .. } => "reduce",
            Self::Reshape { .. } => "reshape",
            Self::Transpose { .. } => "transpose",
            Self::Slice { .. } => "slice",
            Self::Concat { .. } => "concat",
            Self::Broadcast { .. } => "broadcast",
            Self::Gather { .. } => "gather",
        }
    }

    /// Whether it only moves elements: output element = some operand's element.
    #[must_use]
    pub fn is_data_movement(&self) -> bool {
        matches!(
            self,
            Self::Reshape { .. }
                | Self::Transpose { .. }
                | Self::Slice { .. }
                | Self::Concat { .. }
                | Self::Broadcast { .. }
        )
    }
}

/// A node of a [`ClearGraph`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClearNode {
    /// The i-th input of the graph.
    Input(usize),
    /// The i-th constant of the graph.
    Constant(usize),
    /// An operation on earlier nodes.
    Apply(ClearOp, Vec<usize>),
}

/// A small clear graph in execution order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClearGraph {
    /// Names and shapes of the inputs.
    pub inputs: Vec<(String, Vec<usize>)>,
    /// Names of the outputs and the nodes that they are.
    pub outputs: Vec<(String, usize)>,
    /// The nodes; operands come earlier.
    pub nodes: Vec<ClearNode>,
    /// The constants; they travel as binary tensors, not in the manifest.
    #[serde(skip)]
    pub constants: Vec<Arc<Tensor>>,
}

impl ClearGraph {
    /// The graph that returns its inputs unchanged.
    #[must_use]
    pub fn identity(ports: &[(String, Vec<usize>)]) -> Self {
        Self {
            inputs: ports.to_vec(),
            outputs: ports.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect(),
            nodes: (0..ports.len()).map(ClearNode::Input).collect(),
            constants: Vec::new(),
        }
    }

    /// Runs the graph on `inputs`, in the order of `self.inputs`; outputs in the order of `self.outputs`.
    ///
    /// # Errors
    /// [`CircuitError::Eval`](crate::CircuitError::Eval) when operands do not fit an operation, or a node refers to none.
    pub fn run(&self, inputs: &[Arc<Tensor>]) -> crate::error::Result<Vec<Arc<Tensor>>> {
        let missing = |what: &str| crate::CircuitError::Eval {
            op: "clear graph".into(),
            reason: format!("refers to a missing {what}"),
        };
        let mut values: Vec<Arc<Tensor>> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let value = match node {
                ClearNode::Input(i) => inputs.get(*i).ok_or_else(|| missing("input"))?.clone(),
                ClearNode::Constant(i) => {
                    let constant = self.constants.get(*i);
                    constant.ok_or_else(|| missing("constant"))?.clone()
                }
                ClearNode::Apply(op, operands) => {
                    let operands = operands
                        .iter()
                        .map(|&i| values.get(i).map(|v| &**v).ok_or_else(|| missing("node")))
                        .collect::<crate::error::Result<Vec<&Tensor>>>()?;
                    Arc::new(evaluate(op, &operands)?)
                }
            };
            values.push(value);
        }
        self.outputs.iter().map(|(_, i)| values.get(*i).cloned().ok_or_else(|| missing("node"))).collect()
    }
}
