//! Casts, comparisons and choices, which exports use to make attention masks.
//!
//! Truth is 1 and falsehood 0. On whole numbers a comparison is exact with [`UnaryFn::Clamp`]: a < b is
//! clamp(b − a, 0, 1). On other numbers it is not continuous, and refused.

use std::collections::BTreeSet;

use ndarray::{IxDyn, Zip};
use thex_circuit::clear::{ClearOp, Reduction, Tensor, UnaryChain, UnaryFn, infer_shape};
use thex_ir::{NodeId, Op};
use tract_onnx::prelude::DatumType;
use tract_onnx::tract_core::ops::cast::Cast;

use super::translate::{Cx, Step, unsupported};

const UNIT: UnaryFn = UnaryFn::Clamp { lo: 0.0, hi: 1.0 };

const HELP: &str = "give masks as inputs of whole numbers, or freeze them as constants before exporting";

/// Most nodes that are looked at to see whether a tensor holds whole numbers.
const MAX_STEPS: usize = 256;

/// Whether the element type holds whole numbers only.
pub(super) fn is_whole(dtype: DatumType) -> bool {
    dtype == DatumType::Bool || dtype.is_integer()
}

/// Whether operand `i` holds whole numbers only, by its type or by how it is computed (exports make masks in
/// floating point).
fn holds_whole(cx: &Cx<'_>, i: usize) -> bool {
    let (mut stack, mut seen) = (vec![cx.operands[i].id], BTreeSet::new());
    if is_whole(cx.operands[i].dtype) {
        return true;
    }
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let whole = match &cx.graph.node(id).op {
            Op::Input => cx.whole_inputs.contains(&id),
            Op::Constant(value) => value.iter().all(|v| v.fract() == 0.0),
            Op::Clear(op) => keeps_whole(op),
            Op::He(_) => false,
        };
        if !whole || seen.len() > MAX_STEPS {
            return false;
        }
        stack.extend(cx.graph.operands(id));
    }
    true
}

/// Whether whole operands give a whole result.
fn keeps_whole(op: &ClearOp) -> bool {
    let function = |f: &UnaryFn| match f {
        UnaryFn::Abs | UnaryFn::Relu => true,
        UnaryFn::Clamp { lo, hi } => lo.fract() == 0.0 && hi.fract() == 0.0,
        _ => false,
    };
    match op {
        ClearOp::Unary { chain } => chain.0.iter().all(function),
        ClearOp::Reduce { reduction, .. } => *reduction != Reduction::Mean,
        ClearOp::Add | ClearOp::Mul | ClearOp::Linear | ClearOp::MatMul | ClearOp::Gather { .. } => true,
        op => op.is_data_movement(),
    }
}

/// A cast keeps the value, unless it would have to round.
pub(super) fn cast(cx: &mut Cx<'_>, op: &Cast) -> Step<NodeId> {
    let (x, from) = (cx.operands[0].id, cx.operands[0].dtype);
    if op.to == DatumType::Bool && from != DatumType::Bool {
        return if holds_whole(cx, 0) {
            is_not_zero(cx, x)
        } else {
            unsupported("it compares real numbers with 0", HELP)
        };
    }
    if is_whole(op.to) && !holds_whole(cx, 0) {
        return unsupported("it rounds real numbers to whole ones", HELP);
    }
    Ok(x)
}

/// 1 where x is not 0.
fn is_not_zero(cx: &mut Cx<'_>, x: NodeId) -> Step<NodeId> {
    cx.apply("truth", ClearOp::Unary { chain: UnaryChain(vec![UnaryFn::Abs, UNIT]) }, &[x])
}

/// 1 − x.
fn not(cx: &mut Cx<'_>, x: NodeId) -> Step<NodeId> {
    let negative = cx.scale(x, -1.0)?;
    cx.shift(negative, 1.0)
}

/// a − b.
fn difference(cx: &mut Cx<'_>, a: NodeId, b: NodeId) -> Step<NodeId> {
    let negative = cx.scale(b, -1.0)?;
    cx.apply("difference", ClearOp::Add, &[a, negative])
}

/// Comparisons and connectives, by the name of the tract operator.
pub(super) fn binary(cx: &mut Cx<'_>, name: &str) -> Step<NodeId> {
    let (a, b) = (cx.operands[0].id, cx.operands[1].id);
    if !(holds_whole(cx, 0) && holds_whole(cx, 1)) {
        return unsupported(format!("{name} of real numbers has no continuous form"), HELP);
    }
    let (negate, (a, b)) = match name {
        "LT" => (false, (b, a)),
        "GT" => (false, (a, b)),
        "LTE" => (true, (a, b)),
        "GTE" => (true, (b, a)),
        _ => return connective(cx, name, a, b),
    };
    let difference = difference(cx, a, b)?;
    let greater = cx.unary(difference, UNIT)?;
    if negate { not(cx, greater) } else { Ok(greater) }
}

