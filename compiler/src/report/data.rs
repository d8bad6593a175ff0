//! The data behind `thex report`: what the compiler knew about a model and a circuit cannot say.
//!
//! `compile` writes it beside the circuit, as `OUT.report.json`. **It is not needed to run**: only the report reads it, and
//! `verify` its recipe. It stays small, since it summarises: ranges of at most [`MOST_CHANNELS`] channels of a tensor, numbers in four digits.
//!
//! Nodes are those of the calibrated graph, which is still readable: tensors with ONNX names and ranges. What the
//! circuit does for each is attached to it; the lowering names every homomorphic node after the tensor that it computes, so the
//! longest name that a homomorphic node's name continues is its tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thex_circuit::file::read_limited;
use thex_circuit::instruction::Linear;
use thex_circuit::{Circuit, CircuitError, Instruction};
use thex_ir::graph::{Ranges, Seen};
use thex_ir::{ClearOp, Graph, HeOp, Node, NodeId, Op};
use thex_passes::{ErrorSource, PassRecord, Precision, Profile, registry};

use super::noise::CiphertextNoise;
use crate::emit::layer_of;
use crate::error::{CompileError, Result};
use crate::pipeline::{CompileOptions, Compiled};

/// What the file's name ends in.
pub const SUFFIX: &str = ".report.json";

/// Version of the format.
pub const VERSION: u32 = 1;

/// Channels of a tensor whose ranges are kept, spread evenly over all.
pub const MOST_CHANNELS: usize = 64;

/// Largest file that is read.
const MOST_BYTES: u64 = 64 << 20;

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportData {
    /// [`VERSION`].
    pub version: u32,
    /// Digest of the circuit.
    pub circuit: String,
    /// What each pass did, in order.
    pub passes: Vec<PassRow>,
    /// The tensors, in execution order.
    pub nodes: Vec<NodeRow>,
    /// Where the modelled output error comes from, the largest source first.
    pub error_sources: Vec<SourceRow>,
    /// How to compile the circuit again.
    #[serde(default)]
    pub recipe: Option<Recipe>,
}

/// The options that decide a circuit, for `thex verify`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Calibration data, as the command line named them.
    pub calibration: PathBuf,
    /// The profile's name.
    pub profile: String,
    /// Forms of single nodes.
    pub approximate: Vec<String>,
    /// Shapes that were given.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Goal for the modelled error.
    pub output_error: f64,
    /// Widening of ranges.
    pub margin: f64,
    /// Inputs that are constants.
    pub freeze: BTreeMap<String, Option<f64>>,
    /// Settings of passes.
    pub pass_options: Vec<String>,
}

impl Recipe {
    /// Of a compilation.
    #[must_use]
    pub fn new(options: &CompileOptions) -> Self {
        Self {
            calibration: options.calibration.clone(),
            profile: options.profile.name().to_owned(),
            approximate: options.approximate.clone(),
            shapes: options.shapes.clone(),
            output_error: options.precision.output_error,
            margin: options.precision.margin,
            freeze: options.freeze.clone(),
            pass_options: options.pass_options.clone(),
        }
    }

    /// The compilation of a model by the recipe; `calibration` overrules where the data are.
    #[must_use]
    pub fn options(&self, model: &Path, calibration: Option<&Path>) -> CompileOptions {
        let profiles = [Profile::Exact, Profile::TheX];
        CompileOptions {
            model: model.to_owned(),
            calibration: calibration.unwrap_or(&self.calibration).to_owned(),
            profile: profiles.into_iter().find(|p| p.name() == self.profile).unwrap_or_default(),
            approximate: self.approximate.clone(),
            shapes: self.shapes.clone(),
            precision: Precision { output_error: self.output_error, margin: self.margin },
            freeze: self.freeze.clone(),
            pass_options: self.pass_options.clone(),
            ..CompileOptions::default()
        }
    }
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassRow {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Nodes before and after.
    pub nodes: (usize, usize),
    /// How long it took.
    pub milliseconds: f64,
    /// Its counters.
    pub counters: BTreeMap<String, u64>,
    /// What it approximated.
    pub approximations: Vec<String>,
    /// What it noted about its rewrites.
    pub notes: Vec<String>,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// What computes it.
    pub op: String,
    /// The function, where the operation is one of one variable.
    pub function: Option<String>,
    /// Its shape.
    pub shape: Vec<usize>,
    /// "input", "layer 0", ..., "head".
    pub group: String,
    /// ONNX nodes that it came from.
    pub onnx: Vec<String>,
    /// Tensors that it is computed from, as indices of this list.
    pub operands: Vec<usize>,
    /// What passes decided about it.
    pub notes: Vec<NoteRow>,
    /// Its calibrated range.
    pub range: Option<RangeRow>,
    /// What the circuit does for it.
    pub steps: Vec<StepRow>,
}

/// What a pass decided about a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoteRow {
    /// The pass.
    pub pass: String,
    /// Whether it changes the function.
    pub approximates: bool,
    /// What it says.
    pub text: String,
}

