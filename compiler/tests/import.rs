//! The frontend on real exports, and on files that it must refuse with a reason.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thex::import::{Dim, ImportError, ImportOptions, Imported, import, inputs};
use thex_ir::{ClearOp, Graph, Op, UnaryFn};

/// The model that comes with the repository.
fn digits() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/digits_vit.onnx")
}

/// A model that is not part of the repository; `None`, with a printed line, when it is not there.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/models").join(name);
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: {name} is not there");
    None
}

/// Imports with `tokens` for every symbol, 1 for the first dimension.
fn import_with(path: &Path, tokens: usize) -> Result<Imported, ImportError> {
    let mut shapes = BTreeMap::new();
    for input in inputs(path)? {
        let shape = input.dims.iter().enumerate().map(|(i, dim)| match dim {
            Dim::Fixed(n) => *n,
            Dim::Symbol(_) if i == 0 => 1,
            Dim::Symbol(_) => tokens,
        });
        shapes.insert(input.name.clone(), shape.collect());
    }
    import(path, &ImportOptions { shapes })
}

/// Operation and shape of every node, in order.
fn outline(graph: &Graph) -> Vec<(&'static str, Vec<usize>)> {
    graph.ids().map(|id| (graph.node(id).op.mnemonic(), graph.node(id).shape.clone())).collect()
}

fn count(graph: &Graph, mnemonic: &str) -> usize {
    graph.ids().filter(|id| graph.node(*id).op.mnemonic() == mnemonic).count()
}

/// A file that is gone at the end of the test.
struct Temporary(tempfile::TempDir);

impl Temporary {
    fn new(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.onnx"), content).unwrap();
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("model.onnx")
    }
}

/// A protobuf field of a nested message or string.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(content);
    bytes
}

