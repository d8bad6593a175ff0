//! The circuit on phases: one integer for each ciphertext, exact arithmetic modulo 2^64, and Gaussian noise
//! where the noise model says that ciphertexts get it.
//!
//! With [`NoiseModel::silent`] it is the clear semantics of the circuit (integers and tables, no noise). A run
//! depends on its seed alone: every instruction draws from its own stream. [`Simulator`] is shared by
//! threads, one sample to each; a [`Simulation`] can be used again without allocating.

use std::collections::BTreeMap;

use pulp::Arch;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use thex_circuit::external;
use thex_circuit::instruction::{ABSENT, ExternalProduct, Keyswitch, Linear, LutProduct, Pack, Pbs};
use thex_circuit::params::MODULUS_F64;
use thex_circuit::{Circuit, ClientBundle, Instruction, NoiseModel};

use crate::client::{Encoded, Named, Rounding, decode, encode};
use crate::error::{Result, RuntimeError};

/// A GLWE of the simulation: where its slots are, and how they lie in the polynomial.
#[derive(Clone, Copy, Debug)]
struct Packed {
    offset: usize,
    slots: u32,
    stride: u32,
    filled: u32,
}

/// A circuit prepared for simulation.
pub struct Simulator<'a> {
    circuit: &'a Circuit,
    noise: NoiseModel,
    glwes: Vec<Packed>,
    /// ‖P‖² of each table of each `lut_product`; of an extended one, the mean over its lanes.
    norms: Vec<Vec<f64>>,
    inputs: usize,
}

/// The state after a run. All phases are in units of 2^-64.
#[derive(Clone, Debug, Default)]
pub struct Simulation {
    lwe: Vec<u64>,
    positions: Vec<u32>,
    slots: Vec<u64>,
    overflows: Vec<u32>,
    operands: Vec<u64>,
}

impl Simulation {
    /// Phase of every address of lwe memory.
    #[must_use]
    pub fn lwe(&self) -> &[u64] {
        &self.lwe
    }

    /// For each instruction, how many arguments lay outside their domain (keyswitches only), before the noise
    /// of the keyswitch and modulus switch. What lies outside is looked up in the wrong place, with a wrong sign. Where the domain is the
    /// full torus, those that lie next to its ends are counted, since nothing lies outside.
    #[must_use]
    pub fn overflows(&self) -> &[u32] {
        &self.overflows
    }

    /// Arguments outside their domain, in all.
    #[must_use]
    pub fn overflow_total(&self) -> u64 {
        self.overflows.iter().map(|&n| u64::from(n)).sum()
    }

    /// Phases of the circuit's outputs, in order.
    #[must_use]
    pub fn outputs(&self, circuit: &Circuit) -> Vec<u64> {
        let addresses = circuit.outputs.iter().flat_map(|(_, addresses)| addresses);
        addresses.map(|&a| self.lwe[a as usize]).collect()
    }
}

/// A stream of Gaussian noise.
struct Noise(Xoshiro256PlusPlus);

impl Noise {
    fn new(seed: u64, stream: u64) -> Self {
        let mixed = seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        Self(Xoshiro256PlusPlus::seed_from_u64(mixed))
    }

    /// One draw of this standard deviation (torus-relative), in units of 2^-64.
    fn draw(&mut self, deviation: f64) -> u64 {
        if deviation <= 0.0 {
            return 0;
        }
        let normal: f64 = StandardNormal.sample(&mut self.0);
        (normal * deviation * MODULUS_F64) as i64 as u64
    }
}

