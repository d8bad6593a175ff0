//! Instructions cut into parts, so that a run can stop inside one.
//!
//! One instruction of a large circuit takes many minutes. It repeats something, though: keyswitches and look-ups of single elements,
//! groups of a linear map or a pack, rotations of products. A part is an instruction too, on some of these *units*, and computes exactly
//! their words of the whole; it has copies of no more tables and weights than it uses, so an executor runs it as it runs any other.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::instruction::{Block, ExternalProduct, Instruction, Keyswitch, Linear, LutProduct, Pack, Pbs};

fn sub_block(block: &Block, elements: usize, units: &Range<usize>) -> Block {
    Block { start: block.start + (units.start * elements) as u32, len: (units.len() * elements) as u32 }
}

/// Entries of `values`, `size` each, that `of` names, in order of first use; and their new numbers.
fn used(of: &[u32], values: &[i32], size: usize) -> (Vec<u32>, Vec<i32>) {
    let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
    let mut kept = Vec::new();
    let renumber = |&old: &u32| {
        let next = numbers.len() as u32;
        *numbers.entry(old).or_insert_with(|| {
            kept.extend_from_slice(&values[old as usize * size..(old as usize + 1) * size]);
            next
        })
    };
    (of.iter().map(renumber).collect(), kept)
}

impl Instruction {
    /// The block that it writes.
    #[must_use]
    pub fn destination(&self) -> &Block {
        match self {
            Self::Linear(x) => &x.dst,
            Self::Keyswitch(x) => &x.dst,
            Self::Pbs(x) => &x.dst,
            Self::Pack(x) => &x.dst,
            Self::LutProduct(x) => &x.dst,
            Self::ExternalProduct(x) => &x.dst,
        }
    }

    /// Units that it consists of.
    #[must_use]
    pub fn units(&self) -> usize {
        match self {
            Self::Linear(x) => x.set.len(),
            Self::Keyswitch(x) => x.gather.len(),
            Self::Pbs(x) => x.argument.len(),
            Self::Pack(x) => x.dst.len as usize,
            Self::LutProduct(x) => x.argument.len(),
            Self::ExternalProduct(x) => x.terms.len(),
        }
    }

    /// Elements that each unit writes.
    #[must_use]
    pub fn unit_elements(&self) -> usize {
        match self {
            Self::Linear(x) => x.outputs as usize,
            Self::LutProduct(x) => x.slots as usize,
            Self::ExternalProduct(x) => x.slots as usize,
            Self::Keyswitch(_) | Self::Pbs(_) | Self::Pack(_) => 1,
        }
    }

    /// Blind rotations of its first units.
    #[must_use]
    pub fn rotations_before(&self, units: usize) -> u64 {
        match self {
            Self::Pbs(_) | Self::LutProduct(_) => units as u64,
            Self::ExternalProduct(x) => {
                u64::from(x.rotations) * x.terms.iter().take(units).map(|&n| u64::from(n)).sum::<u64>()
            }
            Self::Linear(_) | Self::Keyswitch(_) | Self::Pack(_) => 0,
        }
    }

    /// The instruction on some of its units, which must not go beyond [`units`](Self::units). `polynomial_size` is N of the
    /// circuit.
    #[must_use]
    pub fn part(&self, units: Range<usize>, polynomial_size: usize) -> Self {
        let dst = sub_block(self.destination(), self.unit_elements(), &units);
        match self {
            Self::Linear(x) => Self::Linear(linear(x, dst, units)),
            Self::Keyswitch(x) => {
                let gather = x.gather[units].to_vec();
                Self::Keyswitch(Keyswitch { dst, domain: x.domain, extension: x.extension, gather })
            }
            Self::Pbs(x) => {
                let entries = self.table_entries(polynomial_size);
                let (table_of, tables) = used(&x.table_of[units.clone()], &x.tables, entries);
                Self::Pbs(Pbs { dst, extension: x.extension, argument: x.argument[units].to_vec(), table_of, tables })
            }
            Self::Pack(x) => {
                let slots = x.slots as usize;
                let gather = x.gather[units.start * slots..units.end * slots].to_vec();
                Self::Pack(Pack { dst, slots: x.slots, stride: x.stride, gather })
            }
            Self::LutProduct(x) => Self::LutProduct(x.part(units)),
            Self::ExternalProduct(x) => Self::ExternalProduct(x.part(units, polynomial_size)),
        }
    }
}

fn linear(x: &Linear, dst: Block, units: Range<usize>) -> Linear {
    let (m, k) = (x.outputs as usize, x.operands as usize);
    let (set, weights) = used(&x.set[units.clone()], &x.weights, m * k);
    Linear {
        dst,
        outputs: x.outputs,
        operands: x.operands,
        gather: x.gather[units.start * k..units.end * k].to_vec(),
        set,
        weights,
        bias: x.bias[units.start * m..units.end * m].to_vec(),
    }
}

impl LutProduct {
    /// The products of some of its rotations, with the tables that they use.
    #[must_use]
    pub fn part(&self, rotations: Range<usize>) -> Self {
        let (table_of, tables) = used(&self.table_of[rotations.clone()], &self.tables, self.entries());
        Self {
            dst: sub_block(&self.dst, self.slots as usize, &rotations),
            slots: self.slots,
            stride: self.stride,
            extension: self.extension,
            argument: self.argument[rotations.clone()].to_vec(),
            accumulator: self.accumulator[rotations].to_vec(),
            table_of,
            tables,
        }
    }
}

