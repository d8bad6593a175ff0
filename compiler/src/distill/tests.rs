//! The interpreter in candle against the project's own, and its gradients against differences.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor as Candle};
use ndarray::{ArrayD, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Op, Reduction, Tensor, UnaryChain, UnaryFn, interpret};

use super::parameters::{self, Role, parameters};
use super::program::{Program, Undisturbed, Weights, ours};
use crate::import::{Dim, ImportOptions, import, inputs};

fn pseudo_random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    ArrayD::from_shape_simple_fn(IxDyn(shape), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1_u32 << 30) - 1.0
    })
}

/// Samples one after another.
fn stacked(samples: &[Arc<Tensor>]) -> Candle {
    let flat: Vec<f64> = samples.iter().flat_map(|s| s.iter().copied()).collect();
    Candle::from_vec(flat, [&[samples.len()], samples[0].shape()].concat(), &Device::Cpu).unwrap()
}

/// Largest difference between both interpreters at any node, relative where values are larger than 1.
fn difference(graph: &Graph, samples: &[Vec<Arc<Tensor>>]) -> f64 {
    let program = Program::new(graph, DType::F64).unwrap();
    let column = |i: usize| stacked(&samples.iter().map(|s| s[i].clone()).collect::<Vec<_>>());
    let batch: Vec<Candle> = (0..graph.inputs.len()).map(column).collect();
    let run = program.run(&batch, &Weights::new(), &mut Undisturbed).unwrap();
    let mut worst = 0.0_f64;
    for (i, sample) in samples.iter().enumerate() {
        for (id, expected) in interpret::run_all(graph, sample).unwrap() {
            let value = run.of(id).unwrap();
            let found = if value.batched { value.tensor.get(i).unwrap() } else { value.tensor.clone() };
            let found = ours(&found).unwrap();
            assert_eq!(found.shape(), expected.shape(), "{}", graph.node(id).name);
            let scale = expected.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
            worst = found.iter().zip(expected.iter()).fold(worst, |m, (a, b)| m.max((a - b).abs() / scale));
        }
    }
    worst
}

fn exports() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/exports");
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    models
}

/// An export at six tokens, and samples: numbers, or 0 and 1 where the model takes whole numbers.
fn imported(path: &Path) -> (Graph, Vec<Vec<Arc<Tensor>>>) {
    let infos = inputs(path).unwrap();
    let dim = |(i, d): (usize, &Dim)| match d {
        Dim::Fixed(n) => *n,
        Dim::Symbol(_) => [1, 6][i.min(1)],
    };
    let shapes = infos.iter().map(|i| (i.name.clone(), i.dims.iter().enumerate().map(dim).collect())).collect();
    let graph = import(path, &ImportOptions { shapes }).unwrap().graph;
    let value = |id: &NodeId, seed: u64| {
        let name = &graph.node(*id).name;
        let real = infos.iter().any(|i| i.name == *name && i.dtype.starts_with("float"));
        let value = pseudo_random(&graph.node(*id).shape, seed);
        Arc::new(if real { value } else { value.mapv(|v| f64::from(u8::from(v > -0.5))) })
    };
    let samples = (0..3).map(|seed| graph.inputs.iter().map(|id| value(id, seed)).collect()).collect();
    (graph, samples)
}

#[test]
fn every_kept_export_means_the_same_in_candle() {
    for path in exports() {
        let (graph, samples) = imported(&path);
        let worst = difference(&graph, &samples);
        assert!(worst < 1e-9, "{}: {worst:e}", path.display());
    }
}