/// Calibrated ranges of a tensor's channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RangeRow {
    /// How many channels.
    pub channels: usize,
    /// Least and greatest value of any channel, margins included.
    pub extent: (f64, f64),
    /// The same without margins.
    pub seen: (f64, f64),
    /// Least, median and greatest width of a channel's range, margins included.
    pub width: [f64; 3],
    /// Where in its range (0 to 1) a channel's seen values start (least and median channel) and end (median and greatest).
    pub position: [f64; 4],
    /// Lowest, highest, lowest seen, highest seen, for at most [`MOST_CHANNELS`] channels.
    pub bars: Vec<[f64; 4]>,
}

/// A homomorphic operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub op: String,
    /// Number of the circuit's instruction; encryption and decryption have none.
    pub instruction: Option<usize>,
    /// Elements that it makes.
    pub elements: usize,
    /// Blind rotations.
    pub pbs: u64,
    /// Packed ciphertexts.
    pub packs: u64,
    /// Slots of a packed ciphertext.
    pub slots: Option<usize>,
    /// Least and greatest log2 Δ: turns of the torus for one unit of the value.
    pub delta_log2: Option<(f64, f64)>,
    /// Positions of a look-up's argument: all of the table's, or those of one slot's box.
    pub positions: Option<usize>,
    /// ν of a look-up's argument, where it has an extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<u32>,
    /// Bits of the range that stand above the modelled noise of the ciphertext, for the worst element.
    pub noise_bits: Option<f64>,
    /// log2 of the largest integer weight.
    pub weight_log2: Option<f64>,
    /// Bits of the integer weights, sign included, of an output channel: least, median, greatest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_bits: Option<[u32; 3]>,
}

/// A source of the output error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceRow {
    /// What happens there.
    pub kind: String,
    /// The homomorphic operation.
    pub step: String,
    /// Its tensor, as an index of the nodes.
    pub node: Option<usize>,
    /// Variance that it adds to an output element, in units of the output squared.
    pub variance: f64,
}

/// Four significant digits: more would only make the file longer.
fn short(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The data of a compilation. The recipe is for whoever knows the options.
#[must_use]
pub fn collect(compiled: &Compiled) -> ReportData {
    let tensors = Tensors::new(&compiled.calibrated);
    let mut nodes: Vec<NodeRow> = tensors.ids.iter().map(|&id| tensors.row(id, &compiled.records)).collect();
    steps(compiled, &tensors, &mut nodes);
    let error_sources = compiled.error_sources.iter().map(|s| source(s, &tensors)).collect();
    let circuit = compiled.emitted.bundle.circuit.clone();
    ReportData { version: VERSION, circuit, passes: passes(&compiled.records), nodes, error_sources, recipe: None }
}

fn passes(records: &[PassRecord]) -> Vec<PassRow> {
    let pipeline = registry::pipeline();
    let description = |name: &str| pipeline.iter().find(|p| p.name() == name).map_or("", |p| p.description());
    let row = |r: &PassRecord| PassRow {
        name: r.pass.to_owned(),
        description: description(r.pass).to_owned(),
        nodes: r.nodes,
        milliseconds: short(r.elapsed.as_secs_f64() * 1e3),
        counters: r.counters.iter().map(|&(name, n)| (name.to_owned(), n)).collect(),
        approximations: r.approximations.clone(),
        notes: r.notes.clone(),
    };
    records.iter().map(row).collect()
}

/// The tensors of the calibrated graph.
struct Tensors<'a> {
    graph: &'a Graph,
    ids: Vec<NodeId>,
    index: BTreeMap<NodeId, usize>,
    by_name: BTreeMap<&'a str, usize>,
    groups: Vec<String>,
}

impl<'a> Tensors<'a> {
    fn new(graph: &'a Graph) -> Self {
        let is_tensor = |id: &NodeId| !matches!(graph.node(*id).op, Op::Constant(_));
        let ids: Vec<NodeId> = graph.topological().into_iter().filter(is_tensor).collect();
        let index: BTreeMap<NodeId, usize> = ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let by_name = ids.iter().enumerate().map(|(i, &id)| (graph.node(id).name.as_str(), i)).collect();
        let mut tensors = Self { graph, ids, index, by_name, groups: Vec::new() };
        tensors.groups = tensors.group();
        tensors
    }