/// `name: float32[dims]` as a ValueInfoProto; a string is a symbol.
fn value_info(name: &str, dims: &[&str]) -> Vec<u8> {
    let dim = |d: &&str| match d.parse::<u8>() {
        Ok(n) => field(1, &[0x08, n]),
        Err(_) => field(1, &field(2, d.as_bytes())),
    };
    let shape: Vec<u8> = dims.iter().flat_map(dim).collect();
    let tensor = [vec![0x08, 1], field(2, &shape)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

/// A model with input `x`, nodes (name, operator, input, output) and output `y`.
fn model(dims: &[&str], nodes: &[(&str, &str, &str, &str)]) -> Vec<u8> {
    let mut graph = Vec::new();
    for (name, op, input, output) in nodes {
        let node = [(1, input), (2, output), (3, name), (4, op)];
        let node: Vec<u8> = node.iter().flat_map(|(number, text)| field(*number, text.as_bytes())).collect();
        graph.extend(field(1, &node));
    }
    graph.extend(field(2, b"test"));
    graph.extend(field(11, &value_info("x", dims)));
    graph.extend(field(12, &value_info("y", dims)));
    [vec![0x08, 8], field(8, &[0x10, 17]), field(7, &graph)].concat()
}

fn refusal(content: &[u8]) -> ImportError {
    let file = Temporary::new(content);
    import(&file.path(), &ImportOptions::default()).unwrap_err()
}

#[test]
fn digits_becomes_the_canonical_graph() {
    let imported = import(&digits(), &ImportOptions::default()).unwrap();
    let graph = &imported.graph;
    assert!(imported.difference < 1e-5, "{}", imported.difference);
    for (mnemonic, expected) in
        [("linear", 14), ("matmul", 4), ("softmax", 2), ("layer-norm", 5), ("unary", 2), ("reduce", 0), ("rms-norm", 0)]
    {
        assert_eq!(count(graph, mnemonic), expected, "{mnemonic}");
    }
    assert!(graph.ids().all(|id| matches!(graph.node(id).op, Op::Constant(_)) || graph.node(id).shape[0] == 1));
    assert!(graph.ids().all(|id| !graph.node(id).origin.is_empty()));
    let gelu = Op::Clear(ClearOp::Unary { chain: UnaryFn::Gelu.into() });
    assert_eq!(graph.ids().filter(|id| graph.node(*id).op == gelu).count(), 2);
    thex_ir::verify::verify(graph, &thex_ir::verify::VerifyOptions::default()).unwrap();
}

#[test]
fn three_exports_of_one_model_give_one_graph() {
    let expected = outline(&import(&digits(), &ImportOptions::default()).unwrap().graph);
    for name in ["digits_vit.onnx", "digits_vit_conv.onnx", "digits_vit_op14.onnx"] {
        let Some(path) = shared(name) else { continue };
        let imported = import(&path, &ImportOptions::default()).unwrap();
        assert!(imported.difference < 1e-5, "{name}: {}", imported.difference);
        assert_eq!(outline(&imported.graph), expected, "{name}");
    }
}

#[test]
fn exporters_agree_with_tract() {
    let names = [
        "bert_tiny_sst2_encoder.onnx",
        "text_bert_op14.onnx",
        "text_bert_op17.onnx",
        "exports/berttiny_eager_legacy14_fix.onnx",
        "exports/berttiny_eager_legacy17_dyn.onnx",
        "exports/berttiny_sdpa_dynamo18_fix.onnx",
        "exports/berttiny_sdpa_dynamo23_fix.onnx",
        "exports/distil_sdpa_dynamo20_fix.onnx",
        "exports/distil_sdpa_legacy17_fix.onnx",
        "exports/gpt2_sdpa_dynamo18_fix.onnx",
        "exports/gpt2_sdpa_dynamo23_fix.onnx",
        "exports/vit_eager_legacy17_dyn.onnx",
        "exports/vit_sdpa_dynamo20_fix.onnx",
    ];
    for name in names {
        let Some(path) = shared(name) else { continue };
        let imported = import_with(&path, 9).unwrap_or_else(|e| panic!("{name}: {e}"));
        println!("{name}: {} nodes, {:.1e}", imported.graph.len(), imported.difference);
        assert!(imported.difference < 1e-5, "{name}: {}", imported.difference);
        assert_eq!(count(&imported.graph, "rms-norm") + count(&imported.graph, "reduce"), 0, "{name}");
        assert_eq!(count(&imported.graph, "unary"), count_activations(&imported.graph), "{name}");
        thex_ir::verify::verify(&imported.graph, &thex_ir::verify::VerifyOptions::default()).unwrap();
    }
}

/// Functions that are recognised as a whole: an activation, a pooler's tanh, or the truth of a mask.
fn count_activations(graph: &Graph) -> usize {
    let whole = |chain: &thex_ir::UnaryChain| {
        matches!(chain.0[0], UnaryFn::Gelu | UnaryFn::GeluTanh | UnaryFn::Tanh | UnaryFn::Abs | UnaryFn::Relu)
    };
    graph.ids().filter(|id| matches!(&graph.node(*id).op, Op::Clear(ClearOp::Unary { chain }) if whole(chain))).count()
}

#[test]
fn importing_twice_gives_the_same_text() {
    let text = || thex_ir::print::print(&import(&digits(), &ImportOptions::default()).unwrap().graph);
    assert_eq!(text(), text());
}

#[test]
fn the_text_form_of_an_import_parses_back() {
    let graph = import(&digits(), &ImportOptions::default()).unwrap().graph;
    let (text, pool) = thex_ir::print::print_with_pool(&graph);
    let parsed = thex_ir::parse::parse(&text, &pool).unwrap();
    assert!(thex_ir::print::structurally_eq(&graph, &parsed));
}

#[test]
fn the_reference_is_shared_between_threads() {
    let reference = import(&digits(), &ImportOptions::default()).unwrap().reference;
    let image = ndarray::ArrayD::from_elem(vec![1, 1, 8, 8], 0.5);
    let alone = reference.run(&[("image", image.clone())]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(reference.run(&[("image", image.clone())]).unwrap(), alone));
        }
    });
    assert!(matches!(reference.run(&[("picture", image)]), Err(ImportError::BadShape { .. })));
}

#[test]
fn truncated_files_are_refused() {
    let whole = std::fs::read(digits()).unwrap();
    for length in [0, 1, 10, 1000, whole.len() / 2, whole.len() - 1] {
        let error = refusal(&whole[..length]);
        assert!(matches!(error, ImportError::NotOnnx { .. } | ImportError::Analysis { .. }), "{length}: {error}");
    }
}