impl Noise {
    /// A uniform phase.
    fn anything(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// Part of the torus at each end of a domain that is all of it, which the ranges of arguments leave free.
const EDGE: u64 = 512;

/// Stream of the inputs' noise; instruction i has stream i.
const INPUT_STREAM: u64 = u64::MAX;

fn stride_error(i: usize) -> RuntimeError {
    RuntimeError::Input(format!("instruction {i} of the circuit multiplies by GLWEs packed at another stride"))
}

/// Layout of all GLWEs.
fn layout(circuit: &Circuit) -> Vec<Packed> {
    let mut glwes = Vec::new();
    let mut offset = 0;
    for instruction in &circuit.instructions {
        let Instruction::Pack(pack) = instruction else { continue };
        for gather in pack.gather.chunks(pack.slots as usize) {
            let filled = gather.iter().filter(|&&a| a != ABSENT).count() as u32;
            glwes.push(Packed { offset, slots: pack.slots, stride: pack.stride, filled });
            offset += pack.slots as usize;
        }
    }
    glwes
}

fn table_norms(instruction: &Instruction) -> Vec<f64> {
    let Instruction::LutProduct(x) = instruction else { return Vec::new() };
    let lanes = f64::from(1_u32 << x.extension);
    let norm = |table: &[i32]| table.iter().map(|&p| f64::from(p).powi(2)).sum::<f64>() / lanes;
    x.tables.chunks(x.entries()).map(norm).collect()
}

#[inline(always)]
fn dot(weights: &[i32], operands: &[u64]) -> u64 {
    let terms = weights.iter().zip(operands);
    terms.fold(0, |sum: u64, (&w, &x)| sum.wrapping_add((i64::from(w) as u64).wrapping_mul(x)))
}

#[inline(always)]
fn linear(x: &Linear, lwe: &mut Vec<u64>, operands: &mut Vec<u64>) {
    let (outputs, k) = (x.outputs as usize, x.operands as usize);
    for (group, bias) in x.bias.chunks(outputs).enumerate() {
        operands.clear();
        let gather = &x.gather[group * k..(group + 1) * k];
        operands.extend(gather.iter().map(|&a| if a == ABSENT { 0 } else { lwe[a as usize] }));
        let set = x.set[group] as usize * outputs * k;
        for (m, &bias) in bias.iter().enumerate() {
            let weights = if k == 0 { &[] } else { &x.weights[set + m * k..set + (m + 1) * k] };
            lwe.push(dot(weights, operands).wrapping_add(bias));
        }
    }
}

impl<'a> Simulator<'a> {
    /// Prepares a circuit; it is verified.
    ///
    /// # Errors
    /// The circuit is inconsistent.
    pub fn new(circuit: &'a Circuit, noise: NoiseModel) -> Result<Self> {
        circuit.verify().map_err(|e| RuntimeError::Input(format!("the circuit is not usable: {e}")))?;
        let glwes = layout(circuit);
        for (i, instruction) in circuit.instructions.iter().enumerate() {
            let (accumulators, stride) = match instruction {
                Instruction::LutProduct(x) => (&x.accumulator, x.stride),
                Instruction::ExternalProduct(x) => (&x.accumulator, x.stride),
                _ => continue,
            };
            if accumulators.iter().any(|&g| glwes[g as usize].stride != stride) {
                return Err(stride_error(i));
            }
        }
        let norms = circuit.instructions.iter().map(table_norms).collect();
        let inputs = circuit.inputs.iter().map(|(_, b)| b.len as usize).sum();
        Ok(Self { circuit, noise, glwes, norms, inputs })
    }

    /// The circuit.
    #[must_use]
    pub fn circuit(&self) -> &'a Circuit {
        self.circuit
    }

    /// The noise that it draws.
    #[must_use]
    pub fn noise(&self) -> &NoiseModel {
        &self.noise
    }

    /// Runs on the phases of the inputs, in the order of `circuit.inputs`.
    ///
    /// # Errors
    /// There are not as many phases as inputs.
    pub fn run(&self, inputs: &[u64], seed: u64) -> Result<Simulation> {
        let mut simulation = Simulation::default();
        self.run_into(inputs, seed, &mut simulation)?;
        Ok(simulation)
    }

    /// As [`run`](Self::run), into a state that may have been used before.
    ///
    /// # Errors
    /// There are not as many phases as inputs.
    pub fn run_into(&self, inputs: &[u64], seed: u64, s: &mut Simulation) -> Result<()> {
        if inputs.len() != self.inputs {
            let reason = format!("the circuit takes {} values, and the input has {}", self.inputs, inputs.len());
            return Err(RuntimeError::Input(reason));
        }
        s.lwe.clear();
        s.positions.clear();
        s.slots.clear();
        s.overflows.clear();
        s.overflows.resize(self.circuit.instructions.len(), 0);
        let mut noise = Noise::new(seed, INPUT_STREAM);
        let fresh = self.noise.fresh.sqrt();
        s.lwe.extend(inputs.iter().map(|&phase| phase.wrapping_add(noise.draw(fresh))));
        for (i, instruction) in self.circuit.instructions.iter().enumerate() {
            let mut noise = Noise::new(seed, i as u64);
            match instruction {
                Instruction::Linear(x) => Arch::new().dispatch(|| linear(x, &mut s.lwe, &mut s.operands)),
                Instruction::Keyswitch(x) => s.overflows[i] = self.keyswitch(x, s, &mut noise),
                Instruction::Pbs(x) => self.pbs(x, s, &mut noise),
                Instruction::Pack(x) => self.pack(x, s, &mut noise),
                Instruction::LutProduct(x) => self.lut_product(x, &self.norms[i], s, &mut noise),
                Instruction::ExternalProduct(x) => self.external_product(x, s, &mut noise),
            }
        }
        Ok(())
    }

    /// Right shift from a phase to its position of 2N; with extension ν it is less by ν.
    fn position_shift(&self) -> u32 {
        64 - self.circuit.parameters.positions().ilog2()
    }

    /// Keyswitch and the modulus switch of every rotation by its result: one draw for all of them.
    fn keyswitch(&self, x: &Keyswitch, s: &mut Simulation, noise: &mut Noise) -> u32 {
        let full = u64::from(x.domain) >= self.circuit.parameters.positions() as u64;
        let edge = if full { u64::MAX / EDGE } else { 0 };
        let last = if full { u64::MAX - edge } else { (u64::from(x.domain) << self.position_shift()) - 1 };
        let shift = self.position_shift() - x.extension;
        let deviation = self.noise.extended_argument(x.extension).sqrt();
        let mut overflows = 0;
        for &address in &x.gather {
            let phase = s.lwe[address as usize];
            overflows += u32::from(phase > last || phase < edge);
            s.positions.push((phase.wrapping_add(noise.draw(deviation)) >> shift) as u32);
        }
        overflows
    }

    fn pbs(&self, x: &Pbs, s: &mut Simulation, noise: &mut Noise) {
        let size = self.circuit.parameters.polynomial_size.0 << x.extension;
        let deviation = self.noise.bootstrap.sqrt();
        for (&argument, &table) in x.argument.iter().zip(&x.table_of) {
            let position = s.positions[argument as usize] as usize;
            let entry = x.tables[table as usize * size + position % size];
            let value = (i64::from(entry) as u64) << 32;
            let value = if position < size { value } else { value.wrapping_neg() };
            s.lwe.push(value.wrapping_add(noise.draw(deviation)));
        }
    }

    /// Each packed LWE adds packing noise to every coefficient, those of the other slots included.
    fn pack(&self, x: &Pack, s: &mut Simulation, noise: &mut Noise) {
        for gather in x.gather.chunks(x.slots as usize) {
            let filled = gather.iter().filter(|&&a| a != ABSENT).count();
            let deviation = (self.noise.packing * filled as f64).sqrt();
            for &address in gather {
                let phase = if address == ABSENT { 0 } else { s.lwe[address as usize] };
                s.slots.push(phase.wrapping_add(noise.draw(deviation)));
            }
        }
    }

    fn lut_product(&self, x: &LutProduct, norms: &[f64], s: &mut Simulation, noise: &mut Noise) {
        let size = self.circuit.parameters.polynomial_size.0 << x.extension;
        let stride = x.entries();
        for ((&argument, &glwe), &table) in x.argument.iter().zip(&x.accumulator).zip(&x.table_of) {
            let position = s.positions[argument as usize] as usize;
            let packed = self.glwes[glwe as usize];
            let slots = &s.slots[packed.offset..packed.offset + packed.slots as usize];
            let table = table as usize;
            // Noise of the coefficients of the accumulator: packing noise of all filled slots.
            let coefficient = self.noise.packing * f64::from(packed.filled);
            for j in 0..x.slots as usize {
                let degree = (j * stride + position) % (2 * size);
                let (entry, slot) = (degree % size % stride, degree % size / stride);
                let y = slots.get(slot).copied();
                let factor = if y.is_some() { x.tables[table * stride + entry] } else { 0 };
                let product = (i64::from(factor) as u64).wrapping_mul(y.unwrap_or(0));
                let product = if degree < size { product } else { product.wrapping_neg() };
                // The slot's own noise is in y already.
                let between = (norms[table] - f64::from(factor).powi(2)).max(0.0);
                let variance = coefficient * between + self.noise.bootstrap;
                s.lwe.push(product.wrapping_add(noise.draw(variance.sqrt())));
            }
        }
    }
}

impl Simulator<'_> {
    /// Every term multiplies all slots by what it looks up, and adds noise to each. What the gadget rounds off a GLWE is the same wherever it is multiplied.
    fn external_product(&self, x: &ExternalProduct, s: &mut Simulation, noise: &mut Noise) {
        let entries = external::entries(self.circuit.parameters.polynomial_size.0, x.rotations as usize);
        let slots = x.slots as usize;
        let rounding = self.noise.external_rounding.sqrt();
        let mut rounded: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let mut terms = x.argument.iter().zip(&x.accumulator).zip(&x.table_of);
        for &count in &x.terms {
            let mut sums = vec![0_u64; slots];
            for ((&argument, &glwe), &table) in terms.by_ref().take(count as usize) {
                let position = s.positions[argument as usize] as usize;
                if position >= entries {
                    // The levels of the gadget meet each other's values: what comes out is anything.
                    sums.iter_mut().for_each(|sum| *sum = sum.wrapping_add(noise.anything()));
                    continue;
                }
                let factor = i64::from(x.tables[table as usize * entries + position]) as u64;
                let packed = self.glwes[glwe as usize];
                let values = rounded.entry(glwe).or_insert_with(|| {
                    let slots = &s.slots[packed.offset..packed.offset + packed.slots as usize];
                    slots.iter().map(|y| y.wrapping_add(noise.draw(rounding))).collect()
                });
                for (sum, y) in sums.iter_mut().zip(values) {
                    *sum = sum.wrapping_add(factor.wrapping_mul(*y));
                }
            }
            let deviation = (f64::from(count) * self.noise.external).sqrt();
            s.lwe.extend(sums.iter().map(|sum| sum.wrapping_add(noise.draw(deviation))));
        }
    }
}

/// A simulated inference, end to end.
#[derive(Clone, Debug)]
pub struct Inference {
    /// The model's outputs, unrounded.
    pub outputs: Vec<Named>,
    /// What was encoded.
    pub encoded: Encoded,
    /// All phases and overflows.
    pub simulation: Simulation,
}

/// Encodes inputs, simulates the circuit, decodes the outputs.
///
/// # Errors
/// The inputs do not fit the bundle, or the bundle not the circuit.
pub fn infer(bundle: &ClientBundle, simulator: &Simulator<'_>, inputs: &[Named], seed: u64) -> Result<Inference> {
    let encoded = encode(bundle, inputs)?;
    let simulation = simulator.run(&encoded.phases, seed)?;
    let outputs = decode(bundle, &simulation.outputs(simulator.circuit), Rounding::Raw)?;
    Ok(Inference { outputs, encoded, simulation })
}
