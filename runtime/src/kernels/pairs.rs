//! Blind rotations that take two bits of the small key at a time.
//!
//! For a pair of key bits (s, t) with switched mask elements (a, b), X^(a·s + b·t) = 1 + (X^a − 1)·s + (X^b − 1)·t + (X^a − 1)(X^b − 1)·st. So with
//! GGSWs of s, t and st, one step multiplies the accumulator by it: its digits are transformed once, multiplied by three GGSWs, and the three
//! products, times their polynomials in X, are transformed back as one (Joye and Paillier, "Blind Rotation in Fully Homomorphic Encryption with
//! Extended Keys", CSCML 2022; Zhou et al., "Faster Bootstrapping with Multiple Addends", IEEE Access 2018). That is half the transforms of bit by bit, which
//! are most of the time there, for half as many products again and a bootstrap key half as large again.
//!
//! tfhe's multi-bit bootstrap has four GGSWs for a pair, and adds them up before it multiplies: 32 products of polynomials for every ciphertext and pair
//! where these are 24, and rounding that is relative to the key and not to what it is multiplied by. Keys are generated and transformed by tfhe, and
//! all transforms here are its own.

use aligned_vec::{AVec, CACHELINE_ALIGN};
use pulp::bytemuck::{cast_slice, cast_slice_mut};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use tfhe::core_crypto::fft_impl::fft64::c64;
use tfhe::core_crypto::fft_impl::fft64::math::polynomial::{FourierPolynomialMutView, FourierPolynomialOwned};
use tfhe::core_crypto::prelude::*;
use thex_circuit::Parameters;
use thex_circuit::params::Decomposition;

use super::rotate::source_of;

/// Polynomials of a GLWE: k is 1 (see `Parameters::check`).
const COLUMNS: usize = 2;
/// GGSWs of a pair: of the first bit, of the second, of their product.
const PATTERNS: usize = 3;

/// The bootstrap key in the Fourier domain, in the order in which pairs are multiplied.
///
/// For each pair of bits, for each vector of frequencies: by output polynomial, pattern and row of the GGSW, the real parts and then the imaginary
/// parts. A vector has as many numbers as the processor's registers; which frequencies share one is up to `pulp`'s deinterleaving, and
/// [`Roots`] follows it.
pub(crate) struct PairedKey {
    numbers: AVec<f64>,
    numbers_of_pair: usize,
    roots: Roots,
}

impl PairedKey {
    /// Transforms a bootstrap key of the small key's bits, then of the products of its pairs.
    pub(crate) fn new(standard: &LweBootstrapKeyOwned<u64>, p: &Parameters, fft: FftView<'_>) -> Self {
        let mut key = Self::zero(p, fft);
        let (n, size) = (p.lwe_dimension.0, p.polynomial_size.0);
        let ggsws: Vec<&[u64]> =
            standard.as_ref().chunks_exact(p.bootstrap.level.0 * COLUMNS * p.glwe_words()).collect();
        let rows = ggsws[0].len() / (COLUMNS * size);
        let vector = vector_length();
        key.numbers.par_chunks_mut(key.numbers_of_pair).enumerate().for_each(|(pair, numbers)| {
            let mut work = Transform::new(fft);
            let polynomials = PATTERNS * rows * COLUMNS;
            for (pattern, ggsw) in [ggsws[2 * pair], ggsws[2 * pair + 1], ggsws[n + pair]].into_iter().enumerate() {
                for (number, polynomial) in ggsw.chunks_exact(size).enumerate() {
                    let (row, column) = (number / COLUMNS, number % COLUMNS);
                    let place = (column * PATTERNS + pattern) * rows + row;
                    let blocks = numbers.chunks_exact_mut(polynomials * 2 * vector);
                    for (to, from) in blocks.zip(work.parts_of_torus(polynomial).chunks_exact(2 * vector)) {
                        to[place * 2 * vector..(place + 1) * 2 * vector].copy_from_slice(from);
                    }
                }
            }
        });
        key
    }

