//! Operators that no circuit will compute, or that the frontend does not know: all of them, with what to do instead.

use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};

use super::{Findings, graphs, node_name};
use crate::import::error::UnsupportedNode;

/// Why not, and what to do.
type Advice = (String, String);

pub(super) fn check(graph: &GraphProto, findings: &mut Findings) {
    let known = tract_onnx::onnx().op_register.0;
    for (graph, inside) in graphs(graph) {
        for node in &graph.node {
            axes(node, findings);
            let unknown = !known.contains_key(&node.op_type);
            if let Some((why, help)) = advice(graph, node, inside, unknown) {
                findings.unsupported.push(UnsupportedNode {
                    node: node_name(node),
                    op: qualified(node),
                    shapes: Vec::new(),
                    why,
                    help,
                });
            }
        }
    }
}

/// Most axes of a tensor.
const MOST_AXES: i64 = 16;

/// Axes that no tensor has, or has twice. tract counts up to them.
fn axes(node: &NodeProto, findings: &mut Findings) {
    let given = node.attribute.iter().filter(|a| a.name == "axis" || a.name == "axes" || a.name == "batch_dims");
    let absurd =
        given.flat_map(|a| a.ints.iter().copied().chain([a.i])).find(|axis| axis.unsigned_abs() > MOST_AXES as u64);
    if let Some(axis) = absurd {
        findings.fault(format!("node `{}` ({}) works along axis {axis}", node_name(node), node.op_type));
    }
    if let Some(order) = attribute(node, "perm").map(|a| &a.ints).filter(|_| node.op_type == "Transpose") {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if sorted.iter().zip(0..).any(|(axis, i)| *axis != i) {
            findings.fault(format!("node `{}` (Transpose) has {order:?}, which is no order of axes", node_name(node)));
        }
    }
}

fn is_standard(node: &NodeProto) -> bool {
    node.domain.is_empty() || node.domain == "ai.onnx"
}

fn qualified(node: &NodeProto) -> String {
    if is_standard(node) { node.op_type.clone() } else { format!("{}.{}", node.domain, node.op_type) }
}

fn advice(graph: &GraphProto, node: &NodeProto, inside: bool, unknown: bool) -> Option<Advice> {
    let say = |why: &str, help: &str| Some((why.to_owned(), help.to_owned()));
    if !is_standard(node) {
        let help = match node.domain.as_str() {
            "com.microsoft" => "export the model without onnxruntime's optimisations",
            _ => "export the model with standard ONNX operators (opset 14 to 23)",
        };
        return say("it is no standard ONNX operator", help);
    }
    match node.op_type.as_str() {
        op if is_quantised(op) => {
            say("the model is quantised", "export the float model: thex chooses its own precision")
        }
        "LSTM" | "GRU" | "RNN" => say("it is a recurrent layer, not a transformer's", "use attention instead"),
        "Loop" | "Scan" => say(
            "it is a loop, and a circuit has none",
            "export with fixed shapes and without scripting, so that the exporter unrolls it",
        ),
        "MaxPool" | "LpPool" | "GlobalMaxPool" | "GlobalLpPool" | "AveragePool" | "GlobalAveragePool" => say(
            "it pools windows, as convolutional networks do",
            "thex compiles transformers; pool with a mean over tokens",
        ),
        op if op.starts_with("Sequence")
            || op.starts_with("Optional")
            || op == "SplitToSequence"
            || op == "ConcatFromSequence" =>
        {
            say("it works on sequences, not on tensors", "use Concat, Split and Gather on tensors")
        }
        op if op.starts_with("Random") || matches!(op, "Multinomial" | "Bernoulli") => {
            say("it is random, and a circuit is not", "export the model in evaluation mode")
        }
        "HannWindow" | "HammingWindow" | "BlackmanWindow" | "DFT" | "STFT" | "EyeLike" | "Resize" | "Upsample" => say(
            "it belongs to signals and images, not to transformers",
            "compute it before the model, or fold it into a constant",
        ),
        op if op.ends_with("Normalization") && attribute(node, "axis").is_some_and(|a| a.i < -1) => {
            say("it normalises over more than the last axis", "normalise over the last axis")
        }
        "Conv" => overlapping(graph, node)
            .map(|why| (why, "only convolutions that cut the input into patches can be compiled".into())),
        op if inside && makes_shapes(op) => {
            say("it makes a tensor of a computed shape in a branch", "export with fixed shapes, so that branches go")
        }
        _ if unknown => say(
            "the frontend does not know this operator",
            "export the model with standard ONNX operators (opset 14 to 23)",
        ),
        _ => None,
    }
}

fn is_quantised(op: &str) -> bool {
    matches!(op, "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear" | "MatMulInteger" | "ConvInteger")
        || op.starts_with("QLinear")
}

/// Whether the shape of the result is a number among its operands.
fn makes_shapes(op: &str) -> bool {
    matches!(
        op,
        "ConstantOfShape" | "Expand" | "Tile" | "Range" | "Pad" | "OneHot" | "Resize" | "Upsample" | "EyeLike" | "If"
    )
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

/// Size of a convolution's kernel, by its attribute or its weights.
fn kernel<'a>(graph: &'a GraphProto, node: &'a NodeProto) -> Option<&'a [i64]> {
    if let Some(kernel) = attribute(node, "kernel_shape") {
        return Some(&kernel.ints);
    }
    let weights = graph.initializer.iter().find(|t| Some(&t.name) == node.input.get(1))?;
    weights.dims.get(2..)
}

/// Why a convolution does not cut its input into patches, as far as its attributes tell.
fn overlapping(graph: &GraphProto, node: &NodeProto) -> Option<String> {
    let kernel = kernel(graph, node)?;
    let ones = vec![1; kernel.len()];
    let strides = attribute(node, "strides").map_or(ones.as_slice(), |a| &a.ints);
    let any = |name: &str, neutral: i64| attribute(node, name).is_some_and(|a| a.ints.iter().any(|i| *i != neutral));
    if strides != kernel {
        return Some(format!("its patches overlap or leave gaps: kernel {kernel:?}, stride {strides:?}"));
    }
    (any("pads", 0) || any("dilations", 1)).then(|| "it is padded or dilated".to_owned())
}
