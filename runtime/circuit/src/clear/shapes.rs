//! Shapes and look-ups of a clear graph, without running it.

use super::{ClearGraph, ClearNode, ClearOp, infer_shape};
use crate::error::{CircuitError, Result};

/// A table of constants, and the node that looks it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookUp {
    /// The constant.
    pub table: usize,
    /// How many different indices it has.
    pub rows: usize,
    /// The node that gives the indices.
    pub indices: usize,
}

impl ClearGraph {
    /// The shape of every node.
    ///
    /// # Errors
    /// [`CircuitError::Eval`] when operands do not fit an operation, or a node refers to none.
    pub fn shapes(&self) -> Result<Vec<Vec<usize>>> {
        let missing = || CircuitError::Eval { op: "clear graph".into(), reason: "refers to a missing node".into() };
        let mut shapes: Vec<Vec<usize>> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let shape = match node {
                ClearNode::Input(i) => self.inputs.get(*i).ok_or_else(missing)?.1.clone(),
                ClearNode::Constant(i) => self.constants.get(*i).ok_or_else(missing)?.shape().to_vec(),
                ClearNode::Apply(op, operands) => {
                    let operands = operands.iter().map(|&i| shapes.get(i).map(Vec::as_slice).ok_or_else(missing));
                    infer_shape(op, &operands.collect::<Result<Vec<_>>>()?)?
                }
            };
            shapes.push(shape);
        }
        Ok(shapes)
    }

    /// The name and shape of every output.
    ///
    /// # Errors
    /// As [`ClearGraph::shapes`].
    pub fn output_shapes(&self) -> Result<Vec<(String, Vec<usize>)>> {
        let shapes = self.shapes()?;
        let missing = || CircuitError::Eval { op: "clear graph".into(), reason: "has an output without node".into() };
        let output = |(name, i): &(String, usize)| Ok((name.clone(), shapes.get(*i).ok_or_else(missing)?.clone()));
        self.outputs.iter().map(output).collect()
    }

    /// Every look-up in a table of constants.
    #[must_use]
    pub fn look_ups(&self) -> Vec<LookUp> {
        let look_up = |node: &ClearNode| {
            let ClearNode::Apply(ClearOp::Gather { axis }, operands) = node else { return None };
            let &[table, indices] = operands.as_slice() else { return None };
            let Some(&ClearNode::Constant(table)) = self.nodes.get(table) else { return None };
            let rows = *self.constants.get(table)?.shape().get(*axis)?;
            Some(LookUp { table, rows, indices })
        };
        self.nodes.iter().filter_map(look_up).collect()
    }

    /// Whether a node is an input, but for its shape and the order of its elements.
    #[must_use]
    pub fn is_moved_input(&self, node: usize, input: usize) -> bool {
        let mut at = node;
        loop {
            match self.nodes.get(at) {
                Some(ClearNode::Input(i)) => return *i == input,
                Some(ClearNode::Apply(op, operands)) if op.is_data_movement() => match operands.as_slice() {
                    // Operands come earlier, so this ends.
                    [one] if *one < at => at = *one,
                    _ => return false,
                },
                Some(ClearNode::Apply(..) | ClearNode::Constant(_)) | None => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use ndarray::{ArrayD, IxDyn};
    use std::sync::Arc;

    fn embedding() -> ClearGraph {
        ClearGraph {
            inputs: vec![("ids".into(), vec![1, 4])],
            outputs: vec![("embedded".into(), 3)],
            nodes: vec![
                ClearNode::Input(0),
                ClearNode::Constant(0),
                ClearNode::Apply(ClearOp::Reshape { shape: vec![4] }, vec![0]),
                ClearNode::Apply(ClearOp::Gather { axis: 0 }, vec![1, 2]),
            ],
            constants: vec![Arc::new(ArrayD::zeros(IxDyn(&[7, 3])))],
        }
    }

    #[test]
    fn look_ups_are_found_through_reshapes() {
        let graph = embedding();
        assert_eq!(graph.look_ups(), [LookUp { table: 0, rows: 7, indices: 2 }]);
        assert!(graph.is_moved_input(2, 0) && graph.is_moved_input(0, 0));
        assert!(!graph.is_moved_input(2, 1) && !graph.is_moved_input(3, 0) && !graph.is_moved_input(1, 0));
    }

    #[test]
    fn shapes_need_no_values() {
        let mut graph = embedding();
        assert_eq!(graph.output_shapes().unwrap(), [("embedded".to_owned(), vec![4, 3])]);
        graph.outputs[0].1 = 9;
        assert!(graph.output_shapes().is_err());
        graph.constants.clear();
        assert!(graph.shapes().is_err() && graph.look_ups().is_empty());
    }
}
