//! Graphs for tests: small random transformers, and one placed graph with every homomorphic operation.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by several test programs")]

use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::Encoding;
use thex_ir::graph::Ranges;
use thex_ir::he::{Domain, LookUp, Purpose};
use thex_ir::{
    Address, ClearOp, Facts, Graph, HeLinear, HeOp, Node, NodeId, Op, Reduction, Stage, Tensor, UnaryChain, UnaryFn,
};

/// N of the placed graph.
pub const SIZE: usize = 2048;

/// Numbers that depend only on a seed, between -1 and 1.
pub struct Random(pub u64);

impl Random {
    pub fn real(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1_u64 << 30) as f64 - 1.0
    }

    pub fn tensor(&mut self, shape: &[usize]) -> Arc<Tensor> {
        let count = shape.iter().product();
        Arc::new(ArrayD::from_shape_vec(IxDyn(shape), (0..count).map(|_| self.real()).collect()).unwrap())
    }
}

/// A graph under construction; every node's origin is its name.
struct Net {
    graph: Graph,
    random: Random,
}

impl Net {
    fn constant(&mut self, name: &str, shape: &[usize]) -> NodeId {
        let value = self.random.tensor(shape);
        self.graph.add_constant(name, value, &[name.to_owned()])
    }

    fn clear(&mut self, name: &str, op: ClearOp, operands: &[NodeId]) -> NodeId {
        self.graph.add_clear(name, op, operands, &[name.to_owned()]).unwrap()
    }

    fn linear(&mut self, name: &str, x: NodeId, out: usize) -> NodeId {
        let k = *self.graph.node(x).shape.last().unwrap();
        let (w, b) = (self.constant(&format!("{name}.w"), &[out, k]), self.constant(&format!("{name}.b"), &[out]));
        self.clear(name, ClearOp::Linear, &[x, w, b])
    }

    fn attention(&mut self, name: &str, x: NodeId) -> NodeId {
        let width = self.graph.node(x).shape[2];
        let [q, k, v] = ["q", "k", "v"].map(|part| self.linear(&format!("{name}.{part}"), x, width));
        let k = self.clear(&format!("{name}.kt"), ClearOp::Transpose { permutation: vec![0, 2, 1] }, &[k]);
        let scores = self.clear(&format!("{name}.qk"), ClearOp::MatMul, &[q, k]);
        let p = self.clear(&format!("{name}.softmax"), ClearOp::Softmax { axis: 2 }, &[scores]);
        self.clear(&format!("{name}.context"), ClearOp::MatMul, &[p, v])
    }

    fn block(&mut self, name: &str, x: NodeId, hidden: usize) -> NodeId {
        let width = self.graph.node(x).shape[2];
        let n = self.clear(&format!("{name}/norm1"), ClearOp::LayerNorm { epsilon: 1e-5 }, &[x]);
        let a = self.attention(&format!("{name}/attention"), n);
        let x = self.clear(&format!("{name}/add1"), ClearOp::Add, &[x, a]);
        let n = self.clear(&format!("{name}/norm2"), ClearOp::RmsNorm { epsilon: 1e-6 }, &[x]);
        let gain = self.constant(&format!("{name}/gain"), &[width]);
        let n = self.clear(&format!("{name}/scaled"), ClearOp::Mul, &[n, gain]);
        let h = self.linear(&format!("{name}/fc1"), n, hidden);
        let gelu = UnaryChain(vec![UnaryFn::Gelu, UnaryFn::Affine { scale: 0.1, shift: -1.0 / 3.0 }]);
        let h = self.clear(&format!("{name}/gelu"), ClearOp::Unary { chain: gelu }, &[h]);
        let h = self.linear(&format!("{name}/fc2"), h, width);
        self.clear(&format!("{name}/add2"), ClearOp::Add, &[x, h])
    }
}

