//! Activations that an export spells out, such as x·½·(1 + erf(x/√2)), become one function.
//!
//! Spellings differ by exporter and by order of operands, so we do not match them one by one: a product is
//! a candidate when everything above it, down to one tensor x, is element-wise with constant numbers. Its
//! values on a grid then tell which function of x it is.

use std::collections::BTreeMap;

use thex_circuit::clear::{ClearOp, UnaryChain, UnaryFn};
use thex_ir::{Graph, NodeId};

use super::super::error::Result;
use super::{add, inherit, replace, uniform};

/// Factor in the sigmoid of the quick GELU (CLIP's).
const QUICK: f64 = 1.702;

/// What is recognised. The quick GELU x·σ(1.702x) is a SiLU between scalings.
fn known() -> [UnaryChain; 4] {
    let scale = |scale: f64| UnaryFn::Affine { scale, shift: 0.0 };
    let quick = UnaryChain(vec![scale(QUICK), UnaryFn::Silu, scale(1.0 / QUICK)]);
    [UnaryFn::Gelu.into(), UnaryFn::GeluTanh.into(), UnaryFn::Silu.into(), quick]
}

/// Largest difference on the grid; exports carry constants in single precision.
const TOLERANCE: f64 = 1e-6;

/// Larger expressions than any spelling of an activation are not looked at.
const MAX_NODES: usize = 16;

/// Recognises activations.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let (mut changed, known) = (false, known());
    for id in graph.topological() {
        if !matches!(graph.clear_op(id), Some(ClearOp::Mul)) || !graph.contains(id) {
            continue;
        }
        let region = region(graph, id);
        let found = |x: &NodeId| known.iter().find(|f| is_function(graph, id, *x, f)).map(|f| (*x, f.clone()));
        if let Some((x, chain)) = region.iter().find_map(found) {
            let y = add(graph, id, ClearOp::Unary { chain }, &[x])?;
            region.iter().filter(|node| **node > x).for_each(|node| inherit(graph, y, *node));
            replace(graph, id, y);
            changed = true;
        }
    }
    Ok(changed)
}

fn is_elementwise(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.clear_op(id), Some(ClearOp::Add | ClearOp::Mul | ClearOp::Unary { .. }))
}

/// Tensors above `id` of its shape that may be the argument, nearest first.
fn region(graph: &Graph, id: NodeId) -> Vec<NodeId> {
    let (mut found, mut next) = (Vec::new(), 0);
    let mut queue = vec![id];
    while next < queue.len() && queue.len() < MAX_NODES {
        let node = queue[next];
        next += 1;
        if !is_elementwise(graph, node) {
            continue;
        }
        for operand in graph.operands(node) {
            let fits = graph.constant(operand).is_none() && graph.node(operand).shape == graph.node(id).shape;
            if fits && !queue.contains(&operand) {
                queue.push(operand);
                found.push(operand);
            }
        }
    }
    found
}

fn is_function(graph: &Graph, y: NodeId, x: NodeId, function: &UnaryChain) -> bool {
    let points = (-60..=60).map(|i| f64::from(i) / 10.0);
    points.into_iter().all(|point| {
        let value = value_at(graph, y, x, point, &mut BTreeMap::new());
        value.is_some_and(|v| (v - function.apply(point)).abs() <= TOLERANCE * (1.0 + point.abs()))
    })
}

/// Value of `y` where `x` is `point`; `None` when it depends on anything else.
fn value_at(graph: &Graph, y: NodeId, x: NodeId, point: f64, known: &mut BTreeMap<NodeId, f64>) -> Option<f64> {
    if y == x {
        return Some(point);
    }
    if let Some(value) = known.get(&y) {
        return Some(*value);
    }
    if known.len() > MAX_NODES {
        return None;
    }
    if graph.constant(y).is_some() {
        return uniform(graph, y);
    }
    let operands = graph.operands(y);
    let mut operand = |i: usize| value_at(graph, operands[i], x, point, known);
    let value = match graph.clear_op(y)? {
        ClearOp::Add => operand(0)? + operand(1)?,
        ClearOp::Mul => operand(0)? * operand(1)?,
        ClearOp::Unary { chain } => chain.apply(operand(0)?),
        _ => return None,
    };
    known.insert(y, value);
    Some(value)
}
