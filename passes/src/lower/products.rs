//! Plans for products of two encrypted tensors.
//!
//! One blind rotation by x multiplies up to m packed values y₁…y_m by f(x). A product `[m,k]·[k,n]` can rotate the
//! left operand over packs of the right one, or the other way round, with any m: more products share a rotation as
//! m grows, but x keeps only N/m positions. As external products, one to four rotations by x multiply any number of values, and the products of
//! a result are summed (`runtime/circuit/src/external.rs`): T·W rotations for scores of T tokens in place of T·W·⌈T/m⌉.

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

/// A product as the rotating operand sees it: x[r, c] multiplies y[c, ·], and adds to out[r, ·].
struct View<'a> {
    shape: &'a MatMulShape,
    rotate: Rotate,
    x_private: &'a [bool],
    y_private: &'a [bool],
    demanded: &'a [bool],
}

impl View<'_> {
    fn rows(&self) -> usize {
        match self.rotate {
            Rotate::Left => self.shape.m,
            Rotate::Right => self.shape.n,
        }
    }

    fn columns(&self) -> usize {
        match self.rotate {
            Rotate::Left => self.shape.n,
            Rotate::Right => self.shape.m,
        }
    }

    fn x(&self, b: usize, r: usize, c: usize) -> usize {
        match self.rotate {
            Rotate::Left => self.shape.left(b, r, c),
            Rotate::Right => self.shape.right(b, c, r),
        }
    }

    fn y(&self, b: usize, c: usize, s: usize) -> usize {
        match self.rotate {
            Rotate::Left => self.shape.right(b, c, s),
            Rotate::Right => self.shape.left(b, s, c),
        }
    }

    fn out(&self, b: usize, r: usize, s: usize) -> usize {
        match self.rotate {
            Rotate::Left => self.shape.out(b, r, s),
            Rotate::Right => self.shape.out(b, s, r),
        }
    }

    fn has_x(&self, b: usize, r: usize, c: usize) -> bool {
        self.x_private[self.x(b, r, c)]
    }

    fn has_y(&self, b: usize, c: usize, s: usize) -> bool {
        self.y_private[self.y(b, c, s)]
    }

    /// Whether a row has a demanded result in one of these columns.
    fn wants(&self, b: usize, r: usize, columns: &[usize]) -> bool {
        columns.iter().any(|&s| self.demanded[self.out(b, r, s)])
    }

    fn outs(&self, b: usize, r: usize, columns: &[usize]) -> Vec<usize> {
        columns.iter().map(|&s| self.out(b, r, s)).collect()
    }

    fn pack(&self, b: usize, c: usize, columns: &[usize]) -> Vec<usize> {
        columns.iter().map(|&s| self.y(b, c, s)).collect()
    }

    /// Columns with a demanded result in any row.
    fn live(&self, b: usize) -> impl Iterator<Item = usize> {
        (0..self.columns()).filter(move |&s| (0..self.rows()).any(|r| self.wants(b, r, &[s])))
    }
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
        let (x_private, y_private) = match plan.rotate {
            Rotate::Left => (left_private, right_private),
            Rotate::Right => (right_private, left_private),
        };
        let view = View { shape, rotate: plan.rotate, x_private, y_private, demanded };
        let mut schedule = Self::default();
        for b in 0..shape.batch {
            match plan.external {
                Some(_) => schedule.sum(&view, b),
                None => schedule.rotate(&view, b, plan.slots),
            }
        }
        schedule
    }

    /// Products by rotation: each pack has up to so many columns, and each row rotates it.
    fn rotate(&mut self, view: &View<'_>, b: usize, slots: usize) {
        for c in 0..view.shape.k {
            let live: Vec<usize> = view.live(b).filter(|&s| view.has_y(b, c, s)).collect();
            for chunk in live.chunks(slots.max(1)) {
                let (pack, before) = (self.packs.len(), self.rotations.len());
                for r in (0..view.rows()).filter(|&r| view.has_x(b, r, c) && view.wants(b, r, chunk)) {
                    self.rotations.push(Rotation { x: view.x(b, r, c), pack, out: view.outs(b, r, chunk) });
                }
                if self.rotations.len() > before {
                    self.packs.push(view.pack(b, c, chunk));
                }
            }
        }
    }

    /// External products: each pack has all columns, each in a slot that is the same for all terms of a sum.
    fn sum(&mut self, view: &View<'_>, b: usize) {
        let live: Vec<usize> = view.live(b).filter(|&s| (0..view.shape.k).any(|c| view.has_y(b, c, s))).collect();
        let rows: Vec<usize> = (0..view.rows()).filter(|&r| view.wants(b, r, &live)).collect();
        let used = |&c: &usize| live.iter().any(|&s| view.has_y(b, c, s)) && rows.iter().any(|&r| view.has_x(b, r, c));
        let terms: Vec<usize> = (0..view.shape.k).filter(used).collect();
        let first = self.packs.len();
        self.packs.extend(terms.iter().map(|&c| view.pack(b, c, &live)));
        for r in rows {
            let before = self.rotations.len();
            for (pack, &c) in (first..).zip(&terms).filter(|(_, c)| view.has_x(b, r, **c)) {
                self.rotations.push(Rotation { x: view.x(b, r, c), pack, out: view.outs(b, r, &live) });
            }
            if self.rotations.len() > before {
                self.sums.push((self.rotations.len() - before) as u32);
            }
        }
    }

    /// The first rotation of each group of outputs: of each sum, whose rotations all have the same outputs, or every rotation.
    #[must_use]
    pub fn leaders(&self) -> Vec<&Rotation> {
        let mut start = 0;
        let first = |&terms: &u32| {
            let first = &self.rotations[start];
            start += terms as usize;
            first
        };
        if self.sums.is_empty() { self.rotations.iter().collect() } else { self.sums.iter().map(first).collect() }
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
        assert_eq!(schedule.leaders(), [&schedule.rotations[0], &schedule.rotations[2]]);
        assert_eq!((schedule.widest(), schedule.packed()), (2, 6));
    }
}
