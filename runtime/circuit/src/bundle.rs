//! The client bundle: what the key's owner needs to encrypt inputs and read outputs, and nothing of the
//! encoder's weights.

use serde::{Deserialize, Serialize};

use crate::clear::ClearGraph;
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
