//! Sums of products by external products: `Σ_t P_t(x_t)·y_t` for small LWEs x_t and GLWEs y_t, as many blind rotations for each x_t however many values y_t packs.
//!
//! A rotation by x gives all levels P(x)/B, P(x)/B², … of a gadget, or a half or a quarter of them, at once, at even distances (many look-ups in one: Chillotti et al., "Improved Programmable
//! Bootstrapping with Larger Precision", ASIACRYPT 2021, section 4.1). Each is then brought to the constant coefficient of a GLWE that is 0 elsewhere, by a trace:
//! adding automorphic images doubles some coefficients, and subtracts the others from themselves. And each is multiplied by the key, by a keyswitch from its
//! square. Together they are the rows of a GGSW of P(x) (Wang et al., "Circuit Bootstrapping: Faster and Smaller", EUROCRYPT 2024). Its external product with y is
//! P(x)·y.
//!
//! Phases are divided by N before the trace, which multiplies by N. They are known modulo 1, so their N-th parts are known modulo 1/N: that is enough for the
//! constant coefficient, and all others vanish as real numbers do. (Halving before each automorphism would keep the noise of the first ones from growing N times,
//! but a half is left in coefficients that had vanished before.) All levels share the first automorphisms, which clear what lies between them.

use std::ops::Range;

use aligned_vec::AVec;
use pulp::Arch;
use rayon::prelude::*;
use tfhe::core_crypto::algorithms::polynomial_algorithms::{
    polynomial_wrapping_monic_monomial_div, polynomial_wrapping_mul,
};
use tfhe::core_crypto::fft_impl::fft64::c64;
use tfhe::core_crypto::fft_impl::fft64::math::polynomial::FourierPolynomialMutView;
use tfhe::core_crypto::prelude::*;
use thex_circuit::Parameters;
use thex_circuit::external::{GADGET, SQUARE, TRACE, automorphism_of};
use thex_circuit::params::Decomposition;

use super::balanced_chunk;
use super::pairs::{Digits, aligned};
use super::rotate::{BATCH, Degrees, Rotator, extract};

/// Polynomials of a GLWE.
const COLUMNS: usize = 2;

/// Keys that turn look-ups into GGSWs, in the Fourier domain: of each automorphism of the trace, and of the key's square.
pub(crate) struct ConversionKey {
    /// By stage, level (the least significant first) and polynomial.
    trace: AVec<c64>,
    square: AVec<c64>,
}

impl ConversionKey {
    /// Transforms the rows of [`conversion_messages`], encrypted.
    pub(crate) fn new(rows: &GlweCiphertextListOwned<u64>, fft: FftView<'_>) -> Self {
        let size = fft.polynomial_size().0;
        let transform = |words: &[u64]| {
            let mut room = Room::new(fft);
            let mut out = zeros(words.len() / 2);
            for (words, data) in words.chunks_exact(size).zip(out.chunks_exact_mut(size / 2)) {
                room.forward_torus(fft, words, data);
            }
            out
        };
        let words = rows.as_ref();
        let (trace, square) = words.split_at(words.len() - SQUARE.level.0 * COLUMNS * size);
        Self { trace: transform(trace), square: transform(square) }
    }

    /// A key of full size that encrypts nothing.
    pub(crate) fn arbitrary(p: &Parameters) -> Self {
        let numbers = COLUMNS * p.polynomial_size.0 / 2;
        let fill = |rows: usize| {
            let mut key = zeros(rows * numbers);
            key.iter_mut().enumerate().for_each(|(i, x)| *x = c64::new((i % 1021) as f64 / 1021.0 - 0.5, 0.1));
            key
        };
        let stages = p.polynomial_size.0.ilog2() as usize;
        Self { trace: fill(stages * TRACE.level.0), square: fill(SQUARE.level.0) }
    }
}

/// The messages of a conversion key's rows: `−σ(s)·2^64/B^l` for each automorphism σ of the trace, then `s²·2^64/B^l`; the least significant level first.
pub(crate) fn conversion_messages(key: &[u64]) -> Vec<u64> {
    let size = key.len();
    let mut messages = Vec::with_capacity(thex_circuit::external::key_rows(size) * size);
    let mut push = |polynomial: &[u64], d: Decomposition| {
        for level in (1..=d.level.0).rev() {
            messages.extend(polynomial.iter().map(|x| x << (64 - d.base_log.0 * level)));
        }
    };
    let negated: Vec<u64> = key.iter().map(|x| x.wrapping_neg()).collect();
    let mut image = vec![0; size];
    for stage in 0..size.ilog2() as usize {
        apply_automorphism(&negated, automorphism_of(stage, size), &mut image);
        push(&image, TRACE);
    }
    let mut square = Polynomial::new(0_u64, PolynomialSize(size));
    polynomial_wrapping_mul(&mut square, &Polynomial::from_container(key), &Polynomial::from_container(key));
    push(square.as_ref(), SQUARE);
    messages
}

