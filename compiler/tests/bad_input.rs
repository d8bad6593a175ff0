//! Files that must be refused, quickly, in little memory, without a panic, and with a message that says what to do.
//!
//! The snapshots are the messages. Models are built from tract's protobuf types.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost::Message;
use thex::import::{ImportError, ImportOptions, import};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};

/// A model in the making: input `x` and output `y` of shape [1, 4] unless said otherwise.
struct Model(ModelProto);

impl Model {
    fn new() -> Self {
        let graph = GraphProto {
            input: vec![port("x", DataType::Float, &[1, 4])],
            output: vec![port("y", DataType::Float, &[1, 4])],
            ..GraphProto::default()
        };
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
        Self(ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() })
    }

    fn graph(&mut self) -> &mut GraphProto {
        self.0.graph.as_mut().unwrap()
    }

    fn opset(mut self, version: i64) -> Self {
        self.0.opset_import[0].version = version;
        self
    }

    fn input(mut self, name: &str, shape: &[i64]) -> Self {
        self.graph().input = vec![port(name, DataType::Float, shape)];
        self
    }

    fn output(mut self, name: &str) -> Self {
        self.graph().output.push(port(name, DataType::Float, &[1, 4]));
        self
    }

    fn node(self, name: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        self.with(name, op, inputs, outputs, Vec::new())
    }

    fn with(mut self, name: &str, op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> Self {
        let strings = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let (domain, op_type) = op.rsplit_once('.').unwrap_or(("", op));
        self.graph().node.push(NodeProto {
            name: name.into(),
            op_type: op_type.into(),
            domain: domain.into(),
            input: strings(inputs),
            output: strings(outputs),
            attribute,
            ..NodeProto::default()
        });
        self
    }

    fn constant(mut self, tensor: TensorProto) -> Self {
        self.graph().initializer.push(tensor);
        self
    }

    /// The refusal, with the file's folder left out.
    fn refusal(&self, shapes: &[(&str, &[usize])]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, self.0.encode_to_vec()).unwrap();
        let shapes: BTreeMap<String, Vec<usize>> = shapes.iter().map(|(n, s)| ((*n).to_owned(), s.to_vec())).collect();
        let error = match import(&path, &ImportOptions { shapes }) {
            Err(error) => error,
            Ok(imported) => panic!("imported:\n{}", thex_ir::print::print(&imported.graph)),
        };
        assert!(!matches!(error, ImportError::Internal(_)), "{error}");
        error.to_string().replace(&format!("{}/", folder.path().display()), "")
    }
}

fn port(name: &str, dtype: DataType, shape: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(*d)),
        ..tensor_shape_proto::Dimension::default()
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: dtype as i32, shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

fn floats(name: &str, dims: &[i64], float_data: &[f32]) -> TensorProto {
    let (name, dims, data_type) = (name.into(), dims.to_vec(), DataType::Float as i32);
    TensorProto { name, dims, data_type, float_data: float_data.to_vec(), ..TensorProto::default() }
}

fn whole(name: &str, int64_data: &[i64]) -> TensorProto {
    let (dims, data_type) = (vec![int64_data.len() as i64], DataType::Int64 as i32);
    TensorProto { name: name.into(), dims, data_type, int64_data: int64_data.to_vec(), ..TensorProto::default() }
}

fn kept_in(file: &str, mut tensor: TensorProto) -> TensorProto {
    tensor.float_data.clear();
    tensor.external_data = vec![StringStringEntryProto { key: "location".into(), value: file.into() }];
    tensor.data_location = Some(1);
    tensor
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let r#type = AttributeType::Ints as i32;
    AttributeProto { name: name.into(), r#type, ints: ints.to_vec(), ..AttributeProto::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i, ..AttributeProto::default() }
}

fn branch(name: &str, output: &str, op: &str) -> AttributeProto {
    let node =
        NodeProto { op_type: op.into(), input: vec!["x".into()], output: vec![output.into()], ..NodeProto::default() };
    let graph =
        GraphProto { node: vec![node], output: vec![port(output, DataType::Float, &[1, 4])], ..GraphProto::default() };
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Graph as i32,
        g: Some(graph),
        ..AttributeProto::default()
    }
}