    fn operands(&self, id: NodeId) -> Vec<usize> {
        self.graph.operands(id).iter().filter_map(|o| self.index.get(o).copied()).collect()
    }

    /// The layer of each tensor. What belongs to none is the head if it follows a layer, else the input.
    fn group(&self) -> Vec<String> {
        let mut groups: Vec<String> = Vec::new();
        for &id in &self.ids {
            let node = self.graph.node(id);
            let layer = layer_of(&node.origin, &node.name);
            let follows = self.operands(id).iter().any(|&o| groups[o] != "input");
            groups.push(match (layer.as_str(), follows) {
                ("model", true) => "head".into(),
                ("model", false) => "input".into(),
                _ => layer,
            });
        }
        groups
    }

    /// The tensor that a homomorphic node is named after.
    fn of_step(&self, name: &str) -> Option<usize> {
        let mut prefix = name;
        loop {
            if let Some(&index) = self.by_name.get(prefix) {
                return Some(index);
            }
            prefix = prefix.rsplit_once('.')?.0;
        }
    }

    fn row(&self, id: NodeId, records: &[PassRecord]) -> NodeRow {
        let node = self.graph.node(id);
        let function = match &node.op {
            Op::Clear(ClearOp::Unary { chain }) => Some(chain.label()),
            Op::Input | Op::Constant(_) | Op::Clear(_) | Op::He(_) => None,
        };
        NodeRow {
            name: node.name.clone(),
            op: node.op.mnemonic().to_owned(),
            function,
            shape: node.shape.clone(),
            group: self.groups[self.index[&id]].clone(),
            onnx: node.origin.clone(),
            operands: self.operands(id),
            notes: self.notes(&node.name, records),
            range: node.facts.ranges.as_deref().zip(node.facts.seen.as_deref()).and_then(|(r, s)| range(r, s)),
            steps: Vec::new(),
        }
    }

    /// What passes said about a tensor: lines that start with its name, or with a name that no tensor has any more and
    /// that its own continues.
    fn notes(&self, name: &str, records: &[PassRecord]) -> Vec<NoteRow> {
        let concerns = |subject: &str| {
            subject == name
                || !self.by_name.contains_key(subject)
                    && name.strip_prefix(subject).is_some_and(|rest| rest.starts_with('.'))
        };
        let mut notes = Vec::new();
        for record in records {
            let approximations = record.approximations.iter().map(|line| (line, true));
            for (line, approximates) in approximations.chain(record.notes.iter().map(|line| (line, false))) {
                if let Some((_, text)) = line.split_once(": ").filter(|(subject, _)| concerns(subject)) {
                    notes.push(NoteRow { pass: record.pass.to_owned(), approximates, text: text.to_owned() });
                }
            }
        }
        notes
    }
}

/// Of three numbers or more, sorted: the least, the middle one, the greatest.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().map_or(0.0, short);
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}

fn range(ranges: &Ranges, seen: &Seen) -> Option<RangeRow> {
    let channels = ranges.lo.iter().zip(&ranges.hi).zip(seen.lo.iter().zip(&seen.hi));
    let bars: Vec<[f64; 4]> =
        channels.map(|((a, b), (c, d))| [*a, *b, *c, *d]).filter(|b| b.iter().all(|v| v.is_finite())).collect();
    if bars.is_empty() {
        return None;
    }
    let least = |i: usize| bars.iter().map(|b| b[i]).fold(f64::INFINITY, f64::min);
    let most = |i: usize| bars.iter().map(|b| b[i]).fold(f64::NEG_INFINITY, f64::max);
    let position =
        |i: usize| spread(bars.iter().map(|b| if b[1] > b[0] { (b[i] - b[0]) / (b[1] - b[0]) } else { 0.5 }).collect());
    let (starts, ends) = (position(2), position(3));
    Some(RangeRow {
        channels: bars.len(),
        extent: (short(least(0)), short(most(1))),
        seen: (short(least(2)), short(most(3))),
        width: spread(bars.iter().map(|b| b[1] - b[0]).collect()),
        position: [starts[0], starts[1], ends[1], ends[2]],
        bars: bars.iter().step_by(bars.len().div_ceil(MOST_CHANNELS)).map(|b| b.map(short)).collect(),
    })
}

