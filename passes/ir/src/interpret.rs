//! The clear interpreter: the real-valued meaning of a graph at any stage.

use crate::he::sum_of_products;
use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::CircuitError;
use thex_circuit::clear::{Tensor, evaluate};

use crate::graph::{Graph, NodeId, Op};
use crate::he::{Address, HeLinear, HeOp};

/// Values of nodes.
pub type Values = BTreeMap<NodeId, Arc<Tensor>>;

/// Evaluates every node on `inputs` (in the order of `graph.inputs`).
///
/// # Errors
/// [`CircuitError::Eval`] naming the node whose operands do not fit.
pub fn run_all(graph: &Graph, inputs: &[Arc<Tensor>]) -> Result<Values, CircuitError> {
    let mut values = Values::new();
    for id in graph.topological() {
        let value = evaluate_node(graph, id, inputs, &values)?;
        values.insert(id, value);
    }
    Ok(values)
}

/// Evaluates the graph; outputs in the order of `graph.outputs`.
///
/// # Errors
/// [`CircuitError::Eval`] naming the node whose operands do not fit.
pub fn run(graph: &Graph, inputs: &[Arc<Tensor>]) -> Result<Vec<Arc<Tensor>>, CircuitError> {
    let values = run_all(graph, inputs)?;
    Ok(graph.outputs.iter().map(|(_, id)| values[id].clone()).collect())
}

/// Evaluates one node, given the values of its operands.
///
/// # Errors
/// [`CircuitError::Eval`] naming the node.
pub fn evaluate_node(
    graph: &Graph,
    id: NodeId,
    inputs: &[Arc<Tensor>],
    values: &Values,
) -> Result<Arc<Tensor>, CircuitError> {
    let node = graph.node(id);
    let fail = |reason: String| CircuitError::Eval { op: node.name.clone(), reason };
    let operands: Vec<&Tensor> = graph
        .operands(id)
        .iter()
        .map(|o| values.get(o).map(|v| &**v).ok_or_else(|| fail("an operand has no value".into())))
        .collect::<Result<_, _>>()?;
    match &node.op {
        Op::Input => {
            let position = graph.inputs.iter().position(|i| *i == id);
            let value = position.and_then(|p| inputs.get(p));
            let value = value.ok_or_else(|| fail("no value was given for this input".into()))?;
            if value.shape() != node.shape {
                return Err(fail(format!("expected shape {:?}, got {:?}", node.shape, value.shape())));
            }
            Ok(value.clone())
        }
        Op::Constant(value) => Ok(value.clone()),
        Op::Clear(op) => evaluate(op, &operands).map(Arc::new).map_err(|e| fail(e.to_string())),
        Op::He(op) => {
            let flat: Vec<Vec<f64>> = operands.iter().map(|t| t.iter().copied().collect()).collect();
            let value = evaluate_he(op, &flat);
            ArrayD::from_shape_vec(IxDyn(&node.shape), value).map(Arc::new).map_err(|e| fail(e.to_string()))
        }
    }
}

/// Value of a gathered element; an absent one is 0.
fn fetch(operands: &[Vec<f64>], address: Address) -> f64 {
    if address == Address::ABSENT {
        return 0.0;
    }
    operands[address.port as usize][address.index as usize]
}

/// Evaluates a homomorphic operation on flat operands.
#[must_use]
pub fn evaluate_he(op: &HeOp, operands: &[Vec<f64>]) -> Vec<f64> {
    match op {
        HeOp::Encrypt => operands[0].clone(),
        HeOp::Linear { map, .. } => evaluate_linear(map, operands),
        HeOp::Keyswitch { gather, .. } | HeOp::Pack { gather, .. } | HeOp::Decrypt { gather } => {
            gather.iter().map(|&a| fetch(operands, a)).collect()
        }
        HeOp::Pbs { function } => operands[0].iter().map(|&x| function.apply(x)).collect(),
        HeOp::LutProduct { chain, argument, accumulator, slots, sums } => {
            let (x, y) = (&operands[0], &operands[1]);
            let groups = sums.as_ref().map_or(argument.len(), |s| s.len());
            let mut out = vec![0.0; groups * slots];
            let group_of = sum_of_products(argument.len(), sums.as_ref());
            for ((&a, &g), group) in argument.iter().zip(accumulator.iter()).zip(group_of) {
                let factor = chain.apply(x[a as usize]);
                let y = &y[g as usize * slots..(g as usize + 1) * slots];
                let sums = &mut out[group * slots..(group + 1) * slots];
                sums.iter_mut().zip(y).for_each(|(sum, y)| *sum += factor * y);
            }
            out
        }
    }
}

fn evaluate_linear(map: &HeLinear, operands: &[Vec<f64>]) -> Vec<f64> {
    let (m, k) = (map.outputs, map.operands);
    let mut result = map.bias.clone();
    for (g, &set) in map.set.iter().enumerate() {
        let x: Vec<f64> = map.gather[g * k..(g + 1) * k].iter().map(|&a| fetch(operands, a)).collect();
        let weights = &map.weights[set as usize * m * k..(set as usize + 1) * m * k];
        for (row, y) in weights.chunks(k.max(1)).zip(&mut result[g * m..(g + 1) * m]) {
            *y += row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>();
        }
    }
    result
}