    /// A key of full size that encrypts nothing.
    pub(crate) fn arbitrary(p: &Parameters, fft: FftView<'_>) -> Self {
        let mut key = Self::zero(p, fft);
        key.numbers.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 1021) as f64 / 1021.0 - 0.5);
        key
    }

    fn zero(p: &Parameters, fft: FftView<'_>) -> Self {
        let numbers_of_pair = PATTERNS * p.bootstrap.level.0 * COLUMNS * COLUMNS * p.polynomial_size.0;
        let numbers =
            AVec::from_iter(CACHELINE_ALIGN, std::iter::repeat_n(0.0, p.lwe_dimension.0 / 2 * numbers_of_pair));
        Self { numbers, numbers_of_pair, roots: Roots::new(fft) }
    }
}

/// Numbers in a register.
fn vector_length() -> usize {
    struct Length;
    impl WithSimd for Length {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F64_LANES
        }
    }
    Arch::new().dispatch(Length)
}

/// Forward transforms of single polynomials, as vectors of real and of imaginary parts in turn.
struct Transform<'a> {
    fft: FftView<'a>,
    buffers: ComputationBuffers,
    fourier: FourierPolynomialOwned,
    parts: AVec<f64>,
}

/// Splits complex numbers, two vectors at a time, into one of their real and one of their imaginary parts.
struct Split<'a> {
    from: &'a [c64],
    to: &'a mut [f64],
}

impl WithSimd for Split<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (from, _) = S::as_simd_f64s(cast_slice(self.from));
        let (to, _) = S::as_mut_simd_f64s(self.to);
        for (from, to) in from.chunks_exact(2).zip(to.chunks_exact_mut(2)) {
            to.copy_from_slice(&simd.deinterleave_shfl_f64s([from[0], from[1]]));
        }
    }
}

impl<'a> Transform<'a> {
    fn new(fft: FftView<'a>) -> Self {
        let mut buffers = ComputationBuffers::new();
        buffers.resize(fft.forward_scratch().unaligned_bytes_required());
        let size = fft.polynomial_size();
        Self { fft, buffers, fourier: FourierPolynomialOwned::new(size), parts: aligned(size.0, 0.0) }
    }

    fn parts_of_torus(&mut self, polynomial: &[u64]) -> &[f64] {
        let polynomial = Polynomial::from_container(polynomial);
        self.fft.forward_as_torus(self.fourier.as_mut_view(), polynomial, self.buffers.stack());
        self.parts()
    }

    fn parts_of_integers(&mut self, polynomial: &[u64]) -> &[f64] {
        let polynomial = Polynomial::from_container(polynomial);
        self.fft.forward_as_integer(self.fourier.as_mut_view(), polynomial, self.buffers.stack());
        self.parts()
    }

    fn parts(&mut self) -> &[f64] {
        Arch::new().dispatch(Split { from: &self.fourier.data, to: &mut self.parts });
        &self.parts
    }
}

pub(super) fn aligned<T: Copy>(length: usize, value: T) -> AVec<T> {
    AVec::from_iter(CACHELINE_ALIGN, std::iter::repeat_n(value, length))
}

/// Where the transform evaluates polynomials: at ζ^e for odd e, ζ = exp(πi/N).
///
/// The exponents of a vector's frequencies are those of its first plus steps that are the same in all vectors, so X^a on a vector is one entry of a table times
/// the steps' powers.
struct Roots {
    /// Powers of ζ.
    powers: Vec<c64>,
    /// Exponent of the first frequency of each vector.
    first: Vec<usize>,
    /// From the first to each.
    steps: Vec<usize>,
}