/// A graph that uses every operation that has a gradient, with weights.
fn everything() -> Graph {
    let mut graph = Graph::new();
    let x = graph.add_input("x", &[1, 3, 4]);
    let mut seed = 10;
    let mut constant = |graph: &mut Graph, shape: &[usize]| {
        seed += 1;
        graph.add_constant("c", Arc::new(pseudo_random(shape, seed)), &[])
    };
    let (w, b) = (constant(&mut graph, &[4, 4]), constant(&mut graph, &[4]));
    let (gain, shift, token) =
        (constant(&mut graph, &[4]), constant(&mut graph, &[1, 3, 4]), constant(&mut graph, &[1, 1, 4]));
    let index = graph.add_constant("index", Arc::new(ArrayD::from_shape_fn(IxDyn(&[2]), |i| 1.0 + i[0] as f64)), &[]);
    let mut clear = |op, operands: &[NodeId]| graph.add_clear("n", op, operands, &[]).unwrap();
    let unary = |functions: &[UnaryFn]| ClearOp::Unary { chain: UnaryChain(functions.to_vec()) };
    let mut at = clear(ClearOp::Linear, &[x, w, x, w, b]);
    at = clear(ClearOp::Mul, &[at, gain]);
    at = clear(ClearOp::Add, &[at, shift]);
    at = clear(ClearOp::LayerNorm { epsilon: 1e-5 }, &[at]);
    let smooth = [
        UnaryFn::Gelu,
        UnaryFn::GeluTanh,
        UnaryFn::Silu,
        UnaryFn::Tanh,
        UnaryFn::Erf,
        UnaryFn::Sigmoid,
        UnaryFn::Exp,
        UnaryFn::Log,
        UnaryFn::Affine { scale: 0.5, shift: 2.0 },
        UnaryFn::Reciprocal,
        UnaryFn::Sqrt,
        UnaryFn::Rsqrt,
    ];
    let curved = clear(unary(&smooth), &[at]);
    let kinked = [UnaryFn::Affine { scale: 0.5, shift: 1.0 }, UnaryFn::Relu, UnaryFn::Power { exponent: 3 }];
    let cubes = clear(unary(&kinked), &[at]);
    let sum = clear(ClearOp::Reduce { reduction: Reduction::Sum, axis: 2 }, &[cubes]);
    let held = [UnaryFn::Clamp { lo: 1.0 / 64.0, hi: f64::MAX }, UnaryFn::Reciprocal];
    let inverse = clear(unary(&held), &[sum]);
    let shares = clear(ClearOp::Mul, &[cubes, inverse]);
    let turned = clear(ClearOp::Transpose { permutation: vec![0, 2, 1] }, &[shares]);
    let product = clear(ClearOp::MatMul, &[curved, turned]);
    let probabilities = clear(ClearOp::Softmax { axis: 2 }, &[product]);
    let mixed = clear(ClearOp::MatMul, &[probabilities, at]);
    let powers =
        clear(unary(&[UnaryFn::Abs, UnaryFn::Power { exponent: 2 }, UnaryFn::Power { exponent: 4 }]), &[mixed]);
    let normed = clear(ClearOp::RmsNorm { epsilon: 1e-5 }, &[powers]);
    let longer = clear(ClearOp::Concat { axis: 1 }, &[token, normed]);
    let picked = clear(ClearOp::Gather { axis: 1 }, &[longer, index]);
    let part = clear(ClearOp::Slice { axis: 2, start: 1, end: 3 }, &[picked]);
    let largest = clear(ClearOp::Reduce { reduction: Reduction::Max, axis: 1 }, &[part]);
    let mean = clear(ClearOp::Reduce { reduction: Reduction::Mean, axis: 1 }, &[longer]);
    let flat = clear(ClearOp::Reshape { shape: vec![4] }, &[mean]);
    let wide = clear(ClearOp::Broadcast { shape: vec![2, 4] }, &[flat]);
    graph.outputs = vec![("largest".into(), largest), ("wide".into(), wide), ("first".into(), longer)];
    graph
}

/// A scalar of the outputs: Σ y·(y + position).
fn loss(program: &Program, input: &Candle, weights: &Weights) -> Candle {
    let run = program.run(std::slice::from_ref(input), weights, &mut Undisturbed).unwrap();
    let mut sum = Candle::zeros((), DType::F64, &Device::Cpu).unwrap();
    for (i, output) in run.outputs().unwrap().into_iter().enumerate() {
        let y = &output.tensor;
        let term = (y * (y + (i as f64 + 1.0)).unwrap()).unwrap().sum_all().unwrap();
        sum = (sum + term).unwrap();
    }
    sum
}

#[test]
fn gradients_are_those_of_differences() {
    let graph = everything();
    let samples: Vec<Vec<Arc<Tensor>>> = (0..2).map(|s| vec![Arc::new(pseudo_random(&[1, 3, 4], s))]).collect();
    assert!(difference(&graph, &samples) < 1e-9);
    let input = stacked(&samples.iter().map(|s| s[0].clone()).collect::<Vec<_>>());
    let program = Program::new(&graph, DType::F64).unwrap();
    let trained = parameters(&graph, DType::F64).unwrap();
    assert_eq!(trained.len(), 5, "all constants but the indices");
    let value = |weights: &Weights| loss(&program, &input, weights).to_scalar::<f64>().unwrap();
    let store = loss(&program, &input, &parameters::weights(&trained, None).unwrap()).backward().unwrap();
    let gradients = parameters::gradients(&trained, &store).unwrap();
    for (parameter, gradient) in trained.iter().zip(&gradients) {
        let before = ours(parameter.var.as_tensor()).unwrap();
        let gradient = ours(gradient).unwrap();
        assert!(gradient.iter().any(|g| g.abs() > 1e-3), "{}", graph.node(parameter.id).name);
        for i in 0..before.len() {
            let moved = |by: f64| {
                let mut moved = before.clone();
                *moved.iter_mut().nth(i).unwrap() += by;
                let mut weights = parameters::weights(&trained, None).unwrap();
                weights.insert(parameter.id, super::program::candle(&moved, DType::F64).unwrap());
                value(&weights)
            };
            let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let found = *gradient.iter().nth(i).unwrap();
            assert!((difference - found).abs() < 1e-4 * found.abs().max(1.0), "{i}: {found} and {difference}");
        }
    }
}

