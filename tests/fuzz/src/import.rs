//! Fuzzing of `thex::import::import`: one target, one structure-aware mutation, used by libFuzzer and by a plain loop.
//!
//! Bytes changed at random hardly ever get past the protobuf decoder. So a model is decoded, changed where it means something
//! (operators, wiring, shapes, attributes, constants), and encoded again; one time in eight a byte is changed as well.
//!
//! The corpus is `tests/models/exports`. A finding is a panic, an abort, a case that takes longer than [`MOST_SECONDS`], memory
//! beyond the limit that the caller sets, or an error that calls itself a bug of thex (different numbers excepted).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use prost::Message;
use thex::import::{Dim, ImportError, ImportOptions, import, inputs};
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, tensor_shape_proto, type_proto};

use crate::random::Random;

/// No small model may take longer.
pub const MOST_SECONDS: u64 = 20;

/// What the import's own check says of different numbers. Mutated models divide by almost 0, or have weights of 10^30, and then
/// single and double precision differ; the plain loop's first findings were all of that kind, so that they are left out here.
const NUMERIC: &str = "the imported graph and the model differ by";

/// Tokens for every symbol but the first.
const TOKENS: usize = 6;

/// Imports a file that holds `bytes`.
///
/// # Panics
/// On a finding.
pub fn target(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("the scratch file can be written");
    let start = Instant::now();
    let Ok(inputs) = inputs(path) else { return };
    let dim = |(i, dim): (usize, &Dim)| match dim {
        Dim::Fixed(n) => *n,
        Dim::Symbol(_) => [1, TOKENS][i.min(1)],
    };
    let shapes: BTreeMap<String, Vec<usize>> =
        inputs.iter().map(|i| (i.name.clone(), i.dims.iter().enumerate().map(dim).collect())).collect();
    match import(path, &ImportOptions { shapes }) {
        Err(ImportError::Internal(reason)) if !reason.contains(NUMERIC) => panic!("internal error: {reason}"),
        _ => {}
    }
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_secs(MOST_SECONDS), "took {elapsed:?}");
}

/// Numbers that make trouble.
const NUMBERS: [i64; 16] = [0, 1, -1, 2, 3, 4, 6, 7, 16, 255, 1 << 20, 1 << 31, 1 << 33, 1 << 40, i64::MAX, i64::MIN];

/// Operators that the frontend knows, or refuses.
const OPERATORS: [&str; 58] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "MatMul",
    "Gemm",
    "Einsum",
    "Softmax",
    "LogSoftmax",
    "LayerNormalization",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceL2",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Concat",
    "Split",
    "Slice",
    "Gather",
    "GatherElements",
    "GatherND",
    "Expand",
    "Tile",
    "Pad",
    "Range",
    "ConstantOfShape",
    "Shape",
    "Size",
    "Cast",
    "Where",
    "Equal",
    "Less",
    "Greater",
    "And",
    "Not",
    "Relu",
    "Gelu",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Exp",
    "Log",
    "Sqrt",
    "Reciprocal",
    "Clip",
    "Identity",
    "CumSum",
    "Trilu",
    "Conv",
    "TopK",
    "NonZero",
];

/// Changes a model in one to four places. Bytes that are no model are changed blindly.
#[must_use]
pub fn mutate(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let Ok(mut model) = ModelProto::decode(bytes) else {
        return scratch(bytes.to_vec(), random);
    };
    for _ in 0..=random.below(4) {
        if let Some(graph) = &mut model.graph {
            change(graph, random);
        }
    }
    let bytes = model.encode_to_vec();
    if random.below(8) == 0 { scratch(bytes, random) } else { bytes }
}

/// Changes one byte.
fn scratch(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    let value = random.next() as u8;
    if let Some(byte) = random.pick_mut(&mut bytes) {
        *byte = value;
    }
    bytes
}

fn change(graph: &mut GraphProto, random: &mut Random) {
    match random.below(12) {
        0 => replace_operator(graph, random),
        1 | 2 => rewire(graph, random),
        3 => remove_node(graph, random),
        4 => repeat_node(graph, random),
        5 | 6 => attribute(graph, random),
        7 | 8 => constant(graph, random),
        9 => port(graph, random),
        10 => output(graph, random),
        _ => insert_node(graph, random),
    }
}

/// Names of all tensors.
fn tensors(graph: &GraphProto) -> Vec<String> {
    let inputs = graph.input.iter().map(|i| i.name.clone());
    let constants = graph.initializer.iter().map(|i| i.name.clone());
    let computed = graph.node.iter().flat_map(|n| n.output.iter().cloned());
    inputs.chain(constants).chain(computed).collect()
}

fn operator(random: &mut Random) -> String {
    random.pick(&OPERATORS).copied().unwrap_or_default().to_owned()
}

fn replace_operator(graph: &mut GraphProto, random: &mut Random) {
    let op = operator(random);
    if let Some(node) = random.pick_mut(&mut graph.node) {
        node.op_type = op;
    }
}

fn rewire(graph: &mut GraphProto, random: &mut Random) {
    let name = random.pick(&tensors(graph)).cloned().unwrap_or_default();
    let Some(node) = random.pick_mut(&mut graph.node) else { return };
    match random.below(6) {
        0 => node.input.push(name),
        1 => drop(node.input.pop()),
        _ => {
            if let Some(input) = random.pick_mut(&mut node.input) {
                *input = name;
            }
        }
    }
}

