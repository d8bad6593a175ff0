//! Plans for products of two encrypted tensors.
//!
//! One blind rotation by x multiplies up to m packed values y₁…y_m by f(x). A product `[m,k]·[k,n]` can rotate the
//! left operand over packs of the right one, or the other way round, with any m: more products share a rotation as
//! m grows, but x keeps only N/m positions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thex_ir::NodeId;

/// Which operand rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rotate {
    /// The left one; the right one is packed.
    Left,
    /// The right one; the left one is packed.
    Right,
}

/// How one product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductPlan {
    /// Which operand rotates.
    pub rotate: Rotate,
    /// m: products that share a rotation. External products share one however many they are.
    pub slots: usize,
    /// Whether products are external products, and in how many rotations the GGSWs are looked up.
    #[serde(default)]
    pub external: Option<usize>,
}

impl Default for ProductPlan {
    fn default() -> Self {
        Self { rotate: Rotate::Left, slots: 4, external: None }
    }
}

/// Plans of all products of a graph.
pub type ProductPlans = BTreeMap<NodeId, ProductPlan>;

/// A batched product of encrypted matrices as elements see it.
#[derive(Clone, Debug)]
pub struct MatMulShape {
    /// Number of matrices.
    pub batch: usize,
    /// Rows of the left operand.
    pub m: usize,
    /// Contraction.
    pub k: usize,
    /// Columns of the right operand.
    pub n: usize,
}

impl MatMulShape {
    /// From the shapes of the operands.
    #[must_use]
    pub fn new(left: &[usize], right: &[usize]) -> Self {
        let rank = left.len();
        Self { batch: left[..rank - 2].iter().product(), m: left[rank - 2], k: left[rank - 1], n: right[rank - 1] }
    }

    /// Element of the left operand.
    #[must_use]
    pub fn left(&self, b: usize, i: usize, c: usize) -> usize {
        (b * self.m + i) * self.k + c
    }

    /// Element of the right operand.
    #[must_use]
    pub fn right(&self, b: usize, c: usize, j: usize) -> usize {
        (b * self.k + c) * self.n + j
    }

    /// Element of the result.
    #[must_use]
    pub fn out(&self, b: usize, i: usize, j: usize) -> usize {
        (b * self.m + i) * self.n + j
    }
}

/// One rotation: the rotating element, the pack, and for each slot the element of the result that it adds to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Element of the rotating operand.
    pub x: usize,
    /// Which pack.
    pub pack: usize,
    /// Result element of each filled slot.
    pub out: Vec<usize>,
}

/// All packs (elements of the packed operand) and rotations of a product.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// Elements of the packed operand in each pack.
    pub packs: Vec<Vec<usize>>,
    /// The rotations.
    pub rotations: Vec<Rotation>,
    /// Rotations of each sum of external products, one after another. Empty where products are not summed.
    pub sums: Vec<u32>,
}

impl Schedule {
    /// The cheapest schedule under `plan`: only private elements, only demanded results.
    #[must_use]
    pub fn new(
        shape: &MatMulShape,
        plan: ProductPlan,
        left_private: &[bool],
        right_private: &[bool],
        demanded: &[bool],
    ) -> Self {
        let (rows, columns) = match plan.rotate {
            Rotate::Left => (shape.m, shape.n),
            Rotate::Right => (shape.n, shape.m),
        };
        // In the rotating operand's view: x[r, c] rotates packs of y[c, ·].
        let x_at = |b, r, c| match plan.rotate {
            Rotate::Left => shape.left(b, r, c),
            Rotate::Right => shape.right(b, c, r),
        };
        let y_at = |b, c, s| match plan.rotate {
            Rotate::Left => shape.right(b, c, s),
            Rotate::Right => shape.left(b, s, c),
        };
        let out_at = |b, r, s| match plan.rotate {
            Rotate::Left => shape.out(b, r, s),
            Rotate::Right => shape.out(b, s, r),
        };
        let (x_private, y_private) = match plan.rotate {
            Rotate::Left => (left_private, right_private),
            Rotate::Right => (right_private, left_private),
        };
        let mut schedule = Self::default();
        if plan.external.is_some() {
            // All terms of a sum have a column in the same slot.
            for b in 0..shape.batch {
                let demanded_at = |s: usize| (0..rows).any(|r| demanded[out_at(b, r, s)]);
                let live: Vec<usize> = (0..columns)
                    .filter(|&s| demanded_at(s) && (0..shape.k).any(|c| y_private[y_at(b, c, s)]))
                    .collect();
                let wanted = |r: usize| live.iter().any(|&s| demanded[out_at(b, r, s)]);
                let used = |c: usize| {
                    live.iter().any(|&s| y_private[y_at(b, c, s)])
                        && (0..rows).any(|r| wanted(r) && x_private[x_at(b, r, c)])
                };
                let first = schedule.packs.len();
                let terms: Vec<usize> = (0..shape.k).filter(|&c| used(c)).collect();
                schedule.packs.extend(terms.iter().map(|&c| live.iter().map(|&s| y_at(b, c, s)).collect::<Vec<_>>()));
                for r in (0..rows).filter(|&r| wanted(r)) {
                    let out: Vec<usize> = live.iter().map(|&s| out_at(b, r, s)).collect();
                    let of_row = (first..).zip(&terms).filter(|(_, c)| x_private[x_at(b, r, **c)]);
                    let of_row: Vec<Rotation> =
                        of_row.map(|(pack, &c)| Rotation { x: x_at(b, r, c), pack, out: out.clone() }).collect();
                    if !of_row.is_empty() {
                        schedule.sums.push(of_row.len() as u32);
                        schedule.rotations.extend(of_row);
                    }
                }
            }
            return schedule;
        }
        for b in 0..shape.batch {
            for c in 0..shape.k {
                let live: Vec<usize> = (0..columns)
                    .filter(|&s| y_private[y_at(b, c, s)] && (0..rows).any(|r| demanded[out_at(b, r, s)]))
                    .collect();
                for chunk in live.chunks(plan.slots.max(1)) {
                    let pack = schedule.packs.len();
                    let before = schedule.rotations.len();
                    for r in (0..rows).filter(|&r| x_private[x_at(b, r, c)]) {
                        if chunk.iter().any(|&s| demanded[out_at(b, r, s)]) {
                            let out = chunk.iter().map(|&s| out_at(b, r, s)).collect();
                            schedule.rotations.push(Rotation { x: x_at(b, r, c), pack, out });
                        }
                    }
                    if schedule.rotations.len() > before {
                        schedule.packs.push(chunk.iter().map(|&s| y_at(b, c, s)).collect());
                    }
                }
            }
        }
        schedule
    }