fn connective(cx: &mut Cx<'_>, name: &str, a: NodeId, b: NodeId) -> Step<NodeId> {
    match name {
        "And" => cx.apply("", ClearOp::Mul, &[a, b]),
        "Or" => {
            let sum = cx.apply("sum", ClearOp::Add, &[a, b])?;
            cx.unary(sum, UNIT)
        }
        "NE" | "Xor" => {
            let difference = difference(cx, a, b)?;
            is_not_zero(cx, difference)
        }
        "Eq" => {
            let difference = difference(cx, a, b)?;
            let differs = is_not_zero(cx, difference)?;
            not(cx, differs)
        }
        _ => unsupported(format!("thex has no translation for {name}"), HELP),
    }
}

/// Not; IsNan and IsInf, which are false for all real numbers.
pub(super) fn unary(cx: &mut Cx<'_>, name: &str) -> Step<NodeId> {
    let x = cx.operands[0].id;
    match name {
        "Not" => not(cx, x),
        "IsNan" | "IsInf" => {
            let shape = cx.graph.node(x).shape.clone();
            Ok(cx.constant("", Tensor::zeros(shape)))
        }
        _ => unsupported(
            format!("thex has no translation for {name}"),
            "use activations such as GELU, ReLU, tanh or sigmoid",
        ),
    }
}

/// Operands: condition, then, else. A constant condition chooses here; another is a factor c of c·then + (1 − c)·else.
/// (One product less, else + c·(then − else), would lose `then` beside the −10³⁸ that exports mask with.)
pub(super) fn choose(cx: &mut Cx<'_>) -> Step<NodeId> {
    let (condition, then, other) = (cx.operands[0].id, cx.operands[1].id, cx.operands[2].id);
    match cx.uniform(0) {
        Some(c) if c != 0.0 => return spread(cx, then),
        Some(_) => return spread(cx, other),
        None => {}
    }
    let values = (constant(cx, 0), constant(cx, 1), constant(cx, 2));
    if let (Some(c), Some(t), Some(e)) = &values
        && let Some(value) = select(c, t, e)
    {
        return Ok(cx.constant("", value));
    }
    if let (Some(c), None, Some(e)) = &values
        && let Some(mask) = additive_mask(c, e)
    {
        let mask = cx.constant("mask", mask);
        return cx.apply("", ClearOp::Add, &[then, mask]);
    }
    let inverse = not(cx, condition)?;
    let (then, other) = (product(cx, condition, then)?, product(cx, inverse, other)?);
    cx.apply("", ClearOp::Add, &[then, other])
}

/// Below this, what is added to it is lost in rounding, so that adding and replacing are the same.
const SWALLOWS: f64 = -1e30;

/// 0 where the condition holds and the alternative elsewhere, when that swallows what it is added to.
fn additive_mask(condition: &Tensor, other: &Tensor) -> Option<Tensor> {
    let mask = select(condition, &Tensor::zeros(IxDyn(&[1])), other)?;
    let swallows = |v: &f64| *v <= SWALLOWS || v.abs() < f64::MIN_POSITIVE;
    (mask.iter().all(swallows) && other.iter().all(|v| *v <= SWALLOWS)).then_some(mask)
}

fn product(cx: &mut Cx<'_>, a: NodeId, b: NodeId) -> Step<NodeId> {
    cx.apply("chosen", ClearOp::Mul, &[a, b])
}

fn constant(cx: &Cx<'_>, i: usize) -> Option<Tensor> {
    cx.graph.constant(cx.operands[i].id).map(|v| (**v).clone())
}

/// The chosen value, broadcast to the shape of the result.
fn spread(cx: &mut Cx<'_>, x: NodeId) -> Step<NodeId> {
    let shape = super::translate::with_batch(&cx.output);
    cx.apply("", ClearOp::Broadcast { shape }, &[x])
}

fn select(condition: &Tensor, then: &Tensor, other: &Tensor) -> Option<Tensor> {
    let shape = broadcast_shape(&[condition.shape(), then.shape(), other.shape()])?;
    let (c, t, e) = (condition.broadcast(shape.clone())?, then.broadcast(shape.clone())?, other.broadcast(shape)?);
    Some(Zip::from(&c).and(&t).and(&e).map_collect(|c, t, e| if *c == 0.0 { *e } else { *t }))
}

/// The shape that all broadcast to.
fn broadcast_shape(shapes: &[&[usize]]) -> Option<IxDyn> {
    let add = |a: Vec<usize>, b: &[usize]| infer_shape(&ClearOp::Add, &[&a, b]).ok();
    shapes.iter().try_fold(Vec::new(), |a, b| add(a, b)).map(|shape| IxDyn(&shape))
}
