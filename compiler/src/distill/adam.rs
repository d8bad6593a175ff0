//! Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019), with its state open, so that a
//! checkpoint can hold it. (candle-nn's keeps its moments to itself.)

use candle_core::{DType, Tensor as Candle};

use super::parameters::{Parameter, Role};
use crate::error::Result;

const BETA: (f64, f64) = (0.9, 0.99);
const EPSILON: f64 = 1e-8;
/// Largest norm of all gradients together.
const CLIP: f64 = 2.0;

/// The optimiser.
#[derive(Clone)]
pub(super) struct Adam {
    /// Means of gradients.
    pub(super) first: Vec<Candle>,
    /// Means of squared gradients.
    pub(super) second: Vec<Candle>,
    /// Steps done.
    pub(super) steps: u32,
    /// Weight decay, of matrices only.
    decay: f64,
}

impl Adam {
    pub(super) fn new(parameters: &[Parameter], decay: f64) -> Result<Self> {
        let zeros = || parameters.iter().map(|p| Ok(p.var.as_tensor().zeros_like()?)).collect::<Result<Vec<_>>>();
        Ok(Self { first: zeros()?, second: zeros()?, steps: 0, decay })
    }

    /// One step against the gradients.
    pub(super) fn step(&mut self, parameters: &[Parameter], gradients: &[Candle], rate: f64) -> Result<()> {
        self.steps += 1;
        let scale = clip(gradients)?;
        let exponent = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let unbias = |beta: f64| 1.0 / (1.0 - beta.powi(exponent));
        for (i, parameter) in parameters.iter().enumerate() {
            let gradient = (parameter.tied(gradients[i].clone())? * scale)?;
            self.first[i] = ((&self.first[i] * BETA.0)? + (&gradient * (1.0 - BETA.0))?)?.detach();
            self.second[i] = ((&self.second[i] * BETA.1)? + (gradient.sqr()? * (1.0 - BETA.1))?)?.detach();
            let spread = ((&self.second[i] * unbias(BETA.1))?.sqrt()? + EPSILON)?;
            let towards = ((&self.first[i] * unbias(BETA.0))? / spread)?;
            let decay = if parameter.role == Role::Weight { self.decay } else { 0.0 };
            let value = parameter.var.as_tensor().detach();
            let kept = (&value * (1.0 - rate * decay))?;
            parameter.var.set(&(kept - (towards * rate)?)?)?;
        }
        Ok(())
    }
}

/// The factor that brings the norm of all gradients to at most [`CLIP`].
fn clip(gradients: &[Candle]) -> Result<f64> {
    let mut square = 0.0;
    for gradient in gradients {
        square += gradient.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    }
    let norm = square.sqrt();
    Ok(if norm > CLIP { CLIP / norm } else { 1.0 })
}
