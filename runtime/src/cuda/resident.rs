//! A whole run with its memories on the GPU: only inputs and tables go there, only outputs come back.

use std::time::Instant;

use thex_circuit::instruction::{ABSENT, Block, LutProduct, Pack, Pbs};
use thex_circuit::{Circuit, Instruction, Parameters};

use super::device::Buffer;
use super::operations::{Layout, Operations, Tables, WORD};
use super::times::Times;
use crate::error::{Result, RuntimeError};
use crate::executor::Liveness;
use crate::progress::Progress;
use crate::state::{Space, block_of};

/// A block of ciphertexts.
struct Resident {
    buffer: Buffer,
    layout: Layout,
}

/// One of the three memories: as the executor's, but on the GPU.
struct Memory {
    width: usize,
    starts: Vec<u32>,
    blocks: Vec<Option<Resident>>,
}

impl Memory {
    fn new(width: usize) -> Self {
        Self { width, starts: Vec::new(), blocks: Vec::new() }
    }

    fn push(&mut self, block: &Block, resident: Resident) {
        self.starts.push(block.start);
        self.blocks.push(Some(resident));
    }

    /// The block of an address, and where in it the ciphertext begins, in bytes.
    fn find(&self, address: u32) -> Result<(&Resident, usize)> {
        let block = block_of(&self.starts, address);
        let element = (address - self.starts[block]) as usize;
        let resident = self.blocks[block]
            .as_ref()
            .ok_or_else(|| RuntimeError::Internal(format!("ciphertext {address} is read after it was freed")))?;
        Ok((resident, resident.layout.position(element) * self.width * WORD))
    }

    /// Addresses on the GPU, 0 for [`ABSENT`].
    fn gather(&self, addresses: &[u32]) -> Result<Vec<u64>> {
        let locate = |&address: &u32| {
            if address == ABSENT {
                return Ok(0);
            }
            self.find(address).map(|(resident, byte)| resident.buffer.at(byte))
        };
        addresses.iter().map(locate).collect()
    }
}

/// The three memories.
struct State {
    lwe: Memory,
    small: Memory,
    glwe: Memory,
}

impl State {
    fn new(p: &Parameters) -> Self {
        Self {
            lwe: Memory::new(p.big_lwe_size()),
            small: Memory::new(p.lwe_dimension.to_lwe_size().0),
            glwe: Memory::new(p.glwe_words()),
        }
    }

    fn memory(&mut self, space: Space) -> &mut Memory {
        match space {
            Space::Lwe => &mut self.lwe,
            Space::Small => &mut self.small,
            Space::Glwe => &mut self.glwe,
        }
    }
}

/// Runs a circuit on checked inputs; returns its outputs as the executor does.
pub(super) fn run(
    operations: &Operations,
    (circuit, liveness): (&Circuit, &Liveness),
    inputs: &[u64],
    progress: &dyn Progress,
    times: &Times,
) -> Result<Vec<u64>> {
    let mut state = load(operations, circuit, inputs)?;
    for (i, instruction) in circuit.instructions.iter().enumerate() {
        let name = circuit.provenance.get(i).map_or("", |p| p.name.as_str());
        progress.step(name, circuit.pbs_count());
        let start = Instant::now();
        let (space, block) = (Space::of(instruction), instruction.destination());
        let width = state.memory(space).width;
        let buffer = operations.stream().allocate(block.len as usize * width * WORD)?;
        let layout = step(operations, instruction, &state, buffer.at(0), progress)?;
        operations.stream().wait()?;
        state.memory(space).push(block, Resident { buffer, layout });
        for &(space, block) in liveness.dying(i) {
            state.memory(space).blocks[block] = None;
        }
        times.add(instruction, start.elapsed());
    }
    unload(circuit, &state)
}

fn load(operations: &Operations, circuit: &Circuit, inputs: &[u64]) -> Result<State> {
    let mut state = State::new(operations.parameters());
    for (_, block) in &circuit.inputs {
        let width = state.lwe.width;
        let words = &inputs[block.start as usize * width..block.end() as usize * width];
        let buffer = operations.stream().upload(words)?;
        state.lwe.push(block, Resident { buffer, layout: Layout::ROWS });
    }
    Ok(state)
}

fn unload(circuit: &Circuit, state: &State) -> Result<Vec<u64>> {
    let width = state.lwe.width;
    let addresses = circuit.outputs.iter().flat_map(|(_, addresses)| addresses);
    let mut outputs = vec![0; addresses.clone().count() * width];
    for (&address, out) in addresses.zip(outputs.chunks_exact_mut(width)) {
        let (resident, byte) = state.lwe.find(address)?;
        resident.buffer.read(byte, out)?;
    }
    Ok(outputs)
}

/// Runs one instruction into `out`; says how its outputs lie there.
fn step(
    operations: &Operations,
    instruction: &Instruction,
    state: &State,
    out: u64,
    progress: &dyn Progress,
) -> Result<Layout> {
    match instruction {
        Instruction::Linear(x) => operations.linear(x, &state.lwe.gather(&x.gather)?, out)?,
        Instruction::Keyswitch(x) => operations.keyswitch(&state.lwe.gather(&x.gather)?, out)?,
        Instruction::Pbs(x) => pbs(operations, x, state, out, progress)?,
        Instruction::Pack(x) => pack(operations, x, state, out)?,
        Instruction::LutProduct(x) => return lut_product(operations, x, state, out, progress),
        Instruction::ExternalProduct(_) => return Err(no_external_products()),
    }
    Ok(Layout::ROWS)
}

/// The executor refuses such circuits before they get here.
pub(super) fn no_external_products() -> RuntimeError {
    RuntimeError::Internal("external products on a GPU".into())
}

fn pbs(operations: &Operations, x: &Pbs, state: &State, out: u64, progress: &dyn Progress) -> Result<()> {
    let tables = Tables { entries: operations.stream().upload(&x.tables)?, table_of: &x.table_of };
    operations.pbs(&state.small.gather(&x.argument)?, &tables, out, &|count| progress.advance(count))
}

fn pack(operations: &Operations, x: &Pack, state: &State, out: u64) -> Result<()> {
    operations.pack(&state.lwe.gather(&x.gather)?, x.slots as usize, x.stride as usize, out)
}

fn lut_product(
    operations: &Operations,
    x: &LutProduct,
    state: &State,
    out: u64,
    progress: &dyn Progress,
) -> Result<Layout> {
    let tables = Tables { entries: operations.stream().upload(&x.tables)?, table_of: &x.table_of };
    let operands = (state.small.gather(&x.argument)?, state.glwe.gather(&x.accumulator)?);
    let (slots, stride) = (x.slots as usize, x.stride as usize);
    let done = |count| progress.advance(count);
    operations.lut_product((&operands.0, &operands.1), &tables, (slots, stride), out, &done)?;
    Ok(Layout::of_products(x.argument.len(), slots, operations.parameters()))
}
