//! What least-squares fits look at: a node's argument in the graph as approximated so far, and its result in the teacher, the graph before any
//! approximation. So a fit also makes good what earlier approximations did.

use rayon::prelude::*;
use thex_ir::{Graph, NodeId, Tensor, interpret};

use crate::error::{PassError, Result};
use crate::pass::PassCx;

/// `measure` of (argument, wanted result) for each of the first `samples` samples, in order.
pub(super) fn measure<M: Send>(
    graph: &Graph,
    id: NodeId,
    cx: &PassCx,
    samples: usize,
    measure: impl Fn(&Tensor, &Tensor) -> M + Sync,
) -> Result<Vec<M>> {
    let source = graph.operands(id)[0];
    let name = &graph.node(id).name;
    let target = cx.teacher.as_deref().and_then(|t| t.ids().find(|&i| t.node(i).name == *name).map(|i| (t, i)));
    let one = |sample: &Vec<std::sync::Arc<Tensor>>| -> Result<M> {
        let values = interpret::run_all(graph, sample)?;
        let wanted = match target {
            Some((teacher, id)) => interpret::run_all(teacher, sample)?[&id].clone(),
            None => values[&id].clone(),
        };
        Ok(measure(&values[&source], &wanted))
    };
    cx.samples[..cx.samples.len().min(samples)].par_iter().map(one).collect()
}

/// No sample, so nothing to fit to.
pub(super) fn no_sample(graph: &Graph, id: NodeId) -> PassError {
    PassError::Invalid(format!(
        "no calibration sample reaches `{}`: give --calibration an .npz with at least one sample",
        graph.node(id).name
    ))
}
