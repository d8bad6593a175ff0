//! The interpreter of a graph in candle: the same functions as `thex_ir::interpret`, on batches, with gradients.
//!
//! Graphs are made for one sample. Here every value that depends on an input has one more axis in front, which counts
//! samples; what all samples share (weights, and what is computed from them) has not. Operands are aligned as numpy would.
//!
//! Alternative rejected: a tape of our own on ndarray. It would be as long as this file, and its derivatives would be ours to
//! get right.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor as Candle};
use ndarray::{ArrayD, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Op, Reduction, Tensor, UnaryChain, UnaryFn};

use crate::error::{CompileError, Result};

/// A tensor of candle with or without the axis that counts samples.
#[derive(Clone, Debug)]
pub(super) struct Value {
    /// The numbers.
    pub(super) tensor: Candle,
    /// Whether the first axis counts samples.
    pub(super) batched: bool,
}

/// Values that replace constants: what is trained.
pub(super) type Weights = BTreeMap<NodeId, Candle>;

/// A use of a value: the node that reads it, and as which operand.
pub(super) type Use = (NodeId, usize);

/// Changes what a use reads: noise. `None` leaves it.
pub(super) trait Perturb {
    /// What `at` reads in place of `value`.
    fn perturb(&mut self, at: Use, value: &Candle) -> Result<Option<Candle>>;
}

/// Leaves everything.
pub(super) struct Undisturbed;

impl Perturb for Undisturbed {
    fn perturb(&mut self, _at: Use, _value: &Candle) -> Result<Option<Candle>> {
        Ok(None)
    }
}

enum Source {
    Input(usize),
    Constant(Candle),
    Apply(ClearOp, Vec<usize>),
}

struct Step {
    id: NodeId,
    name: String,
    shape: Vec<usize>,
    source: Source,
}

/// A graph in execution order.
pub(super) struct Program {
    steps: Vec<Step>,
    place: BTreeMap<NodeId, usize>,
    outputs: Vec<NodeId>,
}

/// Values of all nodes of a program.
pub(super) struct Run<'p> {
    program: &'p Program,
    values: Vec<Value>,
}

impl Run<'_> {
    /// The value of a node.
    pub(super) fn of(&self, id: NodeId) -> Result<&Value> {
        let place = self.program.place.get(&id).and_then(|i| self.values.get(*i));
        place.ok_or_else(|| CompileError::Internal("a node of the student has no value".into()))
    }

    /// The outputs in order.
    pub(super) fn outputs(&self) -> Result<Vec<&Value>> {
        self.program.outputs.iter().map(|id| self.of(*id)).collect()
    }
}

impl Program {
    /// A graph of tensor operations, its constants with this element type.
    ///
    /// # Errors
    /// [`CompileError::Internal`] on a homomorphic operation.
    pub(super) fn new(graph: &Graph, dtype: DType) -> Result<Self> {
        let mut program = Self {
            steps: Vec::new(),
            place: BTreeMap::new(),
            outputs: graph.outputs.iter().map(|(_, id)| *id).collect(),
        };
        for id in graph.topological() {
            let node = graph.node(id);
            let source = match &node.op {
                Op::Input => Source::Input(graph.inputs.iter().position(|i| *i == id).unwrap_or(usize::MAX)),
                Op::Constant(value) => Source::Constant(candle(value, dtype)?),
                Op::Clear(op) => {
                    Source::Apply(op.clone(), graph.operands(id).iter().map(|o| program.place[o]).collect())
                }
                Op::He(_) => return Err(CompileError::Internal(format!("`{}` is lowered already", node.name))),
            };
            program.place.insert(id, program.steps.len());
            program.steps.push(Step { id, name: node.name.clone(), shape: node.shape.clone(), source });
        }
        Ok(program)
    }

    /// Runs it. `inputs` are `[batch, shape…]`.
    ///
    /// # Errors
    /// [`CompileError::Internal`] that names the node.
    pub(super) fn run(&self, inputs: &[Candle], weights: &Weights, perturb: &mut dyn Perturb) -> Result<Run<'_>> {
        let mut values: Vec<Value> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let value = match &step.source {
                Source::Input(i) => inputs.get(*i).cloned().map(|tensor| Value { tensor, batched: true }),
                Source::Constant(value) => {
                    Some(Value { tensor: weights.get(&step.id).unwrap_or(value).clone(), batched: false })
                }
                Source::Apply(op, operands) => {
                    let mut read = operands.iter().map(|i| values[*i].clone()).collect::<Vec<_>>();
                    for (port, value) in read.iter_mut().enumerate().filter(|(_, value)| value.batched) {
                        if let Some(changed) = perturb.perturb((step.id, port), &value.tensor)? {
                            value.tensor = changed;
                        }
                    }
                    let value = apply(op, &read, &step.shape);
                    Some(
                        value
                            .map_err(|e| CompileError::Internal(format!("`{}` in candle: {}", step.name, brief(&e))))?,
                    )
                }
            };
            values.push(value.ok_or_else(|| CompileError::Internal(format!("`{}` has no value", step.name)))?);
        }
        Ok(Run { program: self, values })
    }
}