impl Roots {
    /// Read off the transform of X.
    fn new(fft: FftView<'_>) -> Self {
        let size = fft.polynomial_size().0;
        let vector = vector_length();
        let mut x = vec![0; size];
        x[1] = 1;
        let mut work = Transform::new(fft);
        let exponents: Vec<usize> = work
            .parts_of_integers(&x)
            .chunks_exact(2 * vector)
            .flat_map(|block| {
                let (re, im) = block.split_at(vector);
                re.iter().zip(im).map(|(re, im)| im.atan2(*re) / std::f64::consts::PI * size as f64).collect::<Vec<_>>()
            })
            .map(|turns| turns.round().rem_euclid(2.0 * size as f64) as usize)
            .collect();
        let first: Vec<usize> = exponents.iter().step_by(vector).copied().collect();
        let steps: Vec<usize> = exponents[..vector].iter().map(|e| (e + 2 * size - first[0]) % (2 * size)).collect();
        let power = |i: usize| c64::cis(std::f64::consts::PI * i as f64 / size as f64);
        Self { powers: (0..2 * size).map(power).collect(), first, steps }
    }

    fn power(&self, exponent: usize) -> c64 {
        self.powers[exponent & (self.powers.len() - 1)]
    }

    /// ζ^(step·degree) for the steps of a vector.
    #[inline(always)]
    fn turns<S: Simd>(&self, simd: S, degree: usize) -> Vector<S> {
        let (mut re, mut im) = ([0.0; 8], [0.0; 8]);
        for ((re, im), step) in re.iter_mut().zip(&mut im).zip(&self.steps) {
            let power = self.power(step * degree);
            (*re, *im) = (power.re, power.im);
        }
        (simd.partial_load_f64s(&re[..S::F64_LANES]), simd.partial_load_f64s(&im[..S::F64_LANES]))
    }

    /// X^degree on the vector whose first exponent this is.
    #[inline(always)]
    fn monomial<S: Simd>(&self, simd: S, first: usize, degree: usize, turns: Vector<S>) -> Vector<S> {
        let power = self.power(first * degree);
        multiply(simd, (simd.splat_f64s(power.re), simd.splat_f64s(power.im)), turns)
    }
}

/// Complex numbers: their real and their imaginary parts.
type Vector<S> = (<S as Simd>::f64s, <S as Simd>::f64s);

#[inline(always)]
fn multiply<S: Simd>(simd: S, a: Vector<S>, b: Vector<S>) -> Vector<S> {
    let (re, im) = (simd.mul_f64s(a.0, b.0), simd.mul_f64s(a.0, b.1));
    (simd.negate_mul_add_f64s(a.1, b.1, re), simd.mul_add_f64s(a.1, b.0, im))
}

#[inline(always)]
fn multiply_add<S: Simd>(simd: S, a: Vector<S>, b: Vector<S>, c: Vector<S>) -> Vector<S> {
    let (re, im) = (simd.mul_add_f64s(a.0, b.0, c.0), simd.mul_add_f64s(a.0, b.1, c.1));
    (simd.negate_mul_add_f64s(a.1, b.1, re), simd.mul_add_f64s(a.1, b.0, im))
}

#[inline(always)]
fn subtract<S: Simd>(simd: S, a: Vector<S>, b: Vector<S>) -> Vector<S> {
    (simd.sub_f64s(a.0, b.0), simd.sub_f64s(a.1, b.1))
}

/// The sum over the rows of one GGSW's column, each times a digit.
#[inline(always)]
fn dot<S: Simd, const ROWS: usize>(simd: S, key: &[S::f64s], digits: &[Vector<S>; ROWS]) -> Vector<S> {
    let zero = simd.splat_f64s(0.0);
    let mut sum = (zero, zero);
    for (key, digit) in key.chunks_exact(2).zip(digits) {
        sum = multiply_add(simd, (key[0], key[1]), *digit, sum);
    }
    sum
}

/// The digits of one vector of frequencies, all rows.
#[inline(always)]
fn digits_of<S: Simd, const ROWS: usize>(
    simd: S,
    digits: &[S::f64s],
    vectors: usize,
    number: usize,
) -> [Vector<S>; ROWS] {
    let zero = simd.splat_f64s(0.0);
    let mut out = [(zero, zero); ROWS];
    for (out, row) in out.iter_mut().zip(digits.chunks_exact(2 * vectors)) {
        let [re, im] = simd.deinterleave_shfl_f64s([row[2 * number], row[2 * number + 1]]);
        *out = (re, im);
    }
    out
}

