//! Bounds on what a model may ask for: memory and time of analysis, check and calibration follow from the file's own numbers, which
//! may be absurd.
//!
//! tract evaluates what depends on constants only while it infers shapes. So shapes are inferred here first, node by
//! node, and looked at before a value is made ([`infer`]); afterwards tract's own pass has nothing left to find out.

use std::collections::BTreeSet;

use tract_onnx::prelude::{InferenceFact, InferenceModel, OutletId, TVec, TractResult, TypedModel};
use tract_onnx::tract_core::internal::{DimLike, TractErrorContext, bail};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::infer::Factoid;

/// Most elements of one tensor.
pub(super) const MOST_ELEMENTS: usize = 1 << 26;

/// Most elements of all tensors that are computed, together: the interpreter keeps them all, in double precision.
const MOST_COMPUTED: usize = 1 << 27;

/// Most multiplications of one run.
const MOST_PRODUCTS: u128 = 1 << 36;

/// Operators, by tract's names, that take lengths as operands.
const SHAPED: [&str; 7] = ["ConstantOfShape", "MultiBroadcastTo", "Reshape", "Tile", "Range", "OneHot", "Pad"];

/// A model that asks for more than it may.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Excess(String);

/// Elements of a shape, unless it is too large.
pub(super) fn elements(shape: &[usize]) -> Option<usize> {
    let count = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d))?;
    (count <= MOST_ELEMENTS).then_some(count)
}

/// Infers all shapes and types.
pub(super) fn infer(model: &mut InferenceModel) -> TractResult<()> {
    let mut open: BTreeSet<usize> = (0..model.nodes().len()).collect();
    while let Some(node) = open.pop_first() {
        for outlet in infer_one(model, node).with_context(|| format!("node `{}`", model.node(node).name))? {
            let users = model.node(outlet.node).outputs[outlet.slot].successors.iter().map(|inlet| inlet.node);
            open.extend(users.chain([outlet.node]).filter(|n| *n != node));
        }
    }
    Ok(())
}

/// Infers around one node; gives the tensors about which more is known now.
fn infer_one(model: &mut InferenceModel, id: usize) -> TractResult<Vec<OutletId>> {
    let node = model.node(id);
    let observed = node.op.observe_outlets(model, node)?;
    let outlets: Vec<OutletId> = node.inputs.to_vec();
    let results: Vec<OutletId> = (0..node.outputs.len()).map(|slot| OutletId::new(id, slot)).collect();
    let facts = |of: &[OutletId]| of.iter().map(|o| model.outlet_fact(*o).cloned()).collect::<TractResult<Vec<_>>>();
    let known = [facts(&outlets)?, facts(&results)?, facts(&observed)?];
    let [inputs, outputs, seen] = known.each_ref().map(|facts| facts.iter().collect::<TVec<&InferenceFact>>());
    if outputs.len() != node.op.nboutputs()? {
        bail!("it has {} results, its operator makes {}", outputs.len(), node.op.nboutputs()?);
    }
    let mut op = node.op.clone();
    look_at_lengths(&node.name, &op.name(), &inputs)?;
    look_at_rank(&op.name(), &inputs)?;
    let (_, sizes, _) = op.infer_facts(inputs.clone(), outputs.clone(), seen.clone())?;
    sizes.iter().try_for_each(|fact| look_at(&node.name, fact))?;
    let (inputs, outputs, seen) = op.infer(inputs, outputs, seen)?;
    model.node_mut(id).op = op;
    let mut changed = Vec::new();
    let inferred = inputs.iter().chain(&outputs).chain(&seen);
    for ((outlet, fact), old) in
        outlets.iter().chain(&results).chain(&observed).zip(inferred).zip(known.iter().flatten())
    {
        let unified = fact.unify(old)?;
        if unified != *old {
            model.set_outlet_fact(*outlet, unified)?;
            changed.push(*outlet);
        }
    }
    Ok(changed)
}