/// Attaches the placed graph's operations to their tensors.
fn steps(compiled: &Compiled, tensors: &Tensors<'_>, nodes: &mut [NodeRow]) {
    let circuit = &compiled.emitted.circuit;
    let noise = CiphertextNoise::new(&compiled.placed, &circuit.parameters);
    let numbers: BTreeMap<&str, usize> =
        circuit.provenance.iter().enumerate().map(|(i, p)| (p.name.as_str(), i)).collect();
    for id in compiled.placed.topological() {
        let node = compiled.placed.node(id);
        let Op::He(op) = &node.op else { continue };
        if let Some(index) = tensors.of_step(&node.name) {
            let bits = noise.bits(id).map(short);
            nodes[index].steps.push(step(node, op, numbers.get(node.name.as_str()).copied(), circuit, bits));
        }
    }
}

fn step(node: &Node, op: &HeOp, number: Option<usize>, circuit: &Circuit, noise_bits: Option<f64>) -> StepRow {
    let instruction = number.map(|i| &circuit.instructions[i]);
    let slots = match op {
        HeOp::Pack { slots, .. } | HeOp::LutProduct { slots, .. } => Some(*slots),
        HeOp::Encrypt | HeOp::Linear { .. } | HeOp::Keyswitch { .. } | HeOp::Pbs { .. } | HeOp::Decrypt { .. } => None,
    };
    let domain = match op {
        HeOp::Keyswitch { domain, .. } => Some(*domain),
        _ => None,
    };
    let largest = node.facts.integers.as_ref().and_then(|w| w.iter().map(|w| w.unsigned_abs()).max());
    StepRow {
        name: node.name.clone(),
        op: op.mnemonic().to_owned(),
        instruction: number,
        elements: node.shape.iter().product(),
        pbs: instruction.map_or(0, Instruction::pbs_count),
        packs: instruction.map_or(0, Instruction::pack_count),
        slots,
        delta_log2: delta_log2(node),
        positions: domain.map(|d| d.positions),
        extension: domain.map(|d| d.extension).filter(|e| *e > 0),
        noise_bits,
        weight_log2: largest.filter(|w| *w > 0).map(|w| short(f64::from(w).log2())),
        weight_bits: instruction.and_then(weight_bits),
    }
}

/// Bits that the largest weight of an output takes: least, median and greatest over the outputs that have weights.
fn weight_bits(instruction: &Instruction) -> Option<[u32; 3]> {
    let Instruction::Linear(Linear { operands, weights, .. }) = instruction else { return None };
    let largest = |row: &[i32]| row.iter().map(|w| w.unsigned_abs()).max().filter(|w| *w > 0);
    let rows = weights.chunks_exact((*operands as usize).max(1)).filter_map(largest);
    let mut bits: Vec<u32> = rows.map(|w| w.ilog2() + 2).collect();
    bits.sort_unstable();
    Some([*bits.first()?, bits[bits.len() / 2], *bits.last()?])
}

fn delta_log2(node: &Node) -> Option<(f64, f64)> {
    let scales: Vec<f64> = node.facts.encodings.as_ref()?.iter().map(|e| e.scale).collect();
    let [least, _, most] = spread(scales);
    (least > 0.0).then(|| (short(-most.log2()), short(-least.log2())))
}

fn source(source: &ErrorSource, tensors: &Tensors<'_>) -> SourceRow {
    SourceRow {
        kind: source.kind.to_owned(),
        step: source.node.clone(),
        node: tensors.of_step(&source.node),
        variance: short(source.variance),
    }
}

impl ReportData {
    /// The file.
    ///
    /// # Errors
    /// [`CompileError::Internal`] when it cannot be written as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| CompileError::Internal(format!("report data: {e}")))
    }

    /// Reads the file and checks that it is of this version and circuit.
    ///
    /// # Errors
    /// It cannot be read, is something else, or belongs to another circuit.
    pub fn load(path: &Path, circuit: &str) -> Result<Self> {
        Self::read(path, &read_limited(path, MOST_BYTES)?, circuit)
    }

    /// The same from bytes; `path` is what errors call them.
    ///
    /// # Errors
    /// As [`ReportData::load`].
    pub fn read(path: &Path, bytes: &[u8], circuit: &str) -> Result<Self> {
        let malformed = |reason: String| CircuitError::Malformed { path: path.to_owned(), kind: "report file", reason };
        let data: Self = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
        if data.version != VERSION {
            let reason =
                format!("it has version {}, this program reads {VERSION}; compile the model again", data.version);
            return Err(malformed(reason).into());
        }
        if data.circuit != circuit {
            return Err(CompileError::Circuit(CircuitError::Mismatch {
                left: format!("`{}`", path.display()),
                right: "the circuit beside it".into(),
                reason: "they come from different compilations; compile the model again".into(),
            }));
        }
        Ok(data)
    }
}
