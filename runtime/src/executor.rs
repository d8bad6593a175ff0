//! Runs a circuit on ciphertexts. Needs no secret key, and prints nothing.
//!
//! Instructions run one after another; inside one, all threads of the current rayon pool work. Each block of
//! ciphertexts lives from the instruction that writes it to the last one that reads it.

use rayon::prelude::*;
use tfhe::core_crypto::prelude::Fft;
use thex_circuit::instruction::{ABSENT, Block, Keyswitch, Linear, LutProduct, Pack, Pbs};
use thex_circuit::{Circuit, Instruction, Parameters};

use crate::error::{Result, RuntimeError};
use crate::kernels::linear::LinearMap;
use crate::kernels::rotate::{Degrees, Multipliers, Rotator, fill_table};
use crate::kernels::switch;
use crate::keys::ExpandedServerKey;
use crate::progress::Progress;

/// One ciphertext, as a slice of words.
pub type Ciphertext<'a> = &'a [u64];

/// What runs the five kernels, each on a whole batch. `out` has the batch's ciphertexts one after another.
///
/// The processor is one backend; a GPU is another (feature `cuda`).
pub trait Backend: Sync {
    /// The parameters of its keys.
    fn parameters(&self) -> &Parameters;

    /// Big LWEs → small LWEs.
    ///
    /// # Errors
    /// The device failed.
    fn keyswitch(&self, inputs: &[Ciphertext<'_>], out: &mut [u64]) -> Result<()>;

    /// Small LWEs → big LWEs: element i through `tables[i]`, of N entries in units of 2^-32.
    ///
    /// # Errors
    /// The device failed.
    fn pbs(&self, arguments: &[Ciphertext<'_>], tables: &[&[i32]], out: &mut [u64], done: Done<'_>) -> Result<()>;

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

/// A batch of [`LutProduct`] rotations.
pub struct Products<'a> {
    /// Small LWEs, one for each rotation.
    pub arguments: Vec<Ciphertext<'a>>,
    /// GLWEs, one for each rotation.
    pub accumulators: Vec<Ciphertext<'a>>,
    /// The instruction: tables, slots, stride.
    pub instruction: &'a LutProduct,
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

    fn pbs(&self, arguments: &[Ciphertext<'_>], tables: &[&[i32]], out: &mut [u64], done: Done<'_>) -> Result<()> {
        let degrees = Degrees { count: 1, stride: 0 };
        self.rotator().run(arguments, degrees, out, |i, accumulator| fill_table(tables[i], accumulator), done);
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
        let tables = Multipliers::new(&x.tables, stride, fft);
        let fill = |i: usize, accumulator: &mut [u64]| {
            tables.multiply(products.accumulators[i], x.table_of[i] as usize, accumulator, fft);
        };
        self.rotator().run(&products.arguments, Degrees { count: slots, stride }, out, fill, done);
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

/// One of the three memories: blocks of ciphertexts of `width` words, written once, freed after their last use.
struct Memory {
    width: usize,
    starts: Vec<u32>,
    blocks: Vec<Vec<u64>>,
}

impl Memory {
    fn new(width: usize) -> Self {
        Self { width, starts: Vec::new(), blocks: Vec::new() }
    }

    fn push(&mut self, block: &Block, words: Vec<u64>) {
        self.starts.push(block.start);
        self.blocks.push(words);
    }

    fn get(&self, address: u32) -> Result<Ciphertext<'_>> {
        let block = block_of(&self.starts, address);
        let offset = (address - self.starts[block]) as usize * self.width;
        self.blocks[block]
            .get(offset..offset + self.width)
            .ok_or_else(|| RuntimeError::Internal(format!("ciphertext {address} is read after it was freed")))
    }

    fn gather(&self, addresses: &[u32]) -> Result<Vec<Ciphertext<'_>>> {
        addresses.iter().map(|&a| self.get(a)).collect()
    }

    fn gather_present(&self, addresses: &[u32]) -> Result<Vec<Option<Ciphertext<'_>>>> {
        addresses.iter().map(|&a| if a == ABSENT { Ok(None) } else { self.get(a).map(Some) }).collect()
    }
}

/// Index of the block that holds an address; `starts` ascend from 0.
pub(crate) fn block_of(starts: &[u32], address: u32) -> usize {
    starts.partition_point(|&start| start <= address).saturating_sub(1)
}

/// Which memory a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Lwe,
    Small,
    Glwe,
}

/// When each block may be freed.
pub struct Liveness {
    /// Blocks whose last reader is instruction i.
    dying: Vec<Vec<(Space, usize)>>,
}

pub(crate) fn destination(instruction: &Instruction) -> (Space, &Block) {
    match instruction {
        Instruction::Linear(x) => (Space::Lwe, &x.dst),
        Instruction::Pbs(x) => (Space::Lwe, &x.dst),
        Instruction::LutProduct(x) => (Space::Lwe, &x.dst),
        Instruction::Keyswitch(x) => (Space::Small, &x.dst),
        Instruction::Pack(x) => (Space::Glwe, &x.dst),
    }
}

fn sources(instruction: &Instruction) -> Vec<(Space, &[u32])> {
    match instruction {
        Instruction::Linear(x) => vec![(Space::Lwe, &x.gather)],
        Instruction::Keyswitch(x) => vec![(Space::Lwe, &x.gather)],
        Instruction::Pack(x) => vec![(Space::Lwe, &x.gather)],
        Instruction::Pbs(x) => vec![(Space::Small, &x.argument)],
        Instruction::LutProduct(x) => vec![(Space::Small, &x.argument), (Space::Glwe, &x.accumulator)],
    }
}

impl Liveness {
    /// Blocks whose last reader is an instruction.
    #[cfg(feature = "cuda")]
    pub(crate) fn dying(&self, instruction: usize) -> &[(Space, usize)] {
        &self.dying[instruction]
    }

    fn new(circuit: &Circuit) -> Self {
        // For each memory: start of each block, and the instruction after which it dies.
        let mut starts: [Vec<u32>; 3] = Default::default();
        let mut last: [Vec<usize>; 3] = Default::default();
        for (_, block) in &circuit.inputs {
            starts[0].push(block.start);
            last[0].push(0);
        }
        for (i, instruction) in circuit.instructions.iter().enumerate() {
            for (space, addresses) in sources(instruction) {
                let space = space as usize;
                for &address in addresses.iter().filter(|&&a| a != ABSENT) {
                    last[space][block_of(&starts[space], address)] = i;
                }
            }
            let (space, block) = destination(instruction);
            starts[space as usize].push(block.start);
            last[space as usize].push(i);
        }
        for &address in circuit.outputs.iter().flat_map(|(_, addresses)| addresses) {
            last[0][block_of(&starts[0], address)] = usize::MAX;
        }
        let mut dying = vec![Vec::new(); circuit.instructions.len()];
        for (space, last) in [Space::Lwe, Space::Small, Space::Glwe].into_iter().zip(&last) {
            for (block, &instruction) in last.iter().enumerate() {
                if let Some(dying) = dying.get_mut(instruction) {
                    dying.push((space, block));
                }
            }
        }
        Self { dying }
    }
}

/// Runs one circuit under one key, as often as wanted.
pub struct Executor<'a, B: ?Sized> {
    circuit: &'a Circuit,
    backend: &'a B,
    liveness: Liveness,
}

/// The three memories of one run.
struct State {
    lwe: Memory,
    small: Memory,
    glwe: Memory,
}

impl State {
    fn memory(&mut self, space: Space) -> &mut Memory {
        match space {
            Space::Lwe => &mut self.lwe,
            Space::Small => &mut self.small,
            Space::Glwe => &mut self.glwe,
        }
    }
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
        Ok(Self { circuit, backend, liveness: Liveness::new(circuit) })
    }

