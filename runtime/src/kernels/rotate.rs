//! Blind rotations in batches, and the accumulators that they rotate.
//!
//! A rotation of [extension](thex_circuit::instruction) ν has an accumulator of 2^ν GLWEs, its *lanes*: lane c holds coefficients c, c + 2^ν,
//! c + 2·2^ν, … of a polynomial of 2^ν·N coefficients. Bits of the small key are constants, so a CMUX acts on each lane by itself, with the same key;
//! multiplying by X^a in the large ring moves lane s to lane (s + a) mod 2^ν and rotates it in the small one. tfhe has this in
//! `core_crypto::experimental`, for one ciphertext on 2^ν threads and without the centred modulus switch; here its external products run in
//! batches, so that the key streams from memory once for all lanes of a batch.
//!
//! Bits are taken one by one, by tfhe's kernels, or in [pairs](super::pairs), as the parameters' grouping factor says.

use rayon::prelude::*;
use tfhe::core_crypto::algorithms::polynomial_algorithms::polynomial_wrapping_monic_monomial_mul;
use tfhe::core_crypto::fft_impl::fft64::c64;
use tfhe::core_crypto::fft_impl::fft64::crypto::bootstrap::{
    FourierLweBootstrapKeyOwned, batch_blind_rotate_assign_scratch,
};
use tfhe::core_crypto::fft_impl::fft64::crypto::ggsw::{
    add_external_product_assign, add_external_product_assign_scratch,
};
use tfhe::core_crypto::fft_impl::fft64::math::polynomial::{FourierPolynomial, FourierPolynomialOwned};
use tfhe::core_crypto::prelude::*;
use thex_circuit::Parameters;

use super::balanced_chunk;
use super::pairs::{PairRotator, PairedKey};

/// Rotations that share one pass over the bootstrap key. Batches of 16 are 1.35–1.8 times as fast as single ones.
pub(crate) const BATCH: usize = 16;

/// A small LWE after the centred binary modulus switch to 2·2^ν·N.
///
/// tfhe's own type switches lazily at each read and reaches mask element i by walking over the first i; this
/// one is switched once.
struct Switched {
    log_modulus: CiphertextModulusLog,
    mask: Vec<usize>,
    body: usize,
}

impl Switched {
    fn new(small: &[u64], p: &Parameters, extension: u32) -> Self {
        let log_modulus = p.polynomial_size.to_blind_rotation_input_modulus_log();
        let log_modulus = CiphertextModulusLog(log_modulus.0 + extension as usize);
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

/// A bootstrap key in the Fourier domain.
pub(crate) enum BootstrapKey {
    /// For bits one by one.
    Single(FourierLweBootstrapKeyOwned),
    /// For two bits at a time.
    Paired(PairedKey),
}

impl BootstrapKey {
    /// Transforms a key of [`Parameters::bootstrap_key_bits`].
    pub(crate) fn new(standard: &LweBootstrapKeyOwned<u64>, p: &Parameters, fft: FftView<'_>) -> Self {
        if p.grouping_factor.0 == 2 {
            return Self::Paired(PairedKey::new(standard, p, fft));
        }
        let mut key = Self::zero(p);
        key.as_mut_view().par_fill_with_forward_fourier(standard.as_view(), fft);
        Self::Single(key)
    }

    /// A key of full size that encrypts nothing.
    pub(crate) fn arbitrary(p: &Parameters, fft: FftView<'_>) -> Self {
        if p.grouping_factor.0 == 2 {
            return Self::Paired(PairedKey::arbitrary(p, fft));
        }
        let mut key = Self::zero(p);
        for (i, x) in key.as_mut_view().data().iter_mut().enumerate() {
            let v = (i % 1021) as f64 / 1021.0 - 0.5;
            *x = c64::new(v, -0.5 * v);
        }
        Self::Single(key)
    }

    fn zero(p: &Parameters) -> FourierLweBootstrapKeyOwned {
        FourierLweBootstrapKeyOwned::new(
            p.lwe_dimension,
            p.glwe_dimension.to_glwe_size(),
            p.polynomial_size,
            p.bootstrap.base_log,
            p.bootstrap.level,
        )
    }
}

/// The bootstrap key and what goes with it.
pub(crate) struct Rotator<'a> {
    pub(crate) key: &'a BootstrapKey,
    pub(crate) fft: FftView<'a>,
    pub(crate) parameters: Parameters,
}

/// Degrees at which samples are extracted: `count` of them, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Degrees {
    pub(crate) count: usize,
    pub(crate) stride: usize,
}

