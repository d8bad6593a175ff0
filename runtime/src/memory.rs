//! How much memory a run needs, before it starts.
//!
//! Three things take memory: the circuit; the evaluation keys, which have their peak while they are expanded; and ciphertexts, which
//! live from the instruction that writes them to the last one that reads them, with the buffers of the batch at work.
//! All sizes follow from the circuit, so the peak does. Measured peaks (`VmHWM`) lie a little above or below, by what the
//! allocator keeps of what was freed; see ARCHITECTURE.md.

use std::collections::BTreeSet;

use thex_circuit::external::GADGET;
use thex_circuit::instruction::{ExternalProduct, LutProduct, Provenance};
use thex_circuit::{Circuit, Instruction, Parameters};

use crate::error::{Result, RuntimeError};
use crate::kernels::linear::ROWS;
use crate::kernels::matrix::TILE;
use crate::kernels::rotate;
use crate::kernels::switch;
use crate::keys::key_memory;
use crate::state::{Liveness, Space};

/// The program, its threads' stacks, and what libraries hold.
const PROGRAM_BYTES: u64 = 12 << 20;
/// Buffers of a batch of rotations, in accumulators: the batch's own, and tfhe's scratch for decompositions in the Fourier domain.
const SCRATCH: u64 = 4;

/// Predicted use of memory by a run on the processor, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The circuit in memory.
    pub circuit: u64,
    /// The most that loading and expanding the keys takes.
    pub loading: u64,
    /// The expanded keys.
    pub keys: u64,
    /// Live ciphertexts and buffers, at the busiest instruction.
    pub ciphertexts: u64,
    /// Which one that is.
    pub busiest: usize,
}

fn provenance_bytes(p: &Provenance) -> usize {
    let strings = p.onnx.iter().map(|s| s.len() + size_of::<String>()).sum::<usize>();
    size_of::<Provenance>() + p.name.len() + p.layer.len() + strings
}

/// Bytes of an instruction's operands, tables and weights.
fn instruction_bytes(x: &Instruction) -> u64 {
    let entries = match x {
        Instruction::Linear(x) => x.gather.len() + x.set.len() + x.weights.len() + 2 * x.bias.len(),
        Instruction::Keyswitch(x) => x.gather.len(),
        Instruction::Pbs(x) => x.argument.len() + x.table_of.len() + x.tables.len(),
        Instruction::Pack(x) => x.gather.len(),
        Instruction::LutProduct(x) => x.argument.len() + x.accumulator.len() + x.table_of.len() + x.tables.len(),
        Instruction::ExternalProduct(x) => {
            x.terms.len() + x.argument.len() + x.accumulator.len() + x.table_of.len() + x.tables.len()
        }
    };
    (entries * 4 + size_of::<Instruction>()) as u64
}

fn circuit_bytes(circuit: &Circuit) -> u64 {
    let outputs: usize = circuit.outputs.iter().map(|(_, addresses)| addresses.len() * 4).sum();
    let provenance: usize = circuit.provenance.iter().map(provenance_bytes).sum();
    circuit.instructions.iter().map(instruction_bytes).sum::<u64>() + (outputs + provenance) as u64
}

/// Accumulators and scratch of the rotations at work.
fn rotations(x: &Instruction, p: &Parameters, threads: usize) -> u64 {
    let lanes = (rotate::batch_of(x.extension()) as u64) << x.extension();
    threads as u64 * lanes * p.glwe_words() as u64 * 8 * SCRATCH
}

/// Tables in the Fourier domain.
fn multipliers(x: &LutProduct, p: &Parameters) -> u64 {
    ((x.tables.len() / x.entries().max(1) * p.polynomial_size.0 * 8) as u64) << x.extension
}

/// Digits of the GLWEs in the Fourier domain, and the sums.
fn decomposed(x: &ExternalProduct, p: &Parameters) -> u64 {
    let distinct: BTreeSet<u32> = x.accumulator.iter().copied().collect();
    let digits = distinct.len() * GADGET.level.0 * p.glwe_words() * 8;
    // A sum that is cut between threads has a part on each.
    (digits + 3 * x.terms.len() * p.glwe_words() * 8) as u64
}

