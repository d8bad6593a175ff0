//! What a student is to do: give its teacher's outputs, have its hidden states, know the labels, keep its scores in range.
//!
//! Every squared error is divided by the variance of what it is compared with, so that one set of weights serves all models.
//! Hidden states are the arguments and the results of layer norms: there a transformer's layers begin and end. Only elements that
//! reach an output count.

use candle_core::{D, DType, Device, Tensor as Candle};
use thex_ir::{ClearOp, Graph, NodeId};
use thex_passes::analysis::demand;

use super::norms::{counterparts, find};
use super::program::Run;
use crate::error::Result;

/// Weights of the terms.
#[derive(Clone, Copy, Debug)]
pub struct LossWeights {
    /// Outputs against the teacher's.
    pub outputs: f64,
    /// Hidden states against the teacher's.
    pub hidden: f64,
    /// Cross entropy with the labels.
    pub labels: f64,
    /// Squared distance of attention scores from the range that the teacher's have.
    pub scores: f64,
}

impl Default for LossWeights {
    fn default() -> Self {
        Self { outputs: 1.0, hidden: 0.5, labels: 0.5, scores: 0.1 }
    }
}

/// A tensor of the teacher and what stands for it in the student.
struct Pair {
    teacher: NodeId,
    student: NodeId,
    /// 1/(variance × demanded elements) at demanded elements, else 0; shaped like one sample.
    weight: Candle,
}

/// Scores and the range that they should keep.
struct Scores {
    node: NodeId,
    lo: f64,
    hi: f64,
}

/// The terms of one student.
pub(super) struct Objective {
    outputs: Vec<Pair>,
    hidden: Vec<Pair>,
    scores: Vec<Scores>,
    weights: LossWeights,
    class_output: Option<usize>,
}

/// Node pairs at which hidden states are compared.
fn hidden_nodes(teacher: &Graph, student: &Graph) -> Vec<(NodeId, NodeId)> {
    let places = counterparts(teacher, student);
    let norm = |op: &ClearOp| matches!(op, ClearOp::LayerNorm { .. } | ClearOp::RmsNorm { .. });
    let norms = teacher.topological().into_iter().filter(|&id| teacher.clear_op(id).is_some_and(norm));
    let mut nodes: Vec<(NodeId, NodeId)> = Vec::new();
    for node in norms.flat_map(|id| [teacher.operands(id)[0], id]) {
        if let Some(pair) = places.get(&node).map(|&s| (node, s)).filter(|pair| !nodes.contains(pair)) {
            nodes.push(pair);
        }
    }
    nodes
}

/// Arguments of softmax in the teacher, and of what stands for it in the student.
fn score_nodes(teacher: &Graph, student: &Graph) -> Vec<(NodeId, NodeId)> {
    let softmax = |id: &NodeId| matches!(teacher.clear_op(*id), Some(ClearOp::Softmax { .. }));
    let pair = |id: NodeId| {
        let name = &teacher.node(id).name;
        let place = find(student, name).or_else(|| find(student, &format!("{name}.cube")))?;
        Some((teacher.operands(id)[0], student.operands(place)[0]))
    };
    teacher.topological().into_iter().filter(softmax).filter_map(pair).collect()
}

impl Objective {
    /// For a student, with statistics from a run of the teacher on training samples.
    pub(super) fn new(
        teacher: &Graph,
        student: &Graph,
        run: &Run<'_>,
        weights: LossWeights,
        class_output: Option<usize>,
    ) -> Result<Self> {
        let flags = demand(teacher);
        let pair = |(t, s): (NodeId, NodeId)| {
            let value = &run.of(t)?.tensor;
            let weight = weight(value, &flags[&t])?;
            Ok(Pair { teacher: t, student: s, weight })
        };
        let outputs = teacher.outputs.iter().zip(&student.outputs).map(|((_, t), (_, s))| pair((*t, *s)));
        let scores = |(t, s): (NodeId, NodeId)| {
            let value = run.of(t)?.tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            let ends = value.iter().fold((-2.0_f64, 2.0_f64), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
            Ok(Scores { node: s, lo: ends.0, hi: ends.1 })
        };
        Ok(Self {
            outputs: outputs.collect::<Result<_>>()?,
            hidden: hidden_nodes(teacher, student).into_iter().map(pair).collect::<Result<_>>()?,
            scores: score_nodes(teacher, student).into_iter().map(scores).collect::<Result<_>>()?,
            weights,
            class_output,
        })
    }

    /// The loss of a batch: a scalar.
    pub(super) fn loss(&self, teacher: &Run<'_>, student: &Run<'_>, labels: Option<&[u32]>) -> Result<Candle> {
        let w = self.weights;
        let mut loss = (distance(&self.outputs, teacher, student)? * w.outputs)?;
        if !self.hidden.is_empty() {
            loss = (loss + (distance(&self.hidden, teacher, student)? * (w.hidden / self.hidden.len() as f64))?)?;
        }
        for scores in &self.scores {
            let value = &student.of(scores.node)?.tensor;
            let beyond = ((value - scores.hi)?.relu()?.sqr()? + value.affine(-1.0, scores.lo)?.relu()?.sqr()?)?;
            loss = (loss + (beyond.mean_all()? * (w.scores / self.scores.len() as f64))?)?;
        }
        if let (Some(output), Some(labels)) = (self.class_output, labels) {
            loss = (loss + (cross_entropy(&student.outputs()?[output].tensor, labels)? * w.labels)?)?;
        }
        Ok(loss)
    }
}

/// See [`Pair::weight`].
fn weight(value: &Candle, flags: &[bool]) -> Result<Candle> {
    let flat = value.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let (mut count, mut sum, mut square) = (0.0, 0.0, 0.0);
    for sample in flat.chunks_exact(flags.len().max(1)) {
        for (v, _) in sample.iter().zip(flags).filter(|(_, f)| **f) {
            (count, sum, square) = (count + 1.0, sum + v, square + v * v);
        }
    }
    let variance = (square / f64::max(count, 1.0) - (sum / f64::max(count, 1.0)).powi(2)).max(1e-6);
    let demanded = flags.iter().filter(|f| **f).count().max(1) as f64;
    let weight: Vec<f64> = flags.iter().map(|f| if *f { 1.0 / (variance * demanded) } else { 0.0 }).collect();
    Ok(Candle::from_vec(weight, &value.dims()[1..], &Device::Cpu)?.to_dtype(value.dtype())?)
}

/// Σ over pairs of the squared distance as a part of the variance, mean over samples.
fn distance(pairs: &[Pair], teacher: &Run<'_>, student: &Run<'_>) -> Result<Candle> {
    let mut sum = Candle::zeros((), DType::F32, &Device::Cpu)?;
    for pair in pairs {
        let (wanted, is) = (&teacher.of(pair.teacher)?.tensor, &student.of(pair.student)?.tensor);
        let batch = wanted.dims()[0] as f64;
        let square = (is - wanted.detach())?.sqr()?.broadcast_mul(&pair.weight)?.sum_all()?;
        sum = (sum.to_dtype(square.dtype())? + (square / batch)?)?;
    }
    Ok(sum)
}

/// −ln p of the labels' classes, mean over samples. Logits are `[batch, …, classes]`, one row a sample.
fn cross_entropy(logits: &Candle, labels: &[u32]) -> Result<Candle> {
    let classes = logits.dims().last().copied().unwrap_or(1);
    let logits = logits.reshape((labels.len(), classes))?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let labels = Candle::from_slice(labels, (labels.len(), 1), &Device::Cpu)?;
    Ok((log_sum - shifted.gather(&labels, 1)?)?.mean_all()?)
}
