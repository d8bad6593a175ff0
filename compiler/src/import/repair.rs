//! Repairs of models that tract would run wrongly.
//!
//! The fused attention operator of opset 23 may have a boolean mask (true: attend). tract 0.23 adds it to the
//! scores as if it were additive, without a word: GPT-2 exports come out wrong by 0.27. We make it
//! additive before tract simplifies.

use tract_onnx::prelude::{DatumType, InletId, SpecialOps, TractResult, TypedModel, tvec};
use tract_onnx::tract_core::internal::tensor0;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::change_axes::wire_with_rank_broadcast;
use tract_onnx::tract_core::ops::math::{add, mul};
use tract_transformers::ops::sdpa::Sdpa;

/// What is added to a score that is masked out.
const MASKED: f32 = -1e4;

/// Operand number of the mask.
const MASK: usize = 3;

/// Makes boolean attention masks additive: mask·10⁴ − 10⁴.
pub(super) fn repair(model: &mut TypedModel) -> TractResult<()> {
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
