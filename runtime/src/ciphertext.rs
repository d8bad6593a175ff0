//! Files of ciphertexts: inputs (fresh, seeded) and outputs (full).

use std::path::Path;

use serde::{Deserialize, Serialize};
use tfhe::core_crypto::prelude::*;
use thex_circuit::Parameters;
use thex_circuit::file::IN_MEMORY;

use crate::checkpoint::digest_words;
use crate::container::{Body, Secrecy, contradiction, from_bytes, read, to_bytes, write};
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

impl Body for CiphertextInfo {}

impl Body for InputBody {}

impl CiphertextInfo {
    /// Number of ciphertexts.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ports.iter().map(|(_, n)| n).sum()
    }

    /// Words of `count()` ciphertexts of `size` words, or a number that no file has.
    fn words(&self, size: usize) -> usize {
        let count = self.ports.iter().try_fold(0_usize, |sum, (_, n)| sum.checked_add(*n));
        count.and_then(|n| n.checked_mul(size)).unwrap_or(usize::MAX)
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

impl InputBody {
    /// Words of a file with this header; `path` is what errors call it.
    fn words(&self, path: &Path) -> Result<usize> {
        match seed_from_hex(&self.seed) {
            Some(_) => Ok(self.info.words(1)),
            None => Err(contradiction(path, INPUTS, "its seed is damaged: encrypt again")),
        }
    }
}

impl EncryptedInputs {
    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        write(path, INPUTS, &self.body(), &[&self.bodies], Secrecy::Public)
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// Only if its header cannot be represented.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(std::mem::take(&mut *to_bytes(INPUTS, &self.body(), &[&self.bodies])?))
    }

    fn body(&self) -> InputBody {
        InputBody { info: self.info.clone(), seed: self.seed.clone() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file is missing, truncated, altered, or not an encrypted input.
    pub fn load(path: &Path) -> Result<Self> {
        let (body, mut bodies) = read(path, INPUTS, Secrecy::Public, |body: &InputBody| body.words(path))?;
        Ok(Self { info: body.info, seed: body.seed, bodies: std::mem::take(&mut *bodies) })
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// They are truncated, altered, or no encrypted input.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (body, mut bodies) = from_bytes(bytes, INPUTS, |body: &InputBody| body.words(Path::new(IN_MEMORY)))?;
        Ok(Self { info: body.info, seed: body.seed, bodies: std::mem::take(&mut *bodies) })
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
        write(path, OUTPUTS, &self.info, &[&self.lwes], Secrecy::Public)
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// Only if its header cannot be represented.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(std::mem::take(&mut *to_bytes(OUTPUTS, &self.info, &[&self.lwes])?))
    }

    /// Reads the bytes of a file of ciphertexts under keys of these parameters.
    ///
    /// # Errors
    /// They are truncated, altered, or no encrypted output.
    pub fn from_bytes(bytes: &[u8], parameters: &Parameters) -> Result<Self> {
        let size = parameters.big_lwe_size();
        let (info, mut lwes) = from_bytes(bytes, OUTPUTS, |info: &CiphertextInfo| Ok(info.words(size)))?;
        Ok(Self { info, lwes: std::mem::take(&mut *lwes) })
    }

    /// Reads a file of ciphertexts under keys of these parameters.
    ///
    /// # Errors
    /// The file is missing, truncated, altered, or not an encrypted output.
    pub fn load(path: &Path, parameters: &Parameters) -> Result<Self> {
        let size = parameters.big_lwe_size();
        let (info, mut lwes) = read(path, OUTPUTS, Secrecy::Public, |info: &CiphertextInfo| Ok(info.words(size)))?;
        let lwes = std::mem::take(&mut *lwes);
        Ok(Self { info, lwes })
    }
}
