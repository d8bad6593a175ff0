//! Wrapping matrix products modulo 2^64: (digits or weights) × (key or ciphertext words).

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Columns that are computed together: 32 words are 4 registers of 512 bits.
pub(crate) const TILE: usize = 32;
/// Left rows that are computed together: 4 × 4 registers of sums.
pub(crate) const GROUP: usize = 4;
/// Depth of a block: 256 right rows of a tile are 64 KiB, which stay in the second-level cache.
const DEPTH: usize = 256;
/// Groups that share one pass over a tile.
const GROUPS_OF_A_PASS: usize = 16;

/// Vectors of a tile that are held in registers at once.
const STRIP: usize = 4;

/// A matrix stored by tiles of [`TILE`] columns: `words[tile][row][column in tile]`, zero-padded.
pub(crate) struct TiledMatrix {
    rows: usize,
    columns: usize,
    words: Vec<u64>,
}

/// `sums += left · right`, with `left[depth][GROUP]`, `right[depth][TILE]`, `sums[GROUP][TILE]`.
struct BlockProduct<'a> {
    sums: &'a mut [u64; GROUP * TILE],
    left: &'a [u64],
    right: &'a [u64],
}

impl WithSimd for BlockProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = TILE / S::U64_LANES;
        let (sums, _) = S::as_mut_simd_u64s(self.sums);
        let (right, _) = S::as_simd_u64s(self.right);
        let (left, _) = self.left.as_chunks::<GROUP>();
        for strip in (0..vectors).step_by(STRIP) {
            let mut acc = [[simd.splat_u64s(0); STRIP]; GROUP];
            for (factors, row) in left.iter().zip(right.chunks_exact(vectors)) {
                let Some(row) = row[strip..].first_chunk::<STRIP>() else { continue };
                for (acc, &factor) in acc.iter_mut().zip(factors) {
                    let factor = simd.splat_u64s(factor);
                    for (acc, &word) in acc.iter_mut().zip(row) {
                        *acc = simd.add_u64s(*acc, simd.mul_u64s(factor, word));
                    }
                }
            }
            for (acc, sums) in acc.iter().zip(sums.chunks_exact_mut(vectors)) {
                for (acc, sum) in acc.iter().zip(&mut sums[strip..]) {
                    *sum = simd.add_u64s(*sum, *acc);
                }
            }
        }
    }
}

/// `sums += left · right` for one group and one tile, of any depth.
pub(crate) fn block_product(sums: &mut [u64; GROUP * TILE], left: &[u64], right: &[u64]) {
    Arch::new().dispatch(BlockProduct { sums, left, right });
}

impl TiledMatrix {
    /// Bytes of a matrix in memory.
    pub(crate) fn bytes(rows: usize, columns: usize) -> u64 {
        (columns.div_ceil(TILE) * TILE * rows * 8) as u64
    }

    /// Lays a row-major matrix out by tiles.
    pub(crate) fn new(row_major: &[u64], columns: usize) -> Self {
        let rows = row_major.len() / columns;
        let mut words = vec![0; columns.div_ceil(TILE) * TILE * rows];
        words.par_chunks_mut(rows * TILE).enumerate().for_each(|(tile, words)| {
            let start = tile * TILE;
            let width = TILE.min(columns - start);
            for (to, from) in words.chunks_exact_mut(TILE).zip(row_major.chunks_exact(columns)) {
                to[..width].copy_from_slice(&from[start..start + width]);
            }
        });
        Self { rows, columns, words }
    }

    /// A matrix of pseudo-random words, to time products with.
    pub(crate) fn arbitrary(rows: usize, columns: usize) -> Self {
        let count = columns.div_ceil(TILE) * TILE * rows;
        let words = (0..count as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        Self { rows, columns, words }
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Words that the digits of one group of left rows take.
    pub(crate) fn group_words(&self) -> usize {
        self.rows * GROUP
    }

    /// The product of one pass of groups with one tile: `[group][GROUP][TILE]`.
    fn tile_product(&self, tile: usize, left: &[u64]) -> Vec<u64> {
        let words = &self.words[tile * self.rows * TILE..(tile + 1) * self.rows * TILE];
        let mut sums = vec![0; left.len() / self.group_words() * GROUP * TILE];
        for (block, right) in words.chunks(DEPTH * TILE).enumerate() {
            let depth = right.len() / TILE;
            let start = block * DEPTH * GROUP;
            let (sums, _) = sums.as_chunks_mut::<{ GROUP * TILE }>();
            for (sums, left) in sums.iter_mut().zip(left.chunks_exact(self.group_words())) {
                block_product(sums, &left[start..start + depth * GROUP], right);
            }
        }
        sums
    }

    /// `left · self`, row-major with `self.columns()` words a row; `left` is `[group][row of self][GROUP]`.
    pub(crate) fn product(&self, left: &[u64]) -> Vec<u64> {
        let pass = GROUPS_OF_A_PASS * self.group_words();
        let tiles = self.columns.div_ceil(TILE);
        let passes = left.len().div_ceil(pass);
        let parts: Vec<Vec<u64>> = (0..tiles * passes)
            .into_par_iter()
            .map(|task| {
                let (tile, number) = (task / passes, task % passes);
                let end = ((number + 1) * pass).min(left.len());
                self.tile_product(tile, &left[number * pass..end])
            })
            .collect();
        let rows = left.len() / self.group_words() * GROUP;
        let mut out = vec![0; rows * self.columns];
        out.par_chunks_mut(self.columns).enumerate().for_each(|(row, out)| {
            let (number, row) = (row / (GROUPS_OF_A_PASS * GROUP), row % (GROUPS_OF_A_PASS * GROUP));
            for (tile, out) in out.chunks_mut(TILE).enumerate() {
                let part = &parts[tile * passes + number];
                out.copy_from_slice(&part[row * TILE..row * TILE + out.len()]);
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_is_the_product() {
        let (rows, columns, count) = (600, 70, 4 * 18);
        let matrix: Vec<u64> = (0..rows * columns).map(|i| (i as u64).wrapping_mul(0x1234_5678_9abc_def1)).collect();
        let left: Vec<u64> = (0..rows * count).map(|i| (i as u64 % 17).wrapping_sub(8)).collect();
        let mut grouped = vec![0; left.len()];
        for row in 0..count {
            for k in 0..rows {
                grouped[(row / GROUP * rows + k) * GROUP + row % GROUP] = left[row * rows + k];
            }
        }
        let got = TiledMatrix::new(&matrix, columns).product(&grouped);
        for row in [0, 1, 5, 63, 64, 71] {
            for column in [0, 31, 32, 69] {
                let want = (0..rows).fold(0_u64, |sum, k| {
                    sum.wrapping_add(left[row * rows + k].wrapping_mul(matrix[k * columns + column]))
                });
                assert_eq!(got[row * columns + column], want, "{row} {column}");
            }
        }
    }
}