impl ExternalProduct {
    /// Some of the sums, with the tables that they use.
    #[must_use]
    pub fn part(&self, sums: Range<usize>, polynomial_size: usize) -> Self {
        let count = |terms: &[u32]| terms.iter().map(|&n| n as usize).sum::<usize>();
        let start = count(&self.terms[..sums.start]);
        let terms = start..start + count(&self.terms[sums.clone()]);
        let entries = crate::external::entries(polynomial_size, self.rotations as usize);
        let (table_of, tables) = used(&self.table_of[terms.clone()], &self.tables, entries);
        Self {
            dst: sub_block(&self.dst, self.slots as usize, &sums),
            slots: self.slots,
            stride: self.stride,
            rotations: self.rotations,
            terms: self.terms[sums].to_vec(),
            argument: self.argument[terms.clone()].to_vec(),
            accumulator: self.accumulator[terms].to_vec(),
            table_of,
            tables,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_linear_map_have_their_own_weights() {
        let x = Linear {
            dst: Block { start: 10, len: 6 },
            outputs: 2,
            operands: 1,
            gather: vec![4, 5, 6],
            set: vec![2, 0, 2],
            weights: vec![1, 2, 3, 4, 5, 6],
            bias: vec![7, 8, 9, 10, 11, 12],
        };
        let whole = Instruction::Linear(x.clone());
        assert_eq!((whole.units(), whole.unit_elements()), (3, 2));
        let Instruction::Linear(part) = whole.part(1..3, 2048) else { unreachable!() };
        assert_eq!(part.dst, Block { start: 12, len: 4 });
        assert_eq!((part.gather, part.set, part.weights), (vec![5, 6], vec![0, 1], vec![1, 2, 5, 6]));
        assert_eq!(part.bias, vec![9, 10, 11, 12]);
    }

    #[test]
    fn parts_of_look_ups_keep_the_tables_that_they_use() {
        let x = Pbs {
            dst: Block { start: 0, len: 4 },
            extension: 0,
            argument: vec![3, 2, 1, 0],
            table_of: vec![1, 1, 0, 1],
            tables: vec![10, 11, 20, 21],
        };
        let Instruction::Pbs(part) = Instruction::Pbs(x).part(1..3, 2) else { unreachable!() };
        assert_eq!(part.dst, Block { start: 1, len: 2 });
        assert_eq!((part.argument, part.table_of, part.tables), (vec![2, 1], vec![0, 1], vec![20, 21, 10, 11]));
    }

    #[test]
    fn parts_of_products_and_packs_follow_their_slots() {
        let pack = Pack { dst: Block { start: 1, len: 2 }, slots: 2, stride: 3, gather: vec![1, 2, 3, 4] };
        let Instruction::Pack(part) = Instruction::Pack(pack).part(1..2, 8) else { unreachable!() };
        assert_eq!((part.dst, part.gather), (Block { start: 2, len: 1 }, vec![3, 4]));
        let x = LutProduct {
            dst: Block { start: 0, len: 4 },
            slots: 2,
            stride: 2,
            extension: 0,
            argument: vec![5, 6],
            accumulator: vec![7, 8],
            table_of: vec![0, 1],
            tables: vec![1, 2, 3, 4],
        };
        let Instruction::LutProduct(part) = Instruction::LutProduct(x).part(1..2, 8) else { unreachable!() };
        assert_eq!(part.dst, Block { start: 2, len: 2 });
        assert_eq!((part.argument, part.accumulator), (vec![6], vec![8]));
        assert_eq!((part.table_of, part.tables), (vec![0], vec![3, 4]));
    }

    #[test]
    fn parts_of_external_products_are_whole_sums() {
        let x = ExternalProduct {
            dst: Block { start: 10, len: 6 },
            slots: 2,
            stride: 4,
            rotations: 1,
            terms: vec![2, 0, 3],
            argument: vec![1, 2, 3, 4, 5],
            accumulator: vec![6, 7, 8, 9, 6],
            table_of: vec![0, 1, 1, 0, 1],
            tables: vec![1, 2, 3, 4],
        };
        let whole = Instruction::ExternalProduct(x);
        assert_eq!((whole.units(), whole.unit_elements(), whole.rotations_before(2), whole.pbs_count()), (3, 2, 2, 5));
        let Instruction::ExternalProduct(part) = whole.part(1..3, 8) else { unreachable!() };
        assert_eq!((part.dst, &part.terms), (Block { start: 12, len: 4 }, &vec![0, 3]));
        assert_eq!((part.argument, part.accumulator), (vec![3, 4, 5], vec![8, 9, 6]));
        assert_eq!((part.table_of, part.tables), (vec![0, 1, 0], vec![3, 4, 1, 2]));
        let Instruction::ExternalProduct(part) = whole.part(1..3, 8) else { unreachable!() };
        assert_eq!(part.sum_of().collect::<Vec<_>>(), [1, 1, 1]);
    }
}
