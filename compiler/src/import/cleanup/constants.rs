//! An operation whose operands are all constants is a constant.

use thex_circuit::clear::{Tensor, evaluate};
use thex_ir::Graph;

use super::super::error::Result;
use super::{add_constant, internal, replace};

/// Folds constants.
pub(super) fn run(graph: &mut Graph) -> Result<bool> {
    let mut changed = false;
    for id in graph.topological() {
        let Some(op) = graph.clear_op(id).cloned() else {
            continue;
        };
        let operands = graph.operands(id);
        let values: Option<Vec<_>> = operands.iter().map(|o| graph.constant(*o).cloned()).collect();
        let Some(values) = values else {
            continue;
        };
        let values: Vec<&Tensor> = values.iter().map(|v| &**v).collect();
        let value = evaluate(&op, &values).map_err(internal)?;
        let site = if operands.len() == 1 { operands[0] } else { id };
        let constant = add_constant(graph, site, value);
        replace(graph, id, constant);
        changed = true;
    }
    Ok(changed)
}