/// What a batch of an instruction needs beside its operands and results.
fn buffers(instruction: &Instruction, p: &Parameters, threads: usize) -> u64 {
    let x = instruction;
    let big = p.big_lwe_dimension().0;
    let switched = |levels: usize, columns: usize| (switch::BATCH * (big * levels + columns) * 8) as u64;
    // References to operands and results.
    let references = (x.units() * x.unit_elements()).max(x.units()) as u64 * 32;
    let batch = match x {
        Instruction::Linear(x) => threads as u64 * u64::from(x.operands) * (ROWS + TILE) as u64 * 8,
        Instruction::Keyswitch(_) => switched(p.keyswitch.level.0, p.lwe_dimension.to_lwe_size().0),
        Instruction::Pack(_) => switched(p.packing.level.0, p.glwe_words()),
        Instruction::Pbs(_) => rotations(instruction, p, threads),
        Instruction::LutProduct(x) => rotations(instruction, p, threads) + multipliers(x, p),
        Instruction::ExternalProduct(x) => rotations(instruction, p, threads) + decomposed(x, p),
    };
    // A part of the instruction has tables of its own.
    references + batch + instruction_bytes(x)
}

fn block_bytes(x: &Instruction, p: &Parameters) -> u64 {
    x.destination().len as u64 * Space::of(x).width(p) as u64 * 8
}

/// The most that ciphertexts and buffers take, and at which instruction.
fn ciphertexts(circuit: &Circuit, threads: usize) -> (u64, usize) {
    let p = &circuit.parameters;
    let (liveness, width) = (Liveness::new(circuit), p.big_lwe_size() as u64 * 8);
    let input = |block: u32| u64::from(block) * width;
    let mut blocks: [Vec<u64>; 3] = [circuit.inputs.iter().map(|(_, b)| input(b.len)).collect(), vec![], vec![]];
    let mut live: u64 = blocks[0].iter().sum();
    // While inputs are loaded there are two copies of them.
    let mut most = (2 * live, 0);
    for (i, x) in circuit.instructions.iter().enumerate() {
        blocks[Space::of(x) as usize].push(block_bytes(x, p));
        live += block_bytes(x, p);
        most = most.max((live + buffers(x, p, threads), i));
        live -= liveness.dying(i).iter().map(|&(space, block)| blocks[space as usize][block]).sum::<u64>();
    }
    let outputs: u64 = circuit.outputs.iter().map(|(_, addresses)| addresses.len() as u64 * width).sum();
    // The result, and the file that is made of it.
    most.max((live + 2 * outputs, circuit.instructions.len().saturating_sub(1)))
}

impl Prediction {
    /// For a run on so many threads.
    #[must_use]
    pub fn new(circuit: &Circuit, threads: usize) -> Self {
        let (keys, (ciphertexts, busiest)) = (key_memory(&circuit.parameters), ciphertexts(circuit, threads.max(1)));
        let circuit = circuit_bytes(circuit);
        Self { circuit, loading: keys.loading, keys: keys.expanded, ciphertexts, busiest }
    }

    /// The peak.
    #[must_use]
    pub fn peak(&self) -> u64 {
        let (loading, running) = (self.circuit + self.loading, self.circuit + self.keys + self.ciphertexts);
        // The circuit's file and the circuit.
        PROGRAM_BYTES + loading.max(running).max(2 * self.circuit)
    }

