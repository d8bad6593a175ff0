//! Functions of one variable in operators of opset 17, which has no GELU, SiLU or 1/√x.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use thex_circuit::clear::{UnaryChain, UnaryFn};

use super::nodes::Nodes;

/// Applies the functions one after another; gives the result.
pub(super) fn chain(nodes: &mut Nodes, x: &str, chain: &UnaryChain) -> String {
    chain.0.iter().fold(x.to_owned(), |x, function| apply(nodes, &x, *function))
}

fn apply(nodes: &mut Nodes, x: &str, function: UnaryFn) -> String {
    match function {
        UnaryFn::Affine { scale, shift } => affine(nodes, x, scale, shift),
        UnaryFn::Clamp { lo, hi } => clamp(nodes, x, lo, hi),
        UnaryFn::Gelu => gelu(nodes, x),
        UnaryFn::GeluTanh => gelu_tanh(nodes, x),
        UnaryFn::Silu => {
            let gate = plain(nodes, "Sigmoid", x);
            nodes.add("Mul", &[x, &gate], Vec::new())
        }
        UnaryFn::Rsqrt => {
            let root = plain(nodes, "Sqrt", x);
            plain(nodes, "Reciprocal", &root)
        }
        UnaryFn::Power { exponent } => with_number(nodes, "Pow", x, f64::from(exponent)),
        UnaryFn::Relu => plain(nodes, "Relu", x),
        UnaryFn::Tanh => plain(nodes, "Tanh", x),
        UnaryFn::Sigmoid => plain(nodes, "Sigmoid", x),
        UnaryFn::Erf => plain(nodes, "Erf", x),
        UnaryFn::Exp => plain(nodes, "Exp", x),
        UnaryFn::Log => plain(nodes, "Log", x),
        UnaryFn::Reciprocal => plain(nodes, "Reciprocal", x),
        UnaryFn::Sqrt => plain(nodes, "Sqrt", x),
        UnaryFn::Abs => plain(nodes, "Abs", x),
    }
}

fn plain(nodes: &mut Nodes, op: &str, x: &str) -> String {
    nodes.add(op, &[x], Vec::new())
}

fn with_number(nodes: &mut Nodes, op: &str, x: &str, number: f64) -> String {
    let number = nodes.number(number);
    nodes.add(op, &[x, &number], Vec::new())
}

/// scale·x + shift, without what does nothing.
fn affine(nodes: &mut Nodes, x: &str, scale: f64, shift: f64) -> String {
    let nothing = |a: f64, neutral: f64| (a - neutral).abs() < f64::MIN_POSITIVE;
    let scaled = if nothing(scale, 1.0) { x.to_owned() } else { with_number(nodes, "Mul", x, scale) };
    if nothing(shift, 0.0) { scaled } else { with_number(nodes, "Add", &scaled, shift) }
}

/// Bounds that single precision does not reach are left out.
fn clamp(nodes: &mut Nodes, x: &str, lo: f64, hi: f64) -> String {
    let limit = f64::from(f32::MAX);
    let lo = if lo > -limit { nodes.number(lo) } else { String::new() };
    let hi = if hi < limit { nodes.number(hi) } else { String::new() };
    match (lo.is_empty(), hi.is_empty()) {
        (true, true) => x.to_owned(),
        (false, true) => nodes.add("Clip", &[x, &lo], Vec::new()),
        _ => nodes.add("Clip", &[x, &lo, &hi], Vec::new()),
    }
}

/// ½·x·(1 + erf(x/√2)), as PyTorch spells it.
fn gelu(nodes: &mut Nodes, x: &str) -> String {
    let scaled = with_number(nodes, "Mul", x, FRAC_1_SQRT_2);
    let erf = plain(nodes, "Erf", &scaled);
    gated(nodes, x, &erf)
}

/// ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
fn gelu_tanh(nodes: &mut Nodes, x: &str) -> String {
    let cube = with_number(nodes, "Pow", x, 3.0);
    let cube = with_number(nodes, "Mul", &cube, 0.044_715);
    let inner = nodes.add("Add", &[x, &cube], Vec::new());
    let inner = with_number(nodes, "Mul", &inner, (2.0 / PI).sqrt());
    let tanh = plain(nodes, "Tanh", &inner);
    gated(nodes, x, &tanh)
}

/// ½·x·(1 + gate).
fn gated(nodes: &mut Nodes, x: &str, gate: &str) -> String {
    let gate = with_number(nodes, "Add", gate, 1.0);
    let product = nodes.add("Mul", &[x, &gate], Vec::new());
    with_number(nodes, "Mul", &product, 0.5)
}
