//! The walk over tract's nodes, and what the translators of operator families share.
//!
//! tract's declutter removes the batch axis of 1 wherever it can. We put it back: the IR value of an outlet
//! of shape `s` has shape `s` when `s` starts with 1 and `[1] ++ s` otherwise ([`with_batch`]), sometimes with
//! more axes of 1 in front. Leading 1s never change how shapes broadcast, so element-wise operations need no
//! care; operations with an axis work in a space that [`Cx::axis_space`] picks.
//!
//! A node that cannot be translated is recorded and replaced by a placeholder, so that one run finds all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::CircuitError;
use thex_circuit::clear::{ClearOp, Tensor, UnaryFn};
use thex_ir::{Facts, Graph, Node, NodeId, Op};
use tract_onnx::prelude::{DatumType, TypedModel, TypedNode};
use tract_onnx::tract_core::ops::array::{CumSum, Gather, GatherElements, MultiBroadcastTo, Slice, TypedConcat};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::cnn::conv::Conv;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::identity::Identity;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::logic::Iff;
use tract_onnx::tract_core::ops::nn::{Reduce, RmsNorm, Softmax};
use tract_onnx::tract_core::ops::source::TypedSource;
use tract_transformers::ops::sdpa::Sdpa;

use super::error::{ImportError, Result, UnsupportedNode};
use super::load::Loaded;
use super::names::Names;
use super::{attention, conv, einsum, elementwise, logic, norm, shape};

/// Why a node was not translated.
#[derive(Debug)]
pub(super) enum Refusal {
    /// thex cannot compile it.
    Unsupported {
        /// Why not.
        why: String,
        /// What the user can do.
        help: String,
    },
    /// A bug of ours.
    Internal(String),
}

impl From<CircuitError> for Refusal {
    fn from(error: CircuitError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// Result of one translation step.
pub(super) type Step<T> = std::result::Result<T, Refusal>;

/// A refusal.
pub(super) fn unsupported<T>(why: impl Into<String>, help: impl Into<String>) -> Step<T> {
    Err(Refusal::Unsupported { why: why.into(), help: help.into() })
}

/// `shape` with the batch axis of 1 in front.
pub(super) fn with_batch(shape: &[usize]) -> Vec<usize> {
    if shape.first() == Some(&1) { shape.to_vec() } else { [&[1], shape].concat() }
}

/// An operand of the node that is being translated.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    /// Its IR value, of shape `with_batch(shape)` but for leading axes of 1.
    pub(super) id: NodeId,
    /// Its shape in tract.
    pub(super) shape: Vec<usize>,
    /// Its element type in tract.
    pub(super) dtype: DatumType,
}

/// One tract node, and the graph that its translation goes to.
pub(super) struct Cx<'a> {
    /// The graph.
    pub(super) graph: &'a mut Graph,
    /// The operands.
    pub(super) operands: Vec<Operand>,
    /// Shape of the result in tract.
    pub(super) output: Vec<usize>,
    /// Inputs of the model that hold whole numbers.
    pub(super) whole_inputs: &'a BTreeSet<NodeId>,
    /// The result may have more leading axes of 1 than its operands' rank asks for.
    pub(super) keeps_rank: bool,
    /// Name for IR nodes.
    name: String,
    /// ONNX nodes.
    origin: Vec<String>,
}