    /// Refuses a run that does not fit.
    ///
    /// # Errors
    /// [`RuntimeError::Memory`], which says what is needed and for what.
    pub fn check(&self, limit: Limit) -> Result<()> {
        let needed = self.peak();
        let (limit, given) = match limit {
            Limit::Given(bytes) => (bytes, true),
            Limit::Machine(bytes) => (bytes, false),
        };
        if needed <= limit {
            return Ok(());
        }
        let mb = |bytes: u64| bytes.div_ceil(1_000_000);
        let advice = format!(
            "{} MB for the circuit, {} MB for the keys ({} MB while they are loaded), {} MB for ciphertexts and buffers \
             at instruction {}; allow more with --memory, or use a larger machine",
            mb(self.circuit),
            mb(self.keys),
            mb(self.loading),
            mb(self.ciphertexts),
            self.busiest
        );
        Err(RuntimeError::Memory { needed, limit, given, advice })
    }
}

/// How much there is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// What the user allows.
    Given(u64),
    /// What the machine has.
    Machine(u64),
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What the machine, or the control group of the process, has in all. Known on Linux only.
#[must_use]
pub fn of_machine() -> Option<u64> {
    let group = number("/sys/fs/cgroup/memory.max").or_else(|| number("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    let total = meminfo("MemTotal:", &std::fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(group.map_or(total, |group| group.min(total)))
}

/// What could be had now without swapping. Known on Linux only.
#[must_use]
pub fn available() -> Option<u64> {
    meminfo("MemAvailable:", &std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn meminfo(field: &str, text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes of `2GB`, `1.5GiB`, `800MB`: what `--memory` takes.
///
/// # Errors
/// A sentence, for the command line.
pub fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    const UNITS: [(&str, f64); 6] =
        [("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)];
    let found = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let bytes = found.and_then(|(value, factor)| Some(value.trim().parse::<f64>().ok()? * factor));
    let bytes = bytes.filter(|b| b.is_finite() && *b >= 1.0 && *b <= 1e18);
    bytes.map(|b| b as u64).ok_or_else(|| format!("`{text}` is no size: write for example 800MB, 2GB or 1.5GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use thex_circuit::CircuitInfo;
    use thex_circuit::instruction::{Block, Keyswitch, Linear, Pbs};

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(parse_bytes("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("800 MB"), Ok(800_000_000));
        for wrong in ["", "2", "GB", "-1GB", "nanGB", "infGB", "1e30GB", "2G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n";
        assert_eq!(meminfo("MemAvailable:", text), Some(8_192_000));
        assert_eq!(meminfo("Swap:", text), None);
    }

    /// An input of 4, widened to 1000, of which 10 are looked up: the 1000 are gone when the tables come.
    #[test]
    fn the_peak_is_at_the_widest_place() {
        let wide = Linear {
            dst: Block { start: 4, len: 1000 },
            outputs: 1000,
            operands: 4,
            gather: vec![0, 1, 2, 3],
            set: vec![0],
            weights: vec![1; 4000],
            bias: vec![0; 1000],
        };
        let ks = Keyswitch { dst: Block { start: 0, len: 10 }, domain: 2048, extension: 0, gather: (4..14).collect() };
        let (dst, argument) = (Block { start: 1004, len: 10 }, (0..10).collect());
        let pbs = Pbs { dst, extension: 0, argument, table_of: vec![0; 10], tables: vec![0; 2048] };
        let circuit = Circuit {
            info: CircuitInfo::default(),
            parameters: Parameters::standard(),
            inputs: vec![("x".into(), Block { start: 0, len: 4 })],
            outputs: vec![("y".into(), (1004..1014).collect())],
            instructions: vec![Instruction::Linear(wide), Instruction::Keyswitch(ks), Instruction::Pbs(pbs)],
            provenance: vec![Provenance::default(); 3],
        };
        circuit.verify().unwrap();
        let prediction = Prediction::new(&circuit, 1);
        let block = 1000 * 2049 * 8;
        assert_eq!(prediction.busiest, 1, "the keyswitch has its buffers and all of the wide block");
        assert!((block..block * 2).contains(&prediction.ciphertexts), "{prediction:?}");
        assert!(prediction.check(Limit::Given(prediction.peak())).is_ok());
        let refused = prediction.check(Limit::Given(prediction.peak() - 1)).unwrap_err();
        assert_eq!(refused.code(), "TX0202");
    }
}
