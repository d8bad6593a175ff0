//! What the client computes and what the server computes make up the model.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Op, Tensor, UnaryChain, UnaryFn, interpret};
use thex_passes::transform::SplitClientServer;
use thex_passes::{Pass, PassCx, Profile};

fn tensor(shape: &[usize], seed: usize) -> Arc<Tensor> {
    let count = shape.iter().product();
    let values = (0..count).map(|i| (((i + 3) * (seed * 7 + 5)) % 11) as f64 / 11.0 - 0.4).collect();
    Arc::new(ArrayD::from_shape_vec(IxDyn(shape), values).unwrap())
}

fn add(graph: &mut Graph, name: &str, op: ClearOp, operands: &[NodeId]) -> NodeId {
    graph.add_clear(name, op, operands, &[name.to_owned()]).unwrap()
}

/// Embedding look-up, positions, norm, a linear layer with ReLU, a classifier, and a final softmax.
fn classifier() -> Graph {
    let mut g = Graph::new();
    let ids = g.add_input("ids", &[1, 4]);
    let table = g.add_constant("table", tensor(&[9, 6], 1), &[]);
    let x = add(&mut g, "embed", ClearOp::Gather { axis: 0 }, &[table, ids]);
    let positions = g.add_constant("positions", tensor(&[4, 6], 2), &[]);
    let x = add(&mut g, "sum", ClearOp::Add, &[x, positions]);
    let x = add(&mut g, "norm", ClearOp::LayerNorm { epsilon: 1e-5 }, &[x]);
    let (w, b) = (g.add_constant("w", tensor(&[5, 6], 3), &[]), g.add_constant("b", tensor(&[5], 4), &[]));
    let x = add(&mut g, "fc", ClearOp::Linear, &[x, w, b]);
    let x = add(&mut g, "relu", ClearOp::Unary { chain: UnaryChain::from(UnaryFn::Relu) }, &[x]);
    let (w, b) = (g.add_constant("v", tensor(&[3, 5], 5), &[]), g.add_constant("c", tensor(&[3], 6), &[]));
    let x = add(&mut g, "head", ClearOp::Linear, &[x, w, b]);
    let x = add(&mut g, "probabilities", ClearOp::Softmax { axis: 2 }, &[x]);
    g.outputs.push(("probabilities".to_owned(), x));
    g
}

fn ops(graph: &Graph) -> Vec<&'static str> {
    graph.ids().map(|id| graph.node(id).op.mnemonic()).filter(|op| *op != "constant").collect()
}

#[test]
fn prologue_server_and_epilogue_compose_to_the_model() {
    let whole = classifier();
    let ids = Arc::new(ArrayD::from_shape_vec(IxDyn(&[1, 4]), vec![3.0, 0.0, 8.0, 5.0]).unwrap());
    let mut cx = PassCx::new(Profile::Exact, Arc::new(vec![vec![ids.clone()]]));
    let mut server = whole.clone();
    assert!(SplitClientServer.run(&mut server, &mut cx).unwrap());
    assert_eq!(ops(&server), ["input", "linear", "unary", "linear"]);
    let encrypted = cx.prologue.unwrap().run(std::slice::from_ref(&ids)).unwrap();
    assert_eq!(encrypted, cx.samples[0]);
    let decrypted = interpret::run(&server, &encrypted).unwrap();
    let answer = cx.epilogue.unwrap().run(&decrypted).unwrap();
    assert_eq!(answer, interpret::run(&whole, &[ids]).unwrap());
}

#[test]
fn an_image_is_encrypted_as_it_is() {
    let mut graph = Graph::new();
    let image = graph.add_input("image", &[1, 4]);
    let (w, b) = (graph.add_constant("w", tensor(&[2, 4], 3), &[]), graph.add_constant("b", tensor(&[2], 4), &[]));
    let y = add(&mut graph, "fc", ClearOp::Linear, &[image, w, b]);
    graph.outputs.push(("y".to_owned(), y));
    let mut cx = PassCx::new(Profile::Exact, Arc::new(vec![vec![tensor(&[1, 4], 8)]]));
    assert!(!SplitClientServer.run(&mut graph, &mut cx).unwrap());
    assert!(matches!(graph.node(graph.inputs[0]).op, Op::Input));
    assert_eq!(cx.prologue.unwrap().outputs, [("image".to_owned(), 0)]);
}
