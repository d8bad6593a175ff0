//! Integer linear maps on LWE ciphertexts.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::matrix::{GROUP, TILE, block_product};

/// Output rows that share one gathering of operand tiles.
pub(crate) const ROWS: usize = 64;
/// Below this share of non-zero weights, rows are summed term by term.
const DENSE: f64 = 0.4;
/// Vectors of sums in registers for a sparse row.
const STRIP: usize = 8;

/// One `linear` instruction with its operands resolved.
pub(crate) struct LinearMap<'a> {
    /// M: outputs of a group.
    pub(crate) outputs: usize,
    /// K: operands of a group.
    pub(crate) operands: usize,
    /// G·K ciphertexts.
    pub(crate) gather: &'a [Option<&'a [u64]>],
    /// Weight set of each group.
    pub(crate) set: &'a [u32],
    /// Weights by set, output, operand.
    pub(crate) weights: &'a [i32],
    /// G·M phases.
    pub(crate) bias: &'a [u64],
}

/// `out = Σ factor·words`.
struct SparseRow<'a> {
    out: &'a mut [u64],
    terms: &'a [(u64, &'a [u64])],
}

impl WithSimd for SparseRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = STRIP * S::U64_LANES;
        let whole = self.out.len() / width * width;
        let (strips, tail) = self.out.split_at_mut(whole);
        for (number, out) in strips.chunks_exact_mut(width).enumerate() {
            let mut acc = [simd.splat_u64s(0); STRIP];
            for (factor, words) in self.terms {
                let factor = simd.splat_u64s(*factor);
                let (words, _) = S::as_simd_u64s(&words[number * width..(number + 1) * width]);
                for (acc, &word) in acc.iter_mut().zip(words) {
                    *acc = simd.add_u64s(*acc, simd.mul_u64s(factor, word));
                }
            }
            S::as_mut_simd_u64s(out).0.copy_from_slice(&acc);
        }
        for (i, out) in tail.iter_mut().enumerate() {
            *out = self.terms.iter().fold(0, |sum, (f, words)| f.wrapping_mul(words[whole + i]).wrapping_add(sum));
        }
    }
}

/// Some output rows of one group.
struct Task<'a> {
    group: usize,
    first: usize,
    out: &'a mut [u64],
}

fn factor(weight: i32) -> u64 {
    i64::from(weight) as u64
}

