//! Golden files: every version of the formats that this thex promises to read, with what was decrypted when they were made.
//!
//! `make.sh` in each folder has the command. Floating-point transforms may round differently on another processor, so what a run gives is
//! compared within the modelled noise; what was encrypted then is decrypted exactly.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::{Path, PathBuf};

use thex_circuit::{Circuit, ClientBundle};
use thex_runtime::client::{self, Named, Rounding};
use thex_runtime::progress::Silent;
use thex_runtime::{ClientKey, CpuBackend, EncryptedInputs, EncryptedOutputs, Executor, keys};

struct Golden {
    folder: PathBuf,
    bundle: ClientBundle,
    expected: serde_json::Value,
}

impl Golden {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
        let bundle = ClientBundle::load(&folder.join("m.client")).unwrap();
        let expected = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        Self { folder, bundle, expected }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The client key, by a copy that only its owner can read, since git keeps no such mode.
    fn key(&self) -> ClientKey {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("client.key");
        thex_circuit::file::write_atomic(&copy, &std::fs::read(self.path("client.key")).unwrap(), true).unwrap();
        ClientKey::load(&copy).unwrap()
    }

    /// What was decrypted when the files were made, rounded to the modelled precision.
    fn values(&self, output: &str) -> Vec<f64> {
        let data = &self.expected["outputs"][output]["data"];
        data.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    /// Runs the kept circuit on the kept ciphertexts, under the server key of the same seed.
    fn run_again(&self) -> Vec<Named> {
        let (circuit, digest) = Circuit::load(&self.path("m.circuit")).unwrap();
        assert_eq!(digest, self.bundle.circuit);
        let (again, server) = keys::generate(&self.bundle, Some(1)).unwrap();
        assert_eq!(again.info, self.key().info, "the seed gives another key");
        let input = EncryptedInputs::load(&self.path("in.ct")).unwrap();
        assert_eq!(input.info.circuit, digest);
        let backend = CpuBackend::new(server.expand());
        let lwes = input.expand(&circuit.parameters).unwrap();
        let lwes = Executor::new(&circuit, &backend).unwrap().run(&lwes, &Silent).unwrap();
        let ports = circuit.outputs.iter().map(|(name, addresses)| (name.clone(), addresses.len())).collect();
        let outputs = EncryptedOutputs { info: thex_runtime::CiphertextInfo { ports, ..input.info }, lwes };
        client::decrypt(&self.bundle, &self.key(), &outputs, Rounding::Raw).unwrap()
    }

    /// Both runs err by the modelled noise, and the kept one was rounded to it: within 6 standard deviations of all that.
    fn assert_near(&self, outputs: &[Named]) {
        let noise = self.bundle.outputs.iter().flat_map(|p| &p.noise).copied().fold(0.0, f64::max);
        for (name, value) in outputs {
            let kept = self.values(name);
            assert_eq!(kept.len(), value.len());
            for (kept, again) in kept.iter().zip(value) {
                assert!((kept - again).abs() < 9.0 * noise, "{name}: {kept} then, {again} now, noise {noise}");
            }
            let spread = kept.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            assert!(spread > 20.0 * noise, "{name} would pass whatever it were: {spread} {noise}");
        }
    }
}

#[test]
fn a_kept_result_is_decrypted_to_the_same_bits() {
    let golden = Golden::open("v1/text");
    let result = EncryptedOutputs::load(&golden.path("out.ct"), &golden.bundle.parameters).unwrap();
    let outputs = client::decrypt(&golden.bundle, &golden.key(), &result, Rounding::Modelled).unwrap();
    assert_eq!(outputs[0].1.iter().copied().collect::<Vec<_>>(), golden.values("logits"));
    assert_eq!(golden.bundle.interface.labels, ["negative", "positive"]);
}

#[test]
fn a_kept_circuit_of_a_text_model_gives_the_kept_result() {
    let golden = Golden::open("v1/text");
    golden.assert_near(&golden.run_again());
}

#[test]
fn a_kept_circuit_of_all_instructions_gives_the_kept_result() {
    let golden = Golden::open("v1/attention");
    let (circuit, _) = Circuit::load(&golden.path("m.circuit")).unwrap();
    let mut used: Vec<&str> = circuit.instructions.iter().map(|i| i.mnemonic()).collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used, ["keyswitch", "linear", "lut_product", "pack", "pbs"]);
    golden.assert_near(&golden.run_again());
}

#[test]
fn a_kept_circuit_of_version_2_gives_the_kept_result() {
    let golden = Golden::open("v2/extended");
    let (circuit, _) = Circuit::load(&golden.path("m.circuit")).unwrap();
    assert_eq!(circuit.largest_extension(), 2);
    golden.assert_near(&golden.run_again());
}

#[test]
fn a_kept_circuit_of_version_3_gives_the_kept_result() {
    let golden = Golden::open("v3/grouped");
    assert_eq!(golden.bundle.parameters.grouping_factor.0, 2);
    golden.assert_near(&golden.run_again());
}

#[test]
fn a_kept_circuit_of_version_4_gives_the_kept_result() {
    let golden = Golden::open("v4/external");
    let (circuit, _) = Circuit::load(&golden.path("m.circuit")).unwrap();
    assert!(circuit.parameters.external);
    assert!(circuit.instructions.iter().any(|i| i.mnemonic() == "external_product"));
    golden.assert_near(&golden.run_again());
}

#[test]
fn what_is_read_is_written_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("x");
    for name in ["v1/text", "v1/attention", "v2/extended", "v3/grouped", "v4/external"] {
        let golden = Golden::open(name);
        let (circuit, _) = Circuit::load(&golden.path("m.circuit")).unwrap();
        std::fs::write(&again, circuit.to_bytes().unwrap()).unwrap();
        assert_eq!(Circuit::load(&again).unwrap().0, circuit);
        std::fs::write(&again, golden.bundle.to_bytes().unwrap()).unwrap();
        assert_eq!(ClientBundle::load(&again).unwrap(), golden.bundle);
        let input = EncryptedInputs::load(&golden.path("in.ct")).unwrap();
        input.save(&again).unwrap();
        assert_eq!(EncryptedInputs::load(&again).unwrap(), input);
    }
}
