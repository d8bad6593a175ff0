//! The backend that runs on an NVIDIA GPU (feature `cuda`).
//!
//! * [`device`]: the GPU, its memory, errors;
//! * [`operations`]: the five kernels on addresses in that memory, tfhe's where it has them;
//! * [`rotations`]: blind rotations, by tfhe's kernels or by ours in `rotate.cu`;
//! * [`resident`]: a whole run with its memories on the GPU;
//! * `kernels.cu`: what tfhe's library has no kernel for.
//!
//! Circuit, keys and ciphertexts are those of the processor. Keyswitches, packs and linear maps give the same bits; blind
//! rotations differ by the rounding of their FFTs, which is part of the noise model. The crate of CUDA kernels is used
//! without tfhe's feature `gpu`: its wrappers allocate at each call and have no encrypted accumulators.

mod device;
mod operations;
mod resident;
mod rotations;
mod times;

use std::sync::{Mutex, PoisonError};

use thex_circuit::instruction::Linear;
use thex_circuit::{Circuit, Parameters};

use crate::error::Result;
use crate::executor::{Backend, Ciphertext, Done, ExternalProducts, Liveness, LookUps, Products};
use crate::keys::ServerKey;
use crate::progress::Progress;
use device::{Buffer, Stream};
use operations::{Layout, Operations, Tables, WORD};
use rotations::RotationKernel;
pub use times::Times;

/// The backend that runs on a GPU.
pub struct CudaBackend {
    /// Whoever launches kernels holds it: tfhe's working memory serves one batch at a time.
    operations: Mutex<Operations>,
    parameters: Parameters,
    name: String,
    times: Times,
}

impl CudaBackend {
    /// Takes the first GPU, and copies the expanded key there.
    ///
    /// # Errors
    /// There is no GPU, or it is too old or too small.
    pub fn new(key: ServerKey) -> Result<Self> {
        Self::open(key, RotationKernel::best)
    }

    /// The same, with a given kernel for blind rotations, which serves the parameters of the key.
    ///
    /// # Errors
    /// There is no GPU, or it is too old or too small.
    #[cfg(test)]
    fn with_kernel(key: ServerKey, kernel: RotationKernel) -> Result<Self> {
        Self::open(key, |_| Ok(kernel))
    }

    fn open(key: ServerKey, kernel: impl Fn(&Parameters) -> Result<RotationKernel>) -> Result<Self> {
        let stream = Stream::open()?;
        let kernel = kernel(&key.info.parameters)?;
        let key = key.into_standard();
        let operations = Operations::new(&stream, &key, kernel)?;
        let (parameters, name) = (key.info.parameters, stream.description().name.clone());
        Ok(Self { operations: Mutex::new(operations), parameters, name, times: Times::default() })
    }

    /// Times of all runs so far.
    #[must_use]
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// Gives `work` the operations and room for `out` on the GPU, and copies what it wrote there into `out`.
    fn on_host(&self, out: &mut [u64], work: impl FnOnce(&Operations, &Buffer) -> Result<()>) -> Result<()> {
        let operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        let result = operations.stream().allocate(size_of_val(out))?;
        work(&operations, &result)?;
        result.read(0, out)
    }
}

/// Ciphertexts copied to the GPU side by side, and the address of each.
struct Uploaded {
    _words: Buffer,
    addresses: Vec<u64>,
}

impl Uploaded {
    fn new(operations: &Operations, ciphertexts: &[Option<Ciphertext<'_>>]) -> Result<Self> {
        let present: Vec<&[u64]> = ciphertexts.iter().filter_map(|c| *c).collect();
        let words = operations.stream().upload(&present.concat())?;
        let mut next = 0;
        let addresses = ciphertexts
            .iter()
            .map(|ciphertext| {
                let Some(ciphertext) = ciphertext else { return 0 };
                next += size_of_val(*ciphertext);
                words.at(next - size_of_val(*ciphertext))
            })
            .collect();
        Ok(Self { _words: words, addresses })
    }

    fn all(operations: &Operations, ciphertexts: &[Ciphertext<'_>]) -> Result<Self> {
        Self::new(operations, &ciphertexts.iter().map(|c| Some(*c)).collect::<Vec<_>>())
    }
}

impl Backend for CudaBackend {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn keyswitch(&self, inputs: &[Ciphertext<'_>], out: &mut [u64]) -> Result<()> {
        self.on_host(out, |operations, out| {
            let inputs = Uploaded::all(operations, inputs)?;
            operations.keyswitch(&inputs.addresses, out.at(0))
        })
    }

    fn largest_extension(&self) -> u32 {
        0
    }

    fn has_external_products(&self) -> bool {
        false
    }

    fn external_product(&self, _: &ExternalProducts<'_>, _: &mut [u64], _: Done<'_>) -> Result<()> {
        Err(resident::no_external_products())
    }

    fn pbs(&self, look_ups: &LookUps<'_>, out: &mut [u64], done: Done<'_>) -> Result<()> {
        self.on_host(out, |operations, out| {
            let arguments = Uploaded::all(operations, &look_ups.arguments)?;
            let table_of: Vec<u32> = (0..look_ups.tables.len() as u32).collect();
            let entries = operations.stream().upload(&look_ups.tables.concat())?;
            let tables = Tables { entries, table_of: &table_of };
            operations.pbs(&arguments.addresses, &tables, out.at(0), done)
        })
    }

    fn pack(&self, inputs: &[Option<Ciphertext<'_>>], slots: usize, stride: usize, out: &mut [u64]) -> Result<()> {
        self.on_host(out, |operations, out| {
            let inputs = Uploaded::new(operations, inputs)?;
            operations.pack(&inputs.addresses, slots, stride, out.at(0))
        })
    }

    fn lut_product(&self, products: &Products<'_>, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let x = products.instruction;
        let (slots, stride) = (x.slots as usize, x.stride as usize);
        let mut as_written = vec![0; out.len()];
        self.on_host(&mut as_written, |operations, out| {
            let arguments = Uploaded::all(operations, &products.arguments)?;
            let glwes = Uploaded::all(operations, &products.accumulators)?;
            let tables = Tables { entries: operations.stream().upload(&x.tables)?, table_of: &x.table_of };
            let operands = (arguments.addresses.as_slice(), glwes.addresses.as_slice());
            operations.lut_product(operands, &tables, (slots, stride), out.at(0), done)
        })?;
        let layout = Layout::of_products(products.arguments.len(), slots, &self.parameters);
        let size = self.parameters.big_lwe_size();
        for (element, out) in out.chunks_exact_mut(size).enumerate() {
            let start = layout.position(element) * size;
            out.copy_from_slice(&as_written[start..start + size]);
        }
        Ok(())
    }

    fn linear(&self, linear: &Linear, gather: &[Option<Ciphertext<'_>>], out: &mut [u64]) -> Result<()> {
        self.on_host(out, |operations, out| {
            let operands = Uploaded::new(operations, gather)?;
            operations.linear(linear, &operands.addresses, out.at(0))
        })
    }

    fn summary(&self) -> Option<String> {
        Some(format!("{}: {}", self.name, self.times))
    }

    fn run_resident(
        &self,
        circuit: &Circuit,
        liveness: &Liveness,
        inputs: &[u64],
        progress: &dyn Progress,
    ) -> Result<Option<Vec<u64>>> {
        let operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        resident::run(&operations, (circuit, liveness), inputs, progress, &self.times).map(Some)
    }
}

// `WORD` ties sizes in bytes to words of 64 bits.
const _: () = assert!(WORD == size_of::<u64>());

#[cfg(test)]
mod tests;
