//! Keys and ciphertexts as files: round trips, permissions, and every way in which a file can be wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ndarray::{ArrayD, IxDyn};
use ndarray_npy::NpzWriter;
use thex_circuit::clear::ClearGraph;
use thex_circuit::instruction::{Block, Linear, Provenance};
use thex_circuit::{Circuit, ClientBundle, Encoding, Instruction, Interface, Parameters, Port};
use thex_runtime::commands::{self, DecryptArgs, EncryptArgs, KeygenArgs, RunArgs};
use thex_runtime::source::Source;
use thex_runtime::{ClientKey, EncryptedInputs, EncryptedOutputs, ErrorKind, ServerKey, client};

/// y = 3·x₀ − x₁ + 1, on two elements.
fn circuit() -> Circuit {
    Circuit {
        info: Default::default(),
        parameters: Parameters::standard(),
        inputs: vec![("x".into(), Block { start: 0, len: 2 })],
        outputs: vec![("y".into(), vec![2])],
        instructions: vec![Instruction::Linear(Linear {
            dst: Block { start: 2, len: 1 },
            outputs: 1,
            operands: 2,
            gather: vec![0, 1],
            set: vec![0],
            weights: vec![3, -1],
            bias: vec![1 << 60],
        })],
        provenance: vec![Provenance::default()],
    }
}

fn bundle(digest: &str) -> ClientBundle {
    let encoding = Encoding { scale: 16.0, offset: 0.0 };
    ClientBundle {
        circuit: digest.into(),
        model: "linear.onnx".into(),
        parameters: Parameters::standard(),
        prologue: ClearGraph::identity(&[("x".into(), vec![1, 2])]),
        inputs: vec![Port {
            name: "x".into(),
            shape: vec![1, 2],
            encodings: vec![encoding; 2],
            ranges: vec![(-1.0, 1.0); 2],
            noise: Vec::new(),
        }],
        outputs: vec![Port {
            name: "y".into(),
            shape: vec![1],
            encodings: vec![encoding],
            ranges: Vec::new(),
            noise: vec![1e-3],
        }],
        epilogue: ClearGraph::identity(&[("y".into(), vec![1])]),
        interface: Interface::default(),
    }
}

struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// One compiled model with keys, made by the commands.
static WORK: LazyLock<Work> = LazyLock::new(|| {
    let work = Work { folder: tempfile::tempdir().unwrap() };
    let bytes = circuit().to_bytes().unwrap();
    std::fs::write(work.path("m.circuit"), &bytes).unwrap();
    let digest = thex_circuit::file::digest(&bytes);
    std::fs::write(work.path("m.client"), bundle(&digest).to_bytes().unwrap()).unwrap();
    std::fs::write(work.path("other.client"), bundle(&"1".repeat(64)).to_bytes().unwrap()).unwrap();
    commands::keygen(&KeygenArgs { bundle: work.path("m.client"), output: work.path("keys"), seed: Some(7) }).unwrap();
    let mut writer = NpzWriter::new(File::create(work.path("data.npz")).unwrap());
    let x = ArrayD::from_shape_vec(IxDyn(&[3, 2]), vec![0.5_f32, 0.25, -1.0, 1.0, 7.0, 0.0]).unwrap();
    writer.add_array("x", &x).unwrap();
    writer.finish().unwrap();
    encrypt(&work, "m.client", 0, "in.ct").unwrap();
    work
});

fn encrypt(work: &Work, bundle: &str, sample: usize, output: &str) -> thex_runtime::Result<()> {
    commands::encrypt(&EncryptArgs {
        bundle: work.path(bundle),
        key: work.path("keys/client.key"),
        source: Source::data_set(work.path("data.npz")),
        sample,
        output: work.path(output),
    })
}

fn run(work: &Work, input: &str, key: &str, output: &str) -> thex_runtime::Result<()> {
    let (circuit, key) = (work.path("m.circuit"), work.path(key));
    commands::run(&RunArgs::new(circuit, key, work.path(input), work.path(output)))
}