/// What one step adds to a few accumulators without lanes: the sum over the patterns of GGSW ⊡ accumulator, times their polynomials in X.
struct Step<'a, const ROWS: usize> {
    key: &'a [f64],
    /// Rows of the accumulators' digits, transformed: of one accumulator after another.
    digits: &'a [c64],
    /// Mask elements of the pair, for each accumulator.
    degrees: &'a [[usize; 2]],
    roots: &'a Roots,
    sums: &'a mut [c64],
}

impl<const ROWS: usize> WithSimd for Step<'_, ROWS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let roots = self.roots;
        let vectors = roots.first.len();
        let (key, _) = S::as_simd_f64s(self.key);
        let (digits, _) = S::as_simd_f64s(cast_slice(self.digits));
        let (sums, _) = S::as_mut_simd_f64s(cast_slice_mut(self.sums));
        let zero = simd.splat_f64s(0.0);
        let one = (simd.splat_f64s(1.0), zero);
        let mut turns = [[(zero, zero); 2]; TOGETHER];
        for (turns, degrees) in turns.iter_mut().zip(self.degrees) {
            *turns = [roots.turns(simd, degrees[0]), roots.turns(simd, degrees[1])];
        }
        let blocks = key.chunks_exact(COLUMNS * PATTERNS * ROWS * 2);
        for ((number, &first), block) in roots.first.iter().enumerate().zip(blocks) {
            let accumulators =
                digits.chunks_exact(2 * ROWS * vectors).zip(sums.chunks_exact_mut(2 * COLUMNS * vectors));
            for ((digits, sums), (&[a, b], turns)) in accumulators.zip(self.degrees.iter().zip(&turns)) {
                let x_a = subtract(simd, roots.monomial(simd, first, a, turns[0]), one);
                let x_b = subtract(simd, roots.monomial(simd, first, b, turns[1]), one);
                let digits = digits_of::<S, ROWS>(simd, digits, vectors, number);
                let columns = block.chunks_exact(PATTERNS * ROWS * 2).zip(sums.chunks_exact_mut(2 * vectors));
                for (key, sum) in columns {
                    let s = dot(simd, &key[..2 * ROWS], &digits);
                    let t = dot(simd, &key[2 * ROWS..4 * ROWS], &digits);
                    let st = dot(simd, &key[4 * ROWS..], &digits);
                    let total = multiply_add(simd, multiply_add(simd, st, x_b, s), x_a, multiply(simd, t, x_b));
                    let total = simd.interleave_shfl_f64s([total.0, total.1]);
                    sum[2 * number..2 * number + 2].copy_from_slice(&total);
                }
            }
        }
    }
}

/// The products of all lanes with the three GGSWs, S, T and ST, as S − ST, T − ST and ST: by lane and column, vectors of these in turn.
struct LaneProducts<'a, const ROWS: usize> {
    key: &'a [f64],
    digits: &'a [c64],
    /// Vectors of a polynomial's real parts.
    vectors: usize,
    out: &'a mut [f64],
}

impl<const ROWS: usize> WithSimd for LaneProducts<'_, ROWS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (key, _) = S::as_simd_f64s(self.key);
        let (digits, _) = S::as_simd_f64s(cast_slice(self.digits));
        let (out, _) = S::as_mut_simd_f64s(self.out);
        let vectors = self.vectors;
        for (number, block) in key.chunks_exact(COLUMNS * PATTERNS * ROWS * 2).enumerate() {
            let lanes =
                digits.chunks_exact(2 * ROWS * vectors).zip(out.chunks_exact_mut(2 * COLUMNS * PATTERNS * vectors));
            for (digits, out) in lanes {
                let digits = digits_of::<S, ROWS>(simd, digits, vectors, number);
                let columns = block.chunks_exact(PATTERNS * ROWS * 2).zip(out.chunks_exact_mut(2 * PATTERNS * vectors));
                for (key, out) in columns {
                    let st = dot(simd, &key[4 * ROWS..], &digits);
                    let s = subtract(simd, dot(simd, &key[..2 * ROWS], &digits), st);
                    let t = subtract(simd, dot(simd, &key[2 * ROWS..4 * ROWS], &digits), st);
                    let place = 2 * PATTERNS * number;
                    out[place..place + 2 * PATTERNS].copy_from_slice(&[s.0, s.1, t.0, t.1, st.0, st.1]);
                }
            }
        }
    }
}

