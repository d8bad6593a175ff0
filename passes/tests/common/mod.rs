//! Small random transformers for tests.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by several test programs")]

use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use thex_ir::{ClearOp, Graph, NodeId, Reduction, Tensor, UnaryChain, UnaryFn};
use thex_passes::Samples;

/// Which tokens attend to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All to all.
    None,
    /// To themselves and those before, by a constant.
    Causal,
    /// To those that a second input, of 0 and 1, does not mask; the model's head pools by it.
    Padding,
}

/// What a small transformer looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub tokens: usize,
    pub width: usize,
    pub heads: usize,
    pub hidden: usize,
    pub layers: usize,
    /// Norm before each sub-layer (ViT) or after it (BERT).
    pub pre_norm: bool,
    /// Whether a public class token stands in front.
    pub class_token: bool,
    pub mask: Mask,
    /// Between the two maps of the feed-forward part.
    pub activation: UnaryFn,
}

impl Shape {
    pub const TINY: Self = Self {
        tokens: 3,
        width: 8,
        heads: 2,
        hidden: 12,
        layers: 1,
        pre_norm: true,
        class_token: true,
        mask: Mask::None,
        activation: UnaryFn::Gelu,
    };
}

/// Numbers that depend only on a seed, roughly normal.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f64 {
        let mut sum = 0.0;
        for _ in 0..6 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (self.0 >> 33) as f64 / (1_u64 << 31) as f64 - 0.5;
        }
        sum * 2.0_f64.sqrt()
    }

    pub fn tensor(&mut self, shape: &[usize], scale: f64) -> Tensor {
        let count = shape.iter().product();
        ArrayD::from_shape_vec(IxDyn(shape), (0..count).map(|_| scale * self.next()).collect()).unwrap()
    }
}

struct Net<'a> {
    graph: Graph,
    random: &'a mut Random,
}

impl Net<'_> {
    fn constant(&mut self, name: &str, value: Tensor) -> NodeId {
        self.graph.add_constant(name, Arc::new(value), &[name.to_owned()])
    }

    fn clear(&mut self, name: &str, op: ClearOp, operands: &[NodeId]) -> NodeId {
        self.graph.add_clear(name, op, operands, &[name.to_owned()]).unwrap()
    }

    fn linear(&mut self, name: &str, x: NodeId, out: usize) -> NodeId {
        let k = *self.graph.node(x).shape.last().unwrap();
        let w = self.random.tensor(&[out, k], 1.0 / (k as f64).sqrt());
        let b = self.random.tensor(&[out], 0.2);
        let (w, b) = (self.constant(&format!("{name}.w"), w), self.constant(&format!("{name}.b"), b));
        self.clear(name, ClearOp::Linear, &[x, w, b])
    }

    fn norm(&mut self, name: &str, x: NodeId) -> NodeId {
        let c = *self.graph.node(x).shape.last().unwrap();
        let n = self.clear(name, ClearOp::LayerNorm { epsilon: 1e-5 }, &[x]);
        let gain = self.random.tensor(&[c], 0.2) + 1.0;
        let bias = self.random.tensor(&[c], 0.2);
        let (gain, bias) = (self.constant(&format!("{name}.g"), gain), self.constant(&format!("{name}.b"), bias));
        let scaled = self.clear(&format!("{name}.scaled"), ClearOp::Mul, &[n, gain]);
        self.clear(&format!("{name}.shifted"), ClearOp::Add, &[scaled, bias])
    }

    fn heads(&mut self, name: &str, x: NodeId, heads: usize, permutation: [usize; 4]) -> NodeId {
        let shape = self.graph.node(x).shape.clone();
        let split = vec![1, shape[1], heads, shape[2] / heads];
        let x = self.clear(&format!("{name}.split"), ClearOp::Reshape { shape: split }, &[x]);
        self.clear(&format!("{name}.heads"), ClearOp::Transpose { permutation: permutation.to_vec() }, &[x])
    }

    fn number(&mut self, name: &str, value: f64) -> NodeId {
        self.constant(name, ArrayD::from_elem(IxDyn(&[1]), value))
    }

    /// What is added to scores, as exporters write it.
    fn mask(&mut self, mask: Mask, tokens: usize) -> Option<NodeId> {
        match mask {
            Mask::None => None,
            Mask::Causal => {
                let forbidden = |at: ndarray::IxDyn| if at[3] > at[2] { -3.4e38 } else { 0.0 };
                Some(self.constant("causal", ArrayD::from_shape_fn(IxDyn(&[1, 1, tokens, tokens]), forbidden)))
            }
            Mask::Padding => {
                let kept = self.graph.add_input("mask", &[1, tokens]);
                let (minus, one, most) =
                    (self.number("minus", -1.0), self.number("one", 1.0), self.number("most", -3.4e38));
                let padded = self.clear("mask/negated", ClearOp::Mul, &[kept, minus]);
                let padded = self.clear("mask/padded", ClearOp::Add, &[padded, one]);
                let addend = self.clear("mask/addend", ClearOp::Mul, &[padded, most]);
                Some(self.clear("mask/spread", ClearOp::Reshape { shape: vec![1, 1, 1, tokens] }, &[addend]))
            }
        }
    }

    /// Mean of the tokens that are kept.
    fn pool(&mut self, x: NodeId) -> NodeId {
        let shape = self.graph.node(x).shape.clone();
        let kept = self.graph.inputs[1];
        let kept = self.clear("pool/kept", ClearOp::Reshape { shape: vec![1, shape[1], 1] }, &[kept]);
        let hidden = self.clear("pool/hidden", ClearOp::Mul, &[x, kept]);
        let sum = ClearOp::Reduce { reduction: Reduction::Sum, axis: 1 };
        let (total, count) = (self.clear("pool/sum", sum.clone(), &[hidden]), self.clear("pool/count", sum, &[kept]));
        let inverse = self.clear("pool/inverse", ClearOp::Unary { chain: UnaryFn::Reciprocal.into() }, &[count]);
        self.clear("pool/mean", ClearOp::Mul, &[total, inverse])
    }

    fn attention(&mut self, name: &str, x: NodeId, heads: usize, mask: Option<NodeId>) -> NodeId {
        let shape = self.graph.node(x).shape.clone();
        let (tokens, width) = (shape[1], shape[2]);
        let q = self.linear(&format!("{name}.q"), x, width);
        let k = self.linear(&format!("{name}.k"), x, width);
        let v = self.linear(&format!("{name}.v"), x, width);
        let q = self.heads(&format!("{name}.q"), q, heads, [0, 2, 1, 3]);
        let k = self.heads(&format!("{name}.k"), k, heads, [0, 2, 3, 1]);
        let v = self.heads(&format!("{name}.v"), v, heads, [0, 2, 1, 3]);
        let scores = self.clear(&format!("{name}.qk"), ClearOp::MatMul, &[q, k]);
        let factor = ArrayD::from_elem(IxDyn(&[1]), 1.0 / ((width / heads) as f64).sqrt());
        let factor = self.constant(&format!("{name}.scale"), factor);
        let scores = self.clear(&format!("{name}.scaled"), ClearOp::Mul, &[scores, factor]);
        let scores = match mask {
            Some(mask) => self.clear(&format!("{name}.masked"), ClearOp::Add, &[scores, mask]),
            None => scores,
        };
        let p = self.clear(&format!("{name}.softmax"), ClearOp::Softmax { axis: 3 }, &[scores]);
        let context = self.clear(&format!("{name}.context"), ClearOp::MatMul, &[p, v]);
        let context =
            self.clear(&format!("{name}.merge"), ClearOp::Transpose { permutation: vec![0, 2, 1, 3] }, &[context]);
        let context =
            self.clear(&format!("{name}.flat"), ClearOp::Reshape { shape: vec![1, tokens, width] }, &[context]);
        self.linear(&format!("{name}.out"), context, width)
    }

    fn block(&mut self, name: &str, x: NodeId, shape: &Shape, mask: Option<NodeId>) -> NodeId {
        let attended = if shape.pre_norm { self.norm(&format!("{name}/norm1"), x) } else { x };
        let a = self.attention(&format!("{name}/attention"), attended, shape.heads, mask);
        let mut x = self.clear(&format!("{name}/add1"), ClearOp::Add, &[x, a]);
        if !shape.pre_norm {
            x = self.norm(&format!("{name}/norm1"), x);
        }
        let fed = if shape.pre_norm { self.norm(&format!("{name}/norm2"), x) } else { x };
        let h = self.linear(&format!("{name}/fc1"), fed, shape.hidden);
        let activation = ClearOp::Unary { chain: UnaryChain::from(shape.activation) };
        let h = self.clear(&format!("{name}/gelu"), activation, &[h]);
        let h = self.linear(&format!("{name}/fc2"), h, shape.width);
        let x = self.clear(&format!("{name}/add2"), ClearOp::Add, &[x, h]);
        if shape.pre_norm { x } else { self.norm(&format!("{name}/norm2"), x) }
    }
}

