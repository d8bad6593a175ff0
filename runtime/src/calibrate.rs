//! How long each kernel takes on this machine, alone, all threads busy, per unit of work.
//!
//! Keys are not needed: the same code runs on pseudo-random words of the same sizes. Masks are random too,
//! since a mask element that switches to zero skips its rotation.

use std::time::Instant;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tfhe::core_crypto::prelude::Fft;
use thex_circuit::external;
use thex_circuit::instruction::{Block, ExternalProduct, Linear, LutProduct};
use thex_circuit::{Circuit, Instruction, Parameters};

use crate::error::{Result, RuntimeError};
use crate::executor::{Backend, CpuBackend, ExternalProducts, LookUps, Products};
use crate::kernels::balanced_chunk;
use crate::kernels::external::ConversionKey;
use crate::kernels::matrix::TiledMatrix;
use crate::kernels::rotate::{BATCH, BootstrapKey, batch_of};
use crate::keys::{ExpandedServerKey, KeyInfo, LARGEST_RING, check_ring};
use crate::ranks::Kind;

/// Nanoseconds of wall-clock time per unit, in full batches with all threads busy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelTimes {
    /// Threads that it was measured with.
    pub threads: usize,
    /// One blind rotation of a trivial accumulator, with its sample extraction.
    pub pbs_ns: f64,
    /// One keyswitch.
    pub keyswitch_ns: f64,
    /// One packed LWE.
    pub pack_ns: f64,
    /// One weight times one LWE.
    pub multiply_add_ns: f64,
    /// One rotation of a product, with the multiplication by the table and the extraction of 8 samples.
    pub lut_product_ns: f64,
    /// One rotation of an external product, with the GGSW that is made of it and the product.
    #[serde(default)]
    pub external_product_ns: f64,
    /// One blind rotation on each thread, not batched: what a step with few rotations waits for.
    pub lone_pbs_ns: f64,
    /// One lane of a blind rotation with an extension, of which it has 2^ν.
    pub lane_ns: f64,
    /// One keyswitch alone: the whole key is read for it.
    pub lone_keyswitch_ns: f64,
    /// One packed LWE alone.
    pub lone_pack_ns: f64,
}

/// A server key of full size that encrypts nothing.
fn synthetic_key(p: Parameters) -> ExpandedServerKey {
    let big = p.big_lwe_dimension().0;
    ExpandedServerKey {
        info: KeyInfo { id: String::new(), circuit: String::new(), parameters: p },
        keyswitch: TiledMatrix::arbitrary(big * p.keyswitch.level.0, p.lwe_dimension.to_lwe_size().0),
        bootstrap: BootstrapKey::arbitrary(&p, Fft::new(p.polynomial_size).as_view()),
        packing: TiledMatrix::arbitrary(big * p.packing.level.0, p.glwe_words()),
        conversion: (p.glwe_dimension.0 == 1).then(|| ConversionKey::arbitrary(&p)),
    }
}

/// What runs a kernel as often as it wants, to time it.
pub type Harness<'a> = &'a mut dyn FnMut(&mut dyn FnMut() -> Result<()>) -> Result<()>;

/// The kernels of one parameter set, on random ciphertexts. Each method prepares a batch and hands one run of the kernel over it to
/// the harness; the threads are those of the current rayon pool.
pub struct Kernels {
    backend: CpuBackend,
    big: Vec<Vec<u64>>,
    small: Vec<Vec<u64>>,
    threads: usize,
}

fn views(lwes: &[Vec<u64>], count: usize) -> Vec<&[u64]> {
    lwes.iter().cycle().take(count).map(Vec::as_slice).collect()
}

/// Nanoseconds per unit of the faster of two runs.
fn time(units: usize, kernel: impl FnOnce(Harness<'_>) -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    kernel(&mut |run| {
        for _ in 0..2 {
            let start = Instant::now();
            run()?;
            best = best.min(start.elapsed().as_nanos() as f64);
        }
        Ok(())
    })?;
    Ok(best / units as f64)
}

/// Outputs and operands of the linear map that is timed.
const LINEAR_SIDE: usize = 128;

