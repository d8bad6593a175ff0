//! Runs a circuit on ciphertexts. Needs no secret key, and prints nothing.
//!
//! Instructions run one after another; inside one, all threads of the current rayon pool work. Each block of
//! ciphertexts lives from the instruction that writes it to the last one that reads it. What goes around the instructions of a
//! run, stopping and resuming, is [`Run`].

use std::collections::BTreeMap;

use rayon::prelude::*;
use tfhe::core_crypto::prelude::Fft;
use thex_circuit::instruction::{ExternalProduct, Linear, LutProduct, MAX_EXTENSION, Pbs};
use thex_circuit::{Circuit, Instruction, Parameters, external};

use crate::error::{Result, RuntimeError};
use crate::kernels::external::{Multiplier, Sums};
use crate::kernels::linear::LinearMap;
use crate::kernels::rotate::{Degrees, Multipliers, Rotator, Shape, fill_table};
use crate::kernels::switch;
use crate::keys::ExpandedServerKey;
use crate::progress::Progress;
use crate::ranks::Exchange;
use crate::run::{Run, RunOptions};
pub use crate::state::Liveness;
use crate::state::{Memory, Space, State};

/// One ciphertext, as a slice of words.
pub type Ciphertext<'a> = &'a [u64];

/// What runs the six kernels, each on a whole batch. `out` has the batch's ciphertexts one after another.
///
/// The processor is one backend; a GPU is another (feature `cuda`); a [share](crate::ranks) of either is a third.
pub trait Backend: Sync {
    /// The parameters of its keys.
    fn parameters(&self) -> &Parameters;

    /// The largest ν of rotations that it runs.
    fn largest_extension(&self) -> u32 {
        MAX_EXTENSION
    }

    /// Whether it runs external products.
    fn has_external_products(&self) -> bool {
        true
    }

    /// Threads at work on a batch.
    fn threads(&self) -> usize {
        rayon::current_num_threads()
    }

    /// What it shares runs by with other processes; `None` if it works alone.
    fn exchange(&self) -> Option<&dyn Exchange> {
        None
    }

