//! The subspaces: second moments over calibration samples, and their eigenvectors.

use std::sync::Arc;

use nalgebra::{DMatrix, SymmetricEigen};
use ndarray::{Array1, Array2, ArrayView2, Axis, Ix2};
use rayon::prelude::*;
use thex_ir::interpret::{self, Values};
use thex_ir::{ClearOp, Graph, NodeId, Tensor};

use super::sites::{Kind, Site};
use crate::error::Result;

/// What a site is cut to: directions, the most important first.
pub(super) enum Subspace {
    /// Principal components, and their variances.
    Components { vectors: Array2<f64>, variances: Vec<f64> },
    /// For each head.
    Heads(Vec<Head>),
    /// For each channel.
    Lines { lines: Vec<Line>, order: Vec<usize> },
}

/// A head's: q·into·out·kᵀ ≈ q·kᵀ, with the first columns of `into` and rows of `out`; all of them give it exactly.
pub(super) struct Head {
    /// dimensions × directions.
    pub(super) into: Array2<f64>,
    /// directions × dimensions.
    pub(super) out: Array2<f64>,
}

/// slope·x + shift.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Factor.
    pub(super) slope: f64,
    /// Summand.
    pub(super) shift: f64,
}

/// Stands for the largest eigenvalue of a matrix of zeros, as of a head that is never used: its roots have inverses.
const LEAST: f64 = 1e-100;

/// Eigenvectors (columns) and eigenvalues of a symmetric matrix, the largest first; none is less than a trillionth of the largest.
fn eigen(matrix: &Array2<f64>) -> (Array2<f64>, Vec<f64>) {
    let n = matrix.nrows();
    let found = SymmetricEigen::new(DMatrix::from_fn(n, n, |i, j| 0.5 * (matrix[(i, j)] + matrix[(j, i)])));
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| found.eigenvalues[b].total_cmp(&found.eigenvalues[a]).then(a.cmp(&b)));
    let floor = order.first().map_or(1.0, |&i| found.eigenvalues[i]).max(LEAST) * 1e-12;
    let vectors = Array2::from_shape_fn((n, n), |(i, j)| found.eigenvectors[(i, order[j])]);
    (vectors, order.iter().map(|&i| found.eigenvalues[i].max(floor)).collect())
}

/// U·diag(f(λ))·Uᵀ.
fn power(matrix: &Array2<f64>, f: impl Fn(f64) -> f64) -> Array2<f64> {
    let (vectors, values) = eigen(matrix);
    let scaled = &vectors * &Array1::from_iter(values.into_iter().map(f));
    scaled.dot(&vectors.t())
}

impl Head {
    /// For scores of queries and keys with these second moments: with √C_q·C_k·√C_q = U·D²·Uᵀ, queries go into
    /// √C_q⁻¹·U·√D, keys out by √D⁻¹·Uᵀ·√C_q; then both have the variances D.
    fn of_scores(queries: &Array2<f64>, keys: &Array2<f64>) -> Self {
        let (root, inverse) = (power(queries, f64::sqrt), power(queries, |v| 1.0 / v.sqrt()));
        let (vectors, values) = eigen(&root.dot(keys).dot(&root));
        let scale = Array1::from_iter(values.iter().map(|v| v.powf(0.25)));
        let into = inverse.dot(&vectors) * &scale;
        let out = vectors.t().dot(&root) / &scale.insert_axis(Axis(1));
        Self { into, out }
    }
}

/// Sums over rows of one matrix: how many, the rows, their outer products.
#[derive(Clone)]
struct Moments {
    count: f64,
    sum: Array1<f64>,
    square: Array2<f64>,
}

impl Moments {
    fn of(rows: ArrayView2<'_, f64>) -> Self {
        Self { count: rows.nrows() as f64, sum: rows.sum_axis(Axis(0)), square: rows.t().dot(&rows) }
    }

    fn add(mut self, other: &Self) -> Self {
        self.count += other.count;
        self.sum += &other.sum;
        self.square += &other.square;
        self
    }

    fn second(&self) -> Array2<f64> {
        &self.square / self.count
    }
}

/// A tensor as a matrix of rows.
fn rows(tensor: &Tensor) -> Array2<f64> {
    let n = tensor.shape().last().copied().unwrap_or(1);
    let flat: Vec<f64> = tensor.iter().copied().collect();
    Array2::from_shape_vec((flat.len() / n.max(1), n), flat).unwrap_or_default()
}