/// What one step adds to one lane. With S, T, ST the products of all lanes: X^a·(S − ST) + X^b·(T − ST) + X^(a+b)·ST − (S − ST) − (T − ST) − ST, where each
/// power of X, in the large ring, takes another lane and a power of X in the small one.
struct LaneSum<'a> {
    /// Products of the lanes that the three patterns come from, and the powers of X.
    sources: [(&'a [f64], usize); PATTERNS],
    own: &'a [f64],
    roots: &'a Roots,
    sum: &'a mut [c64],
}

impl WithSimd for LaneSum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let roots = self.roots;
        let vectors = roots.first.len();
        let (own, _) = S::as_simd_f64s(self.own);
        let (sum, _) = S::as_mut_simd_f64s(cast_slice_mut(self.sum));
        let zero = simd.splat_f64s(0.0);
        let mut sources = [(own, 0, (zero, zero)); PATTERNS];
        for (to, (products, degree)) in sources.iter_mut().zip(self.sources) {
            *to = (S::as_simd_f64s(products).0, degree, roots.turns(simd, degree));
        }
        for (column, sum) in sum.chunks_exact_mut(2 * vectors).enumerate() {
            for (number, &first) in roots.first.iter().enumerate() {
                let place = (column * vectors + number) * 2 * PATTERNS;
                let mut total = (zero, zero);
                for (pattern, (products, degree, turns)) in sources.iter().enumerate() {
                    let place = place + 2 * pattern;
                    let x = roots.monomial(simd, first, *degree, *turns);
                    total = multiply_add(simd, (products[place], products[place + 1]), x, total);
                    total = subtract(simd, total, (own[place], own[place + 1]));
                }
                let total = simd.interleave_shfl_f64s([total.0, total.1]);
                sum[2 * number..2 * number + 2].copy_from_slice(&total);
            }
        }
    }
}

/// Signed digits of the words of a polynomial, as [`SignedDecomposer`] gives them: a polynomial for each level, the least significant first.
pub(super) struct Digits<'a> {
    pub(super) words: &'a [u64],
    pub(super) decomposition: Decomposition,
    pub(super) out: &'a mut [u64],
}

/// Words that are decomposed together.
const DIGITS_AT_ONCE: usize = 64;

impl pulp::NullaryFnOnce for Digits<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (base, levels) = (self.decomposition.base_log.0, self.decomposition.level.0);
        let size = self.words.len();
        let mask = (1_u64 << base) - 1;
        let mut states = [0_u64; DIGITS_AT_ONCE];
        for (number, words) in self.words.as_chunks::<DIGITS_AT_ONCE>().0.iter().enumerate() {
            for (state, word) in states.iter_mut().zip(words) {
                *state = (word >> (63 - base * levels)).wrapping_add(1) >> 1;
            }
            for level in 0..levels {
                let place = level * size + number * DIGITS_AT_ONCE;
                for (digit, state) in self.out[place..place + DIGITS_AT_ONCE].iter_mut().zip(&mut states) {
                    let low = *state & mask;
                    *state >>= base;
                    let carry = ((low.wrapping_sub(1) | *state) & low) >> (base - 1);
                    *state = state.wrapping_add(carry);
                    *digit = low.wrapping_sub(carry << base);
                }
            }
        }
    }
}

/// Rotations in pairs of key bits.
pub(crate) struct PairRotator<'a> {
    pub(crate) key: &'a PairedKey,
    pub(crate) fft: FftView<'a>,
    pub(crate) decomposition: Decomposition,
}

/// Accumulators that are multiplied by a part of the key while it is in the first-level cache. With each by itself, a key of three levels did not stay in the
/// second-level cache either, and a rotation took half as long again.
const TOGETHER: usize = 4;

