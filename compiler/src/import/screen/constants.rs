//! Constants: their sizes are those of their data, their numbers are numbers, and their files are there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, TensorProto};

use super::{Findings, consumers, graphs};
use crate::import::error::ImportError;

/// Operators whose constants are weights. Others may hold −∞: exports write it into attention masks.
const WEIGHTED: [&str; 8] =
    ["MatMul", "Gemm", "Conv", "Einsum", "LayerNormalization", "BatchNormalization", "Gather", "Div"];

pub(super) fn check(path: &Path, graph: &GraphProto, findings: &mut Findings) {
    let mut files = BTreeMap::new();
    for (graph, _) in graphs(graph) {
        let consumers = consumers(graph);
        if !graph.sparse_initializer.is_empty() {
            findings.fault("it keeps constants in sparse form: save them as ordinary tensors");
        }
        for (name, tensor) in tensors(graph) {
            let readers = consumers.get(name.as_str());
            let read_by = |list: &[&str]| readers.is_some_and(|ops| list.iter().any(|op| ops.contains(op)));
            if !external(path, &name, tensor, &mut files, findings) {
                if let Err(fault) = size(&name, tensor) {
                    findings.fault(fault);
                } else if let Some(fault) = numbers(&name, tensor, read_by(&WEIGHTED)) {
                    findings.fault(fault);
                }
            }
        }
    }
    missing_files(path, files, findings);
}

/// Constants by name: initialisers, and what nodes carry.
fn tensors(graph: &GraphProto) -> Vec<(String, &TensorProto)> {
    let initializers = graph.initializer.iter().map(|t| (t.name.clone(), t));
    let carried = graph.node.iter().flat_map(|node| {
        let name = node.output.first().unwrap_or(&node.name).clone();
        let tensors = node.attribute.iter().flat_map(|a| a.t.iter().chain(&a.tensors));
        tensors.map(move |t| (name.clone(), t))
    });
    initializers.chain(carried).collect()
}

/// Bytes of an element, for types that are read.
fn width(data_type: i32) -> Option<usize> {
    match DataType::try_from(data_type) {
        Ok(DataType::Uint8 | DataType::Int8 | DataType::Bool) => Some(1),
        Ok(DataType::Uint16 | DataType::Int16 | DataType::Float16) => Some(2),
        Ok(DataType::Float | DataType::Int32 | DataType::Uint32) => Some(4),
        Ok(DataType::Int64 | DataType::Uint64 | DataType::Double) => Some(8),
        _ => None,
    }
}

/// Number of elements that the shape asks for; `None` when it is negative or cannot be counted.
fn elements(tensor: &TensorProto) -> Option<usize> {
    let dim = |d: &i64| usize::try_from(*d).ok();
    tensor.dims.iter().try_fold(1_usize, |n, d| n.checked_mul(dim(d)?))
}

/// Whether the data fill the shape.
fn size(name: &str, tensor: &TensorProto) -> Result<(), String> {
    let text = tensor.data_type == DataType::String as i32;
    let Some(width) = width(tensor.data_type).or(text.then_some(1)) else {
        let kind = DataType::try_from(tensor.data_type).map_or("unknown", |t| t.as_str_name()).to_lowercase();
        return Err(format!("its constant `{name}` has elements of type {kind}: save the weights as float32"));
    };
    let typed = [
        tensor.float_data.len(),
        tensor.int32_data.len(),
        tensor.int64_data.len(),
        tensor.double_data.len(),
        tensor.uint64_data.len(),
        tensor.string_data.len(),
    ];
    let held =
        if tensor.raw_data.is_empty() { typed.into_iter().max().unwrap_or(0) } else { tensor.raw_data.len() / width };
    let odd = !tensor.raw_data.len().is_multiple_of(width);
    match elements(tensor) {
        Some(wanted) if wanted == held && !odd => Ok(()),
        _ => Err(format!("its constant `{name}` has shape {:?}, but data for {held} elements", tensor.dims)),
    }
}

