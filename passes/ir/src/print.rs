//! The text form of a graph, for dumps, snapshots and tests.
//!
//! ```text
//! thex-ir 1
//! stage calibrated
//! inputs %x
//! outputs "logits" %fc
//!
//! %x: [1,17,32] = input() @ "x" ; range -3.1..2.9 rms 1
//! %w: [10,32] = constant() {value: #5d41402abc4b2a76} @ "fc.weight"
//! %fc: [1,17,10] = linear(%x, %w, %b) @ "fc" ; range -8..9.2 rms 2.1
//! ```
//!
//! One line a node, in topological order (nodes on a cycle last); what follows `;` is a comment. Names that are not plain
//! identifiers are quoted. Arrays of at most [`INLINE`] elements are written out, numbers so that they parse back to the
//! same bits; larger ones are named by their content, `#` and the first 64 bits of a SHA-256, and kept in a
//! [`ConstantPool`]. So equal text means equal graphs, whatever their size, and a diff of two dumps is readable.
//!
//! [`parse`](crate::parse::parse) restores structure, constants, stage and origins. **Facts do not round-trip**: ranges,
//! scales and precision are printed as comments, in four digits, since analyses can recompute them.
//!
//! Alternative rejected: serde. It would write millions of numbers that no one reads, in no order worth a diff.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use thex_circuit::clear::{ClearOp, Reduction, Tensor};

use crate::graph::{Facts, Graph, Node, NodeId, Op};
use crate::he::{Address, HeLinear, HeOp, Purpose};

/// Arrays of at most this many elements are written out.
pub const INLINE: usize = 16;

/// Version of the text form, on its first line.
pub const VERSION: u32 = 1;

/// First 64 bits of the SHA-256 of an array's type and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub u64);

impl std::fmt::Display for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A large array of a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Pooled {
    /// Value of a constant.
    Tensor(Arc<Tensor>),
    /// Weights or biases.
    Reals(Arc<Vec<f64>>),
    /// Element numbers, weight sets.
    Indices(Arc<Vec<u32>>),
    /// Addresses.
    Addresses(Arc<Vec<Address>>),
}

/// Large arrays by content; the text form names them by hash.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConstantPool(BTreeMap<ContentHash, Pooled>);

impl ConstantPool {
    /// The array of this hash.
    #[must_use]
    pub fn get(&self, hash: ContentHash) -> Option<&Pooled> {
        self.0.get(&hash)
    }

    /// Adds a tensor under the hash of its content.
    pub fn insert(&mut self, tensor: Arc<Tensor>) -> ContentHash {
        let hash = tensor_hash(&tensor);
        self.0.insert(hash, Pooled::Tensor(tensor));
        hash
    }

    /// All arrays, by hash.
    pub fn iter(&self) -> impl Iterator<Item = (ContentHash, &Pooled)> {
        self.0.iter().map(|(hash, array)| (*hash, array))
    }

    /// Number of arrays.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The text form.
#[must_use]
pub fn print(graph: &Graph) -> String {
    let mut printer = Printer { graph, out: String::new(), pool: None };
    printer.graph();
    printer.out
}

/// The line of one node, without its end.
#[must_use]
pub fn print_node(graph: &Graph, id: NodeId) -> String {
    let mut printer = Printer { graph, out: String::new(), pool: None };
    printer.node(id);
    printer.out.truncate(printer.out.trim_end().len());
    printer.out
}

/// The text form, and the large arrays that it names.
#[must_use]
pub fn print_with_pool(graph: &Graph) -> (String, ConstantPool) {
    let mut printer = Printer { graph, out: String::new(), pool: Some(ConstantPool::default()) };
    printer.graph();
    (printer.out, printer.pool.unwrap_or_default())
}

/// Whether two graphs have the same stage, inputs, outputs and nodes: names, operations, shapes, origins, operands.
/// Facts and the order of creation do not matter. Names must be unique.
#[must_use]
pub fn structurally_eq(a: &Graph, b: &Graph) -> bool {
    type Shown<'a> = (&'a Op, &'a [usize], &'a [String], Vec<&'a str>);
    fn nodes(graph: &Graph) -> BTreeMap<&str, Shown<'_>> {
        let shown = |id: NodeId| {
            let node = graph.node(id);
            let operands = graph.operands(id).into_iter().map(|o| graph.node(o).name.as_str()).collect();
            (node.name.as_str(), (&node.op, node.shape.as_slice(), node.origin.as_slice(), operands))
        };
        graph.ids().map(shown).collect()
    }
    fn ends(graph: &Graph) -> (Vec<String>, Vec<(&str, String)>) {
        let name = |id: &NodeId| node_name(graph, *id);
        let outputs = graph.outputs.iter().map(|(n, id)| (n.as_str(), name(id))).collect();
        (graph.inputs.iter().map(name).collect(), outputs)
    }
    a.stage == b.stage && a.len() == b.len() && ends(a) == ends(b) && nodes(a) == nodes(b)
}