/// Room for one step of a few accumulators, or of one with lanes.
struct Room {
    digits: AVec<u64>,
    transformed: AVec<c64>,
    products: AVec<f64>,
    sums: AVec<c64>,
    buffers: ComputationBuffers,
}

impl PairRotator<'_> {
    /// Multiplies accumulators of 2^ν lanes by X^(mask·key), the masks being those of their arguments after the modulus switch.
    pub(crate) fn rotate(&self, accumulators: &mut [u64], masks: &[&[usize]], extension: u32) {
        match self.decomposition.level.0 {
            1 => self.rotate_rows::<2>(accumulators, masks, extension),
            2 => self.rotate_rows::<4>(accumulators, masks, extension),
            3 => self.rotate_rows::<6>(accumulators, masks, extension),
            _ => self.rotate_rows::<8>(accumulators, masks, extension),
        }
    }

    fn room(&self, extension: u32) -> Room {
        let (size, levels) = (self.fft.polynomial_size().0, self.decomposition.level.0);
        let zero = c64::new(0.0, 0.0);
        let mut buffers = ComputationBuffers::new();
        let scratch = self.fft.forward_scratch().or(self.fft.backward_scratch());
        buffers.resize(scratch.unaligned_bytes_required());
        let (glwes, lanes) = if extension == 0 { (TOGETHER, 0) } else { (1 << extension, 1 << extension) };
        Room {
            digits: aligned(levels * size, 0),
            transformed: aligned(glwes * levels * COLUMNS * size / 2, zero),
            products: aligned(lanes * COLUMNS * PATTERNS * size, 0.0),
            sums: aligned(TOGETHER * COLUMNS * size / 2, zero),
            buffers,
        }
    }

    fn rotate_rows<const ROWS: usize>(&self, accumulators: &mut [u64], masks: &[&[usize]], extension: u32) {
        let words = (COLUMNS * self.fft.polynomial_size().0) << extension;
        let mut room = self.room(extension);
        let together = if extension == 0 { TOGETHER } else { 1 };
        for (pair, key) in self.key.numbers.chunks_exact(self.key.numbers_of_pair).enumerate() {
            for (few, masks) in accumulators.chunks_mut(together * words).zip(masks.chunks(together)) {
                if extension == 0 {
                    let mut degrees = [[0; 2]; TOGETHER];
                    let of = |mask: &[usize]| [mask[2 * pair], mask[2 * pair + 1]];
                    degrees.iter_mut().zip(masks).for_each(|(degrees, mask)| *degrees = of(mask));
                    self.step::<ROWS>(few, key, &degrees[..masks.len()], &mut room);
                } else {
                    let degrees = [masks[0][2 * pair], masks[0][2 * pair + 1]];
                    self.step_of_lanes::<ROWS>(few, key, degrees, extension, &mut room);
                }
            }
        }
    }

    fn step<const ROWS: usize>(&self, accumulators: &mut [u64], key: &[f64], degrees: &[[usize; 2]], room: &mut Room) {
        self.transform(accumulators, room);
        let (rows, sums) = (ROWS * self.fft.polynomial_size().0 / 2, COLUMNS * self.fft.polynomial_size().0 / 2);
        Arch::new().dispatch(Step::<ROWS> {
            key,
            digits: &room.transformed[..degrees.len() * rows],
            degrees,
            roots: &self.key.roots,
            sums: &mut room.sums[..degrees.len() * sums],
        });
        self.add_back(accumulators, &mut room.sums, &mut room.buffers);
    }

    fn step_of_lanes<const ROWS: usize>(
        &self,
        lanes: &mut [u64],
        key: &[f64],
        [a, b]: [usize; 2],
        extension: u32,
        room: &mut Room,
    ) {
        let words = lanes.len() >> extension;
        let numbers = room.products.len() >> extension;
        self.transform(lanes, room);
        let vectors = self.key.roots.first.len();
        Arch::new().dispatch(LaneProducts::<ROWS> { key, digits: &room.transformed, vectors, out: &mut room.products });
        let full_turn = (2 * self.fft.polynomial_size().0) << extension;
        for (number, lane) in lanes.chunks_exact_mut(words).enumerate() {
            let of = |lane: usize| &room.products[lane * numbers..(lane + 1) * numbers];
            let sources = [a, b, (a + b) % full_turn].map(|degree| {
                let (from, degree) = source_of(number, degree, extension);
                (of(from), degree.0)
            });
            let sum = &mut room.sums[..words / 2];
            Arch::new().dispatch(LaneSum { sources, own: of(number), roots: &self.key.roots, sum });
            self.add_back(lane, &mut room.sums, &mut room.buffers);
        }
    }

    /// The digits of GLWEs, transformed: of each by level, the least significant first (the order of the key's rows), then by polynomial.
    fn transform(&self, glwes: &[u64], room: &mut Room) {
        let (size, levels) = (self.fft.polynomial_size().0, self.decomposition.level.0);
        for (number, words) in glwes.chunks_exact(size).enumerate() {
            let (glwe, column) = (number / COLUMNS, number % COLUMNS);
            Arch::new().dispatch(Digits { words, decomposition: self.decomposition, out: &mut room.digits });
            for (level, digits) in room.digits.chunks_exact(size).enumerate() {
                let row = (glwe * levels + level) * COLUMNS + column;
                let data = &mut room.transformed[row * size / 2..(row + 1) * size / 2];
                let digits = Polynomial::from_container(digits);
                self.fft.forward_as_integer(FourierPolynomialMutView { data }, digits, room.buffers.stack());
            }
        }
    }

    /// Adds sums to GLWEs; they are spent.
    fn add_back(&self, glwes: &mut [u64], sums: &mut [c64], buffers: &mut ComputationBuffers) {
        let size = self.fft.polynomial_size().0;
        for (words, data) in glwes.chunks_exact_mut(size).zip(sums.chunks_exact_mut(size / 2)) {
            let words = Polynomial::from_container(words);
            self.fft.add_backward_in_place_as_torus(words, FourierPolynomialMutView { data }, buffers.stack());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_tfhe() {
        let words: Vec<u64> =
            (0..256_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).chain([0, u64::MAX, 1 << 63]).collect();
        let words: Vec<u64> = words.iter().copied().cycle().take(512).collect();
        for (base, level) in [(23, 1), (15, 2), (12, 3), (9, 4), (15, 4)] {
            let decomposition = Decomposition::new(base, level);
            let mut out = vec![0; level * words.len()];
            Arch::new().dispatch(Digits { words: &words, decomposition, out: &mut out });
            let decomposer = SignedDecomposer::<u64>::new(decomposition.base_log, decomposition.level);
            for (i, &word) in words.iter().enumerate() {
                let want: Vec<u64> = decomposer.decompose(word).map(|term| term.value()).collect();
                let got: Vec<u64> = out.chunks_exact(words.len()).map(|digits| digits[i]).collect();
                assert_eq!(got, want, "{word:#x} in {level} digits of {base} bits");
            }
        }
    }

    #[test]
    fn powers_of_x_are_where_the_transform_has_them() {
        let size = 2048;
        let fft = Fft::new(PolynomialSize(size));
        let roots = Roots::new(fft.as_view());
        let vector = vector_length();
        let mut work = Transform::new(fft.as_view());
        for degree in [0, 1, 2, 1023, 1024, 2047, 2048, 4095] {
            let mut x = vec![0; size];
            x[degree % size] = if degree < size { 1 } else { u64::MAX };
            let parts = work.parts_of_integers(&x).to_vec();
            for (block, &first) in parts.chunks_exact(2 * vector).zip(&roots.first) {
                for (lane, step) in roots.steps.iter().enumerate() {
                    let want = roots.power((first + step) * degree);
                    assert!((block[lane] - want.re).abs() < 1e-9 && (block[vector + lane] - want.im).abs() < 1e-9);
                }
            }
        }
    }
}
