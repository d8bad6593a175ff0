//! Keyswitch and packing keyswitch, in batches.

use rayon::prelude::*;
use tfhe::core_crypto::prelude::*;
use thex_circuit::params::Decomposition;

use super::matrix::{GROUP, TiledMatrix};

/// Ciphertexts whose digits are in memory at once.
pub(crate) const BATCH: usize = 128;

/// Digits, negated, of the masks of up to [`BATCH`] ciphertexts: `[group][mask element and level][GROUP]`.
fn digits(inputs: &[&[u64]], decomposition: Decomposition, words: usize) -> Vec<u64> {
    let decomposer = SignedDecomposer::<u64>::new(decomposition.base_log, decomposition.level);
    let mut all = vec![0; inputs.len().div_ceil(GROUP) * words];
    all.par_chunks_mut(words).zip(inputs.par_chunks(GROUP)).for_each(|(all, inputs)| {
        for (column, input) in inputs.iter().enumerate() {
            let Some((_, mask)) = input.split_last() else { continue };
            let terms = mask.iter().flat_map(|&a| decomposer.decompose(a));
            for (slot, term) in all.iter_mut().skip(column).step_by(GROUP).zip(terms) {
                *slot = term.value().wrapping_neg();
            }
        }
    });
    all
}

/// Keyswitches a batch: `out[i] = (0, …, 0, bᵢ) − Σ digits·key`, `key.columns()` words each.
pub(crate) fn keyswitch(key: &TiledMatrix, decomposition: Decomposition, inputs: &[&[u64]], out: &mut [u64]) {
    let size = key.columns();
    for (inputs, out) in inputs.chunks(BATCH).zip(out.chunks_mut(BATCH * size)) {
        let product = key.product(&digits(inputs, decomposition, key.group_words()));
        out.copy_from_slice(&product[..out.len()]);
        for (input, out) in inputs.iter().zip(out.chunks_exact_mut(size)) {
            if let (Some(body), Some(&input)) = (out.last_mut(), input.last()) {
                *body = body.wrapping_add(input);
            }
        }
    }
}

/// `out += X^degree · from`, both of one polynomial, degree < N.
fn add_rotated(out: &mut [u64], from: &[u64], degree: usize) {
    let (low, high) = out.split_at_mut(degree);
    let (straight, wrapped) = from.split_at(high.len());
    for (to, &from) in high.iter_mut().zip(straight) {
        *to = to.wrapping_add(from);
    }
    for (to, &from) in low.iter_mut().zip(wrapped) {
        *to = to.wrapping_sub(from);
    }
}

/// One LWE to be packed.
struct Slot<'a> {
    glwe: usize,
    degree: usize,
    lwe: &'a [u64],
}

fn add_slot(out: &mut [u64], product: &[u64], slot: &Slot<'_>, size: usize) {
    for (out, product) in out.chunks_exact_mut(size).zip(product.chunks_exact(size)) {
        add_rotated(out, product, slot.degree);
    }
    let body = out.len() - size + slot.degree;
    out[body] = out[body].wrapping_add(slot.lwe.last().copied().unwrap_or(0));
}

/// Packs groups of `slots` LWEs (absent ones are empty) at a stride into one GLWE each.
pub(crate) fn pack(
    key: &TiledMatrix,
    decomposition: Decomposition,
    inputs: &[Option<&[u64]>],
    (slots, stride, size): (usize, usize, usize),
    out: &mut [u64],
) {
    out.fill(0);
    let words = key.columns();
    let present: Vec<Slot<'_>> = inputs
        .iter()
        .enumerate()
        .filter_map(|(i, lwe)| lwe.map(|lwe| Slot { glwe: i / slots, degree: i % slots * stride, lwe }))
        .collect();
    for batch in present.chunks(BATCH) {
        let lwes: Vec<&[u64]> = batch.iter().map(|slot| slot.lwe).collect();
        let product = key.product(&digits(&lwes, decomposition, key.group_words()));
        out.par_chunks_mut(words).enumerate().for_each(|(glwe, out)| {
            let first = batch.partition_point(|slot| slot.glwe < glwe);
            let last = batch.partition_point(|slot| slot.glwe <= glwe);
            for i in first..last {
                add_slot(out, &product[i * words..(i + 1) * words], &batch[i], size);
            }
        });
    }
}