/// Whether a name is written without quotes.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(is_plain_char)
}

pub(crate) fn is_plain_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-' | '+')
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

/// `%name`, quoted where it must be.
fn reference(name: &str) -> String {
    if is_plain(name) { format!("%{name}") } else { format!("%{}", quoted(name)) }
}

/// The name of a node; of one that was removed, a name that nothing defines.
fn node_name(graph: &Graph, id: NodeId) -> String {
    if graph.contains(id) { graph.node(id).name.clone() } else { format!("removed node {}", id.index()) }
}

fn joined<T>(items: impl IntoIterator<Item = T>, separator: &str, show: impl Fn(T) -> String) -> String {
    items.into_iter().map(show).collect::<Vec<_>>().join(separator)
}

fn list<T>(items: impl IntoIterator<Item = T>, show: impl Fn(T) -> String) -> String {
    format!("[{}]", joined(items, ", ", show))
}

fn dims(shape: &[usize]) -> String {
    format!("[{}]", joined(shape, ",", usize::to_string))
}

fn address(a: &Address) -> String {
    if *a == Address::ABSENT { "_".to_owned() } else { format!("{}:{}", a.port, a.index) }
}

fn purpose(purpose: Purpose) -> String {
    match purpose {
        Purpose::Argument { domain } if domain.extension > 0 => {
            format!("argument({}, {})", domain.positions, domain.extension)
        }
        Purpose::Argument { domain } => format!("argument({})", domain.positions),
        Purpose::Packed => "packed".to_owned(),
        Purpose::Output => "output".to_owned(),
    }
}

pub(crate) fn reduction(reduction: Reduction) -> &'static str {
    match reduction {
        Reduction::Sum => "sum",
        Reduction::Mean => "mean",
        Reduction::Max => "max",
    }
}

/// Four significant digits, for comments.
fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude > 0.0 && !(1e-3..1e5).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let decimals = (3.0 - magnitude.max(1e-3).log10().floor()).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn hash(kind: &str, chunks: impl Iterator<Item = [u8; 8]>) -> ContentHash {
    let mut hasher = Sha256::new();
    hasher.update(kind.as_bytes());
    let mut buffer = Vec::with_capacity(1 << 16);
    for chunk in chunks {
        buffer.extend_from_slice(&chunk);
        if buffer.len() == buffer.capacity() {
            hasher.update(&buffer);
            buffer.clear();
        }
    }
    hasher.update(&buffer);
    let digest = hasher.finalize();
    ContentHash(digest.iter().take(8).fold(0, |h, byte| (h << 8) | u64::from(*byte)))
}

fn tensor_hash(value: &Tensor) -> ContentHash {
    let rank = [(value.ndim() as u64).to_le_bytes()];
    let dims = value.shape().iter().map(|d| (*d as u64).to_le_bytes());
    let content = rank.into_iter().chain(dims).chain(value.iter().map(|v| v.to_bits().to_le_bytes()));
    hash("tensor", content)
}

struct Printer<'a> {
    graph: &'a Graph,
    out: String,
    pool: Option<ConstantPool>,
}