/// `out(X) = from(X^power)` modulo X^N + 1, N a power of two, for odd powers.
fn apply_automorphism(from: &[u64], power: usize, out: &mut [u64]) {
    let size = from.len();
    let mut to = 0;
    for &x in from {
        if to < size {
            out[to] = x
        } else {
            out[to - size] = x.wrapping_neg()
        }
        to = (to + power) & (2 * size - 1);
    }
}

fn zeros(length: usize) -> AVec<c64> {
    aligned(length, c64::new(0.0, 0.0))
}

/// `sum += a∘b`.
struct MultiplyAdd<'a> {
    sum: &'a mut [c64],
    a: &'a [c64],
    b: &'a [c64],
}

impl pulp::NullaryFnOnce for MultiplyAdd<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((sum, a), b) in self.sum.iter_mut().zip(self.a).zip(self.b) {
            sum.re = a.re.mul_add(b.re, (-a.im).mul_add(b.im, sum.re));
            sum.im = a.re.mul_add(b.im, a.im.mul_add(b.re, sum.im));
        }
    }
}

/// What one thread works in.
struct Room {
    digits: AVec<u64>,
    transformed: AVec<c64>,
    sums: AVec<c64>,
    image: Vec<u64>,
    row: Vec<u64>,
    buffers: ComputationBuffers,
}

impl Room {
    fn new(fft: FftView<'_>) -> Self {
        let size = fft.polynomial_size().0;
        let most = [GADGET, TRACE, SQUARE].map(|d| d.level.0).into_iter().max().unwrap_or(0);
        let mut buffers = ComputationBuffers::new();
        let scratch = fft.forward_scratch().or(fft.backward_scratch());
        buffers.resize(scratch.unaligned_bytes_required());
        Self {
            digits: aligned(most * size, 0),
            transformed: zeros(most * size / 2),
            sums: zeros(COLUMNS * size / 2),
            image: vec![0; size],
            row: vec![0; COLUMNS * size],
            buffers,
        }
    }

    fn forward_torus(&mut self, fft: FftView<'_>, words: &[u64], data: &mut [c64]) {
        let words = Polynomial::from_container(words);
        fft.forward_as_torus(FourierPolynomialMutView { data }, words, self.buffers.stack());
    }

    /// Digits of a polynomial, transformed: into the first levels of `self.transformed`.
    fn decompose(&mut self, fft: FftView<'_>, words: &[u64], decomposition: Decomposition) {
        let size = words.len();
        let out = &mut self.digits[..decomposition.level.0 * size];
        Arch::new().dispatch(Digits { words, decomposition, out });
        let digits = self.digits.chunks_exact(size).zip(self.transformed.chunks_exact_mut(size / 2));
        for (digits, data) in digits.take(decomposition.level.0) {
            let digits = Polynomial::from_container(digits);
            fft.forward_as_integer(FourierPolynomialMutView { data }, digits, self.buffers.stack());
        }
    }

    /// Adds the sums to a GLWE, and clears them.
    fn add_sums(&mut self, fft: FftView<'_>, glwe: &mut [u64]) {
        let size = fft.polynomial_size().0;
        for (words, data) in glwe.chunks_exact_mut(size).zip(self.sums.chunks_exact_mut(size / 2)) {
            let words = Polynomial::from_container(words);
            fft.add_backward_in_place_as_torus(words, FourierPolynomialMutView { data }, self.buffers.stack());
        }
        self.sums.fill(c64::new(0.0, 0.0));
    }
}

/// What a batch of sums is made of.
pub(crate) struct Sums<'a> {
    /// Blind rotations of a product.
    pub(crate) rotations: usize,
    /// Small LWEs, one for each product.
    pub(crate) arguments: &'a [&'a [u64]],
    /// Integer table of each product, of [`thex_circuit::external::entries`] entries.
    pub(crate) tables: &'a [&'a [i32]],
    /// GLWEs.
    pub(crate) glwes: &'a [&'a [u64]],
    /// Which of them each product multiplies.
    pub(crate) glwe_of: &'a [u32],
    /// The sum that each product adds to; they rise.
    pub(crate) sum_of: &'a [u32],
    /// Samples that are extracted of each sum.
    pub(crate) degrees: Degrees,
}