/// What a batch of rotations is to do: of which extension, and which samples to extract.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) extension: u32,
    pub(crate) degrees: Degrees,
}

impl Shape {
    /// Rotations that share a pass over the key: fewer where each has several lanes.
    pub(crate) fn batch(self) -> usize {
        batch_of(self.extension)
    }
}

/// Rotations of extension ν that share one pass over the bootstrap key.
pub(crate) fn batch_of(extension: u32) -> usize {
    (BATCH >> extension).max(LEAST_BATCH)
}

/// Rotations that share a pass, however many lanes they have.
const LEAST_BATCH: usize = 4;

/// Lane of X^degree·f that lane `to` of the product is made from, and the degree by which it is rotated in the small ring.
pub(super) fn source_of(to: usize, degree: usize, extension: u32) -> (usize, MonomialDegree) {
    let lanes = 1 << extension;
    let from = to.wrapping_sub(degree) & (lanes - 1);
    (from, MonomialDegree((lanes + degree - 1 - to) >> extension))
}

impl Rotator<'_> {
    /// Rotates accumulators by arguments.
    pub(super) fn turn(&self, accumulators: &mut [u64], arguments: &[&[u64]], extension: u32) {
        let p = &self.parameters;
        let switched: Vec<Switched> = arguments.iter().map(|a| Switched::new(a, p, extension)).collect();
        match self.key {
            BootstrapKey::Single(key) if extension == 0 => self.rotate(key, accumulators, &switched),
            BootstrapKey::Single(key) => self.rotate_lanes(key, accumulators, &switched, extension),
            BootstrapKey::Paired(key) => {
                self.turn_by_bodies(accumulators, &switched, extension);
                let masks: Vec<&[usize]> = switched.iter().map(|s| s.mask.as_slice()).collect();
                let rotator = PairRotator { key, fft: self.fft, decomposition: p.bootstrap };
                rotator.rotate(accumulators, &masks, extension);
            }
        }
    }

    /// Rotates accumulators by arguments, and extracts samples of each.
    fn batch(&self, accumulators: &mut [u64], arguments: &[&[u64]], shape: Shape, out: &mut [u64]) {
        let p = &self.parameters;
        self.turn(accumulators, arguments, shape.extension);
        // Degrees of the large ring that are multiples of 2^ν are all in lane 0.
        let words = p.glwe_words() << shape.extension;
        let outputs = out.chunks_exact_mut(shape.degrees.count * p.big_lwe_size());
        for (lanes, out) in accumulators.chunks_exact(words).zip(outputs) {
            extract(&lanes[..p.glwe_words()], shape.degrees, out, p);
        }
    }

    fn rotate(&self, key: &FourierLweBootstrapKeyOwned, accumulators: &mut [u64], switched: &[Switched]) {
        let p = &self.parameters;
        let glwe_size = p.glwe_dimension.to_glwe_size();
        let scratch = batch_blind_rotate_assign_scratch::<u64>(
            glwe_size,
            p.polynomial_size,
            CiphertextCount(switched.len()),
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
        key.as_view().batch_blind_rotate_assign(list, switched, self.fft, buffers.stack());
    }

    /// Multiplies accumulators by X^-b, b the bodies of their arguments.
    fn turn_by_bodies(&self, accumulators: &mut [u64], switched: &[Switched], extension: u32) {
        let p = &self.parameters;
        let full_turn = p.positions() << extension;
        for (lanes, argument) in accumulators.chunks_exact_mut(p.glwe_words() << extension).zip(switched) {
            let copy = lanes.to_vec();
            turn_lanes(&copy, full_turn - argument.body, p.polynomial_size, extension, lanes);
        }
    }

    /// The same for accumulators of 2^ν lanes: for every bit of the small key, Δ = X^a·acc − acc in all lanes, then acc += bit·Δ.
    fn rotate_lanes(
        &self,
        key: &FourierLweBootstrapKeyOwned,
        accumulators: &mut [u64],
        switched: &[Switched],
        extension: u32,
    ) {
        let p = &self.parameters;
        let (glwe_size, size) = (p.glwe_dimension.to_glwe_size(), p.polynomial_size);
        let words = p.glwe_words();
        let mut difference = vec![0_u64; words << extension];
        let mut buffers = ComputationBuffers::new();
        let scratch = add_external_product_assign_scratch::<u64>(glwe_size, size, self.fft);
        buffers.resize(scratch.unaligned_bytes_required());
        self.turn_by_bodies(accumulators, switched, extension);
        for (index, ggsw) in key.as_view().into_ggsw_iter().enumerate() {
            for (lanes, argument) in accumulators.chunks_exact_mut(words << extension).zip(switched) {
                let degree = argument.mask[index];
                if degree == 0 {
                    continue;
                }
                turn_lanes(lanes, degree, size, extension, &mut difference);
                difference.iter_mut().zip(lanes.iter()).for_each(|(d, x)| *d = d.wrapping_sub(*x));
                for (lane, difference) in lanes.chunks_exact_mut(words).zip(difference.chunks_exact(words)) {
                    let out = GlweCiphertextMutView::from_container(lane, size, p.ciphertext_modulus());
                    let difference = GlweCiphertextView::from_container(difference, size, p.ciphertext_modulus());
                    add_external_product_assign(out, ggsw, difference, self.fft, buffers.stack());
                }
            }
        }
    }

    /// Rotates one accumulator for each argument, made by `fill(i, accumulator)`, and extracts.
    pub(crate) fn run(
        &self,
        arguments: &[&[u64]],
        shape: Shape,
        out: &mut [u64],
        fill: impl Fn(usize, &mut [u64]) + Sync,
        done: &(dyn Fn(u64) + Sync),
    ) {
        let p = &self.parameters;
        let words = p.glwe_words() << shape.extension;
        let chunk = balanced_chunk(arguments.len(), rayon::current_num_threads(), shape.batch());
        let outputs = out.par_chunks_mut(chunk * shape.degrees.count * p.big_lwe_size());
        arguments.par_chunks(chunk).zip(outputs).enumerate().for_each(|(number, (arguments, out))| {
            let mut accumulators = vec![0; arguments.len() * words];
            for (i, accumulator) in accumulators.chunks_exact_mut(words).enumerate() {
                fill(number * chunk + i, accumulator);
            }
            self.batch(&mut accumulators, arguments, shape, out);
            done(arguments.len() as u64);
        });
    }
}