impl Printer<'_> {
    fn graph(&mut self) {
        let graph = self.graph;
        let name = |id: &NodeId| reference(&node_name(graph, *id));
        let inputs = joined(&graph.inputs, ", ", name);
        let outputs = joined(&graph.outputs, ", ", |(output, id)| format!("{} {}", quoted(output), name(id)));
        let header = format!("thex-ir {VERSION}\nstage {}\ninputs {inputs}\noutputs {outputs}\n", graph.stage.name());
        // No trailing blanks where there are none.
        self.out.push_str(&header.replace("inputs \n", "inputs\n").replace("outputs \n", "outputs\n"));
        self.out.push('\n');
        let mut order = graph.topological();
        if order.len() < graph.len() {
            let ordered: std::collections::BTreeSet<NodeId> = order.iter().copied().collect();
            order.extend(graph.ids().filter(|id| !ordered.contains(id)));
        }
        order.into_iter().for_each(|id| self.node(id));
    }

    fn node(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let operands = joined(self.graph.operands(id), ", ", |o| reference(&self.graph.node(o).name));
        let mut line = format!("{}: {} = {}({operands})", reference(&node.name), dims(&node.shape), node.op.mnemonic());
        let attributes = self.attributes(node);
        if !attributes.is_empty() {
            let shown = joined(attributes, ", ", |(key, value)| format!("{key}: {value}"));
            let _ = write!(line, " {{{shown}}}");
        }
        if !node.origin.is_empty() {
            let _ = write!(line, " @ {}", joined(&node.origin, ", ", |o| quoted(o)));
        }
        let comment = comment(&node.facts);
        if !comment.is_empty() {
            let _ = write!(line, " ; {comment}");
        }
        self.out.push_str(&line);
        self.out.push('\n');
    }

    fn attributes(&mut self, node: &Node) -> Vec<(&'static str, String)> {
        match &node.op {
            Op::Input => Vec::new(),
            Op::Constant(value) => self.constant(value, &node.shape),
            Op::Clear(op) => clear_attributes(op),
            Op::He(op) => self.he_attributes(op),
        }
    }

    /// A constant's shape is written only where it is not the node's, which the verifier rejects, or pooled.
    fn constant(&mut self, value: &Arc<Tensor>, shape: &[usize]) -> Vec<(&'static str, String)> {
        let shown = if value.len() <= INLINE {
            list(value.iter(), |v| format!("{v:?}"))
        } else {
            self.pooled(tensor_hash(value), || Pooled::Tensor(value.clone()))
        };
        let mut attributes = vec![("value", shown)];
        if value.shape() != shape {
            attributes.push(("shape", dims(value.shape())));
        }
        attributes
    }

    fn he_attributes(&mut self, op: &HeOp) -> Vec<(&'static str, String)> {
        match op {
            HeOp::Encrypt => Vec::new(),
            HeOp::Linear { map, purpose } => self.linear(map, *purpose),
            HeOp::Keyswitch { gather, domain } => {
                let mut attributes =
                    vec![("gather", self.addresses(gather)), ("positions", domain.positions.to_string())];
                if domain.extension > 0 {
                    attributes.push(("extension", domain.extension.to_string()));
                }
                attributes
            }
            HeOp::Pbs { function } => {
                let mut attributes = vec![("chain", quoted(&function.chain.label()))];
                if function.slope.to_bits() != 0 {
                    attributes.push(("slope", format!("{:?}", function.slope)));
                }
                attributes
            }
            HeOp::Pack { gather, slots } => vec![("gather", self.addresses(gather)), ("slots", slots.to_string())],
            HeOp::LutProduct { chain, argument, accumulator, slots, sums } => {
                let mut attributes = vec![
                    ("chain", quoted(&chain.label())),
                    ("argument", self.indices(argument)),
                    ("accumulator", self.indices(accumulator)),
                    ("slots", slots.to_string()),
                ];
                attributes.extend(sums.as_ref().map(|sums| ("sums", self.indices(sums))));
                attributes
            }
            HeOp::Decrypt { gather } => vec![("gather", self.addresses(gather))],
        }
    }

    fn linear(&mut self, map: &HeLinear, for_what: Purpose) -> Vec<(&'static str, String)> {
        vec![
            ("purpose", purpose(for_what)),
            ("outputs", map.outputs.to_string()),
            ("operands", map.operands.to_string()),
            ("gather", self.addresses(&map.gather)),
            ("set", self.indices(&map.set)),
            ("weights", self.reals(&map.weights)),
            ("bias", self.reals(&map.bias)),
        ]
    }

    fn reals(&mut self, values: &[f64]) -> String {
        if values.len() <= INLINE {
            return list(values, |v| format!("{v:?}"));
        }
        let hash = hash("reals", values.iter().map(|v| v.to_bits().to_le_bytes()));
        self.pooled(hash, || Pooled::Reals(Arc::new(values.to_vec())))
    }

    fn indices(&mut self, values: &[u32]) -> String {
        if values.len() <= INLINE {
            return list(values, u32::to_string);
        }
        let hash = hash("indices", values.iter().map(|v| u64::from(*v).to_le_bytes()));
        self.pooled(hash, || Pooled::Indices(Arc::new(values.to_vec())))
    }

    fn addresses(&mut self, values: &[Address]) -> String {
        if values.len() <= INLINE {
            return list(values, address);
        }
        let word = |a: &Address| ((u64::from(a.port) << 32) | u64::from(a.index)).to_le_bytes();
        let hash = hash("addresses", values.iter().map(word));
        self.pooled(hash, || Pooled::Addresses(Arc::new(values.to_vec())))
    }

    fn pooled(&mut self, hash: ContentHash, array: impl FnOnce() -> Pooled) -> String {
        if let Some(pool) = &mut self.pool {
            pool.0.entry(hash).or_insert_with(array);
        }
        format!("#{hash}")
    }
}

