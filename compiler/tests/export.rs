//! The approximated model as ONNX: what is written is what the passes made, and it can be read and compiled again.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use prost::Message;
use thex::export::{GraphFile, onnx_bytes};
use thex::import::{Dim, ImportOptions, InputInfo, import, inputs};
use thex::pipeline::{CompileOptions, compile, graph_file, rewrite};
use thex_ir::{ClearOp, Graph, NodeId, Reduction, Tensor, UnaryChain, UnaryFn, interpret};
use thex_passes::Profile;
use tract_onnx::pb::ModelProto;

/// Largest difference in outputs of size 1.
const TOLERANCE: f64 = 1e-4;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn digits(profile: Profile) -> CompileOptions {
    CompileOptions {
        model: root("tests/models/digits_vit.onnx"),
        calibration: root("tests/data/digits_calibration.npz"),
        profile,
        ..CompileOptions::default()
    }
}

/// A graph as a file, with real inputs unless `dtypes` says otherwise.
fn file(graph: Graph, dtypes: &[(&str, &str)]) -> GraphFile {
    let dtypes = dtypes.iter().map(|(name, dtype)| ((*name).to_owned(), (*dtype).to_owned())).collect();
    GraphFile { model: "test.onnx".into(), profile: "exact".into(), approximations: Vec::new(), dtypes, graph }
}

/// Writes the graph as ONNX and reads it with thex's own importer.
fn reimport(file: &GraphFile) -> Graph {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, onnx_bytes(file).unwrap()).unwrap();
    import(&path, &ImportOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", file.model)).graph
}

fn pseudo_random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    ArrayD::from_shape_simple_fn(IxDyn(shape), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1_u32 << 30) - 1.0
    })
}

/// Largest difference between two graphs on one input, relative where outputs are larger than 1.
fn difference(a: &Graph, b: &Graph, inputs: &[Arc<Tensor>]) -> f64 {
    let names = |g: &Graph| g.outputs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(a), names(b));
    let (a, b) = (interpret::run(a, inputs).unwrap(), interpret::run(b, inputs).unwrap());
    let mut worst = 0.0_f64;
    for (x, y) in a.iter().zip(&b) {
        assert_eq!(x.shape(), y.shape());
        let scale = x.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
        worst = x.iter().zip(y.iter()).fold(worst, |m, (x, y)| m.max((x - y).abs() / scale));
    }
    worst
}

/// One line a node: operator, result, operands.
fn outline(bytes: &[u8]) -> String {
    let graph = ModelProto::decode(bytes).unwrap().graph.unwrap();
    let mut text = String::new();
    for node in &graph.node {
        writeln!(text, "{} = {}({})", node.output.join(", "), node.op_type, node.input.join(", ")).unwrap();
    }
    text
}

#[test]
fn both_profiles_come_back_as_they_went() {
    for profile in [Profile::Exact, Profile::TheX] {
        let options = digits(profile);
        let rewritten = rewrite(&options, Some("fuse-unary")).unwrap();
        let written = graph_file(&options, &rewritten.cx, &rewritten.graph).unwrap();
        let bytes = written.to_bytes().unwrap();
        let read = GraphFile::from_bytes(&bytes).unwrap();
        assert_eq!(read.to_bytes().unwrap(), bytes, "the file is not the same when written again");
        assert_eq!(onnx_bytes(&read).unwrap(), onnx_bytes(&read).unwrap());
        let original = import(&options.model, &ImportOptions::default()).unwrap().graph;
        let exported = reimport(&read);
        for seed in 0..4 {
            let image = [Arc::new(pseudo_random(&[1, 1, 8, 8], seed).mapv(f64::abs))];
            assert!(difference(&written.graph, &exported, &image) < TOLERANCE);
            let approximation = difference(&original, &exported, &image);
            assert_eq!(approximation < TOLERANCE, profile == Profile::Exact, "{approximation}");
        }
    }
}

