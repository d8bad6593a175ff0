//! The graph: nodes are tensors, edges are uses, ordered by operand number.

use std::sync::Arc;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use serde::{Deserialize, Serialize};
use thex_circuit::clear::{ClearOp, Tensor, infer_shape};
use thex_circuit::{CircuitError, Encoding};

use crate::he::HeOp;

/// Identifies a node of a [`Graph`]. Stable under removal of others.
pub type NodeId = NodeIndex<u32>;

/// How far a graph has come. Later stages allow fewer kinds of operation and require more facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// As the frontend wrote it: high-level operations.
    Imported,
    /// Softmax, layer norms and the like replaced by what a circuit can do: linear maps, products of two
    /// encrypted tensors, functions of one variable.
    Approximated,
    /// As before, and every server-side tensor has calibrated ranges.
    Calibrated,
    /// Homomorphic operations on flat vectors of ciphertexts, over the reals.
    Lowered,
    /// Every ciphertext has an encoding, every linear map integer weights.
    Placed,
}

impl Stage {
    /// Kebab-case name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Imported => "imported",
            Self::Approximated => "approximated",
            Self::Calibrated => "calibrated",
            Self::Lowered => "lowered",
            Self::Placed => "placed",
        }
    }

    /// The inverse of [`name`](Self::name).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Imported, Self::Approximated, Self::Calibrated, Self::Lowered, Self::Placed]
            .into_iter()
            .find(|s| s.name() == text)
    }
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// An input of the model.
    Input,
    /// A public constant.
    Constant(Arc<Tensor>),
    /// A tensor operation.
    Clear(ClearOp),
    /// A homomorphic operation.
    He(HeOp),
}

impl Op {
    /// Kebab-case name.
    #[must_use]
    pub fn mnemonic(&self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Constant(_) => "constant",
            Self::Clear(op) => op.mnemonic(),
            Self::He(op) => op.mnemonic(),
        }
    }
}

/// Calibrated range of each element of a node. Elements of one *class* (a channel, a head) share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    /// Class of each element, row-major; indexes the other fields.
    pub class: Vec<u32>,
    /// Lowest value seen, margin included.
    pub lo: Vec<f64>,
    /// Highest value seen, margin included.
    pub hi: Vec<f64>,
    /// Root mean square seen.
    pub rms: Vec<f64>,
}

impl Ranges {
    /// (lo, hi) of element `i`.
    #[must_use]
    pub fn of(&self, i: usize) -> (f64, f64) {
        let class = self.class[i] as usize;
        (self.lo[class], self.hi[class])
    }
}

/// Extremes that the calibration data reached, without margins; indexed by the classes of [`Ranges`]. A class that no demanded
/// element belongs to has an empty interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Lowest value of each class.
    pub lo: Vec<f64>,
    /// Highest value of each class.
    pub hi: Vec<f64>,
}

/// What is known about a node beyond its operation; filled in by analyses and passes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Set by `calibrate` on tensor operations, and carried along by `lower`.
    pub ranges: Option<Arc<Ranges>>,
    /// Set by `calibrate` with the ranges, for reports.
    pub seen: Option<Arc<Seen>>,
    /// Set by `insert-rescale`: encoding of each ciphertext of a homomorphic node.
    pub encodings: Option<Arc<Vec<Encoding>>>,
    /// Set by `insert-rescale` on linear maps: the integer weights, as long as `HeLinear::weights`.
    pub integers: Option<Arc<Vec<i32>>>,
    /// Set by `insert-rescale` on linear maps: added to the real bias of each element, so that rounding the weights does
    /// not shift its mean.
    pub bias_correction: Option<Arc<Vec<f64>>>,
    /// Modelled precision: -log2(noise sd ÷ width of the range).
    pub noise_bits: Option<f64>,
}

/// A tensor and how it is computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique, readable name.
    pub name: String,
    /// The operation; its operands are the incoming edges, by port.
    pub op: Op,
    /// Shape of the tensor. Homomorphic nodes are flat: `[n]`.
    pub shape: Vec<usize>,
    /// Names of the ONNX nodes that it came from.
    pub origin: Vec<String>,
    /// Facts.
    pub facts: Facts,
}