/// Multiplies by look-ups.
pub(crate) struct Multiplier<'a> {
    pub(crate) rotator: Rotator<'a>,
    pub(crate) key: &'a ConversionKey,
}

impl Multiplier<'_> {
    /// Writes the samples of each sum to `out`. Sums of ciphertexts are exact, so neither threads nor parts change a bit.
    pub(crate) fn run(&self, x: &Sums<'_>, out: &mut [u64], done: &(dyn Fn(u64) + Sync)) {
        let p = &self.rotator.parameters;
        let glwes: Vec<AVec<c64>> = x.glwes.par_iter().map(|glwe| self.digits_of(glwe)).collect();
        let most = (BATCH / x.rotations).max(1);
        let chunk = balanced_chunk(x.arguments.len(), rayon::current_num_threads(), most);
        let starts: Vec<usize> = (0..x.arguments.len()).step_by(chunk).collect();
        let part = |&start: &usize| {
            let products = start..(start + chunk).min(x.arguments.len());
            let sums = self.part(x, products.clone(), &glwes);
            done((products.len() * x.rotations) as u64);
            sums
        };
        let parts: Vec<Vec<(u32, Vec<u64>)>> = starts.par_iter().map(part).collect();
        let words = x.degrees.count * p.big_lwe_size();
        let mut sums = vec![vec![0_u64; p.glwe_words()]; out.len() / words];
        for (sum, part) in parts.iter().flatten() {
            sums[*sum as usize].iter_mut().zip(part).for_each(|(sum, part)| *sum = sum.wrapping_add(*part));
        }
        out.par_chunks_exact_mut(words).zip(&sums).for_each(|(out, sum)| extract(sum, x.degrees, out, p));
    }

    /// What some products add to their sums.
    fn part(&self, x: &Sums<'_>, products: Range<usize>, glwes: &[AVec<c64>]) -> Vec<(u32, Vec<u64>)> {
        let (p, fft) = (&self.rotator.parameters, self.rotator.fft);
        let mut room = Room::new(fft);
        let levels = self.levels_of(x, products.clone(), &mut room);
        let mut ggsw = zeros(GADGET.level.0 * COLUMNS * p.glwe_words() / 2);
        let mut sums: Vec<(u32, Vec<u64>)> = Vec::new();
        for (product, levels) in products.zip(levels.chunks_exact(GADGET.level.0 * p.glwe_words())) {
            if sums.last().is_none_or(|(sum, _)| *sum != x.sum_of[product]) {
                sums.push((x.sum_of[product], vec![0; p.glwe_words()]));
            }
            if let Some((_, sum)) = sums.last_mut() {
                self.make_ggsw(levels, &mut ggsw, &mut room);
                self.add_product(&ggsw, &glwes[x.glwe_of[product] as usize], sum, &mut room);
            }
        }
        sums
    }

    /// For each product and level of the gadget, the most significant first, a GLWE of what is looked up over B^level.
    fn levels_of(&self, x: &Sums<'_>, products: Range<usize>, room: &mut Room) -> Vec<u64> {
        let p = &self.rotator.parameters;
        let (size, words) = (p.polynomial_size.0, p.glwe_words());
        let arguments = x.arguments[products.clone()].iter();
        let arguments: Vec<&[u64]> = arguments.flat_map(|a| std::iter::repeat_n(*a, x.rotations)).collect();
        let mut accumulators = vec![0; arguments.len() * words];
        for (accumulators, table) in accumulators.chunks_exact_mut(x.rotations * words).zip(&x.tables[products]) {
            fill_levels(table, accumulators, p);
        }
        self.rotator.turn(&mut accumulators, &arguments, 0);
        accumulators.iter_mut().for_each(|word| *word >>= size.ilog2());
        // Levels of an accumulator lie at multiples of `apart`: what is between them goes first.
        let together = GADGET.level.0 / x.rotations;
        let apart = size / together;
        self.trace(&mut accumulators, 0..apart.ilog2() as usize, room);
        let mut levels = vec![0; accumulators.len() * together];
        for (number, level) in levels.chunks_exact_mut(words).enumerate() {
            let from = &accumulators[number / together * words..(number / together + 1) * words];
            for (from, to) in from.chunks_exact(size).zip(level.chunks_exact_mut(size)) {
                let (mut to, from) = (Polynomial::from_container(to), Polynomial::from_container(from));
                polynomial_wrapping_monic_monomial_div(&mut to, &from, MonomialDegree(number % together * apart));
            }
        }
        self.trace(&mut levels, apart.ilog2() as usize..size.ilog2() as usize, room);
        levels
    }

    /// Digits of a GLWE, transformed: by level, the least significant first, then by polynomial.
    fn digits_of(&self, glwe: &[u64]) -> AVec<c64> {
        let fft = self.rotator.fft;
        let (size, levels) = (fft.polynomial_size().0, GADGET.level.0);
        let mut room = Room::new(fft);
        let mut out = zeros(levels * COLUMNS * size / 2);
        for (column, words) in glwe.chunks_exact(size).enumerate() {
            room.decompose(fft, words, GADGET);
            for (level, digits) in room.transformed.chunks_exact(size / 2).take(levels).enumerate() {
                let row = level * COLUMNS + column;
                out[row * size / 2..(row + 1) * size / 2].copy_from_slice(digits);
            }
        }
        out
    }

    /// The GGSW of which these are the levels.
    fn make_ggsw(&self, levels: &[u64], ggsw: &mut [c64], room: &mut Room) {
        let fft = self.rotator.fft;
        let (size, words) = (fft.polynomial_size().0, COLUMNS * fft.polynomial_size().0);
        let mut row = std::mem::take(&mut room.row);
        // Digits start with the least significant level.
        let places = ggsw.chunks_exact_mut(COLUMNS * words / 2).rev();
        for (glwe, rows) in levels.chunks_exact(words).zip(places) {
            // The phase of (b, 0) is −b·s, and a·s² comes from the key of s²: −s·(b − a·s) in all.
            row[..size].copy_from_slice(&glwe[size..]);
            row[size..].fill(0);
            self.switch(&glwe[..size], &self.key.square, SQUARE, &mut row, room);
            let polynomials = row.chunks_exact(size).chain(glwe.chunks_exact(size));
            for (words, data) in polynomials.zip(rows.chunks_exact_mut(size / 2)) {
                room.forward_torus(fft, words, data);
            }
        }
        room.row = row;
    }

    /// Some stages of the trace of GLWEs, which share a pass over the key. Stage i doubles coefficients of multiples of 2^(i + 1), and clears those of odd
    /// multiples of 2^i.
    fn trace(&self, glwes: &mut [u64], stages: Range<usize>, room: &mut Room) {
        let size = self.rotator.fft.polynomial_size().0;
        let mut image = std::mem::take(&mut room.image);
        let numbers = TRACE.level.0 * COLUMNS * size / 2;
        for stage in stages {
            let rows = &self.key.trace[stage * numbers..(stage + 1) * numbers];
            let power = automorphism_of(stage, size);
            for glwe in glwes.chunks_exact_mut(COLUMNS * size) {
                apply_automorphism(&glwe[size..], power, &mut image);
                glwe[size..].iter_mut().zip(&image).for_each(|(x, image)| *x = x.wrapping_add(*image));
                apply_automorphism(&glwe[..size], power, &mut image);
                self.switch(&image, rows, TRACE, glwe, room);
            }
        }
        room.image = image;
    }

    /// `out += Σ_l digit_l(polynomial)·row_l`.
    fn switch(&self, polynomial: &[u64], rows: &[c64], d: Decomposition, out: &mut [u64], room: &mut Room) {
        let fft = self.rotator.fft;
        let half = polynomial.len() / 2;
        room.decompose(fft, polynomial, d);
        for (a, row) in room.transformed.chunks_exact(half).zip(rows.chunks_exact(COLUMNS * half)) {
            for (sum, b) in room.sums.chunks_exact_mut(half).zip(row.chunks_exact(half)) {
                Arch::new().dispatch(MultiplyAdd { sum, a, b });
            }
        }
        room.add_sums(fft, out);
    }

    /// Adds the external product of a GGSW and a GLWE's digits.
    fn add_product(&self, ggsw: &[c64], digits: &[c64], sum: &mut [u64], room: &mut Room) {
        let half = self.rotator.fft.polynomial_size().0 / 2;
        for (a, row) in digits.chunks_exact(half).zip(ggsw.chunks_exact(COLUMNS * half)) {
            for (sum, b) in room.sums.chunks_exact_mut(half).zip(row.chunks_exact(half)) {
                Arch::new().dispatch(MultiplyAdd { sum, a, b });
            }
        }
        room.add_sums(self.rotator.fft, sum);
    }
}

