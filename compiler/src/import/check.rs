//! Every import is checked: the graph and tract must agree on pseudo-random inputs.

use std::sync::Arc;

use ndarray::{ArrayD, Dimension, IxDyn};
use thex_circuit::clear::{ClearOp, Tensor};
use thex_ir::{Graph, NodeId, interpret};

use super::error::{ImportError, Result};
use super::load::InputInfo;
use super::reference::Reference;

/// Inputs tried.
const SAMPLES: u64 = 3;

/// Largest difference, relative to the largest output.
const TOLERANCE: f64 = 1e-4;

/// Runs both and compares. Returns the largest relative difference.
pub(super) fn check(graph: &Graph, reference: &Reference, inputs: &[InputInfo]) -> Result<f64> {
    let mut worst = 0.0_f64;
    for sample in 0..SAMPLES {
        worst = worst.max(compare(graph, reference, inputs, sample)?);
    }
    Ok(worst)
}

type Tensors = Vec<Arc<Tensor>>;

/// Inputs on which every look-up stays in its table, and what they give. Indices may be computed from inputs, so the rows of a
/// table are only a first guess at how large these may be.
fn evaluate(graph: &Graph, infos: &[InputInfo], sample: u64) -> Result<(Tensors, Tensors)> {
    let mut result = Err(ImportError::Internal("no inputs were tried".into()));
    for most in [usize::MAX, 2, 1] {
        let inputs = sample_inputs(graph, infos, sample, most);
        match interpret::run(graph, &inputs) {
            Ok(outputs) => return Ok((inputs, outputs)),
            Err(error) => result = Err(ImportError::Internal(error.to_string())),
        }
    }
    result
}

fn compare(graph: &Graph, reference: &Reference, infos: &[InputInfo], sample: u64) -> Result<f64> {
    let (inputs, ours) = evaluate(graph, infos, sample)?;
    let names: Vec<&str> = reference.inputs().collect();
    let named: Vec<(&str, ArrayD<f64>)> = names.into_iter().zip(inputs.iter().map(|v| (**v).clone())).collect();
    let theirs = reference.run(&named)?;
    let mut worst = 0.0_f64;
    for (our, (name, their)) in ours.iter().zip(&theirs) {
        if our.shape() != their.shape() {
            return Err(ImportError::Internal(format!(
                "output `{name}` of the imported graph has shape {:?}, the model's has {:?}",
                our.shape(),
                their.shape()
            )));
        }
        let difference = relative_difference(our, their);
        if difference.is_nan() || difference > TOLERANCE {
            return Err(ImportError::Internal(format!(
                "the imported graph and the model differ by {difference:.1e} in output `{name}` (unless weights of the model are \
                 so large that single precision cannot tell)"
            )));
        }
        worst = worst.max(difference);
    }
    Ok(worst)
}

/// Largest difference over largest magnitude, for equal shapes. NaN when our value is not finite where the model's is; where the
/// model's is not either (a logarithm of these inputs, say), there is nothing to compare.
fn relative_difference(a: &Tensor, b: &Tensor) -> f64 {
    let finite = || a.iter().zip(b).filter(|(_, their)| their.is_finite());
    let scale = finite().fold(1e-6_f64, |m, (_, v)| m.max(v.abs()));
    finite().fold(0.0_f64, |m, (x, y)| {
        let difference = (x - y).abs() / scale;
        if difference.is_nan() || m.is_nan() { f64::NAN } else { m.max(difference) }
    })
}

/// Pseudo-random inputs; whole ones below `most`.
fn sample_inputs(graph: &Graph, inputs: &[InputInfo], sample: u64, most: usize) -> Tensors {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (sample + 1));
    let values = graph.inputs.iter().zip(inputs).map(|(id, info)| {
        let shape = IxDyn(&graph.node(*id).shape);
        let bound = index_bound(graph, *id, info).map(|bound| bound.min(most));
        Arc::new(match bound {
            Some(bound) => ArrayD::from_shape_fn(shape, |at| {
                let first = at.slice().iter().all(|i| *i == 0);
                let ordinary = if bound > 1 { 1.0 } else { 0.0 };
                if first || sample == 0 { ordinary } else { (random.unit() * bound as f64).floor() }
            }),
            None => ArrayD::from_shape_fn(shape, |_| 2.0 * random.unit() - 1.0),
        })
    });
    values.collect()
}

/// How many values an integer input may take: the rows of the table that it indexes, else 2 (a mask).
/// `None` for real inputs.
fn index_bound(graph: &Graph, id: NodeId, info: &InputInfo) -> Option<usize> {
    if info.dtype.starts_with("float") || info.dtype.starts_with("bfloat") {
        return None;
    }
    let (mut queue, mut next, mut bound) = (vec![id], 0, None);
    while next < queue.len() {
        for (user, port) in graph.users(queue[next]) {
            match graph.clear_op(user) {
                Some(ClearOp::Gather { axis }) if port == 1 => {
                    let table = graph.operands(user)[0];
                    let rows = graph.node(table).shape[*axis];
                    bound = Some(bound.map_or(rows, |b: usize| b.min(rows)));
                }
                Some(ClearOp::Reshape { .. } | ClearOp::Transpose { .. }) => queue.push(user),
                _ => {}
            }
        }
        next += 1;
    }
    let most = if info.dtype == "bool" { 2 } else { usize::MAX };
    Some(bound.unwrap_or(2).min(most))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
