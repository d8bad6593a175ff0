//! What a client bundle holds, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};
use thex_circuit::clear::{ClearGraph, ClearNode};
use thex_circuit::{ClientBundle, Port};

use crate::error::Result;

/// Operations of a graph and how many there are of each, in the order of their first use.
fn operations(graph: &ClearGraph) -> Vec<(&'static str, usize)> {
    let mut counts: Vec<(&'static str, usize)> = Vec::new();
    for node in &graph.nodes {
        let ClearNode::Apply(op, _) = node else { continue };
        match counts.iter_mut().find(|(name, _)| *name == op.mnemonic()) {
            Some((_, count)) => *count += 1,
            None => counts.push((op.mnemonic(), 1)),
        }
    }
    counts
}

/// Shapes of the tables that a graph looks up, each once.
fn tables(graph: &ClearGraph) -> Vec<Vec<usize>> {
    let mut indices: Vec<usize> = graph.look_ups().iter().map(|l| l.table).collect();
    indices.sort_unstable();
    indices.dedup();
    indices.iter().map(|&i| graph.constants[i].shape().to_vec()).collect()
}

fn bytes_of(shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * std::mem::size_of::<f64>()
}

fn constant_bytes(graph: &ClearGraph) -> usize {
    graph.constants.iter().map(|c| bytes_of(c.shape())).sum()
}

/// The least of `values` and the greatest; `None` if there are none.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |span, v| Some(span.map_or((v, v), |(lo, hi): (f64, f64)| (lo.min(v), hi.max(v)))))
}

fn graph_json(graph: &ClearGraph) -> Value {
    let counts: serde_json::Map<String, Value> =
        operations(graph).into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect();
    let tables: Vec<Value> =
        tables(graph).iter().map(|shape| json!({ "shape": shape, "bytes": bytes_of(shape) })).collect();
    json!({ "operations": counts, "constant_bytes": constant_bytes(graph), "tables": tables })
}

fn port_json(port: &Port) -> Value {
    json!({
        "name": port.name,
        "shape": port.shape,
        "elements": port.encodings.len(),
        "scale": span(port.encodings.iter().map(|e| e.scale)),
        "range": span(port.ranges.iter().flat_map(|&(lo, hi)| [lo, hi])),
        "noise": span(port.noise.iter().copied()),
    })
}

fn named_shapes(ports: &[(String, Vec<usize>)]) -> Vec<Value> {
    ports.iter().map(|(name, shape)| json!({ "name": name, "shape": shape })).collect()
}

/// One JSON object that describes a bundle.
///
/// # Errors
/// The bundle's graphs are inconsistent.
pub fn bundle_json(bundle: &ClientBundle) -> Result<Value> {
    let text = bundle.interface.text.as_ref();
    Ok(json!({
        "kind": "client bundle",
        "circuit": bundle.circuit,
        "model": bundle.model,
        "inputs": named_shapes(&bundle.prologue.inputs),
        "prologue": graph_json(&bundle.prologue),
        "encrypted": bundle.inputs.iter().map(port_json).collect::<Vec<_>>(),
        "decrypted": bundle.outputs.iter().map(port_json).collect::<Vec<_>>(),
        "epilogue": graph_json(&bundle.epilogue),
        "outputs": named_shapes(&bundle.epilogue.output_shapes()?),
        "tokenizer": text.map(|t| json!({ "bytes": t.bytes, "sha256": t.sha256, "roles": t.roles })),
        "image": bundle.interface.image,
        "labels": bundle.interface.labels,
        "frozen": bundle.interface.frozen,
    }))
}

/// One line of the text form; only the first of several lines has its title.
fn field(out: &mut String, title: &str, lines: impl IntoIterator<Item = String>) {
    for (i, line) in lines.into_iter().enumerate() {
        let _ = writeln!(out, "{:<16} {line}", if i == 0 { title } else { "" });
    }
}

