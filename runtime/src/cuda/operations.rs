//! The five kernels on device memory. Operands are addresses of ciphertexts on the GPU, results go to an address.
//!
//! The keyswitch is tfhe's, and blind rotations are where ours is not faster (see [`super::rotations`]). A packing keyswitch is tfhe's keyswitch too: its key has GLWEs where a
//! keyswitch key has LWEs, and the words of a GLWE are as good a row of the matrix product as those of an LWE; our kernel then
//! moves each product to its slot and sums. Blind rotations of encrypted accumulators are, for tfhe, its "many LUT" bootstrap,
//! which takes whole GLWEs as tables and extracts several samples; the product of the accumulator by the table is exact, in
//! integers, where the processor's goes through an FFT.
//!
//! The modulus switch is tfhe's centred one, as on the processor, so the noise model holds as it is.
#![allow(unsafe_code, reason = "calls into CUDA; each says why it is sound")]

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use tfhe_cuda_backend::bindings::cuda_keyswitch_gemm_64_64_async;
use thex_circuit::Parameters;
use thex_circuit::instruction::Linear;
use thex_circuit::params::Decomposition;

use super::device::{Buffer, Stream, check};
use super::rotations::{Batch, RotationKernel, Rotations};
use crate::error::{Result, RuntimeError};
use crate::executor::Done;
use crate::keys::StandardServerKey;

/// Ciphertexts that one launch works on: 16 rounds of the rotations that an H100 or H200 runs at once (two on each of 132
/// multiprocessors).
pub(super) const BATCH: usize = 16 * 264;
/// Most levels that tfhe's keyswitch has a kernel for.
const MOST_LEVELS: usize = 9;
/// Bytes of a word.
pub(super) const WORD: usize = 8;

unsafe extern "C" {
    fn thex_cuda_gather(stream: *mut c_void, out: u64, from: u64, count: u32, width: u32) -> c_int;
    fn thex_cuda_fill_tables(
        stream: *mut c_void,
        out: u64,
        tables: u64,
        table_of: u64,
        count: u32,
        masks: u32,
        size: u32,
    ) -> c_int;
    fn thex_cuda_multiply_tables(
        stream: *mut c_void,
        out: u64,
        glwes: u64,
        tables: u64,
        table_of: u64,
        count: u32,
        polynomials: u32,
        entries: u32,
        size: u32,
    ) -> c_int;
    fn thex_cuda_pack_sum(
        stream: *mut c_void,
        out: u64,
        products: u64,
        lwes: u64,
        first: u64,
        degrees: u64,
        glwes: u32,
        lwe_size: u32,
        polynomials: u32,
        size: u32,
    ) -> c_int;
    fn thex_cuda_linear(
        stream: *mut c_void,
        out: u64,
        operands: u64,
        set: u64,
        weights: u64,
        bias: u64,
        groups: u32,
        outputs: u32,
        depth: u32,
        size: u32,
    ) -> c_int;
}

/// How the outputs of a product lie in memory: tfhe writes sample j of all rotations of a launch, then sample j + 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Samples of a rotation.
    slots: usize,
    /// Rotations of a launch.
    batch: usize,
    /// Rotations of all.
    rotations: usize,
}

impl Layout {
    /// One sample after another.
    pub(super) const ROWS: Self = Self { slots: 1, batch: 1, rotations: usize::MAX };

    /// Where products with so many slots are written.
    pub(super) fn of_products(rotations: usize, slots: usize, p: &Parameters) -> Self {
        Self { slots, batch: product_batch(slots, p), rotations }
    }

    /// Position in memory of sample `element` (rotation·slots + slot).
    pub(super) fn position(self, element: usize) -> usize {
        let (rotation, slot) = (element / self.slots, element % self.slots);
        let first = rotation / self.batch * self.batch;
        let count = self.batch.min(self.rotations - first);
        first * self.slots + slot * count + rotation - first
    }
}

/// Rotations of a launch: tfhe addresses the words of all outputs of a launch with 32 bits.
fn product_batch(slots: usize, p: &Parameters) -> usize {
    ((u32::MAX as usize) / (slots * p.big_lwe_size()).max(1)).clamp(1, BATCH)
}