#[test]
fn other_files_are_refused() {
    for content in [b"hello, world".as_slice(), b"PK\x03\x04", b"{\"a\": 1}", &[0xff; 64], b"\n\n\n"] {
        let error = refusal(content);
        assert!(matches!(error, ImportError::NotOnnx { .. }), "{error}");
    }
    let error = import(Path::new("no/such/model.onnx"), &ImportOptions::default()).unwrap_err();
    assert!(matches!(error, ImportError::Io { .. }), "{error}");
}

/// Damage anywhere gives an error or, where it hits a weight, a model; never a panic.
#[test]
fn damaged_files_do_not_panic() {
    let whole = std::fs::read(digits()).unwrap();
    let mut rng = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..40 {
        let mut damaged = whole.clone();
        for _ in 0..8 {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (rng >> 33) as usize % damaged.len();
            damaged[at] = (rng >> 24) as u8;
        }
        let file = Temporary::new(&damaged);
        if let Err(error) = import(&file.path(), &ImportOptions::default()) {
            assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn all_unsupported_operators_are_listed() {
    let nodes = [("a", "Sin", "x", "s"), ("b", "Tanh", "s", "t"), ("c", "Floor", "t", "y")];
    let error = refusal(&model(&["1", "4"], &nodes));
    let ImportError::Unsupported(nodes) = &error else { panic!("{error}") };
    let names: Vec<(&str, &str)> = nodes.iter().map(|n| (n.node.as_str(), n.op.as_str())).collect();
    assert_eq!(names, [("a", "Sin"), ("c", "Floor")]);
    assert_eq!(nodes[0].shapes, [[1, 4]]);
    assert!(error.to_string().contains("2 unsupported"), "{error}");
}

#[test]
fn unknown_operators_are_listed() {
    let nodes = [("a", "Frobnicate", "x", "s"), ("b", "Defrobnicate", "s", "y")];
    let error = refusal(&model(&["1", "4"], &nodes));
    let ImportError::Unsupported(nodes) = &error else { panic!("{error}") };
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[0].op, "Frobnicate");
}

#[test]
fn missing_shapes_name_the_symbols_and_an_example() {
    let content = model(&["batch", "tokens", "8"], &[("a", "Tanh", "x", "y")]);
    let text = refusal(&content).to_string();
    assert!(text.contains("`x` [batch, tokens, 8]") && text.contains("--shape x=1x16x8"), "{text}");
    let file = Temporary::new(&content);
    let with = |shape: &[usize]| {
        let shapes = BTreeMap::from([("x".to_owned(), shape.to_vec())]);
        import(&file.path(), &ImportOptions { shapes })
    };
    assert_eq!(with(&[1, 5, 8]).unwrap().graph.outputs.len(), 1);
    assert!(matches!(with(&[1, 5, 7]), Err(ImportError::BadShape { .. })));
    assert!(matches!(with(&[1, 0, 8]), Err(ImportError::BadShape { .. })));
    let shapes = BTreeMap::from([("z".to_owned(), vec![1])]);
    assert!(matches!(import(&file.path(), &ImportOptions { shapes }), Err(ImportError::BadShape { .. })));
}

#[test]
fn missing_external_data_is_named() {
    let entry = |key: &str, value: &str| [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
    let with_weights = |location: &str| {
        let tensor =
            [vec![0x08, 2, 0x10, 1], field(8, b"w"), field(13, &entry("location", location)), vec![0x70, 1]].concat();
        let mut graph = field(1, &[field(1, b"x"), field(2, b"y"), field(4, b"Tanh")].concat());
        graph.extend(field(5, &tensor));
        graph.extend(field(11, &value_info("x", &["1", "2"])));
        graph.extend(field(12, &value_info("y", &["1", "2"])));
        [vec![0x08, 8], field(8, &[0x10, 17]), field(7, &graph)].concat()
    };
    for (location, expected) in [("weights.bin", "is missing"), ("../weights.bin", "outside")] {
        let error = refusal(&with_weights(location));
        assert!(matches!(error, ImportError::ExternalData { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}