impl Kernels {
    /// For the threads of the current pool. A key of full size is made, of numbers that encrypt nothing.
    ///
    /// # Errors
    /// The parameters are refused.
    pub fn new(p: Parameters) -> Result<Self> {
        p.check()?;
        check_ring(&p)?;
        let threads = rayon::current_num_threads();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut lwes = |size: usize| -> Vec<Vec<u64>> {
            (0..64).map(|_| (0..size).map(|_| random.next_u64()).collect()).collect()
        };
        let big = lwes(p.big_lwe_size());
        let small = lwes(p.lwe_dimension.to_lwe_size().0);
        Ok(Self { backend: CpuBackend::new(synthetic_key(p)), big, small, threads })
    }

    /// Rotations of one full batch: as many on each thread as share a pass over the key.
    #[must_use]
    pub fn batch(&self) -> usize {
        BATCH * self.threads
    }

    fn parameters(&self) -> &Parameters {
        self.backend.parameters()
    }

    /// Blind rotations of this extension of `count` trivial accumulators.
    ///
    /// # Errors
    /// The kernel failed, or the harness.
    pub fn pbs(&self, count: usize, extension: u32, harness: Harness<'_>) -> Result<()> {
        let table = vec![1 << 20; self.parameters().polynomial_size.0 << extension];
        let look_ups =
            LookUps { arguments: views(&self.small, count), tables: vec![table.as_slice(); count], extension };
        let mut out = vec![0; count * self.parameters().big_lwe_size()];
        harness(&mut || self.backend.pbs(&look_ups, &mut out, &|_| ()))
    }

    /// Keyswitches of `count` LWEs.
    ///
    /// # Errors
    /// The kernel failed, or the harness.
    pub fn keyswitch(&self, count: usize, harness: Harness<'_>) -> Result<()> {
        let mut out = vec![0; count * self.parameters().lwe_dimension.to_lwe_size().0];
        harness(&mut || self.backend.keyswitch(&views(&self.big, count), &mut out))
    }

    /// Packs `count` LWEs, 8 to a GLWE; `count` is less than 8 or a multiple of it.
    ///
    /// # Errors
    /// The kernel failed, or the harness.
    pub fn pack(&self, count: usize, harness: Harness<'_>) -> Result<()> {
        let p = self.parameters();
        let slots = count.min(8);
        let inputs: Vec<Option<&[u64]>> = views(&self.big, count).into_iter().map(Some).collect();
        let mut out = vec![0; count / slots * p.glwe_words()];
        harness(&mut || self.backend.pack(&inputs, slots, p.polynomial_size.0 / slots, &mut out))
    }

    /// Products: `count` rotations of a GLWE times a table, 8 samples taken from each.
    ///
    /// # Errors
    /// The kernel failed, or the harness.
    pub fn lut_product(&self, count: usize, harness: Harness<'_>) -> Result<()> {
        let p = self.parameters();
        let (slots, stride) = (8, p.polynomial_size.0 / 8);
        let glwe: Vec<u64> = self.big.concat().into_iter().take(p.glwe_words()).collect();
        let instruction = LutProduct {
            dst: Block { start: 0, len: (count * slots) as u32 },
            slots: slots as u32,
            stride: stride as u32,
            extension: 0,
            argument: vec![0; count],
            accumulator: vec![0; count],
            table_of: vec![0; count],
            tables: vec![5; stride],
        };
        let products = Products {
            arguments: views(&self.small, count),
            accumulators: vec![&glwe; count],
            instruction: &instruction,
        };
        let mut out = vec![0; count * slots * p.big_lwe_size()];
        harness(&mut || self.backend.lut_product(&products, &mut out, &|_| ()))
    }

    /// Sums of external products: `count` rotations in sums of 8.
    ///
    /// # Errors
    /// The kernel failed, or the harness.
    pub fn external_product(&self, count: usize, harness: Harness<'_>) -> Result<()> {
        let p = self.parameters();
        let slots = 8;
        let glwe: Vec<u64> = self.big.concat().into_iter().take(p.glwe_words()).collect();
        let terms: Vec<u32> = (0..count).step_by(8).map(|i| (count - i).min(8) as u32).collect();
        let instruction = ExternalProduct {
            dst: Block { start: 0, len: (terms.len() * slots) as u32 },
            slots: slots as u32,
            stride: (p.polynomial_size.0 / slots) as u32,
            rotations: 1,
            terms,
            argument: vec![0; count],
            accumulator: vec![0; count],
            table_of: vec![0; count],
            tables: vec![5; external::entries(p.polynomial_size.0, 1)],
        };
        let products = ExternalProducts {
            arguments: views(&self.small, count),
            glwes: vec![&glwe; count],
            instruction: &instruction,
        };
        let mut out = vec![0; instruction.dst.len as usize * p.big_lwe_size()];
        harness(&mut || self.backend.external_product(&products, &mut out, &|_| ()))
    }

