//! One inference in memory, for programs that hold circuit, keys and ciphertexts themselves: a binding, a test.
//!
//! The commands do the same on files, and name them in their errors.

use thex_circuit::Circuit;

use crate::ciphertext::{CiphertextInfo, EncryptedInputs, EncryptedOutputs};
use crate::error::{Result, RuntimeError};
use crate::executor::{Backend, Executor};
use crate::keys::{KeyInfo, same_circuit, same_key};
use crate::run::{Run, RunOptions};

/// A circuit and its digest.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The circuit.
    pub circuit: &'a Circuit,
    /// SHA-256 of its file.
    pub digest: &'a str,
    /// What is encrypted.
    pub input: &'a EncryptedInputs,
}

/// What circuit, server key and input are called where no file has them.
const NAMES: [&str; 3] = ["the circuit", "the server key", "the encrypted input"];

/// Checks that circuit, server key and input, which are called `names`, belong together; what the outputs will belong to.
///
/// # Errors
/// [`RuntimeError::Mismatch`] or [`RuntimeError::Input`]: they do not, and what to do.
pub(crate) fn belong(
    names: [&str; 3],
    circuit: &Circuit,
    digest: &str,
    key: &KeyInfo,
    input: &CiphertextInfo,
) -> Result<CiphertextInfo> {
    let [named_circuit, named_key, named_input] = names;
    let advice = "use the circuit that the keys were generated for, or generate keys for this one";
    same_circuit(named_circuit, digest, named_key, &key.circuit, advice)?;
    let advice = "encrypt the input again, with the bundle of this circuit";
    same_circuit(named_circuit, digest, named_input, &input.circuit, advice)?;
    let advice = "use the server key that goes with the client key of the input";
    same_key(named_input, &input.key, named_key, &key.id, advice)?;
    let ports: Vec<(String, usize)> = circuit.inputs.iter().map(|(n, block)| (n.clone(), block.len as usize)).collect();
    if input.ports != ports {
        return Err(RuntimeError::Input(format!("the input has {:?} where the circuit takes {ports:?}", input.ports)));
    }
    let ports = circuit.outputs.iter().map(|(name, addresses)| (name.clone(), addresses.len())).collect();
    Ok(CiphertextInfo { key: key.id.clone(), circuit: digest.to_owned(), ports })
}

impl Job<'_> {
    /// Checks that circuit, server key and input belong together.
    ///
    /// # Errors
    /// [`RuntimeError::Mismatch`] or [`RuntimeError::Input`]: they do not, and what to do.
    pub fn check(&self, key: &KeyInfo) -> Result<()> {
        belong(NAMES, self.circuit, self.digest, key, &self.input.info).map(drop)
    }

    /// Runs it on the threads of the current rayon pool; `key` says what the backend's keys are. A checkpoint is removed after success.
    ///
    /// # Errors
    /// As [`check`](Self::check) and [`Run::complete`].
    pub fn run(&self, backend: &dyn Backend, key: &KeyInfo, options: RunOptions<'_>) -> Result<EncryptedOutputs> {
        let info = belong(NAMES, self.circuit, self.digest, key, &self.input.info)?;
        let executor = Executor::new(self.circuit, backend)?;
        let mut run = Run::new(&executor, &self.input.expand(&self.circuit.parameters)?, options)?;
        let lwes = run.complete()?;
        run.discard_checkpoint()?;
        Ok(EncryptedOutputs { info, lwes })
    }
}