fn clear_attributes(op: &ClearOp) -> Vec<(&'static str, String)> {
    match op {
        ClearOp::Linear | ClearOp::MatMul | ClearOp::Add | ClearOp::Mul => Vec::new(),
        ClearOp::Unary { chain } => vec![("chain", quoted(&chain.label()))],
        ClearOp::Softmax { axis } | ClearOp::Concat { axis } | ClearOp::Gather { axis } => {
            vec![("axis", axis.to_string())]
        }
        ClearOp::LayerNorm { epsilon } | ClearOp::RmsNorm { epsilon } => vec![("epsilon", format!("{epsilon:?}"))],
        ClearOp::Reduce { reduction: how, axis } => {
            vec![("reduction", reduction(*how).to_owned()), ("axis", axis.to_string())]
        }
        ClearOp::Reshape { shape } | ClearOp::Broadcast { shape } => vec![("shape", dims(shape))],
        ClearOp::Transpose { permutation } => vec![("permutation", dims(permutation))],
        ClearOp::Slice { axis, start, end } => {
            vec![("axis", axis.to_string()), ("start", start.to_string()), ("end", end.to_string())]
        }
    }
}

/// Facts in brief: extremes over all elements.
fn comment(facts: &Facts) -> String {
    let mut parts = Vec::new();
    let extremes = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)))
    };
    if let Some(ranges) = &facts.ranges {
        let lo = extremes(&mut ranges.lo.iter().copied()).0;
        let hi = extremes(&mut ranges.hi.iter().copied()).1;
        let rms = extremes(&mut ranges.rms.iter().copied()).1;
        parts.push(format!("range {}..{} rms {}", short(lo), short(hi), short(rms)));
    }
    if let Some(encodings) = &facts.encodings {
        let (least, most) = extremes(&mut encodings.iter().map(|e| e.scale));
        let (least, most) = (short(least), short(most));
        parts.push(if least == most { format!("scale {least}") } else { format!("scale {least}..{most}") });
    }
    if let Some(bits) = facts.noise_bits {
        parts.push(format!("bits {}", short(bits)));
    }
    parts.join(" ")
}
