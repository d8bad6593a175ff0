//! tract's own run of the model in single precision: what imports are checked against, and the float
//! reference of evaluations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::ArrayD;
use tract_onnx::prelude::{
    DatumType, IntoRunnable, IntoTValue, IntoTensor, TValue, Tensor, TractResult, TypedRunnableModel, tvec,
};

use super::error::{ImportError, Result};
use super::load::{InputInfo, Loaded, guard};

/// The model as tract runs it. Cheap to clone, and usable from several threads.
#[derive(Clone, Debug)]
pub struct Reference {
    path: PathBuf,
    plan: Arc<TypedRunnableModel>,
    inputs: Vec<(InputInfo, DatumType)>,
    outputs: Vec<String>,
}

impl Reference {
    pub(super) fn new(path: &Path, loaded: &Loaded) -> Result<Self> {
        let plan = guard(path, || loaded.model.clone().into_optimized()?.into_runnable())?;
        let dtype = |i: usize| loaded.model.input_fact(i).map(|f| f.datum_type);
        let inputs = loaded.inputs.iter().enumerate();
        let inputs = guard(path, || inputs.map(|(i, info)| Ok((info.clone(), dtype(i)?))).collect())?;
        Ok(Self { path: path.to_owned(), plan, inputs, outputs: loaded.outputs.clone() })
    }

    /// Names of the inputs in order.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|(info, _)| info.name.as_str())
    }

    /// Runs the model on inputs given by name, in any order.
    ///
    /// # Errors
    /// [`ImportError::BadShape`] when an input is missing, and [`ImportError::Analysis`] when tract cannot run
    /// the model on these inputs.
    pub fn run<S: AsRef<str>>(&self, inputs: &[(S, ArrayD<f64>)]) -> Result<Vec<(String, ArrayD<f64>)>> {
        let mut values = tvec!();
        for (info, dtype) in &self.inputs {
            let value = inputs.iter().find(|(name, _)| name.as_ref() == info.name);
            let (_, value) = value.ok_or_else(|| ImportError::BadShape {
                input: info.name.clone(),
                given: Vec::new(),
                reason: "no value was given for it".into(),
            })?;
            values.push(guard(&self.path, || to_tract(value, *dtype))?);
        }
        let results = guard(&self.path, || {
            self.plan.run(values)?.iter().map(|v| from_tract(v)).collect::<TractResult<Vec<_>>>()
        })?;
        Ok(self.outputs.iter().cloned().zip(results).collect())
    }
}

fn to_tract(value: &ArrayD<f64>, dtype: DatumType) -> TractResult<TValue> {
    let value = value.as_standard_layout().into_owned();
    if dtype == DatumType::Bool {
        return Ok(value.mapv(|v| v != 0.0).into_tensor().into_tvalue());
    }
    Ok(value.into_tensor().cast_to_dt(dtype)?.into_owned().into_tvalue())
}

fn from_tract(value: &Tensor) -> TractResult<ArrayD<f64>> {
    Ok(value.cast_to::<f64>()?.to_plain_array_view::<f64>()?.to_owned())
}
