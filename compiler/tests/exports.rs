//! Transformers as many exporters write them: each must import to a few high-level operations and agree with the outputs
//! that onnxruntime stored beside it.
//!
//! The small ones are kept in `tests/models/exports` (`generate.py` there made them); larger ones lie outside the
//! repository, and are skipped where they are not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, Axis};
use thex::import::{ImportError, ImportOptions, Imported, import, inputs};
use thex_ir::{Graph, Op, interpret};
use thex_runtime::npz;
use tract_onnx::prelude::Framework;

/// Largest difference from onnxruntime, relative to the largest output where that is above 1.
const TOLERANCE: f64 = 1e-4;

/// The same where onnxruntime computed in half precision.
const HALF_TOLERANCE: f64 = 2e-3;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A path outside the repository; `None`, with a printed line, when it is not there.
fn shared(path: &str) -> Option<PathBuf> {
    let found = root("../shared").join(path);
    if found.exists() {
        return Some(found);
    }
    println!("skipped: {path} is not there");
    None
}

/// The models of a folder that have arrays beside them, by name.
fn pairs(folder: &Path) -> Vec<(String, PathBuf, PathBuf)> {
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    let models = models.into_iter().filter(|path| path.extension().is_some_and(|e| e == "onnx"));
    models
        .map(|m| (m.file_stem().unwrap().to_string_lossy().into_owned(), m.clone(), m.with_extension("npz")))
        .collect()
}

type Arrays = Vec<(String, ArrayD<f64>)>;

fn import_for(model: &Path, arrays: &Arrays) -> Result<Imported, ImportError> {
    let batch_of_one = |array: &ArrayD<f64>| [&[1], &array.shape()[1..]].concat();
    let shapes = arrays.iter().map(|(name, array)| (name.clone(), batch_of_one(array))).collect();
    import(model, &ImportOptions { shapes })
}

/// Input arrays of a data set.
fn read_inputs(model: &Path, data: &Path) -> Arrays {
    let infos = inputs(model).unwrap();
    let names: Vec<&str> = infos.iter().map(|i| i.name.as_str()).collect();
    npz::read(data, &names).unwrap()
}

/// Largest difference between the graph's outputs and the arrays `expected(name)`, over at most `limit` samples.
fn difference(graph: &Graph, arrays: &Arrays, expected: &Arrays, limit: usize) -> f64 {
    let batch = |(_, array): (String, ArrayD<f64>)| Arc::new(array.insert_axis(Axis(0)));
    let mut worst = 0.0_f64;
    for index in 0..npz::samples(arrays).min(limit) {
        let sample = npz::sample(arrays, index).unwrap().into_iter().map(batch).collect::<Vec<_>>();
        let outputs = interpret::run(graph, &sample).unwrap();
        for (name, their) in npz::sample(expected, index).unwrap() {
            let position = graph.outputs.iter().position(|(output, _)| name.ends_with(output.as_str()));
            let ours = &outputs[position.unwrap_or_else(|| panic!("no output for `{name}`"))];
            let their = their.insert_axis(Axis(0));
            assert_eq!(ours.shape(), their.shape(), "{name}");
            let scale = their.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
            worst = ours.iter().zip(&their).fold(worst, |m, (a, b)| m.max((a - b).abs() / scale));
        }
    }
    worst
}

/// Number of nodes of each operation, constants left out.
fn operations(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for id in graph.ids().filter(|id| !matches!(graph.node(*id).op, Op::Constant(_) | Op::Input)) {
        *counts.entry(graph.node(id).op.mnemonic()).or_default() += 1;
    }
    counts
}

fn onnx_nodes(model: &Path) -> usize {
    tract_onnx::onnx().proto_model_for_path(model).unwrap().graph.unwrap().node.len()
}

/// Imports a model, compares it with `expected`, and gives its operations.
fn agrees(
    name: &str,
    model: &Path,
    data: &Path,
    expected: &[&str],
    limit: usize,
) -> Option<BTreeMap<&'static str, usize>> {
    let arrays = read_inputs(model, data);
    let graph = match import_for(model, &arrays) {
        Ok(imported) => imported.graph,
        Err(error) => {
            println!("{name}: {error}");
            return None;
        }
    };
    thex_ir::verify::verify(&graph, &thex_ir::verify::VerifyOptions::default()).unwrap();
    let expected: Vec<String> = match expected {
        [] => graph.outputs.iter().map(|(name, _)| format!("expected_{name}")).collect(),
        names => names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let expected = npz::read(data, &expected.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let worst = difference(&graph, &arrays, &expected, limit);
    let operations = operations(&graph);
    let total: usize = operations.values().sum();
    println!("| {name} | {} | {total} | {worst:.1e} |", onnx_nodes(model));
    let tolerance = if name.starts_with("half") { HALF_TOLERANCE } else { TOLERANCE };
    (worst < tolerance).then_some(operations)
}

#[test]
fn kept_exports_agree_with_onnxruntime() {
    let mut summary = String::new();
    for (name, model, data) in pairs(&root("tests/models/exports")) {
        let operations = agrees(&name, &model, &data, &[], 1).unwrap_or_default();
        let shown: Vec<String> = operations.iter().map(|(op, n)| format!("{op} {n}")).collect();
        writeln!(summary, "{name}: {}", shown.join(", ")).unwrap();
    }
    assert!(!summary.contains(": \n"), "{summary}");
    insta::assert_snapshot!(summary);
}

#[test]
fn shared_exports_agree_with_onnxruntime() {
    let Some(folder) = shared("models/exports") else { return };
    for (name, model, data) in pairs(&folder) {
        assert!(agrees(&name, &model, &data, &[], 1).is_some(), "{name}");
    }
}

#[test]
fn the_real_bert_tiny_agrees_with_pytorch() {
    let Some(model) = shared("models/bert_tiny_sst2_encoder.onnx") else { return };
    for tokens in ["10", "17b", "21", "27"] {
        let Some(data) = shared(&format!("data/bert_tiny_sst2_t{tokens}.npz")) else { continue };
        let name = format!("bert_tiny_sst2_encoder, {tokens} tokens");
        assert!(agrees(&name, &model, &data, &["logits"], 1).is_some(), "{name}");
    }
}

/// 90 MB of real weights, imported once.
#[test]
fn the_real_minilm_agrees_with_onnxruntime() {
    let Some(model) = shared("models/minilm_sst2_op17.onnx") else { return };
    let Some(data) = shared("data/minilm_sst2_t16_dev.npz") else { return };
    let expected = ["expected_sentence_embedding", "expected_logits"];
    assert!(agrees("minilm_sst2_op17", &model, &data, &expected, 3).is_some());
}