/// A random transformer at stage imported, which uses every tensor operation.
pub fn transformer(tokens: usize, width: usize, hidden: usize, layers: usize, seed: u64) -> Graph {
    let mut net = Net { graph: Graph::new(), random: Random(seed) };
    let input = net.graph.add_input("x", &[1, tokens, width]);
    let class = net.constant("class", &[1, 1, width]);
    let mut x = net.clear("tokens", ClearOp::Concat { axis: 1 }, &[class, input]);
    let positions = net.constant("positions", &[tokens + 1, width]);
    let zero = net.graph.add_constant("zero", Arc::new(ArrayD::zeros(IxDyn(&[1]))), &[]);
    let first = net.clear("embedding", ClearOp::Gather { axis: 0 }, &[positions, zero]);
    let first = net.clear("all", ClearOp::Broadcast { shape: vec![1, tokens + 1, width] }, &[first]);
    x = net.clear("embedded", ClearOp::Add, &[x, first]);
    for layer in 0..layers {
        x = net.block(&format!("layers.{layer}"), x, hidden);
    }
    let row = net.clear("row", ClearOp::Slice { axis: 1, start: 0, end: 1 }, &[x]);
    let row = net.clear("flat", ClearOp::Reshape { shape: vec![1, width] }, &[row]);
    let logits = net.linear("logits", row, 3);
    let best = net.clear("best", ClearOp::Reduce { reduction: Reduction::Max, axis: 1 }, &[logits]);
    let mut graph = net.graph;
    graph.outputs = vec![("logits".to_owned(), logits), ("best score".to_owned(), best)];
    graph
}

/// One range for all elements.
pub fn one_range(elements: usize, lo: f64, hi: f64) -> Arc<Ranges> {
    Arc::new(Ranges { class: vec![0; elements], lo: vec![lo], hi: vec![hi], rms: vec![lo.abs().max(hi.abs())] })
}

/// Adds a homomorphic node whose elements all have range ±1 and the given encoding.
pub fn add_he(
    graph: &mut Graph,
    name: &str,
    op: HeOp,
    elements: usize,
    operands: &[NodeId],
    e: Option<Encoding>,
) -> NodeId {
    let facts = Facts {
        ranges: Some(one_range(elements, -1.0, 1.0)),
        encodings: e.map(|e| Arc::new(vec![e; elements])),
        ..Facts::default()
    };
    let node =
        Node { name: name.to_owned(), op: Op::He(op), shape: vec![elements], origin: vec!["model".into()], facts };
    graph.add(node, operands)
}

/// Elements 0..n of operand 0.
pub fn all(n: u32) -> Vec<Address> {
    (0..n).map(|index| Address { port: 0, index }).collect()
}

/// The encoding of an argument of range ±1.
pub fn argument_encoding(positions: usize) -> Encoding {
    let turns = 2.0 * SIZE as f64;
    let scale = 2.0 / ((positions as f64 - 64.0) / turns);
    Encoding { scale, offset: -1.0 - scale * 32.0 / turns }
}

const FREE: Encoding = Encoding { scale: 4.0, offset: 0.0 };

/// `groups` groups of one weight set, with rounded integers; gathers all elements of `x`.
fn linear(graph: &mut Graph, name: &str, purpose: Purpose, map: HeLinear, x: NodeId, e: Encoding) -> NodeId {
    let (m, k) = (map.outputs, map.operands);
    assert_eq!(map.weights.len(), m * k);
    let integers = map.weights.iter().map(|w| (w * FREE.scale / e.scale).round() as i32).collect();
    let outputs = map.bias.len();
    let id = add_he(graph, name, HeOp::Linear { map: Arc::new(map), purpose }, outputs, &[x], Some(e));
    graph.node_mut(id).facts.integers = Some(Arc::new(integers));
    id
}

fn identity(n: u32) -> HeLinear {
    let bias = vec![0.0; n as usize];
    HeLinear { outputs: 1, operands: 1, gather: all(n), set: vec![0; n as usize], weights: vec![1.0], bias }
}

fn dense(outputs: usize, operands: u32, random: &mut Random) -> HeLinear {
    HeLinear {
        outputs,
        operands: operands as usize,
        gather: all(operands),
        set: vec![0],
        weights: (0..outputs * operands as usize).map(|_| 40.0 * random.real()).collect(),
        bias: (0..outputs).map(|_| random.real()).collect(),
    }
}