impl LinearMap<'_> {
    /// Rows of a task: enough to share gathered operands, few enough to keep `threads` busy.
    fn task_rows(&self, threads: usize) -> usize {
        let rows = self.set.len() * self.outputs;
        let share = rows.div_ceil(threads * 4).next_multiple_of(GROUP);
        share.clamp(GROUP, ROWS).min(self.outputs.max(1))
    }

    /// Weights of one output row.
    fn row(&self, group: usize, output: usize) -> &[i32] {
        let start = (self.set[group] as usize * self.outputs + output) * self.operands;
        if self.operands == 0 { &[] } else { &self.weights[start..start + self.operands] }
    }

    fn group_operands(&self, group: usize) -> &[Option<&[u64]>] {
        &self.gather[group * self.operands..(group + 1) * self.operands]
    }

    /// Evaluates the map into ciphertexts of `size` words each.
    pub(crate) fn run(&self, size: usize, out: &mut [u64]) {
        let rows = self.task_rows(rayon::current_num_threads());
        let mut tasks = Vec::new();
        for (group, out) in out.chunks_mut(self.outputs * size).enumerate() {
            for (i, out) in out.chunks_mut(rows * size).enumerate() {
                tasks.push(Task { group, first: i * rows, out });
            }
        }
        tasks.into_par_iter().for_each(|task| self.task(task, size));
    }

    fn task(&self, task: Task<'_>, size: usize) {
        let rows = task.out.len() / size;
        let operands = self.group_operands(task.group);
        let used = (0..rows).flat_map(|r| self.row(task.group, task.first + r).iter().zip(operands));
        let nonzero = used.filter(|(w, x)| **w != 0 && x.is_some()).count();
        let bias = &self.bias[task.group * self.outputs + task.first..][..rows];
        let Task { group, first, out } = task;
        if rows >= GROUP && nonzero as f64 >= DENSE * (rows * self.operands) as f64 {
            self.dense(group, first, out, size);
        } else {
            self.sparse(group, first, out, size);
        }
        for (out, bias) in out.chunks_exact_mut(size).zip(bias) {
            out[size - 1] = out[size - 1].wrapping_add(*bias);
        }
    }

    fn sparse(&self, group: usize, first: usize, out: &mut [u64], size: usize) {
        let operands = self.group_operands(group);
        let mut terms = Vec::with_capacity(self.operands);
        for (r, out) in out.chunks_exact_mut(size).enumerate() {
            terms.clear();
            let row = self.row(group, first + r).iter().zip(operands);
            terms.extend(row.filter(|(w, _)| **w != 0).filter_map(|(w, x)| x.map(|x| (factor(*w), x))));
            Arch::new().dispatch(SparseRow { out, terms: &terms });
        }
    }

    /// Weights of the task, `[group of rows][operand][GROUP]`, zero-padded.
    fn left(&self, group: usize, first: usize, rows: usize) -> Vec<u64> {
        let mut left = vec![0; rows.next_multiple_of(GROUP) * self.operands];
        for r in 0..rows {
            let block = &mut left[r / GROUP * GROUP * self.operands..];
            for (slot, &w) in block.iter_mut().skip(r % GROUP).step_by(GROUP).zip(self.row(group, first + r)) {
                *slot = factor(w);
            }
        }
        left
    }

    fn dense(&self, group: usize, first: usize, out: &mut [u64], size: usize) {
        let operands = self.group_operands(group);
        let left = self.left(group, first, out.len() / size);
        let mut right = vec![0; self.operands * TILE];
        for start in (0..size).step_by(TILE) {
            let width = TILE.min(size - start);
            for (to, from) in right.chunks_exact_mut(TILE).zip(operands) {
                match from {
                    Some(from) => to[..width].copy_from_slice(&from[start..start + width]),
                    None => to.fill(0),
                }
            }
            for (rows, left) in out.chunks_mut(GROUP * size).zip(left.chunks_exact(GROUP * self.operands)) {
                let mut sums = [0; GROUP * TILE];
                block_product(&mut sums, left, &right);
                for (row, sums) in rows.chunks_exact_mut(size).zip(sums.chunks_exact(TILE)) {
                    row[start..start + width].copy_from_slice(&sums[..width]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(outputs: usize, operands: usize, groups: usize, zero_every: usize) {
        let size = 77;
        let lwes: Vec<Vec<u64>> = (0..40_u64)
            .map(|i| (0..size as u64).map(|j| (i * 1000 + j + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect())
            .collect();
        let gather: Vec<Option<&[u64]>> =
            (0..groups * operands).map(|i| (i % 7 != 3).then(|| lwes[i * 13 % 40].as_slice())).collect();
        let weights: Vec<i32> = (0..2 * outputs * operands)
            .map(|i| if i % zero_every == 0 { 0 } else { (i as i32 * 37) % 201 - 100 })
            .collect();
        let set: Vec<u32> = (0..groups as u32).map(|g| g % 2).collect();
        let bias: Vec<u64> = (0..groups * outputs).map(|i| i as u64 * 999).collect();
        let map = LinearMap { outputs, operands, gather: &gather, set: &set, weights: &weights, bias: &bias };
        let mut out = vec![1; groups * outputs * size];
        map.run(size, &mut out);
        for g in 0..groups {
            for m in 0..outputs {
                for word in 0..size {
                    let mut want = if word == size - 1 { bias[g * outputs + m] } else { 0 };
                    for k in 0..operands {
                        let w = weights[(set[g] as usize * outputs + m) * operands + k];
                        let x = gather[g * operands + k].map_or(0, |x| x[word]);
                        want = want.wrapping_add(factor(w).wrapping_mul(x));
                    }
                    assert_eq!(out[(g * outputs + m) * size + word], want, "{g} {m} {word}");
                }
            }
        }
    }

    #[test]
    fn dense_sparse_and_empty_maps_are_exact() {
        check(9, 30, 3, 1000);
        check(9, 30, 3, 2);
        check(1, 5, 6, 3);
        check(130, 11, 2, 1000);
        check(3, 0, 4, 1000);
    }
}
