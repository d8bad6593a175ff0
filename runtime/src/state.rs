//! The memories of a run, and how long their blocks live.

use thex_circuit::instruction::{ABSENT, Block};
use thex_circuit::{Circuit, Instruction, Parameters};

use serde::{Deserialize, Serialize};

use crate::error::{Result, RuntimeError};
use crate::executor::Ciphertext;

/// One of the three memories: blocks of ciphertexts of `width` words, written once, freed after their last use.
#[derive(Default)]
pub(crate) struct Memory {
    width: usize,
    starts: Vec<u32>,
    blocks: Vec<Vec<u64>>,
}

impl Memory {
    fn new(width: usize) -> Self {
        Self { width, starts: Vec::new(), blocks: Vec::new() }
    }

    pub(crate) fn push(&mut self, block: &Block, words: Vec<u64>) {
        self.starts.push(block.start);
        self.blocks.push(words);
    }

    /// The blocks in the order of their addresses; freed ones are empty.
    pub(crate) fn blocks(&self) -> &[Vec<u64>] {
        &self.blocks
    }

    pub(crate) fn free(&mut self, block: usize) {
        self.blocks[block] = Vec::new();
    }

    pub(crate) fn get(&self, address: u32) -> Result<Ciphertext<'_>> {
        let block = block_of(&self.starts, address);
        let offset = (address - self.starts[block]) as usize * self.width;
        self.blocks[block]
            .get(offset..offset + self.width)
            .ok_or_else(|| RuntimeError::Internal(format!("ciphertext {address} is read after it was freed")))
    }

    pub(crate) fn gather(&self, addresses: &[u32]) -> Result<Vec<Ciphertext<'_>>> {
        addresses.iter().map(|&a| self.get(a)).collect()
    }

    pub(crate) fn gather_present(&self, addresses: &[u32]) -> Result<Vec<Option<Ciphertext<'_>>>> {
        addresses.iter().map(|&a| if a == ABSENT { Ok(None) } else { self.get(a).map(Some) }).collect()
    }
}

/// Index of the block that holds an address; `starts` ascend from 0.
pub(crate) fn block_of(starts: &[u32], address: u32) -> usize {
    starts.partition_point(|&start| start <= address).saturating_sub(1)
}

/// Which memory a block belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Space {
    Lwe,
    Small,
    Glwe,
}

impl Space {
    pub(crate) const ALL: [Self; 3] = [Self::Lwe, Self::Small, Self::Glwe];

    /// The memory that an instruction writes.
    pub(crate) fn of(instruction: &Instruction) -> Self {
        match instruction {
            Instruction::Linear(_)
            | Instruction::Pbs(_)
            | Instruction::LutProduct(_)
            | Instruction::ExternalProduct(_) => Self::Lwe,
            Instruction::Keyswitch(_) => Self::Small,
            Instruction::Pack(_) => Self::Glwe,
        }
    }

    /// Words of one of its ciphertexts.
    pub(crate) fn width(self, p: &Parameters) -> usize {
        match self {
            Self::Lwe => p.big_lwe_size(),
            Self::Small => p.lwe_dimension.to_lwe_size().0,
            Self::Glwe => p.glwe_words(),
        }
    }
}

fn sources(instruction: &Instruction) -> Vec<(Space, &[u32])> {
    match instruction {
        Instruction::Linear(x) => vec![(Space::Lwe, &x.gather)],
        Instruction::Keyswitch(x) => vec![(Space::Lwe, &x.gather)],
        Instruction::Pack(x) => vec![(Space::Lwe, &x.gather)],
        Instruction::Pbs(x) => vec![(Space::Small, &x.argument)],
        Instruction::LutProduct(x) => vec![(Space::Small, &x.argument), (Space::Glwe, &x.accumulator)],
        Instruction::ExternalProduct(x) => vec![(Space::Small, &x.argument), (Space::Glwe, &x.accumulator)],
    }
}

/// The three memories of one run.
pub(crate) struct State([Memory; 3]);

impl State {
    /// All inputs of a circuit, loaded.
    pub(crate) fn new(circuit: &Circuit, inputs: &[u64]) -> Result<Self> {
        let p = &circuit.parameters;
        let width = p.big_lwe_size();
        let elements: usize = circuit.inputs.iter().map(|(_, b)| b.len as usize).sum();
        if inputs.len() != elements * width {
            let found = inputs.len() / width;
            let reason = format!("the circuit takes {elements} ciphertexts, and the input has {found}");
            return Err(RuntimeError::Input(reason));
        }
        let mut state = Self(Space::ALL.map(|space| Memory::new(space.width(p))));
        for (_, block) in &circuit.inputs {
            let range = block.start as usize * width..block.end() as usize * width;
            state.memory_mut(Space::Lwe).push(block, inputs[range].to_vec());
        }
        Ok(state)
    }

    pub(crate) fn memory(&self, space: Space) -> &Memory {
        &self.0[space as usize]
    }

    pub(crate) fn memory_mut(&mut self, space: Space) -> &mut Memory {
        &mut self.0[space as usize]
    }
}

/// When each block may be freed.
pub struct Liveness {
    /// Blocks whose last reader is instruction i, by instruction.
    dying: Vec<Vec<(Space, usize)>>,
}

impl Liveness {
    pub(crate) fn new(circuit: &Circuit) -> Self {
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
            let space = Space::of(instruction) as usize;
            starts[space].push(instruction.destination().start);
            last[space].push(i);
        }
        for &address in circuit.outputs.iter().flat_map(|(_, addresses)| addresses) {
            last[0][block_of(&starts[0], address)] = usize::MAX;
        }
        let mut dying = vec![Vec::new(); circuit.instructions.len()];
        for (space, last) in Space::ALL.into_iter().zip(&last) {
            for (block, &instruction) in last.iter().enumerate() {
                if let Some(dying) = dying.get_mut(instruction) {
                    dying.push((space, block));
                }
            }
        }
        Self { dying }
    }

    /// Blocks that nobody reads after an instruction.
    pub(crate) fn dying(&self, instruction: usize) -> &[(Space, usize)] {
        &self.dying[instruction]
    }
}