/// A random transformer and a few random samples for it.
pub fn transformer(shape: Shape, seed: u64, samples: usize) -> (Graph, Samples) {
    let mut random = Random(seed);
    let mut net = Net { graph: Graph::new(), random: &mut random };
    let input = [1, shape.tokens, shape.width];
    let mut x = net.graph.add_input("x", &input);
    if shape.class_token {
        let class = net.random.tensor(&[1, 1, shape.width], 1.0);
        let class = net.constant("class", class);
        x = net.clear("tokens", ClearOp::Concat { axis: 1 }, &[class, x]);
    }
    let tokens = shape.tokens + usize::from(shape.class_token);
    let mask = net.mask(shape.mask, tokens);
    for layer in 0..shape.layers {
        x = net.block(&format!("layers.{layer}"), x, &shape, mask);
    }
    let first = match shape.mask {
        Mask::None => net.clear("first", ClearOp::Slice { axis: 1, start: 0, end: 1 }, &[x]),
        Mask::Causal => net.clear("last", ClearOp::Slice { axis: 1, start: tokens - 1, end: tokens }, &[x]),
        Mask::Padding => net.pool(x),
    };
    let first = net.clear("flat", ClearOp::Reshape { shape: vec![1, shape.width] }, &[first]);
    let logits = net.linear("logits", first, 3);
    let mut graph = net.graph;
    graph.outputs.push(("logits".to_owned(), logits));
    let sample = |i: usize| {
        let mut sample = vec![Arc::new(random.tensor(&input, 1.0))];
        if shape.mask == Mask::Padding {
            let kept = 1 + i % tokens;
            sample.push(Arc::new(ArrayD::from_shape_fn(IxDyn(&[1, tokens]), |at| f64::from(u8::from(at[1] < kept)))));
        }
        sample
    };
    let samples = (0..samples).map(sample).collect();
    (graph, Arc::new(samples))
}