/// NaN anywhere, and infinite weights.
fn numbers(name: &str, tensor: &TensorProto, weight: bool) -> Option<String> {
    let bad = |v: f64| v.is_nan() || (weight && v.is_infinite());
    let (at, value) = values(tensor).enumerate().find(|(_, v)| bad(*v))?;
    Some(format!(
        "its constant `{name}` holds {value} at element {at}: look for what went wrong in training or conversion"
    ))
}

/// Elements of a real tensor; nothing for others.
fn values(tensor: &TensorProto) -> Box<dyn Iterator<Item = f64> + '_> {
    let raw = &tensor.raw_data;
    match DataType::try_from(tensor.data_type) {
        Ok(DataType::Float) => {
            let raw = raw.chunks_exact(4).map(|c| f64::from(f32::from_le_bytes(c.try_into().unwrap_or_default())));
            Box::new(raw.chain(tensor.float_data.iter().map(|v| f64::from(*v))))
        }
        Ok(DataType::Double) => {
            let raw = raw.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap_or_default()));
            Box::new(raw.chain(tensor.double_data.iter().copied()))
        }
        Ok(DataType::Float16) => {
            let raw = raw.chunks_exact(2).map(|c| half(u16::from_le_bytes(c.try_into().unwrap_or_default())));
            Box::new(raw)
        }
        _ => Box::new(std::iter::empty()),
    }
}

/// NaN, infinity, or 0 for everything else: what the checks ask about.
fn half(bits: u16) -> f64 {
    match (bits & 0x7c00 == 0x7c00, bits & 0x3ff, bits >> 15) {
        (false, ..) => 0.0,
        (true, 0, 0) => f64::INFINITY,
        (true, 0, _) => f64::NEG_INFINITY,
        (true, ..) => f64::NAN,
    }
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str())
}

/// Looks at a tensor that is kept in another file: whether it is one. Missing files are collected, with their tensors.
fn external(
    path: &Path,
    name: &str,
    tensor: &TensorProto,
    missing: &mut BTreeMap<String, (&'static str, BTreeSet<String>)>,
    findings: &mut Findings,
) -> bool {
    let Some(location) = entry(tensor, "location") else { return false };
    let mut reject = |reason| {
        missing.entry(location.to_owned()).or_insert((reason, BTreeSet::new())).1.insert(name.to_owned());
    };
    if Path::new(location).components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        reject("lies outside the model's folder; save the model again with its weights inside");
        return true;
    }
    let file = path.parent().unwrap_or(Path::new("")).join(location);
    let Some(length) = std::fs::metadata(&file).ok().filter(std::fs::Metadata::is_file).map(|m| m.len()) else {
        reject("is missing; copy it next to the model, or save the model as a single file");
        return true;
    };
    let number = |key: &str, or: u64| entry(tensor, key).map_or(Some(or), |text| text.parse().ok());
    let wanted = elements(tensor).zip(width(tensor.data_type)).and_then(|(n, width)| n.checked_mul(width));
    let fits = number("offset", 0).zip(wanted).is_some_and(|(offset, wanted)| {
        let kept = number("length", wanted as u64);
        kept == Some(wanted as u64) && offset.checked_add(wanted as u64).is_some_and(|end| end <= length)
    });
    if !fits {
        findings.fault(format!(
            "its constant `{name}` has shape {:?}, which is not what `{location}` ({length} bytes) keeps for it: copy the file again",
            tensor.dims
        ));
    }
    true
}

fn missing_files(path: &Path, files: BTreeMap<String, (&'static str, BTreeSet<String>)>, findings: &mut Findings) {
    for (location, (reason, tensors)) in files {
        let more = match tensors.len() {
            0 | 1 => String::new(),
            n => format!(" ({} more constants are kept there)", n - 1),
        };
        findings.external.push(ImportError::ExternalData {
            path: path.to_owned(),
            tensor: tensors.into_iter().next().unwrap_or_default(),
            location,
            reason: format!("{reason}{more}"),
        });
    }
}