#[test]
fn an_exported_model_compiles_again() {
    let options = digits(Profile::TheX);
    let first = compile(&options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("approximated.onnx");
    std::fs::write(&model, onnx_bytes(&GraphFile::from_bytes(&first.graph_bytes).unwrap()).unwrap()).unwrap();
    let second = compile(&CompileOptions { model, ..options }).unwrap();
    let pbs = |c: &thex::pipeline::Compiled| c.emitted.circuit.pbs_count();
    assert!(second.emitted.bundle.outputs[0].name == "logits");
    println!("bootstraps: {} at first, {} again", pbs(&first), pbs(&second));
    assert!(pbs(&second) <= pbs(&first) * 11 / 10);
}

#[test]
fn names_are_the_models_and_operators_are_standard() {
    let options = digits(Profile::TheX);
    let rewritten = rewrite(&options, Some("fuse-unary")).unwrap();
    let bytes = onnx_bytes(&graph_file(&options, &rewritten.cx, &rewritten.graph).unwrap()).unwrap();
    let model = ModelProto::decode(bytes.as_slice()).unwrap();
    assert_eq!((model.ir_version, model.opset_import[0].version), (8, 17));
    let graph = model.graph.unwrap();
    assert_eq!(graph.input[0].name, "image");
    assert_eq!(graph.output[0].name, "logits");
    assert!(graph.node.iter().all(|n| n.domain.is_empty()));
    assert!(graph.initializer.iter().all(|t| t.data_type == 1 || t.data_type == 7));
    insta::assert_snapshot!(outline(&bytes));
}

/// One sentence of six tokens where the model leaves it open.
fn concrete(info: &InputInfo) -> Vec<usize> {
    let dim = |(i, d): (usize, &Dim)| match d {
        Dim::Fixed(n) => *n,
        Dim::Symbol(_) => [1, 6][i.min(1)],
    };
    info.dims.iter().enumerate().map(dim).collect()
}

/// What the frontend makes of every kept export survives the way out and in again.
#[test]
fn every_kept_export_survives() {
    let folder = root("tests/models/exports");
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    for path in models {
        let infos = inputs(&path).unwrap();
        let shapes = infos.iter().map(|info| (info.name.clone(), concrete(info))).collect();
        let graph = import(&path, &ImportOptions { shapes }).unwrap().graph;
        let dtypes: Vec<(&str, &str)> = infos.iter().map(|i| (i.name.as_str(), i.dtype.as_str())).collect();
        let values: Vec<Arc<Tensor>> = graph
            .inputs
            .iter()
            .zip(&infos)
            .map(|(id, info)| {
                let value = pseudo_random(&graph.node(*id).shape, 3);
                Arc::new(if info.dtype.starts_with("float") {
                    value
                } else {
                    value.mapv(|v| f64::from(u8::from(v > -0.5)))
                })
            })
            .collect();
        let again = reimport(&file(graph.clone(), &dtypes));
        let worst = difference(&graph, &again, &values);
        assert!(worst < TOLERANCE, "{}: {worst:e}", path.display());
    }
}

/// A graph on `x`, positive, that ends in one output for each operation.
struct Kit {
    graph: Graph,
    x: NodeId,
}

impl Kit {
    fn new() -> Self {
        let mut graph = Graph::new();
        let x = graph.add_input("x", &[1, 3, 4]);
        Self { graph, x }
    }

    fn output(&mut self, op: ClearOp, operands: &[NodeId]) {
        let name = format!("y{}", self.graph.outputs.len());
        let id = self.graph.add_clear(op.mnemonic(), op, operands, &[]).unwrap();
        self.graph.outputs.push((name, id));
    }

    fn constant(&mut self, shape: &[usize]) -> NodeId {
        self.graph.add_constant("c", Arc::new(pseudo_random(shape, 5)), &[])
    }
}

#[test]
fn every_function_has_an_onnx_form() {
    let functions = [
        UnaryFn::Affine { scale: -0.5, shift: 0.25 },
        UnaryFn::Affine { scale: 1.0, shift: 2.0 },
        UnaryFn::Clamp { lo: 0.25, hi: 0.5 },
        UnaryFn::Clamp { lo: 0.25, hi: f64::MAX },
        UnaryFn::Clamp { lo: f64::MIN, hi: 0.5 },
        UnaryFn::Clamp { lo: f64::MIN, hi: f64::MAX },
        UnaryFn::Gelu,
        UnaryFn::GeluTanh,
        UnaryFn::Relu,
        UnaryFn::Tanh,
        UnaryFn::Sigmoid,
        UnaryFn::Silu,
        UnaryFn::Erf,
        UnaryFn::Exp,
        UnaryFn::Log,
        UnaryFn::Reciprocal,
        UnaryFn::Rsqrt,
        UnaryFn::Sqrt,
        UnaryFn::Abs,
        UnaryFn::Power { exponent: 2 },
        UnaryFn::Power { exponent: 3 },
        UnaryFn::Power { exponent: -1 },
    ];
    let mut kit = Kit::new();
    // Away from 0, where 1/x and its like are defined; the import's own check tries inputs in [-1, 1].
    let positive = UnaryChain(vec![UnaryFn::Affine { scale: 0.5, shift: 1.0 }]);
    kit.x = kit.graph.add_clear("positive", ClearOp::Unary { chain: positive }, &[kit.x], &[]).unwrap();
    for function in functions {
        kit.output(ClearOp::Unary { chain: function.into() }, &[kit.x]);
    }
    let chain = vec![UnaryFn::Affine { scale: 2.0, shift: -2.0 }, UnaryFn::Relu, UnaryFn::Power { exponent: 3 }];
    kit.output(ClearOp::Unary { chain: UnaryChain(chain) }, &[kit.x]);
    kit.output(ClearOp::Unary { chain: UnaryChain::default() }, &[kit.x]);
    check(kit, &[]);
}

#[test]
fn every_operation_has_an_onnx_form() {
    let mut kit = Kit::new();
    let x = kit.x;
    let (weights, more, bias, zero) =
        (kit.constant(&[5, 4]), kit.constant(&[5, 4]), kit.constant(&[3, 5]), kit.constant(&[1]));
    kit.graph.node_mut(zero).op = thex_ir::Op::Constant(Arc::new(ArrayD::zeros(IxDyn(&[1]))));
    kit.output(ClearOp::Linear, &[x, weights, bias]);
    kit.output(ClearOp::Linear, &[x, weights, x, more, zero]);
    // The same weights, read as they are.
    let rows = kit.graph.add_clear("rows", ClearOp::Slice { axis: 0, start: 0, end: 3 }, &[weights], &[]).unwrap();
    kit.output(ClearOp::Mul, &[x, rows]);
    let turned = kit.graph.add_clear("t", ClearOp::Transpose { permutation: vec![0, 2, 1] }, &[x], &[]).unwrap();
    kit.output(ClearOp::MatMul, &[x, turned]);
    kit.output(ClearOp::Softmax { axis: 1 }, &[x]);
    kit.output(ClearOp::LayerNorm { epsilon: 1e-5 }, &[x]);
    kit.output(ClearOp::RmsNorm { epsilon: 1e-3 }, &[x]);
    for reduction in [Reduction::Sum, Reduction::Mean, Reduction::Max] {
        kit.output(ClearOp::Reduce { reduction, axis: 1 }, &[x]);
    }
    kit.output(ClearOp::Reshape { shape: vec![2, 6] }, &[x]);
    kit.output(ClearOp::Broadcast { shape: vec![2, 3, 4] }, &[x]);
    kit.output(ClearOp::Slice { axis: 2, start: 1, end: 3 }, &[x]);
    kit.output(ClearOp::Concat { axis: 2 }, &[x, x]);
    kit.output(ClearOp::Mul, &[x, x]);
    check(kit, &[]);
}

/// One node is two outputs, and another node has the name of one of them.
#[test]
fn outputs_may_share_a_node() {
    let mut kit = Kit::new();
    let relu = kit.graph.add_clear("second", ClearOp::Unary { chain: UnaryFn::Relu.into() }, &[kit.x], &[]).unwrap();
    for name in ["first", "second"] {
        kit.graph.outputs.push((name.to_owned(), relu));
    }
    check(kit, &[]);
}

/// No model that the frontend takes has such outputs, but a graph may.
#[test]
fn outputs_need_no_node_of_their_own() {
    let mut kit = Kit::new();
    let constant = kit.constant(&[2]);
    kit.graph.outputs = vec![("same".into(), kit.x), ("fixed".into(), constant)];
    let bytes = onnx_bytes(&file(kit.graph, &[])).unwrap();
    assert_eq!(outline(&bytes), "same = Identity(x)\nfixed = Identity(c)\n");
}

/// Whole numbers look up a table and are counted with, as masks are.
#[test]
fn whole_inputs_keep_their_type() {
    let mut kit = Kit::new();
    let ids = kit.graph.add_input("ids", &[1, 3]);
    let table = kit.constant(&[6, 4]);
    kit.output(ClearOp::Gather { axis: 0 }, &[table, ids]);
    kit.output(ClearOp::Add, &[ids, ids]);
    let sum = kit.graph.outputs[1].1;
    kit.output(ClearOp::Gather { axis: 0 }, &[table, sum]);
    check(kit, &[("ids", "int64")]);
}

fn check(kit: Kit, dtypes: &[(&str, &str)]) {
    thex_ir::verify::verify(&kit.graph, &thex_ir::verify::VerifyOptions::default()).unwrap();
    let file = GraphFile::from_bytes(&file(kit.graph, dtypes).to_bytes().unwrap()).unwrap();
    let again = reimport(&file);
    let shapes: BTreeMap<&str, &[usize]> =
        file.graph.inputs.iter().map(|id| (file.graph.node(*id).name.as_str(), &*file.graph.node(*id).shape)).collect();
    let value = |(name, shape): (&&str, &&[usize])| {
        let value = pseudo_random(shape, 9);
        Arc::new(if *name == "ids" { value.mapv(|v| (v + 1.0).floor()) } else { value })
    };
    // Inputs in the graph's order, which is that of the names here: ids after x.
    let values: Vec<Arc<Tensor>> = shapes.iter().rev().map(value).collect();
    let worst = difference(&file.graph, &again, &values);
    assert!(worst < TOLERANCE, "{worst:e}\n{}", outline(&onnx_bytes(&file).unwrap()));
}

#[test]
fn damaged_graph_files_are_refused() {
    let mut kit = Kit::new();
    let (weights, bias) = (kit.constant(&[5, 4]), kit.constant(&[5]));
    kit.output(ClearOp::Linear, &[kit.x, weights, bias]);
    let bytes = file(kit.graph, &[]).to_bytes().unwrap();
    assert!(GraphFile::from_bytes(&bytes).is_ok());
    for length in [0, 7, bytes.len() / 2, bytes.len() - 1] {
        assert!(GraphFile::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    let error = GraphFile::from_bytes(&changed).unwrap_err();
    assert!(error.contains("not in the pool"), "{error}");
}