fn kilobytes(bytes: usize) -> String {
    format!("{:.1} kB", bytes as f64 / 1e3)
}

fn shapes_text(ports: &[(String, Vec<usize>)]) -> Vec<String> {
    ports.iter().map(|(name, shape)| format!("{name} {shape:?}")).collect()
}

fn graph_text(graph: &ClearGraph) -> Vec<String> {
    let counts: Vec<String> = operations(graph).iter().map(|(name, count)| format!("{count} {name}")).collect();
    let first = if counts.is_empty() { "nothing to compute".to_owned() } else { counts.join(", ") };
    let table = |shape: &Vec<usize>| format!("table {shape:?}, {}", kilobytes(bytes_of(shape)));
    std::iter::once(first).chain(tables(graph).iter().map(table)).collect()
}

fn port_text(port: &Port) -> String {
    let mut text = format!("{} {:?}", port.name, port.shape);
    let between = |(lo, hi): (f64, f64)| if lo < hi { format!("{lo:.4} … {hi:.4}") } else { format!("{lo:.4}") };
    if let Some(range) = span(port.ranges.iter().flat_map(|&(lo, hi)| [lo, hi])) {
        let _ = write!(text, ", values {}", between(range));
    }
    if let Some(scale) = span(port.encodings.iter().map(|e| e.scale)) {
        let _ = write!(text, ", {} a turn of the torus", between(scale));
    }
    if let Some(noise) = span(port.noise.iter().copied()) {
        let _ = write!(text, ", error {} rms, modelled", between(noise));
    }
    text
}

fn image_text(bundle: &ClientBundle) -> Option<String> {
    let image = bundle.interface.image.as_ref()?;
    let of = |values: &[f64], default: &str| match values {
        [] => default.to_owned(),
        _ => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let inverted = if image.invert { "inverted, " } else { "" };
    Some(format!("{inverted}mean {}, std {}", of(&image.mean, "0"), of(&image.std, "1")))
}

fn tokenizer_text(bundle: &ClientBundle) -> Option<Vec<String>> {
    let text = bundle.interface.text.as_ref()?;
    let first =
        format!("{}, SHA-256 {}", kilobytes(text.tokenizer.len()), text.sha256.chars().take(16).collect::<String>());
    let role = |(name, role): &(String, thex_circuit::TokenRole)| format!("fills {name} with {role:?}").to_lowercase();
    Some(std::iter::once(first).chain(text.roles.iter().map(role)).collect())
}

/// The same for people.
///
/// # Errors
/// The bundle's graphs are inconsistent.
pub fn bundle_text(bundle: &ClientBundle) -> Result<String> {
    let mut out = String::new();
    let digest: String = bundle.circuit.chars().take(16).collect();
    let _ = writeln!(out, "{}, client bundle of circuit {digest}", bundle.model);
    field(&mut out, "inputs", shapes_text(&bundle.prologue.inputs));
    field(&mut out, "tokenizer", tokenizer_text(bundle).unwrap_or_else(|| vec!["none".into()]));
    field(&mut out, "images", image_text(bundle));
    field(&mut out, "prologue", graph_text(&bundle.prologue));
    field(&mut out, "encrypted", bundle.inputs.iter().map(port_text));
    field(&mut out, "decrypted", bundle.outputs.iter().map(port_text));
    field(&mut out, "epilogue", graph_text(&bundle.epilogue));
    field(&mut out, "outputs", shapes_text(&bundle.epilogue.output_shapes()?));
    let labels = &bundle.interface.labels;
    field(&mut out, "labels", [if labels.is_empty() { "none".to_owned() } else { labels.join(", ") }]);
    if !bundle.interface.frozen.is_empty() {
        let frozen = bundle.interface.frozen.iter();
        field(&mut out, "frozen", frozen.map(|f| format!("{} {:?}, public in the circuit", f.name, f.shape)));
    }
    Ok(out)
}