fn decrypt(work: &Work, bundle: &str, input: &str) -> thex_runtime::Result<()> {
    commands::decrypt(&DecryptArgs {
        bundle: work.path(bundle),
        key: work.path("keys/client.key"),
        input: work.path(input),
        json: true,
        raw: false,
        share: None,
        shared_results: 1,
    })
}

#[test]
fn whole_chain_computes() {
    let work = &*WORK;
    run(work, "in.ct", "keys/server.key", "out.ct").unwrap();
    decrypt(work, "m.client", "out.ct").unwrap();
    let bundle = ClientBundle::load(&work.path("m.client")).unwrap();
    let key = ClientKey::load(&work.path("keys/client.key")).unwrap();
    let result = EncryptedOutputs::load(&work.path("out.ct"), &bundle.parameters).unwrap();
    for rounding in [client::Rounding::Modelled, client::Rounding::Raw] {
        let outputs = client::decrypt(&bundle, &key, &result, rounding).unwrap();
        assert_eq!(outputs[0].0, "y");
        assert!((outputs[0].1[[0]] - 2.25).abs() < 1e-3);
    }
    let rounded = client::decrypt(&bundle, &key, &result, client::Rounding::Modelled).unwrap()[0].1[[0]];
    assert!((rounded * 1024.0).fract().abs() < 1e-12);
}

#[test]
fn values_outside_the_range_are_clamped_and_counted() {
    let encoded = client::encode(&bundle("x"), &[("x".into(), ndarray::arr1(&[7.0, 0.5]).into_dyn())]).unwrap();
    assert_eq!(encoded.clamped_total(), 1);
    assert_eq!(encoded.phases[0], bundle("x").inputs[0].encodings[0].encode(1.0));
    let error = client::encode(&bundle("x"), &[("ids".into(), ndarray::arr1(&[7.0]).into_dyn())]).unwrap_err();
    assert!(error.to_string().contains("`x`"), "{error}");
    assert!(client::encode(&bundle("x"), &[("x".into(), ndarray::arr1(&[f64::NAN, 0.0]).into_dyn())]).is_err());
    assert!(client::encode(&bundle("x"), &[("x".into(), ndarray::arr1(&[1.0]).into_dyn())]).is_err());
}

