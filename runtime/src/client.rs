//! The client's side: values → phases → ciphertexts, and back.
//!
//! [`encode`] and [`decode`] need no key, so that a simulation takes the very same path as an encryption.

use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use rayon::prelude::*;
use tfhe::core_crypto::commons::math::random::Seed;
use tfhe::core_crypto::prelude::*;
use thex_circuit::clear::ClearGraph;
use thex_circuit::{ClientBundle, Port};

use crate::ciphertext::{CiphertextInfo, EncryptedInputs, EncryptedOutputs};
use crate::error::{Result, RuntimeError};
use crate::keys::{ClientKey, big_noise, same_circuit, same_key, seed_to_hex};

/// A tensor and its name.
pub type Named = (String, ArrayD<f64>);

/// The phases of the encrypted inputs, in the order of the bundle's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// One phase for each element of each port, in units of 2^-64.
    pub phases: Vec<u64>,
    /// Elements that lay outside the calibrated range and were clamped to it, by port.
    pub clamped: Vec<(String, usize)>,
}

impl Encoded {
    /// Elements that were clamped, in all.
    #[must_use]
    pub fn clamped_total(&self) -> usize {
        self.clamped.iter().map(|(_, n)| n).sum()
    }
}

/// How decrypted values are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the modelled precision: multiples of the largest power of two below the noise's standard deviation.
    ///
    /// A raw result shows its own error, and enough raw results determine the key; the rounding hides most
    /// of it, but is no proof.
    Modelled,
    /// Not at all: for the key's owner alone.
    Raw,
}

fn expected(graph: &ClearGraph) -> String {
    let list: Vec<String> = graph.inputs.iter().map(|(name, shape)| format!("`{name}` {shape:?}")).collect();
    list.join(", ")
}

fn pick(graph: &ClearGraph, name: &str, shape: &[usize], inputs: &[Named]) -> Result<Arc<ArrayD<f64>>> {
    let Some((_, value)) = inputs.iter().find(|(n, _)| n == name) else {
        let given: Vec<&str> = inputs.iter().map(|(n, _)| n.as_str()).collect();
        let reason = format!("input `{name}` is missing; the model takes {}, and there are {given:?}", expected(graph));
        return Err(RuntimeError::Input(reason));
    };
    let mut value = value.clone();
    if value.shape() != shape && value.len() == shape.iter().product::<usize>() {
        // A sample without its batch axis of 1, or with one.
        let flat: Vec<f64> = value.iter().copied().collect();
        value = ArrayD::from_shape_vec(IxDyn(shape), flat).map_err(|e| RuntimeError::Internal(e.to_string()))?;
    }
    if value.shape() != shape {
        let found = value.shape();
        let reason = format!("input `{name}` has shape {found:?}; the model was compiled for {shape:?}");
        return Err(RuntimeError::Input(reason));
    }
    if let Some(bad) = value.iter().find(|v| !v.is_finite()) {
        return Err(RuntimeError::Input(format!("input `{name}` contains {bad}")));
    }
    Ok(Arc::new(value))
}

fn encode_port(port: &Port, value: &ArrayD<f64>, phases: &mut Vec<u64>) -> Result<usize> {
    if value.len() != port.encodings.len() {
        let (found, wanted) = (value.len(), port.encodings.len());
        let reason = format!("the prologue gives {found} elements for `{}`, which has {wanted}", port.name);
        return Err(RuntimeError::Internal(reason));
    }
    let mut clamped = 0;
    for (i, (&v, encoding)) in value.iter().zip(&port.encodings).enumerate() {
        if !v.is_finite() {
            return Err(RuntimeError::Input(format!("the input makes element {i} of `{}` {v}", port.name)));
        }
        let (lo, hi) = port.ranges.get(i).copied().unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        clamped += usize::from(!(lo..=hi).contains(&v));
        phases.push(encoding.encode(v.max(lo).min(hi)));
    }
    Ok(clamped)
}

/// Refuses values of frozen inputs other than those that the circuit was compiled with.
fn check_frozen(bundle: &ClientBundle, inputs: &[Named]) -> Result<()> {
    for frozen in &bundle.interface.frozen {
        let Some((_, value)) = inputs.iter().find(|(name, _)| *name == frozen.name) else { continue };
        let same = value.len() == frozen.values.len()
            && value.iter().zip(&frozen.values).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1.0));
        if !same {
            return Err(RuntimeError::Input(format!(
                "`{}` was made public when the model was compiled, with another value than this input has; compile the model \
                 without --freeze {} to choose it at encryption",
                frozen.name, frozen.name
            )));
        }
    }
    Ok(())
}

/// Runs the clear prologue and encodes what is to be encrypted.
///
/// # Errors
/// An input is missing, or has another shape than the model was compiled for.
pub fn encode(bundle: &ClientBundle, inputs: &[Named]) -> Result<Encoded> {
    let graph = &bundle.prologue;
    check_frozen(bundle, inputs)?;
    let values =
        graph.inputs.iter().map(|(name, shape)| pick(graph, name, shape, inputs)).collect::<Result<Vec<_>>>()?;
    let outputs = graph.run(&values)?;
    if outputs.len() != bundle.inputs.len() {
        return Err(RuntimeError::Internal("the bundle's prologue does not match its ports".into()));
    }
    let mut phases = Vec::new();
    let mut clamped = Vec::new();
    for (port, value) in bundle.inputs.iter().zip(&outputs) {
        clamped.push((port.name.clone(), encode_port(port, value, &mut phases)?));
    }
    Ok(Encoded { phases, clamped })
}