/// The trivial accumulators that look up all levels of the gadget, as many in each: P(j)/B^l at coefficient j from where the level starts.
fn fill_levels(table: &[i32], accumulators: &mut [u64], p: &Parameters) {
    accumulators.fill(0);
    let (base, size) = (GADGET.base_log.0, p.polynomial_size.0);
    let bodies = accumulators.chunks_exact_mut(p.glwe_words()).map(|glwe| &mut glwe[p.glwe_words() - size..]);
    for (level, words) in bodies.flat_map(|body| body.chunks_exact_mut(table.len())).enumerate() {
        for (word, &entry) in words.iter_mut().zip(table) {
            *word = (i64::from(entry) as u64) << (64 - base * (level + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]
    use thex_circuit::NoiseModel;

    use super::*;

    #[test]
    fn automorphisms_of_the_trace_keep_the_constant_alone() {
        let size = 2048;
        let mut sum: Vec<u64> = (0..size as u64).map(|i| (i + 1) << 40).collect();
        let mut image = vec![0; size];
        for stage in 0..11 {
            apply_automorphism(&sum, automorphism_of(stage, size), &mut image);
            sum.iter_mut().zip(&image).for_each(|(x, image)| *x = x.wrapping_add(*image));
        }
        assert_eq!(sum[0], 2048 << 40);
        assert!(sum[1..].iter().all(|x| *x == 0));
    }

    #[test]
    fn rows_of_a_ggsw_encrypt_what_was_looked_up() {
        let p = Parameters::standard().with_external(true);
        let bundle = thex_circuit::ClientBundle { parameters: p, ..crate::tests::bundle() };
        let (client, server) = crate::keys::generate(&bundle, Some(7)).unwrap();
        let key = server.expand();
        let fft = Fft::new(p.polynomial_size);
        let rotator = Rotator { key: &key.bootstrap, fft: fft.as_view(), parameters: p };
        let multiplier = Multiplier { rotator, key: key.conversion.as_ref().unwrap() };
        let size = p.polynomial_size.0;
        // P(j) = j / 64 at position 64·5 + 32: wide steps, so that the argument's noise changes nothing.
        let table: Vec<i32> = (0..size as i32 / 4).map(|j| j / 64).collect();
        let mut argument = vec![0; p.lwe_dimension.to_lwe_size().0];
        let big = crate::tests::encrypt_under(&client, &[(64 * 5 + 32) << 52]);
        super::super::switch::keyswitch(&key.keyswitch, p.keyswitch, &[&big[0]], &mut argument);
        let (mut room, mut ggsw) = (Room::new(fft.as_view()), zeros(GADGET.level.0 * COLUMNS * p.glwe_words() / 2));
        let sums = Sums {
            rotations: 1,
            arguments: &[&argument],
            tables: &[&table],
            glwes: &[],
            glwe_of: &[],
            sum_of: &[],
            degrees: Degrees { count: 0, stride: 0 },
        };
        let levels = multiplier.levels_of(&sums, 0..1, &mut room);
        multiplier.make_ggsw(&levels, &mut ggsw, &mut room);
        let mut worst = [0.0_f64; 2];
        for (number, row) in ggsw.chunks_exact(p.glwe_words() / 2).enumerate() {
            let mut words = vec![0; p.glwe_words()];
            room.sums.copy_from_slice(row);
            room.add_sums(fft.as_view(), &mut words);
            let glwe = GlweCiphertext::from_container(words, p.polynomial_size, p.ciphertext_modulus());
            let mut plain = PlaintextListOwned::new(0_u64, PlaintextCount(size));
            decrypt_glwe_ciphertext(client.glwe(), &glwe, &mut plain);
            let (level, column) = (GADGET.level.0 - number / COLUMNS, number % COLUMNS);
            let message = 5_u64 << (64 - GADGET.base_log.0 * level);
            for (i, (&phase, &s)) in plain.as_ref().iter().zip(client.glwe().as_ref()).enumerate() {
                let unit = if column == 0 { s.wrapping_neg() } else { u64::from(i == 0) };
                let error = phase.wrapping_sub(message.wrapping_mul(unit)) as i64 as f64 / 64_f64.exp2();
                worst[column] = worst[column].max(error.abs());
            }
        }
        // The body's rows have the rotation's noise, the mask's rows as much for every bit of the key.
        let deviation = NoiseModel::new(&p).bootstrap.sqrt();
        println!("{worst:?} {deviation}");
        assert!(worst[1] < 6.0 * deviation && worst[0] < 6.0 * deviation, "{worst:?} {deviation}");
    }
}