/// Refuses lengths that no tensor may have, among the operands of operators that take lengths. (Inference takes those beyond
/// 2^32 for others, and would find nothing wrong with the shape.)
fn look_at_lengths(node: &str, op: &str, inputs: &[&InferenceFact]) -> TractResult<()> {
    if !SHAPED.contains(&op) {
        return Ok(());
    }
    let numbers = |fact: &&InferenceFact| {
        let value = fact.value.concretize()?;
        let real = value.cast_to::<f64>().ok()?;
        Some(real.to_plain_array_view::<f64>().ok()?.iter().copied().collect::<Vec<f64>>())
    };
    let values: Vec<Vec<f64>> = inputs.iter().filter_map(numbers).collect();
    let longest = match values.iter().map(Vec::as_slice).collect::<Vec<_>>().as_slice() {
        [[from], [to], [by]] if op == "Range" => (to - from) / by,
        values => values.iter().flat_map(|v| v.iter()).fold(0.0, |m: f64, v| m.max(v.abs())),
    };
    if longest <= MOST_ELEMENTS as f64 {
        return Ok(());
    }
    Err(Excess(format!("node `{node}` makes an axis of {longest}; one tensor may have at most 2^26 elements")).into())
}

/// Inference counts axes from the last one of these operands, and would never end where there is none.
fn look_at_rank(op: &str, inputs: &[&InferenceFact]) -> TractResult<()> {
    let scalar = |i: usize| inputs.get(i).is_some_and(|fact| fact.shape.rank().concretize() == Some(0));
    let indexed = ["GatherNd", "ScatterNd", "GatherND", "ScatterND"].contains(&op);
    if (indexed && scalar(1)) || (op.contains("Norm") && scalar(0)) {
        bail!("its operand has no axis");
    }
    Ok(())
}

/// Refuses a tensor that would be too large, before it is made.
fn look_at(node: &str, fact: &InferenceFact) -> TractResult<()> {
    let dims = fact.shape.dims().map(|d| d.concretize().and_then(|d| d.to_i64().ok())).collect::<Option<Vec<i64>>>();
    let Some(dims) = dims else { return Ok(()) };
    let shape: Option<Vec<usize>> = dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    if shape.is_none_or(|shape| elements(&shape).is_none()) {
        return Err(too_large(node, &dims).into());
    }
    Ok(())
}

fn too_large(node: &str, shape: &[i64]) -> Excess {
    Excess(format!("node `{node}` makes a tensor of shape {shape:?}; one tensor may have at most 2^26 elements"))
}

/// Refuses a simplified model whose tensors or products are too many, or of unknown size.
pub(super) fn check(model: &TypedModel) -> TractResult<()> {
    let (mut computed, mut products) = (0_usize, 0_u128);
    for node in model.nodes() {
        for output in &node.outputs {
            let shape = &output.fact.shape;
            let Some(shape) = shape.as_concrete() else {
                let name = &node.name;
                return Err(Excess(format!(
                    "the shape of node `{name}` is not known: {shape:?}; export with fixed shapes"
                ))
                .into());
            };
            let dims: Vec<i64> = shape.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect();
            computed += elements(shape).ok_or_else(|| too_large(&node.name, &dims))?;
        }
        if let Some(op) = node.op_as::<EinSum>() {
            products = products.saturating_add(multiplications(model, op, &node.inputs)?);
        }
        if computed > MOST_COMPUTED {
            return Err(Excess("its tensors have more than 2^27 elements together: use shorter inputs".into()).into());
        }
        if products > MOST_PRODUCTS {
            return Err(
                Excess("it multiplies more than 2^36 times: use shorter inputs, or a smaller model".into()).into()
            );
        }
    }
    Ok(())
}

/// The product of the sizes of all indices.
fn multiplications(model: &TypedModel, op: &EinSum, inputs: &[OutletId]) -> TractResult<u128> {
    let mut count = 1_u128;
    for axis in op.axes.iter_all_axes() {
        let mut size = 1;
        for (input, axes) in inputs.iter().zip(&axis.inputs) {
            let shape = &model.outlet_fact(*input)?.shape;
            let sizes = axes.iter().filter_map(|a| shape.get(*a)).filter_map(|d| d.to_usize().ok());
            size = sizes.fold(size, usize::max);
        }
        count = count.saturating_mul(size as u128);
    }
    Ok(count)
}
