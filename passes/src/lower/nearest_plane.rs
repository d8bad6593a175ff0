//! Rounds the weights of a linear map so that errors cancel on the values that it meets.
//!
//! Weights rounded one by one make errors Σ (q_c − w_c)·z_c; where the operands z have much in common, the rounding of one weight can make up for
//! that of others. With H = E z·zᵀ = UᵀU over calibration values, the expected squared error of a row is ‖U(q − w)‖², so
//! the best integers are a closest point of a lattice. Babai's nearest plane (L. Babai, "On Lovász' lattice reduction and the nearest
//! lattice point problem", Combinatorica 1986) goes through the columns once and rounds each after correcting it for those before; this is what
//! GPTQ does (Frantar et al., ICLR 2023). It costs nothing when the circuit runs.
//!
//! H is estimated from few samples, so its off-diagonal part is shrunk towards zero by the number of columns over that plus the number of
//! values seen: with too few values this is ordinary rounding.

use ndarray::Array2;
use rayon::prelude::*;
use thex_ir::interpret::{self, Values};
use thex_ir::{Address, Graph, HeLinear, NodeId};

use super::sensitivity::{Sensitivity, chosen_samples};
use crate::error::Result;
use crate::pass::PassCx;

/// Maps of more columns are rounded one by one: factoring takes the cube of their number.
const MOST_COLUMNS: usize = 768;

/// Part of the mean diagonal that is added to it, so that constant operands do no harm.
const DAMPING: f64 = 0.01;

/// Most that a weight is moved before it is rounded, in integer units: with the rounding, less than the verifier allows.
const MOST_CORRECTION: f64 = 1.5;

/// A weight nearer to an integer than this is one.
const EXACT: f64 = 1e-6;

/// Values of a graph on calibration samples.
pub(super) struct Observed(Vec<Values>);

impl Observed {
    pub(super) fn new(graph: &Graph, cx: &PassCx) -> Result<Self> {
        let samples = chosen_samples(graph, cx);
        Ok(Self(samples.par_iter().map(|sample| Ok(interpret::run_all(graph, sample)?)).collect::<Result<_>>()?))
    }
}

/// Rounds all weight sets of a map in place. `weights` are the real ones in integer units; `scale` gives the scale of an
/// operand's element.
pub(super) fn round_sets(
    (graph, id, map): (&Graph, NodeId, &HeLinear),
    weights: &mut [f64],
    observed: &Observed,
    sensitivity: &Sensitivity,
    scale: &(impl Fn(NodeId, usize) -> f64 + Sync),
) {
    let (m, k) = (map.outputs, map.operands);
    if k == 0 {
        return;
    }
    let operands = graph.operands(id);
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); weights.len() / (m * k)];
    map.set.iter().enumerate().for_each(|(g, &set)| groups[set as usize].push(g));
    weights.par_chunks_mut(m * k).zip(&groups).for_each(|(rows, groups)| {
        let exact = rows.iter().all(|w| (w - w.round()).abs() < EXACT);
        let lattice = if exact || k > MOST_COLUMNS {
            None
        } else {
            covariance(map, groups, &operands, observed, sensitivity, scale)
        };
        match lattice.and_then(Lattice::new) {
            Some(lattice) => rows.chunks_mut(k).for_each(|row| lattice.round(row)),
            None => rows.iter_mut().for_each(|w| *w = w.round()),
        }
    });
}

/// E z·zᵀ of what operands differ from their mean, in turns, shrunk and damped.
fn covariance(
    map: &HeLinear,
    groups: &[usize],
    operands: &[NodeId],
    observed: &Observed,
    sensitivity: &Sensitivity,
    scale: &impl Fn(NodeId, usize) -> f64,
) -> Option<Array2<f64>> {
    let k = map.operands;
    let mut sum = Array2::<f64>::zeros((k, k));
    let mut count = 0_usize;
    for values in &observed.0 {
        for &g in groups {
            let z = centred(&map.gather[g * k..(g + 1) * k], operands, values, sensitivity, scale)?;
            for (i, a) in z.iter().enumerate().filter(|(_, a)| **a != 0.0) {
                let mut row = sum.row_mut(i);
                row.iter_mut().zip(&z).take(i + 1).for_each(|(s, b)| *s += a * b);
            }
            count += 1;
        }
    }
    let shrink = count as f64 / (count + k) as f64;
    let damping = DAMPING * sum.diag().sum() / k as f64;
    for i in 0..k {
        sum[[i, i]] += damping;
        (0..i).for_each(|j| sum[[i, j]] *= shrink);
    }
    (damping > 0.0).then_some(sum)
}