pub(super) fn extract(glwe: &[u64], degrees: Degrees, out: &mut [u64], p: &Parameters) {
    let glwe = GlweCiphertext::from_container(glwe, p.polynomial_size, p.ciphertext_modulus());
    for (j, lwe) in out.chunks_exact_mut(p.big_lwe_size()).enumerate() {
        let mut lwe = LweCiphertext::from_container(lwe, p.ciphertext_modulus());
        extract_lwe_sample_from_glwe_ciphertext(&glwe, &mut lwe, MonomialDegree(j * degrees.stride));
    }
}

/// `to = X^degree·from` in the large ring, lane by lane and polynomial by polynomial; degree ≤ 2·2^ν·N.
fn turn_lanes(from: &[u64], degree: usize, size: PolynomialSize, extension: u32, to: &mut [u64]) {
    let words = from.len() >> extension;
    for (lane, to) in to.chunks_exact_mut(words).enumerate() {
        let (source, degree) = source_of(lane, degree, extension);
        let from = &from[source * words..(source + 1) * words];
        for (from, to) in from.chunks_exact(size.0).zip(to.chunks_exact_mut(size.0)) {
            let (mut to, from) = (Polynomial::from_container(to), Polynomial::from_container(from));
            polynomial_wrapping_monic_monomial_mul(&mut to, &from, degree);
        }
    }
}