    /// Weights that [`linear`](Self::linear) multiplies: two maps of 128 × 128 for each thread.
    #[must_use]
    pub fn weights(&self) -> usize {
        2 * self.threads * LINEAR_SIDE * LINEAR_SIDE
    }

    /// A linear map of [`weights`](Self::weights) weights.
    ///
    /// # Errors
    /// The kernel failed, or the harness.
    pub fn linear(&self, harness: Harness<'_>) -> Result<()> {
        let (outputs, operands, groups) = (LINEAR_SIDE, LINEAR_SIDE, 2 * self.threads);
        let linear = Linear {
            dst: Block { start: 0, len: (groups * outputs) as u32 },
            outputs: outputs as u32,
            operands: operands as u32,
            gather: Vec::new(),
            set: vec![0; groups],
            weights: (0..outputs * operands).map(|i| i as i32 % 97 + 1).collect(),
            bias: vec![0; groups * outputs],
        };
        let gather: Vec<Option<&[u64]>> = views(&self.big, groups * operands).into_iter().map(Some).collect();
        let mut out = vec![0; groups * outputs * self.parameters().big_lwe_size()];
        harness(&mut || self.backend.linear(&linear, &gather, &mut out))
    }
}

/// Measures the kernels with `threads` threads (0: one for each processor). Takes two seconds or so. Rings that this build cannot run are
/// reckoned from the largest that it can.
///
/// # Errors
/// The parameters are refused, or threads cannot be started.
pub fn measure(parameters: Parameters, threads: usize) -> Result<KernelTimes> {
    let (n, k, size) = (parameters.lwe_dimension.0, parameters.glwe_dimension.0, parameters.polynomial_size.0);
    if size > LARGEST_RING {
        let times = measure(parameters.with_dimensions(n, k, LARGEST_RING), threads)?;
        return Ok(times.in_larger_ring(size as f64 / LARGEST_RING as f64));
    }
    thread_pool(threads)?.install(|| {
        let kernels = Kernels::new(parameters)?;
        let (threads, batch, weights) = (kernels.threads, kernels.batch(), kernels.weights());
        Ok(KernelTimes {
            threads,
            // In this order: the first run touches the key's memory for the first time.
            pbs_ns: time(batch, |h| kernels.pbs(batch, 0, h))?,
            lone_pbs_ns: time(1, |h| kernels.pbs(threads, 0, h))?,
            lane_ns: time(2 * batch_of(1) * threads, |h| kernels.pbs(batch_of(1) * threads, 1, h))?,
            keyswitch_ns: time(128, |h| kernels.keyswitch(128, h))?,
            lone_keyswitch_ns: time(1, |h| kernels.keyswitch(1, h))?,
            pack_ns: time(64, |h| kernels.pack(64, h))?,
            lone_pack_ns: time(1, |h| kernels.pack(1, h))?,
            multiply_add_ns: time(weights, |h| kernels.linear(h))?,
            lut_product_ns: time(batch, |h| kernels.lut_product(batch, h))?,
            external_product_ns: match parameters.glwe_dimension.0 {
                1 => time(batch, |h| kernels.external_product(batch, h))?,
                _ => 0.0,
            },
        })
    })
}

/// A pool of `threads` threads; 0 is one for each processor.
///
/// # Errors
/// Threads cannot be started.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| RuntimeError::Input(format!("cannot start {threads} threads: {e}")))
}

