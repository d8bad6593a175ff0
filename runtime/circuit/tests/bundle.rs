//! Bundles with tokenizer, labels and image normalisation: round trips, bundles of before, and every damage.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;

use thex_circuit::clear::ClearGraph;
use thex_circuit::file::is_bundle;
use thex_circuit::interface::{MAX_LABELS, MAX_TOKENIZER_BYTES};
use thex_circuit::{Circuit, ClientBundle, Encoding, ImageFormat, Interface, Parameters, Port, TextFormat, TokenRole};

mod common;
use common::reseal;

fn bundle(interface: Interface) -> ClientBundle {
    ClientBundle {
        circuit: "0".repeat(64),
        model: "tiny.onnx".into(),
        parameters: Parameters::standard(),
        prologue: ClearGraph::identity(&[("input_ids".into(), vec![1, 3])]),
        inputs: vec![Port {
            name: "input_ids".into(),
            shape: vec![1, 3],
            encodings: vec![Encoding { scale: 16.0, offset: 0.0 }; 3],
            ranges: vec![(0.0, 7.0); 3],
            noise: Vec::new(),
        }],
        outputs: Vec::new(),
        epilogue: ClearGraph::default(),
        interface,
    }
}

fn text() -> TextFormat {
    // Bytes that JSON would escape, and some that are no text at all: they must come back as they are.
    TextFormat::new(b"{\"a\": \"\\u00e9\"}\r\n\xff".to_vec(), vec![("input_ids".into(), TokenRole::Ids)])
}

fn full() -> Interface {
    let image = ImageFormat { invert: true, mean: vec![0.5, 0.25, 0.125], std: vec![0.3] };
    Interface {
        text: Some(text()),
        image: Some(image),
        labels: vec!["no".into(), "yes — \"perhaps\"".into()],
        frozen: Vec::new(),
    }
}

fn load(bytes: &[u8]) -> Result<ClientBundle, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.client");
    std::fs::write(&path, bytes).unwrap();
    ClientBundle::load(&path).map_err(|e| e.to_string())
}

fn refuse(interface: Interface, mention: &str) {
    let error = load(&bundle(interface).to_bytes().unwrap()).unwrap_err();
    assert!(error.contains("x.client") && error.contains(mention), "{error}");
}

#[test]
fn what_is_written_is_read() {
    let original = bundle(full());
    let bytes = original.to_bytes().unwrap();
    assert_eq!(load(&bytes).unwrap(), original);
    assert_eq!(bytes, bundle(full()).to_bytes().unwrap(), "not deterministic");
}

#[test]
fn a_bundle_without_them_is_the_bundle_of_before() {
    let bytes = bundle(Interface::default()).to_bytes().unwrap();
    assert!(!bytes.windows(9).any(|w| w == b"interface"));
    assert_eq!(load(&bytes).unwrap().interface, Interface::default());
}

#[test]
fn damaged_tokenizers_are_refused() {
    let bytes = bundle(full()).to_bytes().unwrap();
    for cut in [1, 8, 20] {
        assert!(load(&bytes[..bytes.len() - cut]).is_err(), "cut by {cut}");
    }
    let at = bytes.windows(3).rposition(|w| w == b"u00").unwrap();
    let mut flipped = bytes;
    flipped[at] = b'U';
    assert!(load(&flipped).unwrap_err().contains("was altered"));
    assert!(load(&reseal(flipped)).unwrap_err().contains("tokenizer is damaged"));

    let with = |change: &dyn Fn(&mut TextFormat)| {
        let mut text = text();
        change(&mut text);
        Interface { text: Some(text), ..Interface::default() }
    };
    refuse(with(&|t| t.bytes = MAX_TOKENIZER_BYTES + 1), "more than");
    refuse(with(&|t| t.bytes -= 1), "damaged");
    refuse(with(&|t| t.sha256 = "0".repeat(64)), "damaged");
    refuse(with(&|t| t.roles[0].0 = "pixels".into()), "`pixels`");
    refuse(with(&|t| t.tokenizer = vec![0; MAX_TOKENIZER_BYTES as usize + 1].into()), "more than");
}

#[test]
fn a_missing_tokenizer_is_noticed() {
    let bytes = bundle(Interface { text: Some(text()), ..Interface::default() }).to_bytes().unwrap();
    // The tensor's own entry is the one with the quote right before the name.
    let at = bytes.windows(12).position(|w| w == b"\"tokenizer\":").unwrap();
    let mut renamed = bytes;
    renamed[at + 1] = b'T';
    assert!(load(&reseal(renamed)).unwrap_err().contains("tokenizer is missing"));
}

#[test]
fn labels_and_normalisation_are_bounded() {
    let labels = |labels: Vec<String>| Interface { labels, ..Interface::default() };
    refuse(labels(vec!["x".into(); MAX_LABELS + 1]), "labels");
    refuse(labels(vec!["a".into(), String::new()]), "label 1");
    refuse(labels(vec!["x".repeat(2000)]), "label 0");
    refuse(labels(vec!["\u{1b}[31m".into()]), "control");
    let image = |mean: &[f64], std: &[f64]| {
        let image = ImageFormat { invert: false, mean: mean.to_vec(), std: std.to_vec() };
        Interface { image: Some(image), ..Interface::default() }
    };
    refuse(image(&[], &[0.0]), "positive");
    refuse(image(&[0.0; 2], &[]), "2 values for 3 channels");
}

#[test]
fn bundles_that_do_not_fit_their_ports_are_refused() {
    let refuse = |change: &dyn Fn(&mut ClientBundle), mention: &str| {
        let mut bundle = bundle(Interface::default());
        change(&mut bundle);
        let error = load(&bundle.to_bytes().unwrap()).unwrap_err();
        assert!(error.contains(mention), "{error}");
    };
    refuse(&|b| b.inputs.clear(), "prologue");
    refuse(&|b| b.inputs[0].shape = vec![3, 3], "one encoding");
    refuse(&|b| b.inputs[0].shape = vec![1 << 63, 2, 3], "one encoding");
    refuse(&|b| b.inputs[0].ranges.truncate(2), "one range");
    refuse(&|b| b.inputs[0].ranges[1] = (2.0, 1.0), "impossible");
    refuse(&|b| b.prologue.inputs[0].1 = vec![1, 4], "prologue");
    refuse(&|b| b.prologue.inputs[0].1 = vec![1 << 40, 1 << 40], "elements");
    refuse(&|b| b.prologue.outputs[0].1 = 5, "input_ids");
    refuse(&|b| b.epilogue = ClearGraph::identity(&[("y".into(), vec![2])]), "epilogue");
}

#[test]
fn kinds_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let bytes = bundle(full()).to_bytes().unwrap();
    assert!(is_bundle(&at("a", &bytes)));
    let circuit = Circuit {
        info: Default::default(),
        parameters: Parameters::standard(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        instructions: Vec::new(),
        provenance: Vec::new(),
    };
    assert!(!is_bundle(&at("b", &circuit.to_bytes().unwrap())));
    assert!(!is_bundle(&at("c", &[0xff; 64])) && !is_bundle(&at("d", b"")) && !is_bundle(Path::new("/none")));
}