fn report(cases: &[(&str, Model)]) -> String {
    let mut text = String::new();
    for (name, model) in cases {
        writeln!(text, "{name}:\n{}\n", model.refusal(&[])).unwrap();
    }
    text
}

#[test]
fn broken_graphs() {
    insta::assert_snapshot!(report(&[
        ("no nodes, and an output that is an input", Model::new().output("x")),
        (
            "a cycle",
            Model::new().node("a", "Add", &["x", "c"], &["b"]).node("b", "Tanh", &["b"], &["c"]).node(
                "after",
                "Tanh",
                &["c"],
                &["y"]
            )
        ),
        ("a node that reads itself", Model::new().node("self", "Add", &["x", "y"], &["y"])),
        (
            "two nodes make one tensor, two constants and two outputs have one name",
            Model::new()
                .node("first", "Tanh", &["x"], &["y"])
                .node("second", "Abs", &["x"], &["y"])
                .constant(floats("w", &[1], &[1.0]))
                .constant(floats("w", &[1], &[2.0]))
                .output("y")
        ),
        ("a tensor that nothing computes", Model::new().node("a", "Add", &["x", "nowhere"], &["y"])),
        (
            "an output that is a constant",
            Model::new().node("a", "Tanh", &["x"], &["y"]).constant(floats("w", &[1], &[1.0])).output("w")
        ),
        ("opset 5", Model::new().opset(5).node("a", "Tanh", &["x"], &["y"])),
    ]));
}

#[test]
fn an_input_that_is_no_tensor() {
    let mut model = Model::new().node("a", "SequenceAt", &["x", "i"], &["y"]).constant(whole("i", &[0]));
    model.graph().input[0].r#type = Some(TypeProto::default());
    insta::assert_snapshot!(model.refusal(&[]));
}

#[test]
fn an_input_that_goes_straight_through() {
    let model = Model::new().node("a", "Identity", &["x"], &["y"]);
    insta::assert_snapshot!(model.refusal(&[]));
}

#[test]
fn bad_constants() {
    let add = || Model::new().node("a", "Add", &["x", "w"], &["y"]);
    let matmul = || Model::new().node("a", "MatMul", &["x", "w"], &["y"]);
    let mut square = [0.5; 16];
    square[5] = f32::INFINITY;
    let raw = TensorProto { raw_data: vec![0; 7], float_data: Vec::new(), ..floats("w", &[4], &[]) };
    insta::assert_snapshot!(report(&[
        ("NaN", add().constant(floats("w", &[4], &[0.0, 1.0, f32::NAN, 0.0]))),
        ("an infinite weight", matmul().constant(floats("w", &[4, 4], &square))),
        ("fewer data than elements", add().constant(floats("w", &[4], &[0.0]))),
        ("2^40 elements", add().constant(floats("w", &[1 << 20, 1 << 20], &[0.0]))),
        ("2^70 elements", add().constant(floats("w", &[1 << 35, 1 << 35], &[0.0]))),
        ("a negative shape", add().constant(floats("w", &[-4], &[0.0; 4]))),
        ("half a number", add().constant(raw)),
        ("bfloat16", add().constant(TensorProto { data_type: 16, ..floats("w", &[4], &[0.0; 4]) })),
    ]));
}

#[test]
fn weights_in_files_that_are_not_there() {
    let model = Model::new()
        .node("a", "Add", &["x", "w"], &["h"])
        .node("b", "Add", &["h", "v"], &["y"])
        .constant(kept_in("weights.bin", floats("w", &[4], &[])))
        .constant(kept_in("weights.bin", floats("v", &[4], &[])));
    let wrong = Model::new()
        .node("a", "Add", &["x", "w"], &["y"])
        .constant(kept_in("model.onnx", floats("w", &[1 << 30, 1 << 10], &[])));
    insta::assert_snapshot!(report(&[("missing", model), ("too short", wrong)]));
}