impl Cx<'_> {
    /// Adds an operation.
    pub(super) fn apply(&mut self, suffix: &str, op: ClearOp, operands: &[NodeId]) -> Step<NodeId> {
        let name = self.suffixed(suffix);
        Ok(self.graph.add_clear(&name, op, operands, &self.origin)?)
    }

    fn suffixed(&self, suffix: &str) -> String {
        if suffix.is_empty() { self.name.clone() } else { format!("{}.{suffix}", self.name) }
    }

    /// Adds a constant.
    pub(super) fn constant(&mut self, suffix: &str, value: Tensor) -> NodeId {
        let name = self.suffixed(suffix);
        self.graph.add_constant(&name, Arc::new(value), &self.origin)
    }

    /// Adds a constant number, of shape `[1]`.
    pub(super) fn number(&mut self, suffix: &str, value: f64) -> NodeId {
        self.constant(suffix, ArrayD::from_elem(IxDyn(&[1]), value))
    }

    /// x·c for a number c.
    pub(super) fn scale(&mut self, x: NodeId, factor: f64) -> Step<NodeId> {
        let factor = self.number("factor", factor);
        self.apply("scaled", ClearOp::Mul, &[x, factor])
    }

    /// x + c for a number c.
    pub(super) fn shift(&mut self, x: NodeId, summand: f64) -> Step<NodeId> {
        let summand = self.number("summand", summand);
        self.apply("shifted", ClearOp::Add, &[x, summand])
    }

    /// f(x).
    pub(super) fn unary(&mut self, x: NodeId, function: UnaryFn) -> Step<NodeId> {
        self.apply("", ClearOp::Unary { chain: function.into() }, &[x])
    }

    /// Reshape; nothing when the shape is right already.
    pub(super) fn reshape(&mut self, x: NodeId, shape: &[usize]) -> Step<NodeId> {
        if self.graph.node(x).shape == shape {
            return Ok(x);
        }
        self.apply("reshape", ClearOp::Reshape { shape: shape.to_vec() }, &[x])
    }

    /// Transpose; nothing for the identity.
    pub(super) fn transpose(&mut self, x: NodeId, permutation: &[usize]) -> Step<NodeId> {
        if permutation.iter().enumerate().all(|(i, p)| i == *p) {
            return Ok(x);
        }
        self.apply("transpose", ClearOp::Transpose { permutation: permutation.to_vec() }, &[x])
    }

    /// Operand `i` in its tract shape.
    pub(super) fn plain(&mut self, i: usize) -> Step<NodeId> {
        let operand = self.operands[i].clone();
        self.reshape(operand.id, &operand.shape)
    }

    /// Value of operand `i` in its tract shape, if it is a constant.
    pub(super) fn value(&self, i: usize) -> Option<Tensor> {
        let operand = self.operands.get(i)?;
        let flat = self.graph.constant(operand.id)?.iter().copied().collect();
        ArrayD::from_shape_vec(IxDyn(&operand.shape), flat).ok()
    }

    /// Operand `i` as a number, if it is a constant with equal elements.
    pub(super) fn uniform(&self, i: usize) -> Option<f64> {
        let value = self.graph.constant(self.operands.get(i)?.id)?;
        let first = *value.iter().next()?;
        value.iter().all(|v| v.to_bits() == first.to_bits()).then_some(first)
    }

    /// What to add to axis numbers, so that an operation along `axis` leaves the batch axis alone: 0 when
    /// all shapes start with 1 and `axis` is not the first, 1 (for one more axis of 1 in front) otherwise.
    pub(super) fn axis_space(&self, axis: usize) -> usize {
        let batched = |shape: &[usize]| shape.first() == Some(&1);
        let kept = axis > 0 && batched(&self.output) && self.operands.iter().all(|o| batched(&o.shape));
        usize::from(!kept)
    }

    /// Operand `i` in the space that [`axis_space`](Self::axis_space) picked.
    pub(super) fn lifted(&mut self, i: usize, space: usize) -> Step<NodeId> {
        let operand = self.operands[i].clone();
        let shape = [&vec![1; space][..], &operand.shape].concat();
        self.reshape(operand.id, &shape)
    }

    /// The result, in the shape of an IR value.
    fn settle(&mut self, x: NodeId) -> Step<NodeId> {
        let shape = with_batch(&self.output);
        if self.keeps_rank && without_ones(&self.graph.node(x).shape) == without_ones(&shape) {
            return Ok(x);
        }
        self.reshape(x, &shape)
    }
}

/// `shape` from its first axis that is not 1.
fn without_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|d| **d == 1).count();
    &shape[ones..]
}