    /// Runs the circuit on the inputs' LWEs (in the order of `circuit.inputs`, k·N + 1 words each); returns the
    /// LWEs of the outputs in the order of `circuit.outputs`.
    ///
    /// # Errors
    /// There are not as many inputs as the circuit takes, or the backend failed.
    pub fn run(&self, inputs: &[u64], progress: &dyn Progress) -> Result<Vec<u64>> {
        self.check_inputs(inputs)?;
        if let Some(outputs) = self.backend.run_resident(self.circuit, &self.liveness, inputs, progress)? {
            return Ok(outputs);
        }
        let mut state = self.load(inputs);
        let total = self.circuit.pbs_count();
        for (i, instruction) in self.circuit.instructions.iter().enumerate() {
            let name = self.circuit.provenance.get(i).map_or("", |p| p.name.as_str());
            progress.step(name, total);
            let words = self.step(instruction, &state, &|count| progress.advance(count))?;
            let (space, block) = destination(instruction);
            state.memory(space).push(block, words);
            for &(space, block) in &self.liveness.dying[i] {
                state.memory(space).blocks[block] = Vec::new();
            }
        }
        let mut outputs = Vec::new();
        for &address in self.circuit.outputs.iter().flat_map(|(_, addresses)| addresses) {
            outputs.extend_from_slice(state.lwe.get(address)?);
        }
        Ok(outputs)
    }

