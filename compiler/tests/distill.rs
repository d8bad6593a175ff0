//! `thex distill`: the student does better than before, compiles, is reproducible, survives an interruption; bad input is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ndarray::{Array1, Array4};
use ndarray_npy::NpzWriter;
use prost::Message;
use serde_json::Value;
use thex::pipeline::{CompileOptions, compile};
use thex_passes::Profile;
use tract_onnx::pb::ModelProto;

/// A vision transformer of one layer, width 16, five tokens, four classes.
const MODEL: &str = "tests/models/exports/patches_legacy17.onnx";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn thex(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thex"));
    command.args(arguments);
    command
}

/// Numbers between −1 and 1.
fn pseudo_random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Random images, and labels that `label` gives.
fn data(path: &Path, samples: usize, size: usize, label: Option<&dyn Fn(usize) -> i64>) {
    let mut next = pseudo_random(5);
    let images = Array4::from_shape_simple_fn((samples, 3, size, size), || 2.0 * next());
    let mut writer = NpzWriter::new(File::create(path).unwrap());
    writer.add_array("image", &images).unwrap();
    if let Some(label) = label {
        writer.add_array("label", &Array1::from_shape_fn(samples, label)).unwrap();
    }
    writer.finish().unwrap();
}

/// A folder with `train.npz`.
fn folder(samples: usize, label: Option<&dyn Fn(usize) -> i64>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    data(&folder.path().join("train.npz"), samples, 8, label);
    folder
}

