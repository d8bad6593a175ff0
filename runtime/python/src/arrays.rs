//! numpy arrays → the values that a model takes, and back.

use ndarray::{ArrayD, Axis, concatenate, stack};
use numpy::{PyArrayDyn, PyArrayMethods, ToPyArray};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use thex::error::CompileError;
use thex_circuit::ClientBundle;
use thex_runtime::client::Named;
use thex_runtime::labels;

use crate::errors::{raise, unfit};

/// Numbers of any type, anything that `numpy.asarray` takes, as float64.
pub(crate) fn array(name: &str, value: &Bound<'_, PyAny>) -> PyResult<ArrayD<f64>> {
    let py = value.py();
    let numpy = py.import("numpy")?;
    let refuse = |why: String| unfit(format!("`{name}` is no array of numbers: {why}"));
    let found = numpy.call_method1("asarray", (value,)).map_err(|e| refuse(e.to_string()))?;
    let kind: String = found.getattr("dtype")?.getattr("kind")?.extract()?;
    if !"biuf".contains(&kind) {
        return Err(refuse(format!("its dtype is {}", found.getattr("dtype")?)));
    }
    let wide = numpy.call_method1("asarray", (found, "float64"))?;
    let read = wide.cast::<PyArrayDyn<f64>>().map_err(|e| refuse(e.to_string()))?.try_readonly();
    Ok(read.map_err(|e| refuse(e.to_string()))?.as_array().to_owned())
}

/// A dictionary of arrays.
pub(crate) fn named(values: &Bound<'_, PyDict>) -> PyResult<Vec<Named>> {
    let pair = |(name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
        let name: String = name.extract().map_err(|_| unfit("names of inputs are strings"))?;
        let value = array(&name, &value)?;
        Ok((name, value))
    };
    values.iter().map(pair).collect()
}

/// The inputs of a model and their shapes; public ones can be given, and need not.
fn taken(bundle: &ClientBundle) -> String {
    let list: Vec<String> = bundle.prologue.inputs.iter().map(|(name, shape)| format!("`{name}` {shape:?}")).collect();
    list.join(", ")
}

/// What to encrypt or simulate: one array for a model of one input, a dictionary, or keywords.
pub(crate) fn inputs(
    bundle: &ClientBundle,
    x: Option<&Bound<'_, PyAny>>,
    keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<Vec<Named>> {
    let mut values = keywords.map(named).transpose()?.unwrap_or_default();
    match (x, bundle.prologue.inputs.as_slice()) {
        (None, _) => {}
        (Some(_), _) if !values.is_empty() => {
            return Err(unfit("give an array, a dictionary or keywords, not several"));
        }
        (Some(x), own) => match (x.cast::<PyDict>(), own) {
            (Ok(dictionary), _) => values = named(dictionary)?,
            (Err(_), _) if x.is_instance_of::<PyString>() => return Err(unfit("a text is given as text=\"…\"")),
            (Err(_), [(name, _)]) => values = vec![(name.clone(), array(name, x)?)],
            (Err(_), _) => {
                let reason =
                    format!("the model takes several inputs, {}: give a dictionary or keywords", taken(bundle));
                return Err(unfit(reason));
            }
        },
    }
    let known = |name: &str| {
        bundle.prologue.inputs.iter().any(|(n, _)| n == name) || bundle.interface.frozen.iter().any(|f| f.name == name)
    };
    match values.iter().find(|(name, _)| !known(name)) {
        Some((name, _)) => Err(unfit(format!("there is no input `{name}`; the model takes {}", taken(bundle)))),
        None => Ok(values),
    }
}

/// Samples of a batch, or the one sample and `None`.
pub(crate) struct Batch {
    /// Each sample.
    pub(crate) samples: Vec<Vec<Named>>,
    /// Whether the first axis counted them.
    pub(crate) many: bool,
}

/// How many samples an array has in front of the shape that the model takes; `None` if it is a single one, or does not fit.
fn samples(array: &ArrayD<f64>, shape: &[usize]) -> Option<usize> {
    let (&count, rest) = array.shape().split_first()?;
    let one = shape.first() == Some(&1) && shape.len() > 1;
    (rest == shape || (one && rest == &shape[1..] && count != 1)).then_some(count)
}

/// Takes a batch apart where every input has one more axis than the model's, or more than one row where the model's has one.
pub(crate) fn batch(bundle: &ClientBundle, values: Vec<Named>) -> Batch {
    let shape = |name: &str| bundle.prologue.inputs.iter().find(|(n, _)| n == name).map(|(_, shape)| shape);
    let counts: Option<Vec<usize>> = values.iter().map(|(name, value)| samples(value, shape(name)?)).collect();
    let count = counts.filter(|c| c.windows(2).all(|w| w[0] == w[1])).and_then(|c| c.first().copied());
    let Some(count) = count else { return Batch { samples: vec![values], many: false } };
    let pick = |i| values.iter().map(|(name, v)| (name.clone(), v.index_axis(Axis(0), i).to_owned())).collect();
    Batch { samples: (0..count).map(pick).collect(), many: true }
}

/// Outputs of all samples, along the first axis: the outputs' own where that is 1.
pub(crate) fn join(outputs: Vec<Vec<Named>>) -> Result<Vec<Named>, CompileError> {
    let names: Vec<String> = outputs.first().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    let one = |(i, name): (usize, String)| {
        let views: Vec<_> = outputs.iter().filter_map(|o| o.get(i)).map(|(_, value)| value.view()).collect();
        let own = views.first().is_some_and(|v| v.ndim() > 1 && v.shape()[0] == 1);
        let joined = if own { concatenate(Axis(0), &views) } else { stack(Axis(0), &views) };
        joined.map(|value| (name, value)).map_err(|e| CompileError::Internal(e.to_string()))
    };
    names.into_iter().enumerate().map(one).collect()
}

/// A number, to be set on a result.
pub(crate) type Remarks = Vec<(&'static str, u64)>;

/// `thex.Result`: a dictionary of outputs, with the names of classes.
pub(crate) fn result<'py>(
    py: Python<'py>,
    bundle: &ClientBundle,
    outputs: &[Named],
    rounded: bool,
    remarks: &Remarks,
) -> PyResult<Bound<'py, PyAny>> {
    let arrays = PyDict::new(py);
    for (name, value) in outputs {
        let array: Bound<'py, PyArrayDyn<f64>> = value.to_pyarray(py);
        arrays.set_item(name, array)?;
    }
    let classified = labels::classify(&bundle.interface.labels, outputs);
    let label = classified.map(|c| c.rows.iter().filter_map(|r| r.first()).map(|(l, _)| *l).collect::<Vec<_>>());
    let details = PyDict::new(py);
    remarks.iter().try_for_each(|(name, value)| details.set_item(name, value))?;
    details.set_item("rounded", rounded)?;
    details.set_item("labels", label)?;
    py.import("thex._results")?.getattr("Result")?.call((arrays,), Some(&details))
}

/// An `.npz` of calibration data.
pub(crate) fn write_npz(path: &std::path::Path, arrays: &[Named]) -> PyResult<()> {
    let refuse = |e: String| raise(CompileError::Internal(format!("cannot write calibration data: {e}")));
    let file = std::fs::File::create(path).map_err(|e| refuse(e.to_string()))?;
    let mut writer = ndarray_npy::NpzWriter::new(std::io::BufWriter::new(file));
    for (name, array) in arrays {
        writer.add_array(name.as_str(), array).map_err(|e| refuse(e.to_string()))?;
    }
    writer.finish().map(drop).map_err(|e| refuse(e.to_string()))
}