/// Translates a loaded model; the result still has every redundancy of the export.
pub(super) fn translate(loaded: &Loaded, names: &Names) -> Result<Graph> {
    let mut translator = Translator {
        model: &loaded.model,
        names,
        graph: Graph::new(),
        values: BTreeMap::new(),
        whole_inputs: BTreeSet::new(),
        unsupported: Vec::new(),
    };
    translator.add_inputs(loaded)?;
    let order = loaded.model.eval_order().map_err(|e| ImportError::Internal(e.to_string()))?;
    for id in order {
        translator.node(loaded.model.node(id))?;
    }
    if !translator.unsupported.is_empty() {
        return Err(ImportError::Unsupported(translator.unsupported));
    }
    translator.add_outputs(loaded)?;
    Ok(translator.graph)
}

struct Translator<'m> {
    model: &'m TypedModel,
    names: &'m Names,
    graph: Graph,
    values: BTreeMap<(usize, usize), NodeId>,
    whole_inputs: BTreeSet<NodeId>,
    unsupported: Vec<UnsupportedNode>,
}

impl Translator<'_> {
    fn add_inputs(&mut self, loaded: &Loaded) -> Result<()> {
        for (outlet, info) in loaded.model.inputs.iter().zip(&loaded.inputs) {
            let (shape, dtype) = self.fact(outlet.node, outlet.slot)?;
            let id = self.graph.add_input(&info.name, &shape);
            if logic::is_whole(dtype) {
                self.whole_inputs.insert(id);
            }
            let batched = with_batch(&shape);
            let id = if batched == shape { id } else { self.add_reshape(id, batched)? };
            self.values.insert((outlet.node, outlet.slot), id);
        }
        Ok(())
    }

    fn add_outputs(&mut self, loaded: &Loaded) -> Result<()> {
        for (outlet, name) in loaded.model.outputs.iter().zip(&loaded.outputs) {
            let value = self.values.get(&(outlet.node, outlet.slot)).copied();
            let mut id = value.ok_or_else(|| ImportError::Internal(format!("output `{name}` has no value")))?;
            let (shape, _) = self.fact(outlet.node, outlet.slot)?;
            if self.graph.node(id).shape != shape {
                id = self.add_reshape(id, shape)?;
            }
            self.graph.outputs.push((name.clone(), id));
        }
        Ok(())
    }

    fn add_reshape(&mut self, x: NodeId, shape: Vec<usize>) -> Result<NodeId> {
        let (name, origin) = (format!("{}.reshape", self.graph.node(x).name), self.graph.node(x).origin.clone());
        let op = ClearOp::Reshape { shape };
        self.graph.add_clear(&name, op, &[x], &origin).map_err(|e| ImportError::Internal(e.to_string()))
    }

    /// Concrete shape and element type of an outlet.
    fn fact(&self, node: usize, slot: usize) -> Result<(Vec<usize>, DatumType)> {
        let fact = &self.model.node(node).outputs[slot].fact;
        let shape = fact.shape.as_concrete().ok_or_else(|| {
            let name = &self.model.node(node).name;
            ImportError::Internal(format!("the shape of `{name}` is not known: {:?}", fact.shape))
        })?;
        Ok((shape.to_vec(), fact.datum_type))
    }

    fn node(&mut self, node: &TypedNode) -> Result<()> {
        if node.op_is::<TypedSource>() {
            return Ok(());
        }
        let mut operands = Vec::new();
        for inlet in &node.inputs {
            let (shape, dtype) = self.fact(inlet.node, inlet.slot)?;
            let id = self.values.get(&(inlet.node, inlet.slot)).copied();
            let id = id.ok_or_else(|| ImportError::Internal(format!("`{}` reads no value", node.name)))?;
            operands.push(Operand { id, shape, dtype });
        }
        let (output, _) = self.fact(node.id, 0)?;
        let (name, origin) = (self.names.readable(&node.name), self.names.origin(&node.name));
        let whole_inputs = &self.whole_inputs;
        let graph = &mut self.graph;
        let mut cx = Cx { graph, operands, output, whole_inputs, keeps_rank: false, name, origin };
        let result = dispatch(&mut cx, node).and_then(|id| cx.settle(id));
        match result {
            Ok(id) => {
                self.values.insert((node.id, 0), id);
                Ok(())
            }
            Err(Refusal::Internal(reason)) => Err(ImportError::Internal(format!("node `{}`: {reason}", node.name))),
            Err(Refusal::Unsupported { why, help }) => self.refuse(node, why, help),
        }
    }

    /// Records an unsupported node and puts placeholders in its place.
    fn refuse(&mut self, node: &TypedNode, why: String, help: String) -> Result<()> {
        let mut shapes = Vec::new();
        for inlet in &node.inputs {
            shapes.push(self.fact(inlet.node, inlet.slot)?.0);
        }
        let origin = self.names.origin(&node.name);
        self.unsupported.push(UnsupportedNode {
            node: origin.first().cloned().unwrap_or_else(|| node.name.clone()),
            op: node.op.name().into_owned(),
            shapes,
            why,
            help,
        });
        for slot in 0..node.outputs.len() {
            let shape = with_batch(&self.fact(node.id, slot)?.0);
            let facts = Facts::default();
            let placeholder = Node { name: node.name.clone(), op: Op::Input, shape, origin: origin.clone(), facts };
            let id = self.graph.add(placeholder, &[]);
            self.values.insert((node.id, slot), id);
        }
        Ok(())
    }
}