/// Sizes that only shape inference sees.
#[test]
fn absurd_shapes() {
    let huge = [1_i64 << 20, 1 << 20];
    let cases = [
        (
            "ConstantOfShape",
            Model::new()
                .node("c", "ConstantOfShape", &["s"], &["t"])
                .node("a", "ReduceMax", &["t"], &["m"])
                .node("b", "Add", &["x", "m"], &["y"])
                .constant(whole("s", &huge)),
        ),
        ("Expand", Model::new().node("a", "Expand", &["x", "s"], &["y"]).constant(whole("s", &[1 << 38, 4]))),
        (
            "Expand of a constant",
            Model::new()
                .node("e", "Expand", &["w", "s"], &["t"])
                .node("a", "Add", &["x", "t"], &["y"])
                .constant(whole("s", &huge))
                .constant(floats("w", &[1], &[1.0])),
        ),
        ("Reshape", Model::new().node("a", "Reshape", &["x", "s"], &["y"]).constant(whole("s", &huge))),
        ("Tile", Model::new().node("t", "Tile", &["x", "s"], &["y"]).constant(whole("s", &huge))),
        (
            "a computed shape",
            Model::new()
                .node("m", "Mul", &["s", "s"], &["big"])
                .node("c", "ConstantOfShape", &["big"], &["t"])
                .node("a", "Add", &["x", "t"], &["y"])
                .constant(whole("s", &[1 << 20])),
        ),
        (
            "Range",
            Model::new()
                .node("r", "Range", &["from", "to", "by"], &["t"])
                .with("c", "Cast", &["t"], &["f"], vec![int("to", 1)])
                .node("a", "Add", &["x", "f"], &["y"])
                .constant(scalar("from", 0))
                .constant(scalar("to", 1 << 40))
                .constant(scalar("by", 1)),
        ),
        ("an input", Model::new().input("x", &[1 << 20, 1 << 20]).node("a", "Tanh", &["x"], &["y"])),
        (
            "products of many elements",
            Model::new().input("x", &[1, 8000, 8000]).node("a", "MatMul", &["x", "x"], &["y"]),
        ),
    ];
    insta::assert_snapshot!(report(&cases));
}

fn scalar(name: &str, value: i64) -> TensorProto {
    TensorProto { dims: Vec::new(), ..whole(name, &[value]) }
}

#[test]
fn absurd_shapes_on_the_command_line() {
    let mut model = Model::new().node("a", "Tanh", &["x"], &["y"]);
    model.graph().input[0] = port("x", DataType::Float, &[-1, -1]);
    let text = [
        model.refusal(&[("x", &[1 << 20, 1 << 20])]),
        model.refusal(&[("x", &[usize::MAX, usize::MAX])]),
        model.refusal(&[("x", &[1, 0])]),
    ];
    insta::assert_snapshot!(text.join("\n"));
}

/// Declared shapes of intermediate tensors are not believed, so they do no harm.
#[test]
fn absurd_value_infos_are_ignored() {
    let mut model = Model::new().node("a", "Tanh", &["x"], &["h"]).node("b", "Abs", &["h"], &["y"]);
    model.graph().value_info.push(port("h", DataType::Float, &[1 << 40]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.0.encode_to_vec()).unwrap();
    assert!(import(&path, &ImportOptions::default()).unwrap().difference < 1e-6);
}

#[test]
fn models_that_are_no_transformers() {
    let quantised = Model::new()
        .node("q", "DynamicQuantizeLinear", &["x"], &["xq", "xs", "xz"])
        .node("m", "MatMulInteger", &["xq", "w"], &["acc"])
        .node("c", "Cast", &["acc"], &["f"])
        .node("s", "Mul", &["f", "xs"], &["y"])
        .constant(TensorProto { data_type: 3, int32_data: vec![1; 16], ..floats("w", &[4, 4], &[]) });
    let cnn = Model::new()
        .input("x", &[1, 3, 8, 8])
        .with("conv", "Conv", &["x", "k"], &["c"], vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])])
        .node("norm", "BatchNormalization", &["c", "g", "g", "g", "g"], &["n"])
        .with("pool", "MaxPool", &["n"], &["p"], vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])])
        .with("plain", "Conv", &["p", "k"], &["y"], Vec::new())
        .constant(floats("k", &[3, 3, 3, 3], &[0.1; 81]))
        .constant(floats("g", &[3], &[1.0; 3]));
    let lstm = Model::new()
        .input("x", &[2, 1, 4])
        .with("lstm", "LSTM", &["x", "w", "r"], &["h"], vec![])
        .node("sine", "Frobnicate", &["h"], &["y"])
        .constant(floats("w", &[1, 16, 4], &[0.1; 64]))
        .constant(floats("r", &[1, 16, 4], &[0.1; 64]));
    let optimised =
        Model::new().node("gelu", "com.microsoft.FastGelu", &["x"], &["h"]).node("other", "acme.Gelu", &["h"], &["y"]);
    insta::assert_snapshot!(report(&[
        ("quantised to int8", quantised),
        ("a convolutional network", cnn),
        ("an LSTM, and an unknown operator", lstm),
        ("optimised by onnxruntime", optimised),
    ]));
}

