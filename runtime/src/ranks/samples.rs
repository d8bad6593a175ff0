//! Samples that were extracted from one GLWE, sent as one mask and their bodies.
//!
//! A product takes m samples, `stride` degrees apart, from one rotated accumulator. Sample extraction at degree d copies the polynomials of
//! the mask, reversed and turned by d (`mask_d[i] = A[d − i]`, where `A[−j] = −A[N − j]`), so that the mask of the first sample gives
//! all others: k·N + m words instead of m·(k·N + 1), exactly.

use thex_circuit::Parameters;

/// How the words of a unit travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As they are, so many.
    Plain(usize),
    /// Samples of one GLWE.
    Samples(Samples),
}

/// Samples of one GLWE at the degrees 0, stride, 2·stride, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Samples {
    /// m.
    pub slots: usize,
    /// Degrees between samples.
    pub stride: usize,
    /// N.
    pub polynomial_size: usize,
    /// Words of a mask, k·N.
    pub mask: usize,
}

impl Samples {
    /// Of products under these parameters.
    #[must_use]
    pub fn new(slots: usize, stride: usize, p: &Parameters) -> Self {
        Self { slots, stride, polynomial_size: p.polynomial_size.0, mask: p.big_lwe_size() - 1 }
    }
}

impl Layout {
    /// Words of a unit as it is.
    #[must_use]
    pub fn whole(self) -> usize {
        match self {
            Self::Plain(words) => words,
            Self::Samples(x) => x.slots * (x.mask + 1),
        }
    }

    /// Words of a unit as it travels.
    #[must_use]
    pub fn sent(self) -> usize {
        match self {
            Self::Plain(words) => words,
            Self::Samples(x) => x.mask + x.slots,
        }
    }

    /// Units as they travel.
    pub(crate) fn compress(self, units: Vec<u64>) -> Vec<u64> {
        let Self::Samples(x) = self else { return units };
        let mut sent = Vec::with_capacity(units.len() / self.whole() * self.sent());
        for unit in units.chunks_exact(self.whole()) {
            sent.extend_from_slice(&unit[..x.mask]);
            sent.extend(unit.chunks_exact(x.mask + 1).map(|lwe| lwe[x.mask]));
        }
        sent
    }

    /// Units as they were.
    pub(crate) fn expand(self, sent: &[u64], units: &mut [u64]) {
        let Self::Samples(x) = self else { return units.copy_from_slice(sent) };
        for (sent, unit) in sent.chunks_exact(self.sent()).zip(units.chunks_exact_mut(self.whole())) {
            let (mask, bodies) = sent.split_at(x.mask);
            for (slot, (lwe, &body)) in unit.chunks_exact_mut(x.mask + 1).zip(bodies).enumerate() {
                lwe[x.mask] = body;
                let polynomials = mask.chunks_exact(x.polynomial_size);
                for (first, to) in polynomials.zip(lwe[..x.mask].chunks_exact_mut(x.polynomial_size)) {
                    turn(first, slot * x.stride, to);
                }
            }
        }
    }
}

/// The mask of the sample at a degree below N, from that of the sample at 0: turned forward by it, negated where it comes round.
fn turn(first: &[u64], degree: usize, to: &mut [u64]) {
    let (low, high) = to.split_at_mut(degree);
    let (straight, round) = first.split_at(high.len());
    high.copy_from_slice(straight);
    low.iter_mut().zip(round).for_each(|(to, &from)| *to = from.wrapping_neg());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{Rng, SeedableRng};
    use tfhe::core_crypto::prelude::*;

    /// tfhe's own extraction, of rings with one and with two mask polynomials.
    #[test]
    fn all_samples_follow_from_the_first_mask() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(3);
        let modulus = CiphertextModulus::new_native();
        for (k, size, slots, stride) in [(1, 64, 8, 8), (1, 64, 3, 16), (2, 32, 4, 5), (1, 64, 1, 64)] {
            let glwe: Vec<u64> = (0..(k + 1) * size).map(|_| random.next_u64()).collect();
            let glwe = GlweCiphertext::from_container(glwe.as_slice(), PolynomialSize(size), modulus);
            let mut unit = vec![0; slots * (k * size + 1)];
            for (slot, lwe) in unit.chunks_exact_mut(k * size + 1).enumerate() {
                let mut lwe = LweCiphertext::from_container(lwe, modulus);
                extract_lwe_sample_from_glwe_ciphertext(&glwe, &mut lwe, MonomialDegree(slot * stride));
            }
            let layout = Layout::Samples(Samples { slots, stride, polynomial_size: size, mask: k * size });
            let sent = layout.compress(unit.clone());
            assert_eq!(sent.len(), layout.sent());
            let mut back = vec![0; unit.len()];
            layout.expand(&sent, &mut back);
            assert_eq!(back, unit, "k = {k}, {slots} slots of {stride}");
        }
    }
}
