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

impl Job<'_> {
    /// Checks that circuit, server key and input belong together.
    ///
    /// # Errors
    /// [`RuntimeError::Mismatch`] or [`RuntimeError::Input`]: they do not, and what to do.
    pub fn check(&self, key: &KeyInfo) -> Result<()> {
        let advice = "use the circuit that the keys were generated for, or generate keys for this one";
        same_circuit("the circuit", self.digest, "the server key", &key.circuit, advice)?;
        let info = &self.input.info;
        let advice = "encrypt the input again, with the bundle of this circuit";
        same_circuit("the circuit", self.digest, "the encrypted input", &info.circuit, advice)?;
        let advice = "use the server key that goes with the client key of the input";
        same_key("the encrypted input", &info.key, "the server key", &key.id, advice)?;
        let ports: Vec<(String, usize)> =
            self.circuit.inputs.iter().map(|(name, block)| (name.clone(), block.len as usize)).collect();
        if info.ports == ports {
            return Ok(());
        }
        Err(RuntimeError::Input(format!("the input has {:?} where the circuit takes {ports:?}", info.ports)))
    }

    /// Runs it on the threads of the current rayon pool; `key` says what the backend's keys are. A checkpoint is removed after success.
    ///
    /// # Errors
    /// As [`check`](Self::check) and [`Run::complete`].
    pub fn run(&self, backend: &dyn Backend, key: &KeyInfo, options: RunOptions<'_>) -> Result<EncryptedOutputs> {
        self.check(key)?;
        let executor = Executor::new(self.circuit, backend)?;
        let mut run = Run::new(&executor, &self.input.expand(&self.circuit.parameters)?, options)?;
        let lwes = run.complete()?;
        run.discard_checkpoint()?;
        let ports = self.circuit.outputs.iter().map(|(name, addresses)| (name.clone(), addresses.len())).collect();
        let info = CiphertextInfo { key: key.id.clone(), circuit: self.digest.to_owned(), ports };
        Ok(EncryptedOutputs { info, lwes })
    }
}