impl KernelTimes {
    /// By the number of operations of each kernel: N·log N for a rotation, N for a keyswitch, N² for packing.
    fn in_larger_ring(self, growth: f64) -> Self {
        let rotation = growth * (1.0 + growth.log2() / (LARGEST_RING as f64).log2());
        Self {
            threads: self.threads,
            pbs_ns: rotation * self.pbs_ns,
            keyswitch_ns: growth * self.keyswitch_ns,
            pack_ns: growth * growth * self.pack_ns,
            multiply_add_ns: growth * self.multiply_add_ns,
            lut_product_ns: rotation * self.lut_product_ns,
            external_product_ns: rotation * self.external_product_ns,
            lone_pbs_ns: rotation * self.lone_pbs_ns,
            lane_ns: rotation * self.lane_ns,
            lone_keyswitch_ns: growth * self.lone_keyswitch_ns,
            lone_pack_ns: growth * growth * self.lone_pack_ns,
        }
    }

    /// Seconds that a circuit takes on the machine and threads that were measured.
    #[must_use]
    pub fn estimate(&self, circuit: &Circuit) -> f64 {
        circuit.instructions.iter().map(|i| self.instruction_ns(i)).sum::<f64>() * 1e-9
    }

    /// Nanoseconds of one instruction.
    #[must_use]
    pub fn instruction_ns(&self, instruction: &Instruction) -> f64 {
        let (kind, count) = match instruction {
            Instruction::Linear(_) => return instruction.multiply_adds() as f64 * self.multiply_add_ns,
            Instruction::ExternalProduct(x) => {
                // The GGSW is made once, however many rotations it takes.
                let conversion = (self.external_product_ns - self.pbs_ns) / f64::from(x.rotations);
                return self.rotations(instruction.pbs_count(), self.pbs_ns + conversion);
            }
            Instruction::Pbs(_) => (Kind::Pbs, instruction.pbs_count()),
            Instruction::LutProduct(_) => (Kind::LutProduct, instruction.pbs_count()),
            Instruction::Keyswitch(_) => (Kind::Keyswitch, instruction.keyswitch_count()),
            Instruction::Pack(_) => (Kind::Pack, instruction.pack_count()),
        };
        self.batch_ns(kind, count, instruction.extension())
    }

    /// Nanoseconds of so many rotations of an extension, keyswitches, or packed ciphertexts.
    #[must_use]
    pub fn batch_ns(&self, kind: Kind, count: u64, extension: u32) -> f64 {
        let batched = |unit: f64, lone: f64| if count == 0 { 0.0 } else { (count as f64 * unit).max(lone) };
        let rotation = if kind == Kind::LutProduct { self.lut_product_ns } else { self.pbs_ns };
        match kind {
            Kind::Pbs | Kind::LutProduct if extension > 0 => {
                self.extended_rotations(count as usize, extension, rotation - self.pbs_ns)
            }
            Kind::Pbs | Kind::LutProduct => self.rotations(count, rotation),
            Kind::Keyswitch => batched(self.keyswitch_ns, self.lone_keyswitch_ns),
            Kind::Pack => batched(self.pack_ns, self.lone_pack_ns),
        }
    }

    /// Lanes of chunks that go round on all threads; a last round takes as long as its longest chunk.
    fn extended_rotations(&self, count: usize, extension: u32, extra: f64) -> f64 {
        let chunk = balanced_chunk(count, self.threads, batch_of(extension));
        let (whole, rest) = (count / (chunk * self.threads), count % (chunk * self.threads));
        let rotations = (whole * chunk + rest.min(chunk)) * self.threads;
        (rotations << extension) as f64 * (self.lane_ns + extra)
    }

    /// A chunk of c rotations takes a + b·c on its thread: b is the arithmetic, a reading the key once.
    fn rotations(&self, count: u64, unit: f64) -> f64 {
        let count = count as usize;
        let full = self.pbs_ns * (self.threads * BATCH) as f64;
        let slope = ((full - self.lone_pbs_ns) / (BATCH - 1) as f64).max(0.0);
        let pass = (self.lone_pbs_ns - slope).max(0.0);
        let extra = (unit - self.pbs_ns) * self.threads as f64;
        let chunk = balanced_chunk(count, self.threads, BATCH);
        let (whole, rest) = (count / (chunk * self.threads), count % (chunk * self.threads));
        let last = if rest == 0 { 0.0 } else { pass + rest.min(chunk) as f64 * (slope + extra) };
        whole as f64 * (pass + chunk as f64 * (slope + extra)) + last
    }
}
