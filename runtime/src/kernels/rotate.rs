//! Blind rotations in batches, and the accumulators that they rotate.

use rayon::prelude::*;
use tfhe::core_crypto::fft_impl::fft64::c64;
use tfhe::core_crypto::fft_impl::fft64::crypto::bootstrap::{
    FourierLweBootstrapKeyOwned, batch_blind_rotate_assign_scratch,
};
use tfhe::core_crypto::fft_impl::fft64::math::polynomial::{FourierPolynomial, FourierPolynomialOwned};
use tfhe::core_crypto::prelude::*;
use thex_circuit::Parameters;

use super::balanced_chunk;

/// Rotations that share one pass over the bootstrap key. Batches of 16 are 1.35–1.8 times as fast as single ones.
pub(crate) const BATCH: usize = 16;

/// A small LWE after the centred binary modulus switch to 2N.
///
/// tfhe's own type switches lazily at each read and reaches mask element i by walking over the first i; this
/// one is switched once.
struct Switched {
    log_modulus: CiphertextModulusLog,
    mask: Vec<usize>,
    body: usize,
}

impl Switched {
    fn new(small: &[u64], p: &Parameters) -> Self {
        let log_modulus = p.polynomial_size.to_blind_rotation_input_modulus_log();
        let lwe = LweCiphertext::from_container(small, p.ciphertext_modulus());
        let lazy = lwe_ciphertext_centered_binary_modulus_switch::<u64, usize, _>(lwe, log_modulus);
        Self { log_modulus, mask: lazy.mask().collect(), body: lazy.body() }
    }
}

impl ModulusSwitchedLweCiphertext<usize> for Switched {
    fn log_modulus(&self) -> CiphertextModulusLog {
        self.log_modulus
    }
    fn lwe_dimension(&self) -> LweDimension {
        LweDimension(self.mask.len())
    }
    fn body(&self) -> usize {
        self.body
    }
    fn mask(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.mask.iter().copied()
    }
}

/// The bootstrap key and what goes with it.
pub(crate) struct Rotator<'a> {
    pub(crate) key: &'a FourierLweBootstrapKeyOwned,
    pub(crate) fft: FftView<'a>,
    pub(crate) parameters: Parameters,
}

/// Degrees at which samples are extracted: `count` of them, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Degrees {
    pub(crate) count: usize,
    pub(crate) stride: usize,
}

impl Rotator<'_> {
    /// Rotates accumulators by arguments, and extracts samples of each.
    fn batch(&self, accumulators: &mut [u64], arguments: &[&[u64]], degrees: Degrees, out: &mut [u64]) {
        let p = &self.parameters;
        let switched: Vec<Switched> = arguments.iter().map(|a| Switched::new(a, p)).collect();
        let glwe_size = p.glwe_dimension.to_glwe_size();
        let scratch = batch_blind_rotate_assign_scratch::<u64>(
            glwe_size,
            p.polynomial_size,
            CiphertextCount(arguments.len()),
            self.fft,
        );
        let mut buffers = ComputationBuffers::new();
        buffers.resize(scratch.unaligned_bytes_required());
        let list = GlweCiphertextListMutView::from_container(
            &mut *accumulators,
            glwe_size,
            p.polynomial_size,
            p.ciphertext_modulus(),
        );
        self.key.as_view().batch_blind_rotate_assign(list, &switched, self.fft, buffers.stack());
        let outputs = out.chunks_exact_mut(degrees.count * p.big_lwe_size());
        for (glwe, out) in accumulators.chunks_exact(p.glwe_words()).zip(outputs) {
            extract(glwe, degrees, out, p);
        }
    }

    /// Rotates one accumulator for each argument, made by `fill(i, accumulator)`, and extracts.
    pub(crate) fn run(
        &self,
        arguments: &[&[u64]],
        degrees: Degrees,
        out: &mut [u64],
        fill: impl Fn(usize, &mut [u64]) + Sync,
        done: &(dyn Fn(u64) + Sync),
    ) {
        let p = &self.parameters;
        let chunk = balanced_chunk(arguments.len(), rayon::current_num_threads(), BATCH);
        let outputs = out.par_chunks_mut(chunk * degrees.count * p.big_lwe_size());
        arguments.par_chunks(chunk).zip(outputs).enumerate().for_each(|(number, (arguments, out))| {
            let mut accumulators = vec![0; arguments.len() * p.glwe_words()];
            for (i, accumulator) in accumulators.chunks_exact_mut(p.glwe_words()).enumerate() {
                fill(number * chunk + i, accumulator);
            }
            self.batch(&mut accumulators, arguments, degrees, out);
            done(arguments.len() as u64);
        });
    }
}