#[test]
fn control_flow_and_sequences() {
    let loops = Model::new()
        .with("loop", "Loop", &["n", "go", "x"], &["y"], vec![branch("body", "z", "Tanh")])
        .constant(scalar("n", 3));
    let choice = Model::new()
        .node("sum", "ReduceMax", &["x"], &["m"])
        .node("test", "Greater", &["m", "zero"], &["go"])
        .with("if", "If", &["go"], &["y"], vec![branch("then_branch", "t", "Tanh"), branch("else_branch", "e", "Abs")])
        .constant(floats("zero", &[1], &[0.0]));
    let hidden = Model::new()
        .with(
            "if",
            "If",
            &["go"],
            &["y"],
            vec![branch("then_branch", "t", "ConstantOfShape"), branch("else_branch", "e", "Abs")],
        )
        .constant(TensorProto { data_type: 9, int32_data: vec![1], ..floats("go", &[1], &[]) });
    let sequence = Model::new()
        .node("split", "SplitToSequence", &["x"], &["parts"])
        .node("take", "SequenceAt", &["parts", "i"], &["y"])
        .constant(whole("i", &[0]));
    insta::assert_snapshot!(report(&[
        ("Loop", loops),
        ("If", choice),
        ("a shape in a branch", hidden),
        ("sequences", sequence),
    ]));
}

/// Everything that is wrong is in one report.
#[test]
fn many_faults_at_once() {
    let mut model = Model::new()
        .opset(5)
        .node("q", "QuantizeLinear", &["x", "w"], &["h"])
        .node("pool", "MaxPool", &["h"], &["p"])
        .node("lost", "Add", &["p", "nowhere"], &["y"])
        .constant(floats("w", &[1], &[f32::NAN]))
        .constant(kept_in("weights.bin", floats("v", &[4], &[])));
    for i in 0..100 {
        model = model.node(&format!("strange{i}"), "Frobnicate", &["x"], &[&format!("s{i}")]);
    }
    insta::assert_snapshot!(model.refusal(&[]));
}

/// Each made tract loop for ever, or was called a bug of thex, when `tests/fuzz` found it.
#[test]
fn found_by_fuzzing() {
    let gather = Model::new()
        .node("mean", "ReduceMean", &["x"], &["m"])
        .node("pick", "GatherND", &["m", "i"], &["y"])
        .constant(scalar("i", 0));
    let norm = |axis| {
        Model::new()
            .with("norm", "LayerNormalization", &["x", "gain"], &["y"], vec![int("axis", axis)])
            .constant(floats("gain", &[4], &[1.0; 4]))
    };
    let scalar_norm = Model::new()
        .node("norm", "LayerNormalization", &["one", "one"], &["n"])
        .node("add", "Add", &["x", "n"], &["y"])
        .constant(floats("one", &[], &[1.0]));
    let heads = vec![int("q_num_heads", 2), int("kv_num_heads", 2)];
    let attention = Model::new()
        .opset(23)
        .input("x", &[1, 3, 4])
        .with("attention", "Attention", &["x", "x", "x", "mask"], &["y"], heads)
        .constant(floats("mask", &[6, 6], &[0.0; 36]));
    let softmax = Model::new().with("softmax", "Softmax", &["x"], &["y"], vec![int("axis", 7)]);
    insta::assert_snapshot!(report(&[
        ("indices without an axis", gather),
        ("a node without operands", Model::new().node("turn", "Transpose", &[], &["y"])),
        ("an axis twice", Model::new().with("turn", "Transpose", &["x"], &["y"], vec![ints("perm", &[0, 0])])),
        ("an absurd axis", norm(i64::MAX)),
        ("an axis that is not there", norm(-5)),
        ("the norm of a number", scalar_norm),
        ("a mask of another size", attention),
        ("a softmax along no axis", softmax),
    ]));
}