/// Removes a node; what it made is its first operand from now on, mostly.
fn remove_node(graph: &mut GraphProto, random: &mut Random) {
    if graph.node.is_empty() {
        return;
    }
    let removed = graph.node.remove(random.below(graph.node.len()));
    let (Some(old), Some(new)) = (removed.output.first(), removed.input.first()) else { return };
    if random.below(4) > 0 {
        let uses = graph.node.iter_mut().flat_map(|n| n.input.iter_mut());
        uses.filter(|i| *i == old).for_each(|i| i.clone_from(new));
    }
}

fn repeat_node(graph: &mut GraphProto, random: &mut Random) {
    let Some(mut node) = random.pick(&graph.node).cloned() else { return };
    let fresh = format!("fuzz{}", graph.node.len());
    let old = node.output.first().cloned().unwrap_or_default();
    node.name.clone_from(&fresh);
    node.output = vec![fresh.clone()];
    graph.node.push(node);
    let mut users: Vec<&mut String> =
        graph.node.iter_mut().flat_map(|n| n.input.iter_mut()).filter(|i| **i == old).collect();
    if let Some(user) = random.pick_mut(&mut users) {
        **user = fresh;
    }
}

fn attribute(graph: &mut GraphProto, random: &mut Random) {
    let number = random.pick(&NUMBERS).copied().unwrap_or_default();
    let Some(node) = random.pick_mut(&mut graph.node) else { return };
    if random.below(8) == 0 {
        node.attribute.pop();
    }
    let Some(attribute) = random.pick_mut(&mut node.attribute) else { return };
    match random.below(4) {
        0 => attribute.i = number,
        1 => attribute.ints.push(number),
        2 => attribute.f = number as f32,
        _ => match (random.pick_mut(&mut attribute.ints), &mut attribute.t) {
            (Some(i), _) => *i = number,
            (None, Some(tensor)) => fill(tensor, random),
            (None, None) => attribute.i = number,
        },
    }
}

fn constant(graph: &mut GraphProto, random: &mut Random) {
    if let Some(tensor) = random.pick_mut(&mut graph.initializer) {
        fill(tensor, random);
    }
}

/// Changes a number, the shape (keeping the data or not), or the element type.
fn fill(tensor: &mut TensorProto, random: &mut Random) {
    let number = random.pick(&NUMBERS).copied().unwrap_or_default();
    match random.below(6) {
        0 => tensor.data_type = random.below(17) as i32,
        1 => {
            if let Some(dim) = random.pick_mut(&mut tensor.dims) {
                *dim = number;
            }
        }
        2 => tensor.dims.reverse(),
        3 => tensor.dims.insert(0, 1),
        _ if tensor.data_type == 7 && tensor.raw_data.len() >= 8 => {
            let at = 8 * random.below(tensor.raw_data.len() / 8);
            tensor.raw_data[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        // Real weights keep their size: those of 10^30 only show that single precision rounds.
        _ if tensor.data_type == 1 && tensor.raw_data.len() >= 4 => {
            let at = 4 * random.below(tensor.raw_data.len() / 4);
            tensor.raw_data[at + random.below(2)] = random.next() as u8;
        }
        _ => tensor.raw_data = scratch(std::mem::take(&mut tensor.raw_data), random),
    }
}

fn port(graph: &mut GraphProto, random: &mut Random) {
    let number = random.pick(&NUMBERS).copied().unwrap_or_default();
    let Some(port) = random.pick_mut(&mut graph.input) else { return };
    let Some(tensor) = tensor_type(port) else { return };
    match (random.below(4), &mut tensor.shape) {
        (0, _) => tensor.elem_type = random.below(17) as i32,
        (_, Some(shape)) => {
            if let Some(dim) = random.pick_mut(&mut shape.dim) {
                dim.value = Some(tensor_shape_proto::dimension::Value::DimValue(number.min(64)));
            }
        }
        (_, None) => {}
    }
}

fn tensor_type(port: &mut ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    match port.r#type.as_mut()?.value.as_mut()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
    }
}

/// Any tensor may be an output.
fn output(graph: &mut GraphProto, random: &mut Random) {
    let name = random.pick(&tensors(graph)).cloned().unwrap_or_default();
    let extra = random.below(2) == 0;
    let Some(output) = graph.output.first().cloned() else { return };
    let output = ValueInfoProto { name, ..output };
    if extra {
        graph.output.push(output);
    } else {
        graph.output[0] = output;
    }
}

/// A new node between a tensor and one of its users.
fn insert_node(graph: &mut GraphProto, random: &mut Random) {
    let names = tensors(graph);
    let count = 1 + random.below(3);
    let input: Vec<String> = (0..count).filter_map(|_| random.pick(&names).cloned()).collect();
    let fresh = format!("fuzz{}", graph.node.len());
    let op_type = operator(random);
    let node = NodeProto { name: fresh.clone(), op_type, input, output: vec![fresh.clone()], ..NodeProto::default() };
    graph.node.push(node);
    let Some(user) = random.pick_mut(&mut graph.node) else { return };
    if let Some(input) = random.pick_mut(&mut user.input) {
        *input = fresh;
    }
}