fn extract(glwe: &[u64], degrees: Degrees, out: &mut [u64], p: &Parameters) {
    let glwe = GlweCiphertext::from_container(glwe, p.polynomial_size, p.ciphertext_modulus());
    for (j, lwe) in out.chunks_exact_mut(p.big_lwe_size()).enumerate() {
        let mut lwe = LweCiphertext::from_container(lwe, p.ciphertext_modulus());
        extract_lwe_sample_from_glwe_ciphertext(&glwe, &mut lwe, MonomialDegree(j * degrees.stride));
    }
}

/// The trivial accumulator of a look-up: coefficient j is table entry j, in units of 2^-32 of the torus.
pub(crate) fn fill_table(table: &[i32], accumulator: &mut [u64]) {
    let body = accumulator.len() - table.len();
    accumulator[..body].fill(0);
    for (word, &entry) in accumulator[body..].iter_mut().zip(table) {
        *word = (i64::from(entry) as u64) << 32;
    }
}

/// Integer polynomials in the Fourier domain, ready to multiply encrypted accumulators.
pub(crate) struct Multipliers {
    tables: Vec<FourierPolynomialOwned>,
}

fn scratch_of(fft: FftView<'_>) -> ComputationBuffers {
    let mut buffers = ComputationBuffers::new();
    let bytes = fft.forward_scratch().unaligned_bytes_required().max(fft.backward_scratch().unaligned_bytes_required());
    buffers.resize(bytes);
    buffers
}

impl Multipliers {
    /// Tables of `entries` integers each, one after another.
    pub(crate) fn new(tables: &[i32], entries: usize, fft: FftView<'_>) -> Self {
        let size = fft.polynomial_size();
        let transform = |table: &[i32]| {
            let mut integers = vec![0_u64; size.0];
            for (to, &from) in integers.iter_mut().zip(table) {
                *to = i64::from(from) as u64;
            }
            let mut fourier = FourierPolynomial::new(size);
            let integers = Polynomial::from_container(integers.as_slice());
            fft.forward_as_integer(fourier.as_mut_view(), integers, scratch_of(fft).stack());
            fourier
        };
        Self { tables: tables.par_chunks(entries.max(1)).map(transform).collect() }
    }

    /// `accumulator = glwe · table`, polynomial by polynomial, by FFT.
    ///
    /// Rounding is 2^-53 of ‖y‖₂·‖P‖₂ and a few bits: far below the packing noise times ‖P‖₂ that comes with it.
    pub(crate) fn multiply(&self, glwe: &[u64], table: usize, accumulator: &mut [u64], fft: FftView<'_>) {
        let size = fft.polynomial_size();
        let mut buffers = scratch_of(fft);
        let mut fourier = FourierPolynomial::new(size);
        for (from, to) in glwe.chunks_exact(size.0).zip(accumulator.chunks_exact_mut(size.0)) {
            fft.forward_as_torus(fourier.as_mut_view(), Polynomial::from_container(from), buffers.stack());
            let factors: &[c64] = &self.tables[table].data;
            for (a, b) in fourier.data.iter_mut().zip(factors) {
                *a *= *b;
            }
            fft.backward_as_torus(Polynomial::from_container(to), fourier.as_view(), buffers.stack());
        }
    }
}
