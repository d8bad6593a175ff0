//! What a graph from a file may cost, checked before it runs: a bundle may come from people whom its reader does not trust, and
//! one node that broadcasts to 2^60 elements would end the process.

use super::{ClearGraph, ClearNode, ClearOp, infer_shape};

/// The most elements of one tensor (constants are as large as their file).
pub const MAX_ELEMENTS: usize = 1 << 26;
/// The most elements of all tensors together.
pub const MAX_TOTAL_ELEMENTS: usize = 1 << 28;
/// The most multiply-adds or calls of functions of a run.
pub const MAX_WORK: usize = 1 << 36;

/// Number of elements, or `None` if it cannot be represented.
#[must_use]
pub fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n))
}

/// Multiply-adds of one operation with a result of so many elements; 1 for each element where it is no product.
fn work(op: &ClearOp, shapes: &[&[usize]], result: usize) -> usize {
    let last = |shape: &[usize]| shape.last().copied().unwrap_or(1);
    match op {
        ClearOp::Linear => {
            let operands = shapes[..shapes.len() - 1].iter().step_by(2);
            operands.fold(0, |sum, x| result.saturating_mul(last(x)).saturating_add(sum))
        }
        ClearOp::MatMul => result.saturating_mul(last(shapes[0])),
        ClearOp::Unary { chain } => result.saturating_mul(chain.0.len().max(1)),
        _ => shapes.iter().filter_map(|s| elements(s)).fold(result, usize::saturating_add),
    }
}

impl ClearGraph {
    /// Checks that every node fits its operands, and that sizes and work stay within the bounds above; gives the outputs' shapes.
    ///
    /// # Errors
    /// A sentence that says which node is wrong.
    pub fn verify(&self) -> Result<Vec<Vec<usize>>, String> {
        let bounded = |shape: &[usize]| elements(shape).filter(|&n| n <= MAX_ELEMENTS);
        let mut shapes: Vec<Vec<usize>> = Vec::new();
        let (mut total, mut spent) = (0_usize, 0_usize);
        for (i, node) in self.nodes.iter().enumerate() {
            let missing = || format!("node {i} of a graph refers to nothing");
            let large = || format!("node {i} of a graph has more than {MAX_ELEMENTS} elements");
            let shape = match node {
                ClearNode::Constant(c) => self.constants.get(*c).ok_or_else(missing)?.shape().to_vec(),
                ClearNode::Input(input) => self.inputs.get(*input).ok_or_else(missing)?.1.clone(),
                ClearNode::Apply(op, operands) => {
                    let of = |&operand: &usize| shapes.get(operand).map(Vec::as_slice).ok_or_else(missing);
                    let operands = operands.iter().map(of).collect::<Result<Vec<_>, _>>()?;
                    let shape = infer_shape(op, &operands).map_err(|e| e.to_string())?;
                    let elements = bounded(&shape).ok_or_else(large)?;
                    spent = spent.saturating_add(work(op, &operands, elements));
                    shape
                }
            };
            if !matches!(node, ClearNode::Constant(_)) {
                total = total.saturating_add(bounded(&shape).ok_or_else(large)?);
            }
            shapes.push(shape);
        }
        if total > MAX_TOTAL_ELEMENTS || spent > MAX_WORK {
            return Err(format!("a graph has {total} elements and {spent} operations: more than a client should run"));
        }
        let output = |(name, i): &(String, usize)| shapes.get(*i).cloned().ok_or(format!("output `{name}` is no node"));
        self.outputs.iter().map(output).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn graph(shape: Vec<usize>, op: ClearOp, operands: Vec<usize>) -> ClearGraph {
        ClearGraph {
            inputs: vec![("x".into(), shape)],
            outputs: vec![("y".into(), 1)],
            nodes: vec![ClearNode::Input(0), ClearNode::Apply(op, operands)],
            constants: Vec::new(),
        }
    }

    #[test]
    fn sizes_that_would_end_the_process_are_refused() {
        let huge = 1_usize << 40;
        let cases = [
            graph(vec![1], ClearOp::Broadcast { shape: vec![huge] }, vec![0]),
            graph(vec![1], ClearOp::Broadcast { shape: vec![1 << 33, 1 << 33] }, vec![0]),
            graph(vec![0], ClearOp::Reshape { shape: vec![1 << 32, 1 << 32] }, vec![0]),
            graph(vec![huge], ClearOp::Reshape { shape: vec![huge] }, vec![0]),
            graph(vec![1 << 14, 1 << 14], ClearOp::MatMul, vec![0, 0]),
            graph(vec![1 << 13, 1 << 13], ClearOp::MatMul, vec![0, 0]),
            graph(vec![2], ClearOp::Softmax { axis: 0 }, vec![1]),
            graph(vec![2], ClearOp::Softmax { axis: 0 }, vec![7]),
        ];
        for graph in cases {
            assert!(graph.verify().is_err(), "{graph:?}");
        }
    }

    #[test]
    fn fitting_graphs_give_their_output_shapes() {
        let good = graph(vec![2, 3], ClearOp::Transpose { permutation: vec![1, 0] }, vec![0]);
        assert_eq!(good.verify().unwrap(), [vec![3, 2]]);
        let mut bad = good;
        bad.outputs[0].1 = 9;
        assert!(bad.verify().unwrap_err().contains("`y`"));
    }
}