fn centred(
    gather: &[Address],
    operands: &[NodeId],
    values: &Values,
    sensitivity: &Sensitivity,
    scale: &impl Fn(NodeId, usize) -> f64,
) -> Option<Vec<f64>> {
    let one = |address: &Address| {
        if *address == Address::ABSENT {
            return Some(0.0);
        }
        let (source, i) = (operands[address.port as usize], address.index as usize);
        let mean = sensitivity.mean.get(&source)?.get(i)?;
        Some((values.get(&source)?.as_slice()?.get(i)? - mean) / scale(source, i))
    };
    gather.iter().map(one).collect()
}

/// The triangular factor of a covariance, with its columns in the order in which they are rounded last to first.
struct Lattice {
    /// L of H = LLᵀ; U = Lᵀ.
    lower: Array2<f64>,
    order: Vec<usize>,
}

impl Lattice {
    /// `covariance` has its lower triangle. None where it is not positive definite.
    fn new(covariance: Array2<f64>) -> Option<Self> {
        let k = covariance.nrows();
        let mut order: Vec<usize> = (0..k).collect();
        // What moves most is rounded first, while others can still make up for it.
        order.sort_by(|&a, &b| covariance[[a, a]].total_cmp(&covariance[[b, b]]));
        let at = |i: usize, j: usize| covariance[[order[i].max(order[j]), order[i].min(order[j])]];
        let mut lower = Array2::<f64>::zeros((k, k));
        for i in 0..k {
            for j in 0..=i {
                let (a, b) = (lower.row(i), lower.row(j));
                let known: f64 = a.iter().zip(b).take(j).map(|(x, y)| x * y).sum();
                let rest = at(i, j) - known;
                if i == j && rest <= 0.0 {
                    return None;
                }
                lower[[i, j]] = if i == j { rest.sqrt() } else { rest / lower[[j, j]] };
            }
        }
        Some(Self { lower, order })
    }

    /// Replaces a row of real weights by integers.
    fn round(&self, row: &mut [f64]) {
        // Σ_{j>i} U_ij·(w_j − q_j), filled from the end.
        let mut carried = vec![0.0; row.len()];
        for (i, &column) in self.order.iter().enumerate().rev() {
            let weight = row[column];
            let correction = (carried[i] / self.lower[[i, i]]).clamp(-MOST_CORRECTION, MOST_CORRECTION);
            let exact = (weight - weight.round()).abs() < EXACT;
            let q = if exact { weight } else { weight + correction }.round();
            let error = weight - q;
            // U_ji = L_ij for j < i.
            carried.iter_mut().zip(self.lower.row(i)).take(i).for_each(|(c, l)| *c += error * l);
            row[column] = q;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(covariance: &Array2<f64>, w: &[f64], q: &[f64]) -> f64 {
        let d: Vec<f64> = w.iter().zip(q).map(|(a, b)| a - b).collect();
        (0..d.len())
            .flat_map(|i| (0..d.len()).map(move |j| (i, j)))
            .map(|(i, j)| d[i] * d[j] * covariance[[i.max(j), i.min(j)]])
            .sum()
    }

    /// Factors in common: H = A·Aᵀ + small.
    fn correlated(k: usize) -> Array2<f64> {
        let a = Array2::from_shape_fn((k, 3), |(i, j)| ((i * 7 + j * 13) as f64 * 0.61).sin());
        a.dot(&a.t()) + 0.01 * Array2::<f64>::eye(k)
    }

    #[test]
    fn the_factor_gives_the_matrix_back() {
        let h = correlated(9);
        let lattice = Lattice::new(h.clone()).unwrap();
        let back = lattice.lower.dot(&lattice.lower.t());
        for i in 0..9 {
            for j in 0..9 {
                assert!((back[[i, j]] - h[[lattice.order[i], lattice.order[j]]]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn correlated_operands_are_rounded_better_than_one_by_one() {
        let h = correlated(24);
        let lattice = Lattice::new(h.clone()).unwrap();
        let (mut better, mut plain) = (0.0, 0.0);
        for row in 0..40 {
            let w: Vec<f64> = (0..24).map(|c| 5.0 * ((row * 24 + c) as f64 * 1.37).cos()).collect();
            let mut q = w.clone();
            lattice.round(&mut q);
            assert!(q.iter().all(|v| v.fract() == 0.0));
            better += error(&h, &w, &q);
            plain += error(&h, &w, &w.iter().map(|v| v.round()).collect::<Vec<_>>());
        }
        assert!(better < 0.2 * plain, "{better} against {plain}");
    }

    #[test]
    fn independent_operands_are_rounded_one_by_one() {
        let lattice = Lattice::new(Array2::eye(4)).unwrap();
        let mut row = [0.4, 1.6, -2.5001, 3.0];
        lattice.round(&mut row);
        assert_eq!(row, [0.0, 2.0, -3.0, 3.0]);
    }
}