#[cfg(unix)]
#[test]
fn client_key_is_private_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let work = &*WORK;
    let mode = std::fs::metadata(work.path("keys/client.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = KeygenArgs { bundle: work.path("m.client"), output: work.path("keys"), seed: Some(8) };
    assert!(commands::keygen(&again).unwrap_err().to_string().contains("there already"));
}

#[test]
fn files_of_different_origin_are_refused_by_name() {
    let work = &*WORK;
    for error in
        [encrypt(work, "other.client", 0, "x.ct").unwrap_err(), decrypt(work, "other.client", "in.ct").unwrap_err()]
    {
        let text = error.to_string();
        assert!(text.contains("other.client") && text.contains("client.key") && text.contains("keygen"), "{text}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let mut forged = EncryptedInputs::load(&work.path("in.ct")).unwrap();
    forged.info.key = "f".repeat(32);
    forged.save(&work.path("forged.ct")).unwrap();
    let text = run(work, "forged.ct", "keys/server.key", "x.ct").unwrap_err().to_string();
    assert!(text.contains("forged.ct") && text.contains("server.key"), "{text}");
    // One kind of file in place of another.
    assert!(run(work, "in.ct", "keys/client.key", "x.ct").unwrap_err().to_string().contains("client key"));
    assert!(decrypt(work, "m.client", "in.ct").is_err());
    assert!(run(work, "in.ct", "m.circuit", "x.ct").is_err());
    assert!(encrypt(work, "m.client", 3, "x.ct").unwrap_err().to_string().contains('3'));
}

#[test]
fn an_output_that_cannot_be_written_is_found_first() {
    let work = &*WORK;
    let text = run(work, "in.ct", "keys/server.key", "no/such/folder/out.ct").unwrap_err().to_string();
    assert!(text.contains("no/such/folder/out.ct"), "{text}");
    assert!(run(work, "absent.ct", "keys/server.key", "keys").unwrap_err().to_string().contains("folder"));
}

/// Writes a file that only its owner can read.
fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// Puts the right digest into a changed file, as an attacker would.
fn reseal(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = thex_circuit::file::digest(&bytes[72..]);
    bytes[8..72].copy_from_slice(sum.as_bytes());
    bytes
}

/// A copy of a file with the first `from` replaced and the right digest. Lengths in the header are kept right.
fn edited(path: &Path, from: &str, to: &str) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("the text to edit");
    let mut edited = [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat();
    let length = u32::from_le_bytes(edited[72..76].try_into().unwrap()) as usize + to.len() - from.len();
    edited[72..76].copy_from_slice(&(length as u32).to_le_bytes());
    reseal(edited)
}

/// Damages a file in many ways; `load` must give an error for each.
fn damage(path: &Path, copy: &Path, load: impl Fn(&Path) -> bool) {
    put(copy, &[]);
    let bytes = std::fs::read(path).unwrap();
    let mut cuts = vec![0, 4, 8, 11, 12, 40, 200, bytes.len() / 2, bytes.len() - 8, bytes.len() - 1];
    cuts.retain(|&c| c < bytes.len());
    for cut in cuts {
        std::fs::write(copy, &bytes[..cut]).unwrap();
        assert!(!load(copy), "cut at {cut}");
    }
    // Every bit of magic, digest and lengths, and then bits all over.
    let bits = (0..8 * bytes.len().min(80)).chain((0..8 * bytes.len()).step_by(bytes.len() / 64 * 8 + 1));
    for bit in bits {
        let mut other = bytes.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(copy, &other).unwrap();
        assert!(!load(copy), "flipped bit {bit}");
    }
    let mut longer = bytes.clone();
    longer.extend_from_slice(&[0; 8]);
    std::fs::write(copy, &longer).unwrap();
    assert!(!load(copy), "longer");
    std::fs::write(copy, &bytes).unwrap();
    assert!(load(copy));
}

#[test]
fn damaged_files_are_errors() {
    let work = &*WORK;
    damage(&work.path("keys/client.key"), &work.path("c"), |p| ClientKey::load(p).is_ok());
    damage(&work.path("in.ct"), &work.path("i"), |p| EncryptedInputs::load(p).is_ok());
    run(work, "in.ct", "keys/server.key", "damaged.ct").unwrap();
    let parameters = Parameters::standard();
    damage(&work.path("damaged.ct"), &work.path("o"), |p| EncryptedOutputs::load(p, &parameters).is_ok());
    let bytes = std::fs::read(work.path("keys/server.key")).unwrap();
    for cut in [0, 100, 5000, bytes.len() - 1] {
        std::fs::write(work.path("s"), &bytes[..cut]).unwrap();
        assert!(ServerKey::load(&work.path("s")).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_key_whose_dimensions_are_not_its_parameters_is_refused() {
    let work = &*WORK;
    let path = work.path("keys/client.key");
    let original = std::fs::read(&path).unwrap();
    let at = original.windows(3).position(|w| w == b"850").unwrap();
    for (dimension, complaint) in [(b"852", "words"), (b"100", "refused parameters")] {
        let mut bytes = original.clone();
        bytes[at..at + 3].copy_from_slice(dimension);
        put(&work.path("k"), &reseal(bytes));
        let text = ClientKey::load(&work.path("k")).expect_err("an error").to_string();
        assert!(text.contains(complaint), "{text}");
    }
}

#[test]
fn seeded_keys_are_reproducible_and_others_are_not() {
    let bundle = bundle("x");
    let folder = tempfile::tempdir().unwrap();
    let save = |seed: Option<u128>, name: &str| {
        let path = folder.path().join(name);
        ClientKey::generate(&bundle, seed).unwrap().save(&path).unwrap();
        std::fs::read(path).unwrap()
    };
    assert_eq!(save(Some(3), "a"), save(Some(3), "b"));
    assert_ne!(save(None, "c"), save(None, "d"));
}

#[cfg(unix)]
#[test]
fn a_client_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let work = &*WORK;
    let copy = work.path("open.key");
    put(&copy, &std::fs::read(work.path("keys/client.key")).unwrap());
    assert!(ClientKey::load(&copy).is_ok());
    for mode in [0o644, 0o640, 0o604, 0o602, 0o620, 0o666, 0o777] {
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(mode)).unwrap();
        let text = ClientKey::load(&copy).expect_err("an open key").to_string();
        assert!(
            text.contains("chmod 600") && text.contains("open.key") && text.contains(&format!("{mode:04o}")),
            "{text}"
        );
    }
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o400)).unwrap();
    assert!(ClientKey::load(&copy).is_ok());
}

#[test]
fn a_client_key_does_not_show_its_secrets() {
    let key = ClientKey::generate(&bundle("x"), Some(5)).unwrap();
    let shown = format!("{key:?} {key:#?}");
    assert!(shown.contains(&key.info.id) && shown.contains("not shown"));
    // 2,898 bits in any form would be longer.
    assert!(shown.len() < 2000, "{shown}");
}

#[test]
fn secrets_that_are_not_uniform_bits_are_refused() {
    let work = &*WORK;
    let original = std::fs::read(work.path("keys/client.key")).unwrap();
    let words = original.len() - 8 * (850 + 2048);
    for (word, what) in [(0_u64, "all zero"), (1, "all one"), (2, "not binary")] {
        let mut bytes = original.clone();
        bytes[words..].chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&word.to_le_bytes()));
        put(&work.path("weak.key"), &reseal(bytes));
        let text = ClientKey::load(&work.path("weak.key")).expect_err(what).to_string();
        assert!(text.contains("uniform bits"), "{text}");
    }
}

