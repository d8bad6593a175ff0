//! The graph with a site cut down.

use ndarray::{Array2, ArrayD, Axis, IxDyn, s};
use thex_ir::{ClearOp, Graph, NodeId, Tensor, UnaryFn};

use super::moments::{Head, Line, Subspace};
use super::sites::{Kind, Site};
use crate::error::Result;
use crate::transform::{Builder, vector};

/// Keeps `kept` dimensions of a site.
pub(super) fn apply(graph: &mut Graph, site: &Site, subspace: &Subspace, kept: usize) -> Result<()> {
    if kept >= site.size && site.kind != Kind::Scores {
        return Ok(());
    }
    match (site.kind, subspace) {
        (Kind::Variance { mean }, Subspace::Components { vectors, variances }) => {
            variance(graph, site, mean, &vectors.slice(s![.., ..kept]).to_owned(), variances[kept..].iter().sum())
        }
        (Kind::Scores, Subspace::Heads(heads)) => scores(graph, site.id, heads, kept),
        (Kind::Activation, Subspace::Lines { lines, order }) => activation(graph, site.id, lines, &order[..kept]),
        _ => Ok(()),
    }
}

/// An orthogonal matrix whose entries have about equal squares: the discrete cosine transform (DCT-II).
pub(super) fn mixing(n: usize) -> Array2<f64> {
    let size = n as f64;
    Array2::from_shape_fn((n, n), |(i, j)| {
        let norm = if j == 0 { 1.0 } else { 2.0_f64.sqrt() } / size.sqrt();
        norm * (std::f64::consts::PI * (i as f64 + 0.5) * j as f64 / size).cos()
    })
}

/// ‖x‖²/n = (kept/n)·mean((mixed components)²) + what the others have, on average.
fn variance(graph: &mut Graph, site: &Site, mean: NodeId, vectors: &Array2<f64>, rest: f64) -> Result<()> {
    let (kept, size) = (vectors.ncols(), site.size as f64);
    let x = graph.operands(site.id)[0];
    let op = graph.clear_op(mean).cloned();
    let mut build = Builder::replacing(graph, site.id);
    let matrix = mixing(kept).dot(&vectors.t());
    let components = linear(&mut build, "components", x, matrix)?;
    let square = build.unary("reduced", vec![UnaryFn::Power { exponent: 2 }], components)?;
    let Some(op) = op else { return Ok(()) };
    let sum = build.clear("mean", op, &[square])?;
    let rest = UnaryFn::Affine { scale: kept as f64 / size, shift: rest / size };
    let variance = build.unary("with-the-rest", vec![rest], sum)?;
    graph.replace_uses(mean, variance);
    Ok(())
}

/// W·x, with no bias.
fn linear(build: &mut Builder<'_>, name: &str, x: NodeId, matrix: Array2<f64>) -> Result<NodeId> {
    let zero = build.constant(&format!("{name}.zero"), vector(vec![0.0; matrix.nrows()]));
    let matrix = build.constant(&format!("{name}.matrix"), matrix.as_standard_layout().into_owned().into_dyn());
    Ok(build.clear(name, ClearOp::Linear, &[x, matrix, zero])?)
}

/// One matrix for each head as a tensor of the shape of `like`, but for its last two axes.
fn stacked(like: &[usize], matrices: &[Array2<f64>]) -> Tensor {
    let views: Vec<_> = matrices.iter().map(|m| m.view()).collect();
    let all = ndarray::stack(Axis(0), &views).unwrap_or_default();
    let shape: Vec<usize> = like[..like.len() - 2].iter().chain(&all.shape()[1..]).copied().collect();
    let flat = all.iter().copied().collect();
    ArrayD::from_shape_vec(IxDyn(&shape), flat).unwrap_or_default()
}

/// (q·P)·(R·kᵀ), both mixed.
fn scores(graph: &mut Graph, id: NodeId, heads: &[Head], kept: usize) -> Result<()> {
    let [queries, keys] = graph.operands(id)[..] else { return Ok(()) };
    let shape = graph.node(id).shape.clone();
    let mix = mixing(kept);
    let into: Vec<_> = heads.iter().map(|h| h.into.slice(s![.., ..kept]).dot(&mix.t())).collect();
    let out: Vec<_> = heads.iter().map(|h| mix.dot(&h.out.slice(s![..kept, ..]))).collect();
    let mut build = Builder::replacing(graph, id);
    let into = build.constant("into", stacked(&shape, &into));
    let out = build.constant("out", stacked(&shape, &out));
    let queries = build.clear("queries", ClearOp::MatMul, &[queries, into])?;
    let keys = build.clear("keys", ClearOp::MatMul, &[out, keys])?;
    let product = build.clear("reduced", ClearOp::MatMul, &[queries, keys])?;
    graph.replace_uses(id, product);
    Ok(())
}

/// The function for some channels, lines for the others.
fn activation(graph: &mut Graph, id: NodeId, lines: &[Line], kept: &[usize]) -> Result<()> {
    let Some(ClearOp::Unary { chain }) = graph.clear_op(id).cloned() else { return Ok(()) };
    let x = graph.operands(id)[0];
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    let mut choice = Array2::zeros((kept.len(), lines.len()));
    kept.iter().enumerate().for_each(|(row, &channel)| choice[(row, channel)] = 1.0);
    let of_line = |value: fn(&Line) -> f64| -> Tensor {
        let of_channel = |(c, line): (usize, &Line)| if kept.binary_search(&c).is_ok() { 0.0 } else { value(line) };
        vector(lines.iter().enumerate().map(of_channel).collect())
    };
    let (slopes, shifts) = (of_line(|l| l.slope), of_line(|l| l.shift));
    let mut build = Builder::replacing(graph, id);
    let chosen = linear(&mut build, "chosen", x, choice.clone())?;
    let looked_up = build.clear("reduced", ClearOp::Unary { chain }, &[chosen])?;
    let back = build.constant("back", choice.t().as_standard_layout().into_owned().into_dyn());
    let (slopes, shifts) = (build.constant("slopes", slopes), build.constant("shifts", shifts));
    let spread = build.clear("spread", ClearOp::Linear, &[looked_up, back, shifts])?;
    let line = build.clear("lines", ClearOp::Mul, &[x, slopes])?;
    let whole = build.clear("whole", ClearOp::Add, &[spread, line])?;
    graph.replace_uses(id, whole);
    Ok(())
}