/// `thex distill` on the model with the data of the folder; the student's prefix is `output`.
fn distill(folder: &Path, output: &str, more: &[&str]) -> Command {
    let (model, data, output) = (repository(MODEL), folder.join("train.npz"), folder.join(output));
    let paths = [&model, &data, &output].map(|p| p.to_str().unwrap());
    thex(&[&["distill", paths[0], "--data", paths[1], "-o", paths[2], "--json"], more].concat())
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts an orderly failure that mentions `what`.
fn refused(output: &Output, what: &str) {
    let message = String::from_utf8_lossy(&output.stderr).replace('│', " ");
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(matches!(output.status.code(), Some(2..=5)), "{message}");
    assert!(message.contains(what) && !message.contains("panicked"), "{message}");
}

fn operators(student: &Path) -> BTreeSet<String> {
    let model = ModelProto::decode(std::fs::read(student).unwrap().as_slice()).unwrap();
    model.graph.unwrap().node.into_iter().map(|n| n.op_type).collect()
}

fn bootstraps(model: PathBuf, calibration: PathBuf, profile: Profile) -> u64 {
    let options = CompileOptions { model, calibration, profile, ..CompileOptions::default() };
    compile(&options).unwrap().emitted.circuit.pbs_count()
}

#[test]
fn a_student_learns_and_compiles_to_as_many_bootstraps() {
    let folder = folder(160, None);
    let summary = json(&distill(folder.path(), "student", &["--profile", "the-x", "--epochs", "16"]).output().unwrap());
    let phases = summary["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().map(|p| p["phase"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 2 + 2 + 1, "untrained, functions, two norms, together: {names:?}");
    let loss = |i: usize| phases[i]["loss"].as_f64().unwrap();
    assert!(loss(1) < 0.5 * loss(0), "{phases:?}");
    assert!(loss(names.len() - 1) < loss(0), "{phases:?}");
    let student = folder.path().join("student.onnx");
    let operators = operators(&student);
    for approximated in ["Erf", "Softmax", "LayerNormalization", "Sqrt"] {
        assert!(!operators.contains(approximated), "{operators:?}");
    }
    assert!(!folder.path().join("student.checkpoint").exists());
    let data = || folder.path().join("train.npz");
    let before = bootstraps(repository(MODEL), data(), Profile::TheX);
    for profile in [Profile::TheX, Profile::Exact] {
        let after = bootstraps(student.clone(), data(), profile);
        // Not the same: the error budget of products depends on what the student is sensitive to.
        assert!(after <= before * 5 / 4 && before <= after * 5 / 4, "{before} before, {after} after");
    }
}

#[test]
fn forms_are_chosen_node_by_node() {
    let folder = folder(24, None);
    let forms =
        ["--profile", "the-x", "--approximate", "*oftmax=exact", "--approximate", "*orm*=constant", "--epochs", "1"];
    let summary = json(&distill(folder.path(), "student", &forms).output().unwrap());
    let operators = operators(&folder.path().join("student.onnx"));
    assert!(operators.contains("Softmax") && !operators.contains("LayerNormalization") && !operators.contains("Erf"));
    let said = summary["approximations"].as_array().unwrap();
    assert_eq!(said.iter().filter(|a| a.as_str().unwrap().contains("constants")).count(), 2, "{said:?}");
}

#[test]
fn the_seed_decides_everything() {
    let folder = folder(40, Some(&|i| i as i64 % 4));
    let student = |name: &str, seed: &str, threads: &str| {
        let mut command = distill(folder.path(), name, &["--profile", "the-x", "--epochs", "2", "--seed", seed]);
        json(&command.env("RAYON_NUM_THREADS", threads).output().unwrap());
        std::fs::read(folder.path().join(format!("{name}.onnx"))).unwrap()
    };
    let first = student("a", "1", "1");
    assert!(first == student("b", "1", "3"), "the same whatever the number of threads");
    assert!(first != student("c", "2", "1"));
}

/// Kills a distillation that has written a checkpoint; the same command ends where it would have.
#[test]
fn an_interrupted_distillation_goes_on_to_the_same_student() {
    let folder = folder(64, Some(&|i| i as i64 / 2 % 4));
    let arguments = ["--profile", "the-x", "--epochs", "24"];
    let whole = json(&distill(folder.path(), "whole", &arguments).output().unwrap());
    let checkpoint = folder.path().join("cut.checkpoint");
    let mut child =
        distill(folder.path(), "cut", &arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !checkpoint.exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(100));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(checkpoint.exists() && !folder.path().join("cut.onnx").exists(), "it was killed on the way");
    refused(&distill(folder.path(), "cut", &["--profile", "the-x", "--epochs", "23"]).output().unwrap(), "--restart");
    let bytes = std::fs::read(&checkpoint).unwrap();
    std::fs::write(&checkpoint, &bytes[..bytes.len() - 9]).unwrap();
    refused(&distill(folder.path(), "cut", &arguments).output().unwrap(), "truncated or damaged");
    std::fs::write(&checkpoint, &bytes).unwrap();
    let resumed = json(&distill(folder.path(), "cut", &arguments).output().unwrap());
    assert_eq!(whole["phases"], resumed["phases"]);
    let student = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(student("whole.onnx") == student("cut.onnx"));
    assert!(!checkpoint.exists());
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.npz");
    let run =
        |more: &[&str]| distill(folder.path(), "student", &[&["--profile", "the-x"], more].concat()).output().unwrap();
    data(&train, 8, 8, Some(&|i| if i == 5 { 4 } else { 0 }));
    refused(&run(&[]), "the label of sample 5 is 4, but the model has classes 0 to 3");
    data(&train, 8, 8, Some(&|_| -1));
    refused(&run(&[]), "the label of sample 0 is -1");
    data(&train, 8, 6, None);
    refused(&run(&[]), "[1, 3, 6, 6]");
    data(&train, 3, 8, None);
    refused(&run(&[]), "at least 4");
    data(&train, 24, 8, None);
    refused(&run(&["--learning-rate", "0"]), "--learning-rate");
    refused(&run(&["--approximate", "*=cubes"]), "cubes");
    refused(&run(&["--learning-rate", "1", "--weight-decay", "10", "--epochs", "40", "--noise", "100"]), "TX0017");
    let mut writer = NpzWriter::new(File::create(&train).unwrap());
    writer.add_array("picture", &Array1::from_vec(vec![0.5_f32; 8])).unwrap();
    writer.finish().unwrap();
    refused(&run(&[]), "`image`");
    std::fs::write(&train, b"PK").unwrap();
    refused(&run(&[]), "truncated or no .npz");
    assert!(!folder.path().join("student.onnx").exists());
}
