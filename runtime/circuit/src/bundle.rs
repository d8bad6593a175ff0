//! The client bundle: what the key's owner needs to encrypt inputs and read outputs, and nothing of the
//! encoder's weights.

use serde::{Deserialize, Serialize};

use crate::clear::ClearGraph;
use crate::clear::bounds::elements;
use crate::interface::Interface;
use crate::params::Parameters;

/// Affine encoding of one element: value = offset + scale·φ, with φ the phase in [-½, ½) of the torus.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Encoding {
    /// Value per whole turn of the torus (1/Δ).
    pub scale: f64,
    /// Value at phase 0.
    pub offset: f64,
}

impl Encoding {
    /// Value → phase in units of 2^-64. Values outside the torus wrap.
    #[must_use]
    pub fn encode(&self, value: f64) -> u64 {
        let turns = (value - self.offset) / self.scale;
        let fraction = turns - turns.round();
        // f64 → i64 saturates, so +½ exactly becomes i64::MAX: one unit off, never undefined.
        (fraction * crate::params::MODULUS_F64) as i64 as u64
    }

    /// Phase in units of 2^-64 → value.
    #[must_use]
    pub fn decode(&self, phase: u64) -> f64 {
        let fraction = phase as i64 as f64 / crate::params::MODULUS_F64;
        self.offset + self.scale * fraction
    }
}

/// One tensor that crosses the boundary between client and server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Name of the tensor.
    pub name: String,
    /// Shape, batch 1 included.
    pub shape: Vec<usize>,
    /// One encoding for each element (row-major).
    pub encodings: Vec<Encoding>,
    /// Legal values of each element at encryption (lo, hi): others are clamped and counted. Empty for outputs.
    pub ranges: Vec<(f64, f64)>,
    /// Modelled noise of each decrypted element, as a standard deviation in its own units. Empty for inputs.
    pub noise: Vec<f64>,
}

/// What a client needs of a compiled model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientBundle {
    /// Digest (SHA-256, hex) of the circuit that it belongs to.
    pub circuit: String,
    /// File name of the model.
    pub model: String,
    /// The parameters that keys are generated for.
    pub parameters: Parameters,
    /// Clear graph from the model's inputs to the values that get encrypted, one output for each of `inputs`.
    pub prologue: ClearGraph,
    /// What is encrypted.
    pub inputs: Vec<Port>,
    /// What is decrypted.
    pub outputs: Vec<Port>,
    /// Clear graph from the decrypted values to the model's outputs.
    pub epilogue: ClearGraph,
    /// Tokenizer, image normalisation and class names, where the compiler was given them.
    #[serde(default, skip_serializing_if = "Interface::is_empty")]
    pub interface: Interface,
}

impl Port {
    /// Checks that lists have one entry for each element, and that numbers are numbers.
    fn verify(&self) -> Result<(), String> {
        let count = self.encodings.len();
        if elements(&self.shape) != Some(count) {
            return Err(format!("port `{}` has not one encoding for each element", self.name));
        }
        let fits = |len: usize| len == 0 || len == count;
        if !fits(self.ranges.len()) || !fits(self.noise.len()) {
            return Err(format!("port `{}` has not one range or noise for each element", self.name));
        }
        let numbers = self.encodings.iter().all(|e| e.scale.is_finite() && e.offset.is_finite())
            && self.ranges.iter().all(|(lo, hi)| lo <= hi)
            && self.noise.iter().all(|&sd| sd >= 0.0 && sd.is_finite());
        if numbers { Ok(()) } else { Err(format!("port `{}` has impossible encodings, ranges or noise", self.name)) }
    }
}

impl ClientBundle {
    /// Checks everything that encryption and decryption rely on: sizes and work of the two graphs, that they fit the ports, and the
    /// ports themselves.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn verify(&self) -> Result<(), String> {
        self.interface.check(&self.prologue.inputs)?;
        self.inputs.iter().chain(&self.outputs).try_for_each(Port::verify)?;
        let given = self.prologue.verify()?;
        let taken: Vec<Vec<usize>> = self.epilogue.inputs.iter().map(|(_, shape)| shape.clone()).collect();
        self.epilogue.verify()?;
        let fit = |shapes: &[Vec<usize>], ports: &[Port]| {
            shapes.len() == ports.len() && shapes.iter().zip(ports).all(|(s, p)| elements(s) == Some(p.encodings.len()))
        };
        if !fit(&given, &self.inputs) {
            return Err("what its prologue computes is not what is encrypted".into());
        }
        if !fit(&taken, &self.outputs) {
            return Err("what its epilogue takes is not what is decrypted".into());
        }
        Ok(())
    }
}