/// A graph at stage placed that the verifier accepts, with every homomorphic operation: a look-up of four inputs, two
/// sums of them packed, three products, three outputs.
pub fn placed() -> Graph {
    let mut random = Random(7);
    let mut g = Graph::new();
    g.stage = Stage::Placed;
    let x = g.add_input("x", &[1, 4]);
    let x = add_he(&mut g, "encrypt", HeOp::Encrypt, 4, &[x], Some(FREE));
    let whole = Purpose::Argument { domain: Domain::new(SIZE) };
    let x = linear(&mut g, "argument", whole, identity(4), x, argument_encoding(SIZE));
    let gather = Arc::new(all(4));
    let x = add_he(
        &mut g,
        "keyswitch",
        HeOp::Keyswitch { gather: gather.clone(), domain: Domain::new(SIZE) },
        4,
        &[x],
        None,
    );
    let pbs = add_he(
        &mut g,
        "pbs",
        HeOp::Pbs { function: LookUp::plain(UnaryChain::from(UnaryFn::Gelu)) },
        4,
        &[x],
        Some(FREE),
    );
    let y = linear(&mut g, "operand", Purpose::Packed, dense(2, 4, &mut random), pbs, FREE);
    let slots = vec![all(2)[0], all(2)[1], all(2)[1], Address::ABSENT];
    let pack = add_he(&mut g, "pack", HeOp::Pack { gather: Arc::new(slots), slots: 2 }, 4, &[y], None);
    let half = Purpose::Argument { domain: Domain::new(SIZE / 2) };
    let x = linear(&mut g, "factor", half, identity(4), pbs, argument_encoding(SIZE / 2));
    let rotated = add_he(&mut g, "rotated", HeOp::Keyswitch { gather, domain: Domain::new(SIZE / 2) }, 4, &[x], None);
    let op = HeOp::LutProduct {
        chain: UnaryChain::default(),
        argument: Arc::new(vec![0, 1, 3]),
        accumulator: Arc::new(vec![0, 1, 0]),
        slots: 2,
        sums: None,
    };
    let z = add_he(&mut g, "product", op, 6, &[rotated, pack], Some(FREE));
    let y =
        linear(&mut g, "result", Purpose::Output, dense(3, 6, &mut random), z, Encoding { scale: 2.5, offset: 0.5 });
    let y = add_he(&mut g, "decrypt", HeOp::Decrypt { gather: Arc::new(all(3)) }, 3, &[y], None);
    g.outputs.push(("logits".to_owned(), y));
    g
}

/// A calibrated graph: a linear layer and a ReLU.
pub fn calibrated() -> Graph {
    let mut net = Net { graph: Graph::new(), random: Random(3) };
    let x = net.graph.add_input("x", &[2, 3]);
    let y = net.linear("fc", x, 4);
    let y = net.clear("relu", ClearOp::Unary { chain: UnaryChain::from(UnaryFn::Relu) }, &[y]);
    let mut graph = net.graph;
    for (id, elements) in [(x, 6), (graph.operands(y)[0], 8), (y, 8)] {
        graph.node_mut(id).facts.ranges = Some(one_range(elements, -2.0, 3.5));
    }
    graph.outputs.push(("y".to_owned(), y));
    graph.stage = Stage::Calibrated;
    graph
}

/// The node of this name.
pub fn named(graph: &Graph, name: &str) -> NodeId {
    graph.ids().find(|id| graph.node(*id).name == name).unwrap()
}

/// The same graph with external products: four, in three sums.
#[allow(dead_code, reason = "not all tests that share this module use it")]
pub fn summed() -> Graph {
    let mut graph = placed();
    let product = named(&graph, "product");
    if let Op::He(HeOp::LutProduct { argument, accumulator, sums, .. }) = &mut graph.node_mut(product).op {
        *argument = Arc::new(vec![0, 1, 3, 0]);
        *accumulator = Arc::new(vec![0, 1, 0, 1]);
        *sums = Some(Arc::new(vec![2, 1, 1]));
    }
    graph
}