/// The last two axes of a tensor, for each index of those before.
fn heads(tensor: &Tensor) -> Vec<Array2<f64>> {
    let shape = tensor.shape();
    let Some((&[m, n], before)) = shape.split_last_chunk::<2>().map(|(b, l)| (l, b)) else { return Vec::new() };
    let flat: Vec<f64> = tensor.iter().copied().collect();
    let Ok(all) = ndarray::Array::from_shape_vec((before.iter().product(), m, n), flat) else { return Vec::new() };
    all.outer_iter().map(|head| head.to_owned()).collect()
}

/// What is summed at a site for one sample.
fn of_sample(graph: &Graph, site: &Site, values: &Values) -> Vec<Moments> {
    let operands = graph.operands(site.id);
    match site.kind {
        Kind::Variance { .. } => vec![Moments::of(rows(&values[&operands[0]]).view())],
        Kind::Scores => {
            let (queries, keys) = (heads(&values[&operands[0]]), heads(&values[&operands[1]]));
            let of_head = |(q, k): (Array2<f64>, Array2<f64>)| [Moments::of(q.view()), Moments::of(k.t())];
            queries.into_iter().zip(keys).flat_map(of_head).collect()
        }
        Kind::Activation => vec![of_function(&rows(&values[&operands[0]]), &rows(&values[&site.id]))],
    }
}

/// By channel: x, f; x², x·f, f², a channel a row.
fn of_function(x: &Array2<f64>, f: &Array2<f64>) -> Moments {
    let n = x.ncols();
    let mut square = Array2::zeros((n, 3));
    for (k, product) in [x * x, x * f, f * f].iter().enumerate() {
        square.column_mut(k).assign(&product.sum_axis(Axis(0)));
    }
    let sum = x.sum_axis(Axis(0)).into_iter().chain(f.sum_axis(Axis(0))).collect();
    Moments { count: x.nrows() as f64, sum, square }
}

/// Measures on samples, and finds every site's subspace.
pub(super) fn measure(graph: &Graph, sites: &[Site], samples: &[Vec<Arc<Tensor>>]) -> Result<Vec<Subspace>> {
    let mut sums: Vec<Option<Vec<Moments>>> = vec![None; sites.len()];
    // A few at a time, so that sums are added in one order and values of few samples are held at once.
    for part in samples.chunks(rayon::current_num_threads().max(1)) {
        let found: Vec<Vec<Vec<Moments>>> = part
            .par_iter()
            .map(|sample| -> Result<_> {
                let values = interpret::run_all(graph, sample)?;
                Ok(sites.iter().map(|site| of_sample(graph, site, &values)).collect())
            })
            .collect::<Result<_>>()?;
        for of_sites in found {
            for (sum, new) in sums.iter_mut().zip(of_sites) {
                *sum = Some(match sum.take() {
                    None => new,
                    Some(old) => old.into_iter().zip(&new).map(|(a, b)| a.add(b)).collect(),
                });
            }
        }
    }
    Ok(sites.iter().zip(sums).map(|(site, sum)| subspace(graph, site, &sum.unwrap_or_default())).collect())
}

fn subspace(graph: &Graph, site: &Site, sums: &[Moments]) -> Subspace {
    match site.kind {
        Kind::Variance { .. } => {
            let (vectors, variances) = eigen(&sums[0].second());
            Subspace::Components { vectors, variances }
        }
        Kind::Scores => {
            Subspace::Heads(sums.chunks_exact(2).map(|s| Head::of_scores(&s[0].second(), &s[1].second())).collect())
        }
        Kind::Activation => lines(&sums[0], &read_by(graph, site.id)),
    }
}

/// A least-squares line for each channel; channels in the order of what their lines leave, as far as it is read.
fn lines(sums: &Moments, read: &[f64]) -> Subspace {
    let n = sums.square.nrows();
    let (mut lines, mut left) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for c in 0..n {
        let (x, f) = (sums.sum[c] / sums.count, sums.sum[n + c] / sums.count);
        let [xx, xf, ff] = [0, 1, 2].map(|k| sums.square[(c, k)] / sums.count);
        let (variance, together) = (xx - x * x, xf - x * f);
        let slope = if variance > 0.0 { together / variance } else { 0.0 };
        lines.push(Line { slope, shift: f - slope * x });
        left.push((ff - f * f - slope * together).max(0.0) * read.get(c).copied().unwrap_or(1.0));
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| left[b].total_cmp(&left[a]).then(a.cmp(&b)));
    Subspace::Lines { lines, order }
}