/// A slice of operands, as addresses on the GPU.
pub(super) type Addresses<'a> = &'a [u64];

/// Tables on the GPU, and which of them each element takes.
pub(super) struct Tables<'a> {
    /// 32-bit entries, one table after another.
    pub(super) entries: Buffer,
    /// Index of each element's table.
    pub(super) table_of: &'a [u32],
}

/// The evaluation keys on the GPU, and what runs under them.
pub(super) struct Operations {
    stream: Arc<Stream>,
    parameters: Parameters,
    keyswitch: Buffer,
    rotations: Rotations,
    packing: Buffer,
    /// 0, 1, 2, …: tfhe's kernels take the places of their operands from an array.
    identity: Buffer,
}

fn refuse(parameters: &Parameters) -> Result<()> {
    for (name, d) in [("keyswitch", parameters.keyswitch), ("packing", parameters.packing)] {
        if d.level.0 > MOST_LEVELS {
            let reason = format!("{name} decompositions of more than {MOST_LEVELS} levels have no kernel there");
            return Err(RuntimeError::Device(reason));
        }
    }
    Ok(())
}

impl Operations {
    /// Copies the keys to the GPU.
    pub(super) fn new(stream: &Arc<Stream>, key: &StandardServerKey, kernel: RotationKernel) -> Result<Self> {
        let p = key.info.parameters;
        refuse(&p)?;
        let needed = (key.bootstrap.as_ref().len() + key.keyswitch.as_ref().len() + key.packing.as_ref().len()) * WORD;
        let free = stream.description().free_bytes;
        if (needed as u64).saturating_mul(3) > free {
            let reason =
                format!("keys and working memory take about {} MB, and {} MB are free", needed / 333_333, free >> 20);
            return Err(RuntimeError::Device(reason));
        }
        let identity: Vec<u64> = (0..BATCH as u64).collect();
        let operations = Self {
            stream: Arc::clone(stream),
            parameters: p,
            keyswitch: stream.upload(key.keyswitch.as_ref())?,
            rotations: Rotations::new(stream, &key.bootstrap, &p, kernel)?,
            packing: stream.upload(key.packing.as_ref())?,
            identity: stream.upload(&identity)?,
        };
        stream.wait()?;
        Ok(operations)
    }

    pub(super) fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Copies ciphertexts of `width` words side by side; absent ones become zeros.
    fn gather(&self, operands: Addresses<'_>, width: usize) -> Result<Buffer> {
        let out = self.stream.allocate(operands.len() * width * WORD)?;
        if operands.is_empty() {
            return Ok(out);
        }
        let from = self.stream.upload(operands)?;
        // SAFETY: `out` has room for all, and the addresses are those of live ciphertexts of that width.
        let status = unsafe {
            thex_cuda_gather(self.stream.handle(), out.at(0), from.at(0), operands.len() as u32, width as u32)
        };
        check(status, "ciphertexts cannot be gathered on the GPU")?;
        Ok(out)
    }

    /// Keyswitches at most [`BATCH`] gathered LWEs by a key whose rows have `width` words.
    fn switch(&self, lwes: u64, count: usize, key: (&Buffer, Decomposition, usize), out: u64) {
        let (key, decomposition, width) = key;
        // SAFETY: at `lwes` are `count` big LWEs, `out` room for `count` rows, the key as many rows of `width` words as the
        // decomposition of a big LWE has digits, and `identity` at least `count` entries.
        unsafe {
            cuda_keyswitch_gemm_64_64_async(
                self.stream.handle(),
                Stream::GPU,
                out as *mut c_void,
                self.identity.pointer(),
                lwes as *const c_void,
                self.identity.pointer(),
                key.pointer(),
                self.parameters.big_lwe_dimension().0 as u32,
                width as u32 - 1,
                decomposition.base_log.0 as u32,
                decomposition.level.0 as u32,
                count as u32,
                true,
            );
        }
    }

