//! Repairs of models that tract would run wrongly.
//!
//! The fused attention operator of opset 23 may have a boolean mask (true: attend). tract 0.23 adds it to the
//! scores as if it were additive, without a word: GPT-2 exports come out wrong by 0.27. We make it
//! additive before tract simplifies.
//!
//! Whole numbers may be a dimension for all that tract knows, and become its type for those; its cumulative sum then refuses
//! to run (RoBERTa's positions). We cast around it.
//!
//! Half-precision models are right, but their rounding is not what an import should be compared with.

use tract_onnx::prelude::{DatumType, InletId, SpecialOps, TractResult, TypedModel, TypedModelPatch, tvec};
use tract_onnx::tract_core::floats::FloatPrecisionTranslator;
use tract_onnx::tract_core::internal::tensor0;
use tract_onnx::tract_core::ops::array::CumSum;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::change_axes::wire_with_rank_broadcast;
use tract_onnx::tract_core::ops::math::{add, mul};
use tract_onnx::tract_core::transform::ModelTransform;
use tract_transformers::ops::sdpa::Sdpa;

/// What is added to a score that is masked out.
const MASKED: f32 = -1e4;

/// Operand number of the mask.
const MASK: usize = 3;

/// Repairs what is known to go wrong.
pub(super) fn repair(model: &mut TypedModel) -> TractResult<()> {
    additive_masks(model)?;
    sum_in_integers(model)?;
    single_precision(model)
}

/// Reads half-precision models in single precision.
fn single_precision(model: &mut TypedModel) -> TractResult<()> {
    let half = DatumType::F16;
    if model.nodes().iter().any(|n| n.outputs.iter().any(|o| o.fact.datum_type == half)) {
        FloatPrecisionTranslator::new(half, DatumType::F32).transform(model)?;
    }
    Ok(())
}

/// Makes cumulative sums of dimensions sums of integers.
fn sum_in_integers(model: &mut TypedModel) -> TractResult<()> {
    let sums: Vec<usize> = model.nodes().iter().filter(|n| n.op_is::<CumSum>()).map(|n| n.id).collect();
    for id in sums {
        let (node, input) = (model.node(id), model.node(id).inputs[0]);
        if model.outlet_fact(input)?.datum_type != DatumType::TDim {
            continue;
        }
        let mut patch = TypedModelPatch::default();
        let x = patch.tap_model(model, input)?;
        let integers = patch.wire_node(format!("{}.integers", node.name), cast(DatumType::I64), &[x])?;
        let sum = patch.wire_node(&node.name, node.op.clone(), &integers)?;
        let dims = patch.wire_node(format!("{}.dims", node.name), cast(DatumType::TDim), &sum)?[0];
        patch.shunt_outside(model, id.into(), dims)?;
        patch.apply(model)?;
    }
    Ok(())
}

/// Makes boolean attention masks additive: mask·10⁴ − 10⁴.
fn additive_masks(model: &mut TypedModel) -> TractResult<()> {
    let fused: Vec<usize> = model.nodes().iter().filter(|n| n.op_is::<Sdpa>()).map(|n| n.id).collect();
    for id in fused {
        let Some(mask) = model.node(id).inputs.get(MASK).copied() else {
            continue;
        };
        if model.outlet_fact(mask)?.datum_type != DatumType::Bool {
            continue;
        }
        let dtype = model.node_output_facts(id)?[0].datum_type;
        let name = format!("{}.mask", model.node(id).name);
        let number = |v: f32| Ok::<_, tract_onnx::prelude::TractError>(tensor0(v).cast_to_dt(dtype)?.into_owned());
        let factor = model.add_const(format!("{name}.factor"), number(-MASKED)?)?;
        let summand = model.add_const(format!("{name}.summand"), number(MASKED)?)?;
        let real = model.wire_node(format!("{name}.cast"), cast(dtype), &[mask])?[0];
        let scaled = wire_with_rank_broadcast(format!("{name}.mul"), model, mul(), &tvec!(real, factor))?[0];
        let additive = wire_with_rank_broadcast(format!("{name}.add"), model, add(), &tvec!(scaled, summand))?[0];
        model.add_edge(additive, InletId::new(id, MASK))?;
    }
    Ok(())
}