#[test]
fn keys_and_ciphertexts_of_other_versions_say_who_reads_them() {
    let work = &*WORK;
    put(
        &work.path("v.ct"),
        &edited(&work.path("in.ct"), "\"version\":1,\"writer\":\"0.1.0\"", "\"version\":2,\"writer\":\"7.0.1\""),
    );
    let text = EncryptedInputs::load(&work.path("v.ct")).unwrap_err().to_string();
    assert!(text.contains("version 2") && text.contains("thex 7.0.1 or later reads it"), "{text}");
    put(
        &work.path("v.key"),
        &edited(&work.path("keys/client.key"), "\"version\":2,\"writer\":\"0.1.0\"", "\"version\":0"),
    );
    let text = ClientKey::load(&work.path("v.key")).expect_err("version 0").to_string();
    assert!(text.contains("version 0") && text.contains("does not"), "{text}");
}

#[test]
fn sizes_that_lie_are_refused_before_anything_is_allocated() {
    let work = &*WORK;
    let start = std::time::Instant::now();
    for (from, to) in [
        ("[\"x\",2]", "[\"x\",9000000000000000000]"),
        ("[\"x\",2]", "[\"x\",3]"),
        ("[\"x\",2]", "[\"x\",9000000000000000000],[\"y\",9000000000000000000],[\"z\",446744073709551618]"),
        ("[\"x\",2]", "[\"x\",-1]"),
        ("\"words\":2", "\"words\":2305843009213693952"),
        ("\"words\":2", "\"words\":20000000000000000000000"),
    ] {
        put(&work.path("lie.ct"), &edited(&work.path("in.ct"), from, to));
        assert!(EncryptedInputs::load(&work.path("lie.ct")).is_err(), "{to}");
        assert!(EncryptedOutputs::load(&work.path("lie.ct"), &Parameters::standard()).is_err());
    }
    // Levels that would make a key of terabytes, in a file of a few kilobytes.
    put(&work.path("lie.key"), &edited(&work.path("keys/client.key"), "\"level\":3", "\"level\":63"));
    assert!(ClientKey::load(&work.path("lie.key")).is_err());
    // A file of holes.
    put(&work.path("holes.key"), b"thexdata");
    File::options().write(true).open(work.path("holes.key")).unwrap().set_len(7 << 30).unwrap();
    assert!(ServerKey::load(&work.path("holes.key")).is_err());
    assert!(ClientKey::load(&work.path("holes.key")).is_err());
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn hostile_but_valid_ciphertexts_cannot_stop_a_server() {
    let work = &*WORK;
    let original = std::fs::read(work.path("in.ct")).unwrap();
    for word in [0, u64::MAX, 1 << 63, 0x5555_5555_5555_5555] {
        let mut bytes = original.clone();
        let words = bytes.len() - 16;
        bytes[words..].chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&word.to_le_bytes()));
        put(&work.path("hostile.ct"), &reseal(bytes));
        run(work, "hostile.ct", "keys/server.key", "hostile-out.ct").unwrap();
        decrypt(work, "m.client", "hostile-out.ct").unwrap();
    }
}

