//! Functions of each element, and sums and products of two tensors.

use thex_circuit::clear::{ClearOp, UnaryFn};
use thex_ir::NodeId;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math::PowConst;
use tract_onnx::tract_core::ops::nn::LeakyRelu;
use tract_onnx::tract_core::ops::nn::gelu_approximate::GeluApproximate;

use super::logic;
use super::translate::{Cx, Step, unsupported};

/// A sum, difference, product, quotient, power, maximum, minimum, comparison.
pub(super) fn binary(cx: &mut Cx<'_>, op: &TypedBinOp) -> Step<NodeId> {
    let (a, b) = (cx.operands[0].id, cx.operands[1].id);
    match op.0.name() {
        "Add" => cx.apply("", ClearOp::Add, &[a, b]),
        "Mul" => cx.apply("", ClearOp::Mul, &[a, b]),
        "Sub" => difference(cx, a, b),
        "SubF" => difference(cx, b, a),
        "Div" => {
            let inverse = cx.apply("inverse", ClearOp::Unary { chain: UnaryFn::Reciprocal.into() }, &[b])?;
            cx.apply("", ClearOp::Mul, &[a, inverse])
        }
        "Pow" => match cx.uniform(1) {
            Some(exponent) => power(cx, a, exponent),
            None => unsupported("its exponent is not a constant number", "use a constant exponent"),
        },
        "Max" => bound(cx, true),
        "Min" => bound(cx, false),
        name => logic::binary(cx, name),
    }
}

/// a − b.
fn difference(cx: &mut Cx<'_>, a: NodeId, b: NodeId) -> Step<NodeId> {
    let negative = cx.scale(b, -1.0)?;
    cx.apply("", ClearOp::Add, &[a, negative])
}

/// x^e, for the exponents that have a function.
fn power(cx: &mut Cx<'_>, x: NodeId, exponent: f64) -> Step<NodeId> {
    let is = |e: f64| (exponent - e).abs() < 1e-9;
    if is(1.0) {
        return Ok(x);
    }
    let function = if is(0.5) {
        UnaryFn::Sqrt
    } else if is(-0.5) {
        UnaryFn::Rsqrt
    } else if is(-1.0) {
        UnaryFn::Reciprocal
    } else if is(exponent.round()) && exponent.abs() <= 64.0 {
        UnaryFn::Power { exponent: exponent.round() as i32 }
    } else {
        return unsupported(format!("the power {exponent} is no whole number"), "use a whole exponent, or a root");
    };
    cx.unary(x, function)
}

/// max or min of a tensor and a number.
fn bound(cx: &mut Cx<'_>, lower: bool) -> Step<NodeId> {
    let (x, number) = match (cx.uniform(0), cx.uniform(1)) {
        (_, Some(number)) => (cx.operands[0].id, number),
        (Some(number), None) => (cx.operands[1].id, number),
        (None, None) => {
            return unsupported(
                "it takes the maximum or minimum of two tensors",
                "only a bound by a constant number can be compiled; max(a, b) = b + relu(a - b)",
            );
        }
    };
    let function = match (lower, number == 0.0) {
        (true, true) => UnaryFn::Relu,
        (true, false) => UnaryFn::Clamp { lo: number, hi: f64::MAX },
        (false, _) => UnaryFn::Clamp { lo: f64::MIN, hi: number },
    };
    cx.unary(x, function)
}

/// A function of each element.
pub(super) fn unary(cx: &mut Cx<'_>, op: &ElementWiseOp) -> Step<NodeId> {
    let x = cx.operands[0].id;
    if let Some(op) = op.0.downcast_ref::<PowConst>() {
        return power(cx, x, f64::from(op.exponent));
    }
    if let Some(op) = op.0.downcast_ref::<LeakyRelu>() {
        return leaky_relu(cx, x, f64::from(op.alpha));
    }
    if let Some(op) = op.0.downcast_ref::<GeluApproximate>() {
        if op.fast_impl {
            return unsupported("it is an unusual GELU (with x squared)", "use GELU, exact or by tanh");
        }
        return cx.unary(x, UnaryFn::GeluTanh);
    }
    match function(&op.0.name()) {
        Some(function) => cx.unary(x, function),
        None => composed(cx, x, &op.0.name()),
    }
}

fn function(name: &str) -> Option<UnaryFn> {
    Some(match name {
        "Abs" => UnaryFn::Abs,
        "Exp" => UnaryFn::Exp,
        "Ln" => UnaryFn::Log,
        "Square" => UnaryFn::Power { exponent: 2 },
        "Sqrt" => UnaryFn::Sqrt,
        "Recip" => UnaryFn::Reciprocal,
        "Rsqrt" => UnaryFn::Rsqrt,
        "Tanh" => UnaryFn::Tanh,
        "Erf" => UnaryFn::Erf,
        "Sigmoid" => UnaryFn::Sigmoid,
        "Silu" => UnaryFn::Silu,
        "GeluExact" => UnaryFn::Gelu,
        _ => return None,
    })
}

/// Functions that are made of others.
fn composed(cx: &mut Cx<'_>, x: NodeId, name: &str) -> Step<NodeId> {
    match name {
        "Neg" => cx.scale(x, -1.0),
        "HardSwish" => {
            let sixth = cx.scale(x, 1.0 / 6.0)?;
            let shifted = cx.shift(sixth, 0.5)?;
            let gate = cx.unary(shifted, UnaryFn::Clamp { lo: 0.0, hi: 1.0 })?;
            cx.apply("", ClearOp::Mul, &[x, gate])
        }
        name => logic::unary(cx, name),
    }
}

/// α·x + (1 − α)·relu(x).
fn leaky_relu(cx: &mut Cx<'_>, x: NodeId, alpha: f64) -> Step<NodeId> {
    let linear = cx.scale(x, alpha)?;
    let relu = cx.unary(x, UnaryFn::Relu)?;
    let relu = cx.scale(relu, 1.0 - alpha)?;
    cx.apply("", ClearOp::Add, &[linear, relu])
}