/// Where an activation is read by a linear map, the squared length of each channel's column; else ones.
fn read_by(graph: &Graph, id: NodeId) -> Vec<f64> {
    let weights = graph.users(id).into_iter().find_map(|(user, port)| weights_of(graph, user, port));
    weights.map(|w| w.mapv(|v| v * v).sum_axis(Axis(0)).to_vec()).unwrap_or_default()
}

/// The matrix by which a linear map reads one of its terms.
fn weights_of(graph: &Graph, user: NodeId, port: u32) -> Option<Array2<f64>> {
    if !matches!(graph.clear_op(user), Some(ClearOp::Linear)) {
        return None;
    }
    let weights = *graph.operands(user).get(port as usize + 1)?;
    graph.constant(weights)?.view().into_dimensionality::<Ix2>().ok().map(|w| w.to_owned())
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;

    /// Numbers without an order.
    fn noise(rows: usize, columns: usize, seed: f64) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns), |(i, j)| {
            (((i * 37 + j * 101) as f64 * 1.618 + seed).sin() * 43_758.545).fract()
        })
    }

    fn second(x: &Array2<f64>) -> Array2<f64> {
        Moments::of(x.view()).second()
    }

    fn largest(x: &Array2<f64>) -> f64 {
        x.iter().fold(0.0_f64, |m, v| m.max(v.abs()))
    }

    #[test]
    fn eigenvalues_descend_and_rebuild_the_matrix() {
        let matrix = second(&noise(40, 9, 0.3));
        let (vectors, values) = eigen(&matrix);
        assert!(values.windows(2).all(|w| w[0] >= w[1]), "{values:?}");
        let rebuilt = (&vectors * &Array1::from(values)).dot(&vectors.t());
        assert!(largest(&(rebuilt - matrix)) < 1e-10);
    }

    #[test]
    fn all_directions_give_the_scores_and_the_first_most_of_them() {
        let spread = Array1::from_iter((0..8).map(|i| 0.5_f64.powi(i)));
        let (queries, keys) = (noise(300, 8, 0.1) * &spread, noise(300, 8, 2.0));
        let head = Head::of_scores(&second(&queries), &second(&keys));
        let scores = queries.dot(&keys.t());
        let error = |kept: usize| {
            let (into, out) = (head.into.slice(s![.., ..kept]), head.out.slice(s![..kept, ..]));
            let off = queries.dot(&into).dot(&out.dot(&keys.t())) - &scores;
            (off.mapv(|v| v * v).sum() / scores.mapv(|v| v * v).sum()).sqrt()
        };
        assert!(error(8) < 1e-9, "{}", error(8));
        assert!(error(4) < 0.1 && error(2) < 0.4, "{} {}", error(4), error(2));
        // Both sides share the variance of each direction evenly.
        let (q, k) = (second(&queries.dot(&head.into)), second(&keys.dot(&head.out.t())));
        assert!(largest(&(q - k)) < 1e-9);
    }

    #[test]
    fn a_head_that_is_never_used_makes_finite_maps() {
        let (nothing, keys) = (Array2::zeros((6, 6)), second(&noise(50, 6, 1.0)));
        for (q, k) in [(&nothing, &keys), (&keys, &nothing), (&nothing, &nothing)] {
            let head = Head::of_scores(q, k);
            assert!(head.into.iter().chain(&head.out).all(|v| v.is_finite()));
        }
    }

    #[test]
    fn channels_that_do_not_bend_come_last() {
        let x = noise(200, 3, 0.7) + &Array1::from(vec![0.0, 5.0, -5.0]);
        let f = x.mapv(|v| v.max(0.0));
        let Subspace::Lines { lines, order } = lines(&of_function(&x, &f), &[1.0, 1.0, 1.0]) else {
            panic!("no lines")
        };
        assert_eq!(order[0], 0);
        assert!((lines[1].slope - 1.0).abs() < 1e-9 && lines[1].shift.abs() < 1e-9, "{:?}", lines[1]);
        assert!(lines[2].slope.abs() < 1e-9 && lines[2].shift.abs() < 1e-9, "{:?}", lines[2]);
    }
}