/// The trivial accumulator of a look-up of extension ν: coefficient j is table entry j, in units of 2^-32 of the torus; entry j is in lane
/// j mod 2^ν.
pub(crate) fn fill_table(table: &[i32], extension: u32, accumulator: &mut [u64]) {
    let lanes = 1 << extension;
    let words = accumulator.len() / lanes;
    accumulator.fill(0);
    for (lane, accumulator) in accumulator.chunks_exact_mut(words).enumerate() {
        let body = words - table.len() / lanes;
        for (word, &entry) in accumulator[body..].iter_mut().zip(table[lane..].iter().step_by(lanes)) {
            *word = (i64::from(entry) as u64) << 32;
        }
    }
}

/// Integer polynomials in the Fourier domain, ready to multiply encrypted accumulators: 2^ν of them for each table.
pub(crate) struct Multipliers {
    tables: Vec<FourierPolynomialOwned>,
    lanes: usize,
}

fn scratch_of(fft: FftView<'_>) -> ComputationBuffers {
    let mut buffers = ComputationBuffers::new();
    let bytes = fft.forward_scratch().unaligned_bytes_required().max(fft.backward_scratch().unaligned_bytes_required());
    buffers.resize(bytes);
    buffers
}

impl Multipliers {
    /// Tables of `entries` integers each, one after another, for rotations of this extension.
    pub(crate) fn new(tables: &[i32], entries: usize, extension: u32, fft: FftView<'_>) -> Self {
        let size = fft.polynomial_size();
        let lanes = 1 << extension;
        let transform = |(table, lane): (&[i32], usize)| {
            let mut integers = vec![0_u64; size.0];
            for (to, &from) in integers.iter_mut().zip(table[lane..].iter().step_by(lanes)) {
                *to = i64::from(from) as u64;
            }
            let mut fourier = FourierPolynomial::new(size);
            let integers = Polynomial::from_container(integers.as_slice());
            fft.forward_as_integer(fourier.as_mut_view(), integers, scratch_of(fft).stack());
            fourier
        };
        let of_lanes = |table| (0..lanes).into_par_iter().map(move |lane| (table, lane));
        let tables = tables.par_chunks(entries.max(1)).flat_map(of_lanes).map(transform).collect();
        Self { tables, lanes }
    }

    /// `accumulator = glwe · table`, lane by lane and polynomial by polynomial, by FFT.
    ///
    /// Rounding is 2^-53 of ‖y‖₂·‖P‖₂ and a few bits: far below the packing noise times ‖P‖₂ that comes with it.
    pub(crate) fn multiply(&self, glwe: &[u64], table: usize, accumulator: &mut [u64], fft: FftView<'_>) {
        let size = fft.polynomial_size();
        let mut buffers = scratch_of(fft);
        let (mut fourier, mut product) = (FourierPolynomial::new(size), FourierPolynomial::new(size));
        for (number, from) in glwe.chunks_exact(size.0).enumerate() {
            fft.forward_as_torus(fourier.as_mut_view(), Polynomial::from_container(from), buffers.stack());
            for (lane, to) in accumulator.chunks_exact_mut(glwe.len()).enumerate() {
                let factors: &[c64] = &self.tables[table * self.lanes + lane].data;
                for ((out, a), b) in product.data.iter_mut().zip(fourier.data.iter()).zip(factors) {
                    *out = *a * *b;
                }
                let to = &mut to[number * size.0..(number + 1) * size.0];
                fft.backward_as_torus(Polynomial::from_container(to), product.as_view(), buffers.stack());
            }
        }
    }
}