    /// Big LWEs → small LWEs.
    pub(super) fn keyswitch(&self, inputs: Addresses<'_>, out: u64) -> Result<()> {
        let p = &self.parameters;
        let width = p.lwe_dimension.to_lwe_size().0;
        for (number, inputs) in inputs.chunks(BATCH).enumerate() {
            let lwes = self.gather(inputs, p.big_lwe_size())?;
            let out = out + (number * BATCH * width * WORD) as u64;
            self.switch(lwes.at(0), inputs.len(), (&self.keyswitch, p.keyswitch, width), out);
        }
        Ok(())
    }

    /// Groups of `slots` big LWEs (0: an empty slot) → GLWEs.
    pub(super) fn pack(&self, inputs: Addresses<'_>, slots: usize, stride: usize, out: u64) -> Result<()> {
        let groups = (BATCH / slots.max(1)).max(1);
        for (number, inputs) in inputs.chunks(groups * slots).enumerate() {
            let out = out + (number * groups * self.parameters.glwe_words() * WORD) as u64;
            self.pack_batch(inputs, slots, stride, out)?;
        }
        Ok(())
    }

    fn pack_batch(&self, inputs: Addresses<'_>, slots: usize, stride: usize, out: u64) -> Result<()> {
        let p = &self.parameters;
        let (mut lwes, mut degrees, mut first) = (Vec::new(), Vec::new(), vec![0]);
        for group in inputs.chunks(slots) {
            for (slot, &lwe) in group.iter().enumerate().filter(|(_, lwe)| **lwe != 0) {
                lwes.push(lwe);
                degrees.push((slot * stride) as u32);
            }
            first.push(lwes.len() as u32);
        }
        let gathered = self.gather(&lwes, p.big_lwe_size())?;
        let products = self.stream.allocate(lwes.len() * p.glwe_words() * WORD)?;
        for start in (0..lwes.len()).step_by(BATCH) {
            // One group may have more slots than a batch has ciphertexts.
            let count = BATCH.min(lwes.len() - start);
            let (from, to) = (start * p.big_lwe_size() * WORD, start * p.glwe_words() * WORD);
            let key = (&self.packing, p.packing, p.glwe_words());
            self.switch(gathered.at(from), count, key, products.at(to));
        }
        let (first, degrees) = (self.stream.upload(&first)?, self.stream.upload(&degrees)?);
        // SAFETY: one GLWE a group, one product and one degree below N an LWE; `first` has one entry more than there are groups.
        let status = unsafe {
            thex_cuda_pack_sum(
                self.stream.handle(),
                out,
                products.at(0),
                gathered.at(0),
                first.at(0),
                degrees.at(0),
                inputs.len().div_ceil(slots) as u32,
                p.big_lwe_size() as u32,
                p.glwe_dimension.0 as u32 + 1,
                p.polynomial_size.0 as u32,
            )
        };
        check(status, "ciphertexts cannot be packed on the GPU")
    }

    /// Rotates at most [`BATCH`] accumulators by as many small LWEs, and extracts.
    fn rotate(
        &self,
        accumulators: &Buffer,
        arguments: &Buffer,
        count: usize,
        slots: (usize, usize),
        out: u64,
    ) -> Result<()> {
        let (slots, stride) = slots;
        let batch = Batch { accumulators: accumulators.at(0), arguments: arguments.at(0), count, slots, stride };
        self.rotations.run(&self.stream, &self.parameters, batch, out)
    }

    /// Small LWEs → big LWEs through tables of N entries in units of 2^-32.
    pub(super) fn pbs(&self, arguments: Addresses<'_>, tables: &Tables<'_>, out: u64, done: Done<'_>) -> Result<()> {
        let p = &self.parameters;
        for (number, arguments) in arguments.chunks(BATCH).enumerate() {
            let start = number * BATCH;
            let small = self.gather(arguments, p.lwe_dimension.to_lwe_size().0)?;
            let accumulators = self.fill_tables(tables, start, arguments.len())?;
            let out = out + (start * p.big_lwe_size() * WORD) as u64;
            self.rotate(&accumulators, &small, arguments.len(), (1, 0), out)?;
            self.stream.wait()?;
            done(arguments.len() as u64);
        }
        Ok(())
    }