    /// Most values in a pack.
    #[must_use]
    pub fn widest(&self) -> usize {
        self.packs.iter().map(Vec::len).max().unwrap_or(1)
    }

    /// Packed LWEs.
    #[must_use]
    pub fn packed(&self) -> usize {
        self.packs.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_cover_every_product_once() {
        let shape = MatMulShape { batch: 2, m: 3, k: 4, n: 5 };
        let (left, right) = (vec![true; 2 * 3 * 4], vec![true; 2 * 4 * 5]);
        let demanded = vec![true; 2 * 3 * 5];
        for rotate in [Rotate::Left, Rotate::Right] {
            for slots in 1..6 {
                let plan = ProductPlan { rotate, slots, external: None };
                let schedule = Schedule::new(&shape, plan, &left, &right, &demanded);
                let mut hits = vec![0; demanded.len()];
                schedule.rotations.iter().flat_map(|r| &r.out).for_each(|&o| hits[o] += 1);
                assert!(hits.iter().all(|&h| h == shape.k), "{rotate:?} {slots}");
            }
        }
    }

    #[test]
    fn public_and_undemanded_elements_cost_nothing() {
        let shape = MatMulShape { batch: 1, m: 4, k: 2, n: 4 };
        let mut left = vec![true; 8];
        left[..2].fill(false);
        let mut demanded = vec![false; 16];
        demanded[4..8].fill(true);
        let plan = ProductPlan { rotate: Rotate::Left, slots: 2, external: None };
        let schedule = Schedule::new(&shape, plan, &left, &[true; 8], &demanded);
        assert_eq!(schedule.rotations.len(), 4);
        assert_eq!(schedule.packed(), 8);
    }

    #[test]
    fn external_products_cover_every_product_once_in_order_of_their_sums() {
        let shape = MatMulShape { batch: 2, m: 3, k: 4, n: 5 };
        let (left, right) = (vec![true; 2 * 3 * 4], vec![true; 2 * 4 * 5]);
        let mut demanded = vec![true; 2 * 3 * 5];
        demanded[..5].fill(false);
        for (rotate, rows) in [(Rotate::Left, 5), (Rotate::Right, 10)] {
            let plan = ProductPlan { rotate, slots: 1, external: Some(1) };
            let schedule = Schedule::new(&shape, plan, &left, &right, &demanded);
            assert_eq!(schedule.sums, vec![shape.k as u32; rows]);
            assert_eq!(schedule.rotations.len(), rows * shape.k);
            let mut hits = vec![0; demanded.len()];
            schedule.rotations.iter().flat_map(|r| &r.out).for_each(|&o| hits[o] += 1);
            assert!(hits.iter().zip(&demanded).all(|(&h, &d)| !d || h == shape.k), "{rotate:?}");
            for sum in schedule.rotations.chunks(shape.k) {
                assert!(sum.iter().all(|r| r.out == sum[0].out));
            }
        }
    }

    #[test]
    fn external_products_leave_public_terms_out() {
        let shape = MatMulShape { batch: 1, m: 2, k: 3, n: 2 };
        let mut left = vec![true; 6];
        left[1] = false;
        let plan = ProductPlan { rotate: Rotate::Left, slots: 1, external: Some(2) };
        let schedule = Schedule::new(&shape, plan, &left, &[true; 6], &[true; 4]);
        assert_eq!(schedule.sums, [2, 3]);
        assert_eq!((schedule.widest(), schedule.packed()), (2, 6));
    }
}
