//! Files of ciphertexts: inputs (fresh, seeded) and outputs (full).

use std::path::Path;

use serde::{Deserialize, Serialize};
use tfhe::core_crypto::prelude::*;
use thex_circuit::Parameters;

use crate::checkpoint::digest_words;
use crate::container::{contradiction, read, write, wrong_size};
use crate::error::Result;
use crate::keys::seed_from_hex;

const INPUTS: &str = "encrypted input";
const OUTPUTS: &str = "encrypted output";

/// What a file of ciphertexts says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiphertextInfo {
    /// Identity of the key that it is encrypted under.
    pub key: String,
    /// Digest of the circuit that it is for.
    pub circuit: String,
    /// Name and number of elements of each tensor, in order.
    pub ports: Vec<(String, usize)>,
}

impl CiphertextInfo {
    /// Number of ciphertexts.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ports.iter().map(|(_, n)| n).sum()
    }

    fn checked_count(&self, words: usize) -> Option<usize> {
        let count = self.ports.iter().try_fold(0_usize, |sum, (_, n)| sum.checked_add(*n))?;
        (count <= words).then_some(count)
    }
}

/// Fresh ciphertexts: a public seed for the masks, and the bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedInputs {
    /// Origin and shape.
    pub info: CiphertextInfo,
    pub(crate) seed: String,
    pub(crate) bodies: Vec<u64>,
}

/// Results: whole LWE ciphertexts under the big key, one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedOutputs {
    /// Origin and shape.
    pub info: CiphertextInfo,
    /// `info.count()` ciphertexts of k·N + 1 words.
    pub lwes: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct InputBody {
    info: CiphertextInfo,
    seed: String,
}

impl EncryptedInputs {
    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let body = InputBody { info: self.info.clone(), seed: self.seed.clone() };
        write(path, INPUTS, &body, &[&self.bodies], false)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file is missing, truncated, altered, or not an encrypted input.
    pub fn load(path: &Path) -> Result<Self> {
        let (body, bodies): (InputBody, Vec<u64>) = read(path, INPUTS)?;
        let count = body.info.checked_count(bodies.len());
        if count != Some(bodies.len()) {
            return Err(wrong_size(path, INPUTS, count.unwrap_or(usize::MAX), bodies.len()));
        }
        if seed_from_hex(&body.seed).is_none() {
            return Err(contradiction(path, INPUTS, "its seed is damaged: encrypt again"));
        }
        Ok(Self { info: body.info, seed: body.seed, bodies })
    }

    /// Digest of seed and bodies, for the identity of a run.
    #[must_use]
    pub fn digest(&self) -> String {
        digest_words(self.seed.as_bytes(), [self.bodies.as_slice()])
    }

    /// The whole ciphertexts, one after another, k·N + 1 words each.
    ///
    /// # Errors
    /// The seed is none.
    pub fn expand(&self, parameters: &Parameters) -> Result<Vec<u64>> {
        let seed = seed_from_hex(&self.seed)
            .ok_or_else(|| crate::RuntimeError::Input("the encrypted input has no valid seed".into()))?;
        if self.bodies.is_empty() {
            return Ok(Vec::new());
        }
        let list = SeededLweCiphertextList::from_container(
            self.bodies.clone(),
            parameters.big_lwe_dimension().to_lwe_size(),
            seed,
            parameters.ciphertext_modulus(),
        );
        Ok(list.par_decompress_into_lwe_ciphertext_list().into_container())
    }
}

impl EncryptedOutputs {
    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        write(path, OUTPUTS, &self.info, &[&self.lwes], false)
    }

    /// Reads a file of ciphertexts under keys of these parameters.
    ///
    /// # Errors
    /// The file is missing, truncated, altered, or not an encrypted output.
    pub fn load(path: &Path, parameters: &Parameters) -> Result<Self> {
        let (info, lwes): (CiphertextInfo, Vec<u64>) = read(path, OUTPUTS)?;
        let words = info.checked_count(lwes.len()).and_then(|n| n.checked_mul(parameters.big_lwe_size()));
        if words != Some(lwes.len()) {
            return Err(wrong_size(path, OUTPUTS, words.unwrap_or(usize::MAX), lwes.len()));
        }
        Ok(Self { info, lwes })
    }
}