fn round(value: f64, noise: f64) -> f64 {
    if noise <= 0.0 || !noise.is_finite() {
        return value;
    }
    let step = noise.log2().floor().exp2();
    (value / step).round() * step
}

fn decode_port(port: &Port, phases: &[u64], rounding: Rounding) -> Result<ArrayD<f64>> {
    let values = phases.iter().zip(&port.encodings).enumerate().map(|(i, (&phase, encoding))| {
        let value = encoding.decode(phase);
        match rounding {
            Rounding::Modelled => round(value, port.noise.get(i).copied().unwrap_or(0.0)),
            Rounding::Raw => value,
        }
    });
    ArrayD::from_shape_vec(IxDyn(&port.shape), values.collect()).map_err(|e| RuntimeError::Internal(e.to_string()))
}

/// Decodes the phases of the outputs, in the order of the bundle's ports, and runs the clear epilogue.
///
/// # Errors
/// There are not as many phases as the ports have elements.
pub fn decode(bundle: &ClientBundle, phases: &[u64], rounding: Rounding) -> Result<Vec<Named>> {
    let mut rest = phases;
    let mut values = Vec::new();
    for port in &bundle.outputs {
        let Some((mine, others)) = rest.split_at_checked(port.encodings.len()) else {
            return Err(RuntimeError::Input("the result has fewer elements than the bundle's outputs".into()));
        };
        rest = others;
        values.push(Arc::new(decode_port(port, mine, rounding)?));
    }
    if !rest.is_empty() {
        return Err(RuntimeError::Input("the result has more elements than the bundle's outputs".into()));
    }
    let results = bundle.epilogue.run(&values)?;
    let names = bundle.epilogue.outputs.iter().map(|(name, _)| name.clone());
    Ok(names.zip(results.iter().map(|v| (**v).clone())).collect())
}

/// Encrypts the inputs of one sample under the client's key, with fresh randomness.
///
/// # Errors
/// As [`encode`]; or the key was generated for another circuit.
pub fn encrypt(bundle: &ClientBundle, key: &ClientKey, inputs: &[Named]) -> Result<(EncryptedInputs, Encoded)> {
    let advice = "generate keys for this model";
    same_circuit("the client bundle", &bundle.circuit, "the client key", &key.info.circuit, advice)?;
    let encoded = encode(bundle, inputs)?;
    let mut seeder = new_seeder();
    let seed: Seed = seeder.seed();
    let mut list = SeededLweCiphertextList::from_container(
        vec![0; encoded.phases.len()],
        key.info.parameters.big_lwe_dimension().to_lwe_size(),
        seed.into(),
        key.info.parameters.ciphertext_modulus(),
    );
    let plaintexts = PlaintextList::from_container(encoded.phases.clone());
    let noise = big_noise(&key.info.parameters);
    par_encrypt_seeded_lwe_ciphertext_list(&key.big(), &mut list, &plaintexts, noise, seeder.as_mut());
    let ports = bundle.inputs.iter().map(|p| (p.name.clone(), p.encodings.len())).collect();
    let info = CiphertextInfo { key: key.info.id.clone(), circuit: bundle.circuit.clone(), ports };
    let inputs = EncryptedInputs { info, seed: seed_to_hex(seed), bodies: list.into_container() };
    Ok((inputs, encoded))
}

/// Phases of LWE ciphertexts under the client's big key.
#[must_use]
pub fn phases(key: &ClientKey, lwes: &[u64]) -> Vec<u64> {
    let modulus = key.info.parameters.ciphertext_modulus();
    let size = key.info.parameters.big_lwe_size();
    lwes.par_chunks_exact(size)
        .map(|lwe| decrypt_lwe_ciphertext(&key.big(), &LweCiphertext::from_container(lwe, modulus)).0)
        .collect()
}

/// Decrypts results, decodes them and runs the clear epilogue: the model's outputs by name.
///
/// # Errors
/// The result belongs to another key or circuit.
pub fn decrypt(
    bundle: &ClientBundle,
    key: &ClientKey,
    outputs: &EncryptedOutputs,
    rounding: Rounding,
) -> Result<Vec<Named>> {
    check_origin(bundle, key, outputs)?;
    decode(bundle, &phases(key, &outputs.lwes), rounding)
}

/// Refuses a result of another circuit or under another key.
pub(crate) fn check_origin(bundle: &ClientBundle, key: &ClientKey, outputs: &EncryptedOutputs) -> Result<()> {
    let advice = "decrypt with the bundle and key that the input was encrypted with";
    same_circuit("the client bundle", &bundle.circuit, "the result", &outputs.info.circuit, advice)?;
    same_key("the client key", &key.info.id, "the result", &outputs.info.key, advice)
}