/// Sends a node to the translator of its family.
fn dispatch(cx: &mut Cx<'_>, node: &TypedNode) -> Step<NodeId> {
    if node.outputs.len() != 1 {
        return unsupported("it has several results", "rewrite it with operators of one result, and export again");
    }
    cx.keeps_rank = node.op_is::<TypedBinOp>()
        || node.op_is::<ElementWiseOp>()
        || node.op_is::<Cast>()
        || node.op_is::<Iff>()
        || node.op_is::<RmsNorm>();
    if let Some(op) = node.op_as::<Const>() {
        shape::constant(cx, op.val())
    } else if node.op_is::<Identity>() {
        Ok(cx.operands[0].id)
    } else if let Some(op) = node.op_as::<EinSum>() {
        einsum::translate(cx, op)
    } else if let Some(op) = node.op_as::<TypedBinOp>() {
        elementwise::binary(cx, op)
    } else if let Some(op) = node.op_as::<ElementWiseOp>() {
        elementwise::unary(cx, op)
    } else if let Some(op) = node.op_as::<Cast>() {
        logic::cast(cx, op)
    } else if node.op_is::<Iff>() {
        logic::choose(cx)
    } else {
        dispatch_structured(cx, node)
    }
}

fn dispatch_structured(cx: &mut Cx<'_>, node: &TypedNode) -> Step<NodeId> {
    if let Some(op) = node.op_as::<AxisOp>() {
        shape::axis_op(cx, op)
    } else if let Some(op) = node.op_as::<Slice>() {
        shape::slice(cx, op)
    } else if let Some(op) = node.op_as::<TypedConcat>() {
        shape::concat(cx, op)
    } else if node.op_is::<MultiBroadcastTo>() {
        shape::broadcast(cx)
    } else if let Some(op) = node.op_as::<Gather>() {
        shape::gather(cx, op)
    } else if let Some(op) = node.op_as::<GatherElements>() {
        shape::gather_elements(cx, op)
    } else if let Some(op) = node.op_as::<CumSum>() {
        norm::cumulative_sum(cx, op)
    } else if let Some(op) = node.op_as::<Reduce>() {
        norm::reduce(cx, op)
    } else if let Some(op) = node.op_as::<RmsNorm>() {
        norm::rms_norm(cx, op)
    } else if let Some(op) = node.op_as::<Softmax>() {
        norm::softmax(cx, op)
    } else if let Some(op) = node.op_as::<Conv>() {
        conv::translate(cx, op)
    } else if let Some(op) = node.op_as::<Sdpa>() {
        attention::translate(cx, op)
    } else if node.op.name() == "IfThenElse" {
        unsupported(
            "its condition depends on an input, and a circuit takes no branches",
            "compute both branches, and choose by a product with a mask",
        )
    } else {
        unsupported(
            "thex has no translation for this operator",
            "replace it in the model by matrix products, sums, products, softmax, layer norm and activations",
        )
    }
}
