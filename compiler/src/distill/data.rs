//! Training data: what the server's part of the model reads, labels, and the split.

use std::path::Path;

use candle_core::{DType, Device, Tensor as Candle};
use thex_passes::Samples;
use thex_runtime::npz;

use super::random::Random;
use crate::error::{CompileError, Result};

/// Samples as the server's part reads them.
pub(super) struct Data {
    /// For each input, `[samples, shape…]`.
    inputs: Vec<Candle>,
    /// The class of each sample, where the data have labels.
    pub(super) labels: Option<Vec<u32>>,
    /// Samples to train on.
    pub(super) train: Vec<usize>,
    /// Samples that only decide when to stop.
    pub(super) held_out: Vec<usize>,
}

impl Data {
    /// Splits samples, each what the server's part reads.
    ///
    /// # Errors
    /// [`CompileError::Data`] when there are too few.
    pub(super) fn new(samples: &Samples, held_out: f64, seed: u64) -> Result<Self> {
        let count = samples.len();
        if count < 4 {
            return Err(CompileError::Data(format!(
                "there are {count} samples to train on; distillation needs at least 4, and some hundred to be of use"
            )));
        }
        let inputs = (0..samples[0].len()).map(|i| stacked(samples, i)).collect::<Result<_>>()?;
        let mut order = Random::new(seed, &[u64::MAX]).permutation(count);
        let aside = ((count as f64 * held_out).round() as usize).clamp(1, count - 1);
        let mut held_out = order.split_off(count - aside);
        held_out.sort_unstable();
        order.sort_unstable();
        Ok(Self { inputs, labels: None, train: order, held_out })
    }

    /// The inputs of some samples.
    pub(super) fn batch(&self, samples: &[usize], dtype: DType) -> Result<Vec<Candle>> {
        let indices: Vec<u32> = samples.iter().map(|&i| i as u32).collect();
        let indices = Candle::from_vec(indices, samples.len(), &Device::Cpu)?;
        self.inputs.iter().map(|input| Ok(input.index_select(&indices, 0)?.to_dtype(dtype)?)).collect()
    }
}

/// One input over all samples.
fn stacked(samples: &Samples, input: usize) -> Result<Candle> {
    let shape = samples[0][input].shape().to_vec();
    let flat: Vec<f32> = samples.iter().flat_map(|sample| sample[input].iter().map(|&v| v as f32)).collect();
    Ok(Candle::from_vec(flat, [&[samples.len()], shape.as_slice()].concat(), &Device::Cpu)?)
}

/// The array `label` of a data set, if it has one, checked against the number of classes.
///
/// # Errors
/// [`CompileError::Data`]: labels are no whole numbers, out of range, or more or fewer than samples.
pub(super) fn labels(path: &Path, samples: usize, classes: usize) -> Result<Option<Vec<u32>>> {
    if !npz::names(path)?.iter().any(|name| name == "label") {
        return Ok(None);
    }
    let arrays = npz::read(path, &["label"])?;
    let Some((_, array)) = arrays.first() else { return Ok(None) };
    let wrong = |what: String| CompileError::Data(format!("`{}`: {what}", path.display()));
    if array.len() != samples {
        return Err(wrong(format!(
            "`label` has shape {:?}, so {} labels for {samples} samples; give one for each sample",
            array.shape(),
            array.len()
        )));
    }
    let one = |(i, &label): (usize, &f64)| {
        let class = (0..classes).find(|&c| (label - c as f64).abs() < f64::EPSILON);
        class.map(|c| c as u32).ok_or_else(|| {
            wrong(format!(
                "the label of sample {i} is {label}, but the model has classes 0 to {}; correct the labels, or remove \
                 the array `label` to train on the teacher alone",
                classes.saturating_sub(1)
            ))
        })
    };
    array.iter().enumerate().map(one).collect::<Result<Vec<_>>>().map(Some)
}
