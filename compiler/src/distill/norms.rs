//! Layer norms one by one: each becomes its line or its constants by the passes' own fit, which solves in closed form what THE-X
//! distils by gradient with everything else frozen: least squares against the real norm's output.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArrayD, Ix2, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Op};
use thex_passes::choice::{Form, Kind};
use thex_passes::{Pass, PassCx, PassManager};

use crate::error::{CompileError, Result};

/// The layer norms of a graph in execution order, and the forms chosen for them.
pub(super) fn norms(graph: &Graph, cx: &PassCx) -> Vec<(String, Form)> {
    let nodes = graph.topological().into_iter().filter(|&id| Kind::of(&graph.node(id).op) == Some(Kind::LayerNorm));
    nodes.filter_map(|id| Some((graph.node(id).name.clone(), cx.form(graph, id)?))).collect()
}

/// Runs some passes of the pipeline; `forms` overrule the profile's.
pub(super) fn run_passes(
    pipeline: Vec<Box<dyn Pass>>,
    names: &[&str],
    graph: &mut Graph,
    cx: &mut PassCx,
) -> Result<()> {
    let chosen: Vec<Box<dyn Pass>> = pipeline.into_iter().filter(|p| names.contains(&p.name())).collect();
    PassManager::default().run(&chosen, graph, cx)?;
    Ok(())
}

/// Replaces one norm, fitted to the samples of `cx` against its teacher.
pub(super) fn replace(
    pipeline: Vec<Box<dyn Pass>>,
    graph: &mut Graph,
    cx: &mut PassCx,
    (norm, form): (&str, Form),
) -> Result<()> {
    let kept = cx.forms.clone();
    for (name, _) in norms(graph, cx) {
        cx.forms.insert(name, Form::Exact);
    }
    cx.forms.insert(norm.to_owned(), form);
    let result = run_passes(pipeline, &["the-x-layer-norm", "constant-layer-norm"], graph, cx);
    cx.forms = kept;
    result?;
    as_gain(graph, norm)
}

/// The line of a norm is written as a diagonal matrix; trained as such it would not stay diagonal.
fn as_gain(graph: &mut Graph, norm: &str) -> Result<()> {
    let Some(id) = find(graph, &format!("{norm}.affine")) else { return Ok(()) };
    if graph.clear_op(id) != Some(&ClearOp::Linear) {
        return Ok(());
    }
    let (operands, origin) = (graph.operands(id), graph.node(id).origin.clone());
    let matrix = graph.constant(operands[1]).and_then(|w| w.view().into_dimensionality::<Ix2>().ok());
    let matrix = matrix.ok_or_else(|| CompileError::Internal(format!("`{norm}`: its line has no matrix")))?;
    let gain = ArrayD::from_shape_vec(IxDyn(&[matrix.nrows()]), matrix.diag().to_vec()).unwrap_or_default();
    let gain = graph.add_constant(&format!("{norm}.gain"), Arc::new(gain), &origin);
    let scaled = graph.add_clear(&format!("{norm}.scaled"), ClearOp::Mul, &[operands[0], gain], &origin)?;
    let line = graph.add_clear(&format!("{norm}.line"), ClearOp::Add, &[scaled, operands[2]], &origin)?;
    graph.replace_uses(id, line);
    graph.remove_dead();
    Ok(())
}

/// The node of a name.
pub(super) fn find(graph: &Graph, name: &str) -> Option<NodeId> {
    graph.ids().find(|&id| graph.node(id).name == name)
}

/// What a student computes in place of a node of its teacher.
pub(super) fn counterparts(teacher: &Graph, student: &Graph) -> BTreeMap<NodeId, NodeId> {
    let names: BTreeMap<&str, NodeId> = student.ids().map(|id| (student.node(id).name.as_str(), id)).collect();
    let of = |id: NodeId| {
        let name = &teacher.node(id).name;
        let endings = ["", ".line", ".normalise"].iter();
        let place = endings.filter_map(|ending| names.get(format!("{name}{ending}").as_str())).next();
        place.filter(|&&s| student.node(s).shape == teacher.node(id).shape).map(|&s| (id, s))
    };
    let nodes = teacher.ids().filter(|&id| matches!(teacher.node(id).op, Op::Clear(_)));
    nodes.filter_map(of).collect()
}