    fn check_inputs(&self, inputs: &[u64]) -> Result<()> {
        let p = &self.circuit.parameters;
        let elements: usize = self.circuit.inputs.iter().map(|(_, b)| b.len as usize).sum();
        if inputs.len() != elements * p.big_lwe_size() {
            let found = inputs.len() / p.big_lwe_size();
            let reason = format!("the circuit takes {elements} ciphertexts, and the input has {found}");
            return Err(RuntimeError::Input(reason));
        }
        Ok(())
    }

    fn load(&self, inputs: &[u64]) -> State {
        let p = &self.circuit.parameters;
        let mut state = State {
            lwe: Memory::new(p.big_lwe_size()),
            small: Memory::new(p.lwe_dimension.to_lwe_size().0),
            glwe: Memory::new(p.glwe_words()),
        };
        for (_, block) in &self.circuit.inputs {
            let width = p.big_lwe_size();
            let range = block.start as usize * width..block.end() as usize * width;
            state.lwe.push(block, inputs[range].to_vec());
        }
        state
    }

    fn step(&self, instruction: &Instruction, state: &State, done: Done<'_>) -> Result<Vec<u64>> {
        let p = &self.circuit.parameters;
        let (space, block) = destination(instruction);
        let width = match space {
            Space::Lwe => p.big_lwe_size(),
            Space::Small => p.lwe_dimension.to_lwe_size().0,
            Space::Glwe => p.glwe_words(),
        };
        let mut out = vec![0; block.len as usize * width];
        match instruction {
            Instruction::Linear(x) => self.backend.linear(x, &state.lwe.gather_present(&x.gather)?, &mut out)?,
            Instruction::Keyswitch(x) => self.keyswitch(x, state, &mut out)?,
            Instruction::Pbs(x) => self.pbs(x, state, &mut out, done)?,
            Instruction::Pack(x) => self.pack(x, state, &mut out)?,
            Instruction::LutProduct(x) => self.lut_product(x, state, &mut out, done)?,
        }
        Ok(out)
    }

    fn keyswitch(&self, x: &Keyswitch, state: &State, out: &mut [u64]) -> Result<()> {
        self.backend.keyswitch(&state.lwe.gather(&x.gather)?, out)
    }

    fn pbs(&self, x: &Pbs, state: &State, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let size = self.circuit.parameters.polynomial_size.0;
        let tables: Vec<&[i32]> =
            x.table_of.par_iter().map(|&t| &x.tables[t as usize * size..(t as usize + 1) * size]).collect();
        self.backend.pbs(&state.small.gather(&x.argument)?, &tables, out, done)
    }

    fn pack(&self, x: &Pack, state: &State, out: &mut [u64]) -> Result<()> {
        let inputs = state.lwe.gather_present(&x.gather)?;
        self.backend.pack(&inputs, x.slots as usize, x.stride as usize, out)
    }

    fn lut_product(&self, x: &LutProduct, state: &State, out: &mut [u64], done: Done<'_>) -> Result<()> {
        let products = Products {
            arguments: state.small.gather(&x.argument)?,
            accumulators: state.glwe.gather(&x.accumulator)?,
            instruction: x,
        };
        self.backend.lut_product(&products, out, done)
    }
}
