//! The intermediate representation of thex.
//!
//! One graph type carries a model from import to schedule: high-level tensor operations first
//! ([`Op::Clear`], the operations of `thex_circuit::clear`), homomorphic operations on flat vectors of
//! ciphertexts last ([`Op::He`]). [`Stage`] says which may appear. Every node keeps the ONNX
//! nodes that it came from.
//!
//! **Invariant:** the meaning of every node, at every stage, is a function on real numbers that
//! [`interpret`] evaluates; scales and integers are facts *about* nodes. So a pass can be tested by
//! comparing the interpreter's results before and after.

pub mod graph;
pub mod he;
pub mod interpret;
pub mod parse;
pub mod print;
pub mod verify;

pub use graph::{Facts, Graph, Node, NodeId, Op, Stage};
pub use he::{Address, HeLinear, HeOp, LookUp};
pub use thex_circuit::clear::{ClearOp, Reduction, Tensor, UnaryChain, UnaryFn};
