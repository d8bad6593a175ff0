//! `--freeze`: an input of the model becomes a public constant of the circuit.
//!
//! An attention mask that never varies costs an addend of the scores when it is encrypted; as a constant it is structure, and
//! what it hides is not computed at all. The client bundle remembers the value, and refuses inputs that differ from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::FrozenInput;
use thex_ir::{Graph, Op, Tensor};
use thex_runtime::npz;

use crate::error::{CompileError, Result};
use crate::import::{Dim, InputInfo};

/// Inputs to freeze: a number that fills them, or `None` for their value in the calibration data.
pub type Freeze = BTreeMap<String, Option<f64>>;

type Arrays = [(String, ArrayD<f64>)];

/// Checks that the model has these inputs, and others.
///
/// # Errors
/// [`CompileError::Usage`], which lists the inputs.
pub(crate) fn check(freeze: &Freeze, inputs: &[InputInfo]) -> Result<()> {
    let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
    if let Some(unknown) = freeze.keys().find(|name| !names.contains(&name.as_str())) {
        return Err(CompileError::Usage(format!(
            "--freeze names `{unknown}`, which is no input of the model; it has {names:?}"
        )));
    }
    if !names.is_empty() && names.iter().all(|name| freeze.contains_key(*name)) {
        return Err(CompileError::Usage("--freeze leaves no input to encrypt".into()));
    }
    Ok(())
}

/// Shapes of frozen inputs that no data give, from the symbols that they share with inputs whose shape is known.
pub(crate) fn shared_shapes(
    freeze: &Freeze,
    inputs: &[InputInfo],
    known: &BTreeMap<String, Vec<usize>>,
) -> BTreeMap<String, Vec<usize>> {
    let mut symbols: BTreeMap<&str, usize> = BTreeMap::new();
    for input in inputs {
        let Some(shape) = known.get(&input.name) else { continue };
        for (dim, &size) in input.dims.iter().zip(shape) {
            if let Dim::Symbol(name) = dim {
                symbols.insert(name, size);
            }
        }
    }
    let size = |dim: &Dim| match dim {
        Dim::Fixed(n) => Some(*n),
        Dim::Symbol(name) => symbols.get(name.as_str()).copied(),
    };
    let unknown = inputs.iter().filter(|i| freeze.contains_key(&i.name) && !known.contains_key(&i.name));
    unknown.filter_map(|i| Some((i.name.clone(), i.dims.iter().map(size).collect::<Option<_>>()?))).collect()
}

/// Makes constants of frozen inputs; gives their values.
///
/// # Errors
/// [`CompileError::Data`] when the calibration data do not fix a value.
pub(crate) fn apply(freeze: &Freeze, graph: &mut Graph, arrays: &Arrays) -> Result<Vec<FrozenInput>> {
    let mut frozen = Vec::new();
    for id in graph.inputs.clone() {
        let node = graph.node(id);
        let Some(fill) = freeze.get(&node.name) else { continue };
        let value = match fill {
            Some(number) => ArrayD::from_elem(IxDyn(&node.shape), *number),
            None => common_value(&node.name, &node.shape, arrays)?,
        };
        frozen.push(FrozenInput {
            name: node.name.clone(),
            shape: node.shape.clone(),
            values: value.iter().copied().collect(),
        });
        graph.node_mut(id).op = Op::Constant(Arc::new(value));
        graph.inputs.retain(|input| *input != id);
    }
    Ok(frozen)
}

/// The value that an input has in all samples.
fn common_value(name: &str, shape: &[usize], arrays: &Arrays) -> Result<Tensor> {
    let array = arrays.iter().find(|(n, _)| n == name).map(|(_, a)| a);
    let unknown = || {
        CompileError::Data(format!(
            "--freeze {name}: the calibration data have no `{name}`; give --freeze {name}=VALUE"
        ))
    };
    let array = array.ok_or_else(unknown)?;
    let first = npz::sample(&[(name.to_owned(), array.clone())], 0)?.remove(0).1;
    let differs =
        |sample: &ndarray::ArrayViewD<'_, f64>| sample.iter().zip(&first).any(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = array.outer_iter().position(|sample| differs(&sample)) {
        return Err(CompileError::Data(format!(
            "--freeze {name}: sample {i} of the calibration data differs from sample 0, so it is no constant; leave it private, \
             or give --freeze {name}=VALUE"
        )));
    }
    let values = first.iter().copied().collect();
    ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|_| {
        CompileError::Data(format!(
            "--freeze {name}: its samples have shape {:?}, the model takes {shape:?}",
            first.shape()
        ))
    })
}