    fn fill_tables(&self, tables: &Tables<'_>, start: usize, count: usize) -> Result<Buffer> {
        let p = &self.parameters;
        let out = self.stream.allocate(count * p.glwe_words() * WORD)?;
        let table_of = self.stream.upload(&tables.table_of[start..start + count])?;
        // SAFETY: `out` has room for `count` GLWEs, and each index is that of a table.
        let status = unsafe {
            thex_cuda_fill_tables(
                self.stream.handle(),
                out.at(0),
                tables.entries.at(0),
                table_of.at(0),
                count as u32,
                p.big_lwe_dimension().0 as u32,
                p.polynomial_size.0 as u32,
            )
        };
        check(status, "tables cannot be filled on the GPU")?;
        Ok(out)
    }

    /// Rotates `glwe·table` by each argument, extracts `slots` samples into the places of [`Layout::of_products`].
    pub(super) fn lut_product(
        &self,
        (arguments, glwes): (Addresses<'_>, Addresses<'_>),
        tables: &Tables<'_>,
        (slots, stride): (usize, usize),
        out: u64,
        done: Done<'_>,
    ) -> Result<()> {
        let p = &self.parameters;
        let batch = product_batch(slots, p);
        for (number, (arguments, glwes)) in arguments.chunks(batch).zip(glwes.chunks(batch)).enumerate() {
            let start = number * batch;
            let small = self.gather(arguments, p.lwe_dimension.to_lwe_size().0)?;
            let accumulators = self.multiply_tables(glwes, tables, start, stride)?;
            let out = out + (start * slots * p.big_lwe_size() * WORD) as u64;
            self.rotate(&accumulators, &small, arguments.len(), (slots, stride), out)?;
            self.stream.wait()?;
            done(arguments.len() as u64);
        }
        Ok(())
    }

    fn multiply_tables(
        &self,
        glwes: Addresses<'_>,
        tables: &Tables<'_>,
        start: usize,
        entries: usize,
    ) -> Result<Buffer> {
        let p = &self.parameters;
        let out = self.stream.allocate(glwes.len() * p.glwe_words() * WORD)?;
        let table_of = self.stream.upload(&tables.table_of[start..start + glwes.len()])?;
        let glwe_addresses = self.stream.upload(glwes)?;
        // SAFETY: `out` has room for as many GLWEs as are given, and each index is that of a table of so many entries.
        let status = unsafe {
            thex_cuda_multiply_tables(
                self.stream.handle(),
                out.at(0),
                glwe_addresses.at(0),
                tables.entries.at(0),
                table_of.at(0),
                glwes.len() as u32,
                p.glwe_dimension.0 as u32 + 1,
                entries as u32,
                p.polynomial_size.0 as u32,
            )
        };
        check(status, "accumulators cannot be multiplied on the GPU")?;
        Ok(out)
    }

    /// See [`Linear`]; operands are addresses, 0 for none.
    pub(super) fn linear(&self, x: &Linear, operands: Addresses<'_>, out: u64) -> Result<()> {
        let operands = self.stream.upload(operands)?;
        let (set, weights) = (self.stream.upload(&x.set)?, self.stream.upload(&x.weights)?);
        let bias = self.stream.upload(&x.bias)?;
        // SAFETY: `out` has room for groups·outputs big LWEs, and the circuit's verification holds the sizes of the others.
        let status = unsafe {
            thex_cuda_linear(
                self.stream.handle(),
                out,
                operands.at(0),
                set.at(0),
                weights.at(0),
                bias.at(0),
                x.set.len() as u32,
                x.outputs,
                x.operands,
                self.parameters.big_lwe_size() as u32,
            )
        };
        check(status, "a linear map cannot run on the GPU")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_a_permutation() {
        let layout = Layout { slots: 5, batch: 4, rotations: 11 };
        let mut positions: Vec<usize> = (0..55).map(|e| layout.position(e)).collect();
        // Rotation 9 is the second of the last launch, which has three.
        assert_eq!(layout.position(9 * 5 + 2), 8 * 5 + 2 * 3 + 1);
        positions.sort_unstable();
        assert_eq!(positions, (0..55).collect::<Vec<_>>());
        assert_eq!(Layout::ROWS.position(7), 7);
    }
}
