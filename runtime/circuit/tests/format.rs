//! Circuits and bundles as hostile bytes: flipped bits, every cut, other versions, sizes that lie. `runtime/tests/files.rs` does the
//! same for keys and ciphertexts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thex_circuit::clear::ClearGraph;
use thex_circuit::instruction::{
    ABSENT, Block, ExternalProduct, Keyswitch, Linear, LutProduct, MAX_EXTENSION, Pack, Pbs, Provenance,
};
use thex_circuit::{Circuit, ClientBundle, Encoding, Instruction, Interface, Parameters, Port};

mod common;
use common::reseal;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("x");
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn circuit() -> Circuit {
    Circuit {
        info: Default::default(),
        parameters: Parameters::standard().ungrouped(),
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

fn bundle() -> ClientBundle {
    let port = |name: &str| Port {
        name: name.into(),
        shape: vec![1],
        encodings: vec![Encoding { scale: 16.0, offset: 0.0 }],
        ranges: Vec::new(),
        noise: Vec::new(),
    };
    ClientBundle {
        circuit: "0".repeat(64),
        model: "m.onnx".into(),
        parameters: Parameters::standard().ungrouped(),
        prologue: ClearGraph::identity(&[("x".into(), vec![1])]),
        inputs: vec![port("x")],
        outputs: vec![port("y")],
        epilogue: ClearGraph::identity(&[("y".into(), vec![1])]),
        interface: Interface::default(),
    }
}

type Load = fn(&Path) -> Result<(), String>;

fn load_circuit(path: &Path) -> Result<(), String> {
    Circuit::load(path).map(|_| ()).map_err(|e| e.to_string())
}

fn load_bundle(path: &Path) -> Result<(), String> {
    ClientBundle::load(path).map(|_| ()).map_err(|e| e.to_string())
}

fn files() -> [(Vec<u8>, Load); 2] {
    [(circuit().to_bytes().unwrap(), load_circuit), (bundle().to_bytes().unwrap(), load_bundle)]
}

#[test]
fn flipped_bits_are_noticed() {
    let folder = Folder::new();
    for (bytes, load) in files() {
        assert_eq!(load(&folder.put(&bytes)), Ok(()));
        // Every bit of the first bytes, where magic, version and digest lie, and one of every byte after.
        for bit in (0..8 * 160).chain((160..bytes.len()).map(|at| 8 * at + at % 8)) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = load(&folder.put(&flipped)).expect_err("a flipped bit");
            assert!(error.contains("not a usable"), "bit {bit}: {error}");
        }
    }
}

#[test]
fn every_cut_and_every_appendix_is_noticed() {
    let folder = Folder::new();
    for (bytes, load) in files() {
        for cut in 0..bytes.len() {
            assert!(load(&folder.put(&bytes[..cut])).is_err(), "cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(load(&folder.put(&longer)).unwrap_err().contains("appended"));
    }
}

#[test]
fn other_versions_say_who_reads_them() {
    let folder = Folder::new();
    for (bytes, load) in files() {
        let with = |version: u8, writer: &[u8; 5]| {
            let mut bytes = bytes.clone();
            let at = bytes.windows(11).position(|w| w == br#"version\":1"#).unwrap() + 10;
            bytes[at] = version;
            let at = bytes.windows(5).position(|w| w == b"0.1.0").unwrap();
            bytes[at..at + 5].copy_from_slice(writer);
            load(&folder.put(&reseal(bytes))).unwrap_err()
        };
        let newer = with(b'5', b"0.9.3");
        assert!(newer.contains("version 5") && newer.contains("thex 0.9.3 or later reads it"), "{newer}");
        assert!(newer.contains("reads version ") && newer.contains("compile the model again"), "{newer}");
        let older = with(b'0', b"0.0.1");
        assert!(older.contains("version 0, written by thex 0.0.1") && older.contains("does not"), "{older}");
        // What a file says of its writer goes to a terminal.
        assert!(with(b'5', b"0;[1m").contains("a later thex reads it"));
    }
}

#[test]
fn files_without_a_digest_are_of_before_the_format() {
    let text = br#"{"__metadata__":{"thex":"{\"kind\":\"circuit\",\"version\":1,\"body\":{}}"}}"#;
    let bytes = [&(text.len() as u64).to_le_bytes()[..], text].concat();
    let error = load_circuit(&Folder::new().put(&bytes)).unwrap_err();
    assert!(error.contains("no digest") && error.contains("compile the model again"), "{error}");
}

#[test]
fn lengths_that_lie_cost_nothing() {
    let folder = Folder::new();
    for (bytes, load) in files() {
        let start = Instant::now();
        for length in [u64::MAX, 1 << 63, 1 << 40, 100_000_000, 10, 0] {
            let mut lying = bytes.clone();
            lying[..8].copy_from_slice(&length.to_le_bytes());
            assert!(load(&folder.put(&lying)).is_err(), "{length}");
        }
        // Files of 7 and of 9 GiB, all holes: their headers are right, or nothing is.
        for (start, length, why) in
            [(&bytes[..], 7_u64 << 30, "appended"), (&[][..], 7 << 30, "no thex file"), (&[][..], 9 << 30, "more than")]
        {
            let path = folder.put(start);
            std::fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
            let error = load(&path).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        // Reading and hashing 7 GiB would take many times as long.
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[test]
fn weaker_parameters_are_refused_by_both() {
    let folder = Folder::new();
    for (bytes, load) in files() {
        let at = bytes.windows(3).position(|w| w == b"850").unwrap();
        for dimension in [b"599", b"100", b"  0"] {
            let mut weaker = bytes.clone();
            weaker[at..at + 3].copy_from_slice(dimension);
            let error = load(&folder.put(&reseal(weaker))).unwrap_err();
            assert!(error.contains("refused parameters") && error.contains("128 bits"), "{error}");
        }
    }
}

#[test]
fn a_circuit_says_the_oldest_version_that_reads_it() {
    let version_in = |bytes: &[u8]| bytes[bytes.windows(10).position(|w| w == br#"version\":"#).unwrap() + 10];
    let version_of = |circuit: &Circuit| {
        let bytes = circuit.to_bytes().unwrap();
        (version_in(&bytes), Circuit::load(&Folder::new().put(&bytes)).unwrap().0)
    };
    let plain = circuit();
    assert_eq!(version_of(&plain), (b'1', plain.clone()));
    let grouped = Circuit { parameters: plain.parameters.with_grouping(2), ..plain.clone() };
    assert_eq!(version_of(&grouped), (b'3', grouped.clone()));
    let bundles = [bundle(), ClientBundle { parameters: grouped.parameters, ..bundle() }];
    assert_eq!(bundles.map(|b| version_in(&b.to_bytes().unwrap())), [b'1', b'2']);
    let keyswitch = Keyswitch { dst: Block { start: 0, len: 1 }, domain: 2048, extension: 2, gather: vec![2] };
    let pbs = Pbs {
        dst: Block { start: 3, len: 1 },
        extension: 2,
        argument: vec![0],
        table_of: vec![0],
        tables: (0..4 * 2048).collect(),
    };
    let mut extended = plain.clone();
    extended.instructions.extend([Instruction::Keyswitch(keyswitch), Instruction::Pbs(pbs)]);
    extended.provenance.resize(3, Provenance::default());
    assert_eq!((extended.rotation_work(), extended.pbs_count(), extended.largest_extension()), (4, 1, 2));
    assert_eq!(version_of(&extended), (b'2', extended.clone()));
    let mut summed = plain.clone();
    summed.parameters = summed.parameters.with_external(true);
    summed.instructions.extend([
        Instruction::Keyswitch(Keyswitch {
            dst: Block { start: 0, len: 2 },
            domain: 1024,
            extension: 0,
            gather: vec![2, 0],
        }),
        Instruction::Pack(Pack { dst: Block { start: 0, len: 1 }, slots: 3, stride: 600, gather: vec![0, ABSENT, 1] }),
        Instruction::ExternalProduct(ExternalProduct {
            dst: Block { start: 3, len: 6 },
            slots: 3,
            stride: 600,
            rotations: 2,
            terms: vec![2, 1],
            argument: vec![0, 1, 1],
            accumulator: vec![0; 3],
            table_of: vec![0; 3],
            tables: (0..1024).collect(),
        }),
    ]);
    summed.provenance.resize(4, Provenance::default());
    assert_eq!(version_of(&summed), (b'4', summed.clone()));
    assert_eq!(summed.pbs_count(), 6);
    let bundle = ClientBundle { parameters: summed.parameters, ..bundle() };
    assert_eq!(version_in(&bundle.to_bytes().unwrap()), b'3');
    let product = |change: fn(&mut ExternalProduct)| {
        let mut changed = summed.clone();
        changed.instructions.iter_mut().for_each(|x| {
            if let Instruction::ExternalProduct(x) = x {
                change(x)
            }
        });
        changed.verify().is_ok()
    };
    assert!(product(|_| ()));
    assert!(!product(|x| x.terms = vec![2, 2]) && !product(|x| x.terms = vec![u32::MAX, 3]));
    assert!(!product(|x| x.rotations = 4) && !product(|x| x.rotations = 3) && !product(|x| x.stride = 700));
    let keyless = Circuit { parameters: summed.parameters.with_external(false), ..summed.clone() };
    assert!(keyless.verify().unwrap_err().contains("external_product"));
    let mut full = plain;
    let keyswitch = Keyswitch { dst: Block { start: 0, len: 1 }, domain: 4096, extension: 0, gather: vec![2] };
    full.instructions.push(Instruction::Keyswitch(keyswitch));
    full.provenance.resize(2, Provenance::default());
    assert!(full.uses_full_torus());
    assert_eq!(version_of(&full), (b'2', full.clone()));
    // A rotation has the extension of the keyswitch that it reads.
    let first =
        extended.instructions.iter_mut().find_map(|x| if let Instruction::Keyswitch(x) = x { Some(x) } else { None });
    first.unwrap().extension = 1;
    assert!(extended.verify().unwrap_err().contains("inconsistent"));
}

#[test]
fn inconsistent_circuits_are_refused() {
    let block = |start, len| Block { start, len };
    let keyswitch = |gather: Vec<u32>, domain| {
        Instruction::Keyswitch(Keyswitch { dst: block(0, gather.len() as u32), domain, extension: 0, gather })
    };
    let extended =
        |extension| Instruction::Keyswitch(Keyswitch { dst: block(0, 1), domain: 2048, extension, gather: vec![0] });
    let pbs = |table_of, entries: usize| {
        Instruction::Pbs(Pbs {
            dst: block(2, 1),
            extension: 0,
            argument: vec![0],
            table_of: vec![table_of],
            tables: vec![0; entries],
        })
    };
    let pack = |slots, stride, gather| Instruction::Pack(Pack { dst: block(0, 1), slots, stride, gather });
    let product = |accumulator, slots, stride: u32| {
        Instruction::LutProduct(LutProduct {
            dst: block(2, slots),
            slots,
            stride,
            extension: 0,
            argument: vec![0],
            accumulator: vec![accumulator],
            table_of: vec![0],
            tables: vec![0; stride as usize],
        })
    };
    let linear = |outputs, operands, gather: Vec<u32>, weights: Vec<i32>| {
        let (set, bias) = (vec![0], vec![0; outputs as usize]);
        Instruction::Linear(Linear { dst: block(2, outputs), outputs, operands, gather, set, weights, bias })
    };
    let good = || keyswitch(vec![0], 2048);
    let cases: Vec<Vec<Instruction>> = vec![
        vec![keyswitch(vec![7], 2048)],
        vec![keyswitch(vec![u32::MAX], 2048)],
        vec![keyswitch(vec![0], 3000)],
        vec![keyswitch(vec![0], 4097)],
        vec![keyswitch(vec![0], 0)],
        vec![extended(MAX_EXTENSION + 1)],
        vec![extended(u32::MAX)],
        vec![extended(1), pbs(0, 2048)],
        vec![good(), pbs(1, 2048)],
        vec![good(), pbs(0, 2047)],
        vec![good(), pbs(u32::MAX, 2048)],
        vec![pbs(0, 2048)],
        vec![pack(4, 1024, vec![0; 4])],
        vec![pack(u32::MAX, u32::MAX, vec![0])],
        vec![pack(0, 0, vec![])],
        vec![good(), pack(2, 1024, vec![0, 1]), product(1, 2, 1024)],
        vec![good(), pack(2, 1024, vec![0, 1]), product(0, 3, 1024)],
        vec![linear(1, 2, vec![0, 1], vec![1])],
        vec![linear(1, 2, vec![0, 9], vec![1, 1])],
        vec![linear(1, u32::MAX, vec![0, 1], vec![1, 1])],
        vec![linear(1, 2, vec![0, 1], vec![])],
    ];
    for instructions in cases {
        let mut circuit = circuit();
        circuit.outputs.clear();
        circuit.provenance = vec![Provenance::default(); instructions.len()];
        circuit.instructions = instructions;
        let path = Folder::new();
        let error = load_circuit(&path.put(&circuit.to_bytes().unwrap())).expect_err("an inconsistent circuit");
        assert!(error.contains("inconsistent"), "{error}: {circuit:?}");
    }
}