/// A tensor of ours in candle.
pub(super) fn candle(value: &Tensor, dtype: DType) -> candle_core::Result<Candle> {
    let flat: Vec<f64> = value.iter().copied().collect();
    Candle::from_vec(flat, value.shape(), &Device::Cpu)?.to_dtype(dtype)
}

/// A tensor of candle as ours.
pub(super) fn ours(value: &Candle) -> Result<Tensor> {
    let flat = value.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    ArrayD::from_shape_vec(IxDyn(value.dims()), flat).map_err(|e| CompileError::Internal(e.to_string()))
}

/// What candle says, without the backtrace that it appends.
pub(crate) fn brief(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

type Candid<T> = candle_core::Result<T>;

/// A value with as many axes per sample as `rank`, ready to broadcast.
fn aligned(value: &Value, rank: usize) -> Candid<Candle> {
    let dims = value.tensor.dims();
    if !value.batched || dims.len() > rank {
        return Ok(value.tensor.clone());
    }
    let mut shape = vec![dims[0]];
    shape.resize(1 + rank - (dims.len() - 1), 1);
    shape.extend(&dims[1..]);
    value.tensor.reshape(shape)
}

/// The value with the axis that counts samples, whether or not it had one.
fn with_batch(value: &Value, batch: usize) -> Candid<Candle> {
    if value.batched {
        return Ok(value.tensor.clone());
    }
    value.tensor.broadcast_as([&[batch], value.tensor.dims()].concat())?.contiguous()
}

fn apply(op: &ClearOp, operands: &[Value], shape: &[usize]) -> Candid<Value> {
    let batch = operands.iter().find(|o| o.batched).map(|o| o.tensor.dims()[0]);
    let front = usize::from(batch.is_some());
    let full: Vec<usize> = batch.into_iter().chain(shape.iter().copied()).collect();
    let pair =
        || Ok::<_, candle_core::Error>((aligned(&operands[0], shape.len())?, aligned(&operands[1], shape.len())?));
    let x = &operands[0].tensor;
    let tensor = match op {
        ClearOp::Linear => linear(operands, &full, shape.len())?,
        ClearOp::MatMul => pair().and_then(|(a, b)| matmul(&a, &b, &full))?,
        ClearOp::Add => pair().and_then(|(a, b)| a.broadcast_add(&b))?,
        ClearOp::Mul => pair().and_then(|(a, b)| a.broadcast_mul(&b))?,
        ClearOp::Unary { chain } => chain_of(x, chain)?,
        ClearOp::Softmax { axis } => softmax(x, axis + front)?,
        ClearOp::LayerNorm { epsilon } => normalise(&x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?, *epsilon)?,
        ClearOp::RmsNorm { epsilon } => normalise(x, *epsilon)?,
        ClearOp::Reduce { reduction: Reduction::Sum, axis } => x.sum_keepdim(axis + front)?,
        ClearOp::Reduce { reduction: Reduction::Mean, axis } => x.mean_keepdim(axis + front)?,
        ClearOp::Reduce { reduction: Reduction::Max, axis } => x.max_keepdim(axis + front)?,
        ClearOp::Reshape { .. } => x.reshape(full.as_slice())?,
        ClearOp::Transpose { permutation } => {
            let axes: Vec<usize> = (0..front).chain(permutation.iter().map(|p| p + front)).collect();
            x.permute(axes)?.contiguous()?
        }
        ClearOp::Slice { axis, start, end } => x.narrow(axis + front, *start, end - start)?.contiguous()?,
        ClearOp::Concat { axis } => {
            let parts = operands.iter().map(|o| match batch {
                Some(batch) => with_batch(o, batch),
                None => Ok(o.tensor.clone()),
            });
            Candle::cat(&parts.collect::<Candid<Vec<_>>>()?, axis + front)?
        }
        ClearOp::Broadcast { .. } => aligned(&operands[0], shape.len())?.broadcast_as(full.as_slice())?.contiguous()?,
        ClearOp::Gather { axis } => gather(&operands[0], &operands[1], *axis, &full)?,
    };
    Ok(Value { tensor, batched: batch.is_some() })
}

/// Σ xᵢ·Wᵢᵀ + b. The weights are the same for all samples.
fn linear(operands: &[Value], full: &[usize], rank: usize) -> Candid<Candle> {
    let (bias, terms) = operands.split_last().ok_or_else(|| candle_core::Error::Msg("no operands".into()))?;
    let mut sum = aligned(bias, rank)?;
    for term in terms.chunks_exact(2) {
        let (x, w) = (&term[0].tensor, &term[1]);
        if w.batched {
            return Err(candle_core::Error::Msg("the weights depend on an input".into()));
        }
        let (outputs, inputs) = w.tensor.dims2()?;
        let rows = x.elem_count() / inputs.max(1);
        let product = x.reshape((rows, inputs))?.matmul(&w.tensor.t()?)?;
        let mut dims = x.dims().to_vec();
        *dims.last_mut().ok_or_else(|| candle_core::Error::Msg("a scalar operand".into()))? = outputs;
        sum = product.reshape(dims)?.broadcast_add(&sum)?;
    }
    sum.broadcast_as(full)
}

/// candle multiplies stacks of matrices along one axis, or along contiguous ones that it takes for two.
fn matmul(a: &Candle, b: &Candle, full: &[usize]) -> Candid<Candle> {
    let lead = &full[..full.len() - 2];
    let count: usize = lead.iter().product();
    let stack = |x: &Candle| {
        let matrix = &x.dims()[x.rank() - 2..];
        let spread = x.broadcast_as([lead, matrix].concat())?.contiguous()?;
        spread.reshape((count, matrix[0], matrix[1]))
    };
    stack(a)?.matmul(&stack(b)?)?.reshape(full)
}

fn softmax(x: &Candle, axis: usize) -> Candid<Candle> {
    let shifted = x.broadcast_sub(&x.max_keepdim(axis)?.detach())?.exp()?;
    shifted.broadcast_div(&shifted.sum_keepdim(axis)?)
}

/// x ÷ √(mean(x²) + ε).
fn normalise(x: &Candle, epsilon: f64) -> Candid<Candle> {
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_mul(&(variance + epsilon)?.sqrt()?.recip()?)
}

fn gather(table: &Value, indices: &Value, axis: usize, full: &[usize]) -> Candid<Candle> {
    if table.batched && indices.batched {
        return Err(candle_core::Error::Msg("both the table and the indices depend on an input".into()));
    }
    let at = axis + usize::from(table.batched);
    let dims = table.tensor.dims();
    let flat = indices.tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let wrapped = flat.iter().map(|&i| if i < 0.0 { i + dims[at] as f64 } else { i } as u32).collect::<Vec<_>>();
    let rows = wrapped.len();
    let picked = table.tensor.index_select(&Candle::from_vec(wrapped, rows, &Device::Cpu)?, at)?;
    if !indices.batched {
        return picked.reshape(full);
    }
    let batch = indices.tensor.dims()[0];
    let (before, after): (usize, usize) = (dims[..at].iter().product(), dims[at + 1..].iter().product());
    picked.reshape((before, batch, rows / batch.max(1), after))?.transpose(0, 1)?.contiguous()?.reshape(full)
}

fn chain_of(x: &Candle, chain: &UnaryChain) -> Candid<Candle> {
    chain.0.iter().try_fold(x.clone(), |x, function| unary(&x, *function))
}

fn unary(x: &Candle, function: UnaryFn) -> Candid<Candle> {
    match function {
        UnaryFn::Affine { scale, shift } => x.affine(scale, shift),
        UnaryFn::Clamp { lo, hi } => {
            let above = if lo > f64::from(f32::MIN) { x.maximum(lo)? } else { x.clone() };
            if hi < f64::from(f32::MAX) { above.minimum(hi) } else { Ok(above) }
        }
        UnaryFn::Gelu => x.gelu_erf(),
        UnaryFn::GeluTanh => x.gelu(),
        UnaryFn::Relu => x.relu(),
        UnaryFn::Tanh => x.tanh(),
        UnaryFn::Sigmoid => (x.neg()?.exp()? + 1.0)?.recip(),
        UnaryFn::Silu => x.silu(),
        UnaryFn::Erf => x.erf(),
        UnaryFn::Exp => x.exp(),
        UnaryFn::Log => x.log(),
        UnaryFn::Reciprocal => x.recip(),
        UnaryFn::Rsqrt => x.sqrt()?.recip(),
        UnaryFn::Sqrt => x.sqrt(),
        UnaryFn::Abs => x.abs(),
        UnaryFn::Power { exponent: 2 } => x.sqr(),
        UnaryFn::Power { exponent: 3 } => x.sqr()?.mul(x),
        UnaryFn::Power { exponent } => x.powf(f64::from(exponent)),
    }
}