    /// Big LWEs → small LWEs.
    ///
    /// # Errors
    /// The device failed.
    fn keyswitch(&self, inputs: &[Ciphertext<'_>], out: &mut [u64]) -> Result<()>;

    /// Small LWEs → big LWEs, by look-ups.
    ///
    /// # Errors
    /// The device failed.
    fn pbs(&self, look_ups: &LookUps<'_>, out: &mut [u64], done: Done<'_>) -> Result<()>;

    /// Groups of `slots` big LWEs → GLWEs, LWE j of a group at X^{j·stride}.
    ///
    /// # Errors
    /// The device failed.
    fn pack(&self, inputs: &[Option<Ciphertext<'_>>], slots: usize, stride: usize, out: &mut [u64]) -> Result<()>;

    /// See [`LutProduct`]: rotates `glwe·table` by each argument, extracts `slots` samples.
    ///
    /// # Errors
    /// The device failed.
    fn lut_product(&self, products: &Products<'_>, out: &mut [u64], done: Done<'_>) -> Result<()>;

    /// See [`ExternalProduct`]: sums of GLWEs times what is looked up, `slots` samples of each.
    ///
    /// # Errors
    /// The device failed.
    fn external_product(&self, products: &ExternalProducts<'_>, out: &mut [u64], done: Done<'_>) -> Result<()>;

    /// See [`Linear`]; `gather` has its operands.
    ///
    /// # Errors
    /// The device failed.
    fn linear(&self, linear: &Linear, gather: &[Option<Ciphertext<'_>>], out: &mut [u64]) -> Result<()>;

    /// Runs a whole circuit by itself, with its memories where its kernels work; `None` leaves that to the executor.
    /// Inputs are checked, and outputs are those of [`Executor::run`].
    ///
    /// # Errors
    /// The device failed.
    fn run_resident(
        &self,
        _circuit: &Circuit,
        _liveness: &Liveness,
        _inputs: &[u64],
        _progress: &dyn Progress,
    ) -> Result<Option<Vec<u64>>> {
        Ok(None)
    }

    /// What ran, and where its time went, for people; `None` if it does not know.
    fn summary(&self) -> Option<String> {
        None
    }
}

/// Told how many more blind rotations are done.
pub type Done<'a> = &'a (dyn Fn(u64) + Sync);

/// A batch of [`Pbs`].
pub struct LookUps<'a> {
    /// Small LWEs.
    pub arguments: Vec<Ciphertext<'a>>,
    /// The table of each, of 2^ν·N entries in units of 2^-32.
    pub tables: Vec<&'a [i32]>,
    /// ν.
    pub extension: u32,
}

/// A batch of [`LutProduct`] rotations.
pub struct Products<'a> {
    /// Small LWEs, one for each rotation.
    pub arguments: Vec<Ciphertext<'a>>,
    /// GLWEs, one for each rotation.
    pub accumulators: Vec<Ciphertext<'a>>,
    /// The instruction: tables, slots, stride.
    pub instruction: &'a LutProduct,
}

/// A batch of [`ExternalProduct`] sums.
pub struct ExternalProducts<'a> {
    /// Small LWEs, one for each term.
    pub arguments: Vec<Ciphertext<'a>>,
    /// GLWEs, one for each term.
    pub glwes: Vec<Ciphertext<'a>>,
    /// The instruction: terms, tables, slots, stride.
    pub instruction: &'a ExternalProduct,
}

/// The backend that runs on the processor.
pub struct CpuBackend {
    key: ExpandedServerKey,
    fft: Fft,
}

impl CpuBackend {
    /// Takes the expanded key.
    #[must_use]
    pub fn new(key: ExpandedServerKey) -> Self {
        let fft = Fft::new(key.info.parameters.polynomial_size);
        Self { key, fft }
    }

    /// The key that it runs under.
    #[must_use]
    pub fn key(&self) -> &ExpandedServerKey {
        &self.key
    }

    fn rotator(&self) -> Rotator<'_> {
        Rotator { key: &self.key.bootstrap, fft: self.fft.as_view(), parameters: self.key.info.parameters }
    }
}

impl Backend for CpuBackend {
    fn parameters(&self) -> &Parameters {
        &self.key.info.parameters
    }

    fn keyswitch(&self, inputs: &[Ciphertext<'_>], out: &mut [u64]) -> Result<()> {
        switch::keyswitch(&self.key.keyswitch, self.parameters().keyswitch, inputs, out);
        Ok(())
    }

    fn pbs(&self, x: &LookUps<'_>, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let shape = Shape { extension: x.extension, degrees: Degrees { count: 1, stride: 0 } };
        let fill = |i: usize, accumulator: &mut [u64]| fill_table(x.tables[i], x.extension, accumulator);
        self.rotator().run(&x.arguments, shape, out, fill, done);
        Ok(())
    }

    fn pack(&self, inputs: &[Option<Ciphertext<'_>>], slots: usize, stride: usize, out: &mut [u64]) -> Result<()> {
        let p = self.parameters();
        let layout = (slots, stride, p.polynomial_size.0);
        switch::pack(&self.key.packing, p.packing, inputs, layout, out);
        Ok(())
    }

    fn lut_product(&self, products: &Products<'_>, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let x = products.instruction;
        let (slots, stride) = (x.slots as usize, x.stride as usize);
        let fft = self.fft.as_view();
        let tables = Multipliers::new(&x.tables, x.entries(), x.extension, fft);
        let fill = |i: usize, accumulator: &mut [u64]| {
            tables.multiply(products.accumulators[i], x.table_of[i] as usize, accumulator, fft);
        };
        let shape = Shape { extension: x.extension, degrees: Degrees { count: slots, stride } };
        self.rotator().run(&products.arguments, shape, out, fill, done);
        Ok(())
    }

    fn external_product(&self, products: &ExternalProducts<'_>, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let x = products.instruction;
        let Some(key) = &self.key.conversion else {
            return Err(RuntimeError::Internal("external products without a conversion key".into()));
        };
        // Most GLWEs are multiplied many times, and decomposed once.
        let mut number_of: BTreeMap<u32, u32> = BTreeMap::new();
        let mut glwes: Vec<Ciphertext<'_>> = Vec::new();
        let mut glwe_of = Vec::with_capacity(x.accumulator.len());
        for (&address, &glwe) in x.accumulator.iter().zip(&products.glwes) {
            glwe_of.push(*number_of.entry(address).or_insert_with(|| {
                glwes.push(glwe);
                glwes.len() as u32 - 1
            }));
        }
        let rotations = x.rotations as usize;
        let entries = external::entries(self.parameters().polynomial_size.0, rotations);
        let table = |&t: &u32| &x.tables[t as usize * entries..(t as usize + 1) * entries];
        let sums = Sums {
            rotations,
            arguments: &products.arguments,
            tables: &x.table_of.iter().map(table).collect::<Vec<_>>(),
            glwes: &glwes,
            glwe_of: &glwe_of,
            sum_of: &x.sum_of().collect::<Vec<_>>(),
            degrees: Degrees { count: x.slots as usize, stride: x.stride as usize },
        };
        Multiplier { rotator: self.rotator(), key }.run(&sums, out, done);
        Ok(())
    }

    fn linear(&self, linear: &Linear, gather: &[Option<Ciphertext<'_>>], out: &mut [u64]) -> Result<()> {
        let map = LinearMap {
            outputs: linear.outputs as usize,
            operands: linear.operands as usize,
            gather,
            set: &linear.set,
            weights: &linear.weights,
            bias: &linear.bias,
        };
        map.run(self.parameters().big_lwe_size(), out);
        Ok(())
    }
}

/// Runs one circuit under one key, as often as wanted.
pub struct Executor<'a, B: ?Sized> {
    circuit: &'a Circuit,
    backend: &'a B,
    liveness: Liveness,
}

impl<'a, B: Backend + ?Sized> Executor<'a, B> {
    /// Prepares a run; the circuit is verified.
    ///
    /// # Errors
    /// The circuit is inconsistent, or was made for other parameters than the backend's keys.
    pub fn new(circuit: &'a Circuit, backend: &'a B) -> Result<Self> {
        circuit.verify().map_err(|e| RuntimeError::Input(format!("the circuit is not usable: {e}")))?;
        if circuit.parameters != *backend.parameters() {
            return Err(RuntimeError::Mismatch {
                left: "the circuit".into(),
                right: "the server key".into(),
                reason: "they have different parameters; generate keys for this circuit".into(),
            });
        }
        let (wanted, most) = (circuit.largest_extension(), backend.largest_extension());
        if wanted > most {
            return Err(RuntimeError::Input(format!(
                "the circuit has rotations of extension {wanted}, and this backend runs up to {most}; run it on the processor, or compile \
                 it again with `-x select-parameters:most-extension={most}`"
            )));
        }
        let external = circuit.instructions.iter().any(|x| matches!(x, Instruction::ExternalProduct(_)));
        if external && !backend.has_external_products() {
            return Err(RuntimeError::Input(
                "the circuit has external products, which this backend does not run; run it on the processor, or compile it again with \
                 `-x insert-bootstraps:external-products=false`"
                    .into(),
            ));
        }
        Ok(Self { circuit, backend, liveness: Liveness::new(circuit) })
    }

    /// Runs the circuit on the inputs' LWEs (in the order of `circuit.inputs`, k·N + 1 words each); returns the
    /// LWEs of the outputs in the order of `circuit.outputs`. A [`Run`] can be stopped, watched and resumed besides.
    ///
    /// # Errors
    /// There are not as many inputs as the circuit takes, or the backend failed.
    pub fn run(&self, inputs: &[u64], progress: &dyn Progress) -> Result<Vec<u64>> {
        let mut run = Run::new(self, inputs, RunOptions::new(progress))?;
        match self.backend.run_resident(self.circuit, &self.liveness, inputs, progress)? {
            Some(outputs) => Ok(outputs),
            None => run.complete(),
        }
    }

    /// The circuit.
    #[must_use]
    pub fn circuit(&self) -> &'a Circuit {
        self.circuit
    }

    pub(crate) fn threads(&self) -> usize {
        self.backend.threads()
    }

    pub(crate) fn exchange(&self) -> Option<&dyn Exchange> {
        self.backend.exchange()
    }

    pub(crate) fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Runs one instruction, or a part of one, into the words of its ciphertexts.
    pub(crate) fn step(&self, x: &Instruction, state: &State, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let (lwe, small) = (state.memory(Space::Lwe), state.memory(Space::Small));
        match x {
            Instruction::Linear(x) => self.backend.linear(x, &lwe.gather_present(&x.gather)?, out),
            Instruction::Keyswitch(x) => self.backend.keyswitch(&lwe.gather(&x.gather)?, out),
            Instruction::Pbs(x) => self.pbs(x, small, out, done),
            Instruction::Pack(x) => {
                let inputs = lwe.gather_present(&x.gather)?;
                self.backend.pack(&inputs, x.slots as usize, x.stride as usize, out)
            }
            Instruction::LutProduct(x) => self.lut_product(x, state, out, done),
            Instruction::ExternalProduct(x) => {
                let products = ExternalProducts {
                    arguments: small.gather(&x.argument)?,
                    glwes: state.memory(Space::Glwe).gather(&x.accumulator)?,
                    instruction: x,
                };
                self.backend.external_product(&products, out, done)
            }
        }
    }

    fn pbs(&self, x: &Pbs, small: &Memory, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let entries = self.circuit.parameters.polynomial_size.0 << x.extension;
        let tables: Vec<&[i32]> =
            x.table_of.par_iter().map(|&t| &x.tables[t as usize * entries..(t as usize + 1) * entries]).collect();
        let look_ups = LookUps { arguments: small.gather(&x.argument)?, tables, extension: x.extension };
        self.backend.pbs(&look_ups, out, done)
    }

    fn lut_product(&self, x: &LutProduct, state: &State, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let products = Products {
            arguments: state.memory(Space::Small).gather(&x.argument)?,
            accumulators: state.memory(Space::Glwe).gather(&x.accumulator)?,
            instruction: x,
        };
        self.backend.lut_product(&products, out, done)
    }
}