#[test]
fn a_result_with_a_flipped_bit_or_a_forged_origin_is_not_decrypted() {
    let work = &*WORK;
    run(work, "in.ct", "keys/server.key", "good.ct").unwrap();
    let mut flipped = std::fs::read(work.path("good.ct")).unwrap();
    *flipped.last_mut().unwrap() ^= 1;
    put(&work.path("flipped.ct"), &flipped);
    assert!(decrypt(work, "m.client", "flipped.ct").unwrap_err().to_string().contains("altered"));
    let key = ClientKey::load(&work.path("keys/client.key")).unwrap();
    put(&work.path("other.ct"), &edited(&work.path("good.ct"), &key.info.id, &"0".repeat(32)));
    assert!(decrypt(work, "m.client", "other.ct").unwrap_err().to_string().contains("key id"));
    put(&work.path("other.ct"), &edited(&work.path("good.ct"), &key.info.circuit, &"0".repeat(64)));
    assert!(decrypt(work, "m.client", "other.ct").unwrap_err().to_string().contains("another circuit"));
}

#[test]
fn sharing_floods_or_refuses() {
    use thex_runtime::share::{self, Sharing};
    let work = &*WORK;
    run(work, "in.ct", "keys/server.key", "share.ct").unwrap();
    let mut bundle = ClientBundle::load(&work.path("m.client")).unwrap();
    let key = ClientKey::load(&work.path("keys/client.key")).unwrap();
    let result = EncryptedOutputs::load(&work.path("share.ct"), &bundle.parameters).unwrap();
    let sharing = Sharing { bits: 20, results: 1 };
    // An error of 1e-3 on 16: no room.
    let error = share::decrypt(&bundle, &key, &result, sharing).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("TX0104", ErrorKind::Unsupported));
    assert!(error.to_string().contains("no room") || error.to_string().contains("room for"), "{error}");
    // With the error that this circuit really has (fresh noise alone), there is.
    bundle.outputs[0].noise = vec![16.0 * (-44.0_f64).exp2()];
    let values: Vec<f64> =
        (0..64).map(|_| share::decrypt(&bundle, &key, &result, sharing).unwrap().0[0].1[[0]]).collect();
    let (_, flooding) = share::decrypt(&bundle, &key, &result, sharing).unwrap();
    let sd = flooding.deviations[0][0];
    let measured = (values.iter().map(|v| (v - 2.25).powi(2)).sum::<f64>() / 64.0).sqrt();
    assert!((0.7..1.3).contains(&(measured / sd)), "{measured} {sd}");
    assert!(values.windows(2).any(|w| (w[0] - w[1]).abs() > sd / 8.0), "the noise is fresh");
}