#[test]
fn structure_is_not_trained() {
    let mut graph = Graph::new();
    let x = graph.add_input("x", &[1, 2, 2]);
    let mut constant = |name: &str, values: [f64; 4]| {
        let value = ArrayD::from_shape_vec(IxDyn(&[2, 2]), values.to_vec()).unwrap();
        graph.add_constant(name, Arc::new(value), &[])
    };
    let (mask, kept) = (constant("mask", [0.0, -1e9, 0.0, 0.0]), constant("kept", [1.0, 0.0, 1.0, 1.0]));
    let (gain, centring) = (constant("gain", [1.0, 1.5, 1.0, 1.0]), constant("ln.centring", [0.5, -0.5, -0.5, 0.5]));
    let factors = constant("ln.factors", [0.5, 0.5, 0.25, 0.25]);
    let zero = graph.add_constant("ln.zero", Arc::new(Tensor::zeros(IxDyn(&[2]))), &[]);
    let half = graph.add_constant("half", Arc::new(Tensor::from_elem(IxDyn(&[1]), 0.5)), &[]);
    let mut at = x;
    for (op, constant) in [(ClearOp::Add, mask), (ClearOp::Mul, kept), (ClearOp::Mul, gain), (ClearOp::Mul, half)] {
        at = graph.add_clear("n", op, &[at, constant], &[]).unwrap();
    }
    at = graph.add_clear("centred", ClearOp::Linear, &[at, centring, zero], &[]).unwrap();
    at = graph.add_clear("normalise", ClearOp::Mul, &[at, factors], &[]).unwrap();
    graph.outputs = vec![("y".into(), at)];
    let trained = parameters(&graph, DType::F32).unwrap();
    assert_eq!(trained.iter().map(|p| graph.node(p.id).name.as_str()).collect::<Vec<_>>(), ["gain", "ln.factors"]);
    let tied = trained[1].tied(Candle::new(&[[1.0_f32, 2.0], [3.0, 5.0]], &Device::Cpu).unwrap()).unwrap();
    assert_eq!(tied.to_vec2::<f32>().unwrap(), [[3.0, 3.0], [8.0, 8.0]], "equal factors move together");
}

#[test]
fn rounded_weights_pass_gradients_straight_through() {
    let mut graph = Graph::new();
    let x = graph.add_input("x", &[1, 2]);
    let w = ArrayD::from_shape_vec(IxDyn(&[2, 2]), vec![1.0, 0.3, -0.5, 0.1]).unwrap();
    let w = graph.add_constant("w", Arc::new(w), &[]);
    let b = graph.add_constant("b", Arc::new(Tensor::zeros(IxDyn(&[2]))), &[]);
    let y = graph.add_clear("y", ClearOp::Linear, &[x, w, b], &[]).unwrap();
    graph.outputs = vec![("y".into(), y)];
    let trained = parameters(&graph, DType::F64).unwrap();
    assert_eq!(trained[0].role, Role::Weight);
    let weights = parameters::weights(&trained, Some(2)).unwrap();
    let rounded = ours(&weights[&w]).unwrap();
    assert!(rounded.iter().zip([1.0, 0.0, -0.5, 0.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{rounded}");
    let sum = weights[&w].sum_all().unwrap();
    let gradient = parameters::gradients(&trained, &sum.backward().unwrap()).unwrap();
    assert_eq!(ours(&gradient[0]).unwrap(), Tensor::ones(IxDyn(&[2, 2])));
    let mut copy = graph.clone();
    parameters::store(&trained, &mut copy).unwrap();
    assert!(matches!(&copy.node(w).op, Op::Constant(v) if v == graph.constant(w).unwrap()));
}