/// A model, at some [`Stage`].
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: StableDiGraph<Node, u32, u32>,
    /// How far it has come.
    pub stage: Stage,
    /// The model's inputs in order.
    pub inputs: Vec<NodeId>,
    /// The model's outputs, by name, in order.
    pub outputs: Vec<(String, NodeId)>,
}

impl Default for Graph {
    fn default() -> Self {
        Self::new()
    }
}

impl Graph {
    /// An empty graph at [`Stage::Imported`].
    #[must_use]
    pub fn new() -> Self {
        Self { nodes: StableDiGraph::default(), stage: Stage::Imported, inputs: Vec::new(), outputs: Vec::new() }
    }

    /// The node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The node, to change.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id]
    }

    /// Number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether there are no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.node_count() == 0
    }

    /// All nodes in order of creation.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.node_indices()
    }

    /// Whether the node is still there.
    #[must_use]
    pub fn contains(&self, id: NodeId) -> bool {
        self.nodes.contains_node(id)
    }

    /// Operands of a node, by port.
    #[must_use]
    pub fn operands(&self, id: NodeId) -> Vec<NodeId> {
        let mut edges: Vec<(u32, NodeId)> =
            self.nodes.edges_directed(id, Direction::Incoming).map(|e| (*e.weight(), e.source())).collect();
        edges.sort_unstable_by_key(|(port, _)| *port);
        edges.into_iter().map(|(_, source)| source).collect()
    }

    /// Whether a node's products are external products.
    #[must_use]
    pub fn is_external_product(&self, id: NodeId) -> bool {
        matches!(&self.node(id).op, Op::He(HeOp::LutProduct { sums: Some(_), .. }))
    }

    /// Uses of a node: (user, port), in a deterministic order. Outputs of the model are not listed.
    #[must_use]
    pub fn users(&self, id: NodeId) -> Vec<(NodeId, u32)> {
        let mut users: Vec<(NodeId, u32)> =
            self.nodes.edges_directed(id, Direction::Outgoing).map(|e| (e.target(), *e.weight())).collect();
        users.sort_unstable();
        users
    }

    /// Whether the node is an output of the model.
    #[must_use]
    pub fn is_output(&self, id: NodeId) -> bool {
        self.outputs.iter().any(|(_, o)| *o == id)
    }

    /// A name that no node has yet, from `wish`.
    #[must_use]
    pub fn unique_name(&self, wish: &str) -> String {
        let taken = |name: &str| self.nodes.node_weights().any(|n| n.name == name);
        if !taken(wish) {
            return wish.to_owned();
        }
        let mut i = 1;
        while taken(&format!("{wish}.{i}")) {
            i += 1;
        }
        format!("{wish}.{i}")
    }

    /// Adds a node with operands in order. The shape is taken as given.
    pub fn add(&mut self, node: Node, operands: &[NodeId]) -> NodeId {
        let node = Node { name: self.unique_name(&node.name), ..node };
        let id = self.nodes.add_node(node);
        for (port, &source) in operands.iter().enumerate() {
            self.nodes.add_edge(source, id, port as u32);
        }
        id
    }

    /// Adds an input of the model.
    pub fn add_input(&mut self, name: &str, shape: &[usize]) -> NodeId {
        let node = Node {
            name: name.to_owned(),
            op: Op::Input,
            shape: shape.to_vec(),
            origin: vec![name.to_owned()],
            facts: Facts::default(),
        };
        let id = self.add(node, &[]);
        self.inputs.push(id);
        id
    }

    /// Adds a constant.
    pub fn add_constant(&mut self, name: &str, value: Arc<Tensor>, origin: &[String]) -> NodeId {
        let node = Node {
            name: name.to_owned(),
            shape: value.shape().to_vec(),
            op: Op::Constant(value),
            origin: origin.to_vec(),
            facts: Facts::default(),
        };
        self.add(node, &[])
    }

    /// Adds a tensor operation and infers its shape.
    ///
    /// # Errors
    /// [`CircuitError::Eval`] when the operands do not fit.
    pub fn add_clear(
        &mut self,
        name: &str,
        op: ClearOp,
        operands: &[NodeId],
        origin: &[String],
    ) -> Result<NodeId, CircuitError> {
        let shapes: Vec<&[usize]> = operands.iter().map(|&o| self.node(o).shape.as_slice()).collect();
        let shape = infer_shape(&op, &shapes)?;
        let node =
            Node { name: name.to_owned(), op: Op::Clear(op), shape, origin: origin.to_vec(), facts: Facts::default() };
        Ok(self.add(node, operands))
    }

    /// The value of a constant node.
    #[must_use]
    pub fn constant(&self, id: NodeId) -> Option<&Arc<Tensor>> {
        match &self.node(id).op {
            Op::Constant(value) => Some(value),
            Op::Input | Op::Clear(_) | Op::He(_) => None,
        }
    }

    /// The tensor operation of a node.
    #[must_use]
    pub fn clear_op(&self, id: NodeId) -> Option<&ClearOp> {
        match &self.node(id).op {
            Op::Clear(op) => Some(op),
            Op::Input | Op::Constant(_) | Op::He(_) => None,
        }
    }

    /// Makes every use of `old` (outputs of the model included) a use of `new`, except by `new` itself.
    pub fn replace_uses(&mut self, old: NodeId, new: NodeId) {
        for (user, port) in self.users(old) {
            if user != new {
                self.set_operand(user, port, new);
            }
        }
        for (_, output) in &mut self.outputs {
            if *output == old {
                *output = new;
            }
        }
    }

    /// Makes operand `port` of `user` be `source`.
    pub fn set_operand(&mut self, user: NodeId, port: u32, source: NodeId) {
        let old = self.nodes.edges_directed(user, Direction::Incoming).find(|e| *e.weight() == port).map(|e| e.id());
        if let Some(edge) = old {
            self.nodes.remove_edge(edge);
        }
        self.nodes.add_edge(source, user, port);
    }

    /// Replaces all operands of a node.
    pub fn set_operands(&mut self, user: NodeId, operands: &[NodeId]) {
        let old: Vec<_> = self.nodes.edges_directed(user, Direction::Incoming).map(|e| e.id()).collect();
        for edge in old {
            self.nodes.remove_edge(edge);
        }
        for (port, &source) in operands.iter().enumerate() {
            self.nodes.add_edge(source, user, port as u32);
        }
    }

    /// Nodes in execution order: operands first; among ready nodes, the one created first. Nodes on a cycle are left out.
    #[must_use]
    pub fn topological(&self) -> Vec<NodeId> {
        let mut missing: std::collections::BTreeMap<NodeId, usize> =
            self.ids().map(|id| (id, self.nodes.edges_directed(id, Direction::Incoming).count())).collect();
        let mut ready: std::collections::BTreeSet<NodeId> =
            missing.iter().filter(|(_, n)| **n == 0).map(|(id, _)| *id).collect();
        let mut order = Vec::with_capacity(self.len());
        while let Some(id) = ready.pop_first() {
            order.push(id);
            for (user, _) in self.users(id) {
                if let Some(count) = missing.get_mut(&user) {
                    *count -= 1;
                    if *count == 0 {
                        ready.insert(user);
                    }
                }
            }
        }
        order
    }

    /// Removes every node from which no output can be reached, inputs of the model excepted. Returns how many went.
    pub fn remove_dead(&mut self) -> usize {
        let mut live: std::collections::BTreeSet<NodeId> = self.inputs.iter().copied().collect();
        let mut stack: Vec<NodeId> = self.outputs.iter().map(|(_, id)| *id).collect();
        while let Some(id) = stack.pop() {
            if live.insert(id) {
                stack.extend(self.operands(id));
            }
        }
        let before = self.len();
        self.nodes.retain_nodes(|_, id| live.contains(&id));
        before - self.len()
    }
}
