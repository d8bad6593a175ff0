//! A graph of tensor operations as an ONNX model: opset 17, standard operators, single precision.
//!
//! Every IR node becomes one or a few ONNX nodes; the tensor keeps the IR's name, the steps before it append their operator to it.
//! Weights of linear maps are stored as `MatMul` reads them, `[in, out]`. Inputs of whole numbers keep their element type,
//! and are cast where they meet arithmetic.

use std::collections::BTreeMap;

use ndarray::{ArrayD, IxDyn};
use thex_circuit::clear::{ClearOp, Reduction, Tensor};
use thex_ir::{Graph, NodeId, Op};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, ValueInfoProto};

use super::GraphFile;
use super::nodes::{Nodes, Value, int, ints, value_info};
use super::unary;
use crate::error::{CompileError, Result};

/// Version of the ONNX file format.
const IR_VERSION: i64 = 8;

/// Version of the operators.
const OPSET: i64 = 17;

/// The ONNX model.
///
/// # Errors
/// [`CompileError::Internal`] on a homomorphic operation, which no graph before lowering has.
pub fn model(file: &GraphFile) -> Result<ModelProto> {
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    Ok(ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        producer_name: "thex".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: format!("{} as thex computes it (profile {})", file.model, file.profile),
        graph: Some(Writer::new(file).graph()?),
        metadata_props: vec![
            entry("thex.model", &file.model),
            entry("thex.profile", &file.profile),
            entry("thex.approximations", &file.approximations.join("\n")),
        ],
        ..ModelProto::default()
    })
}

/// Element type of an input. Real numbers come in single precision, whatever the original had.
fn data_type(dtype: Option<&String>) -> DataType {
    match dtype.map_or("", String::as_str) {
        "int64" => DataType::Int64,
        "int32" => DataType::Int32,
        "int16" => DataType::Int16,
        "int8" => DataType::Int8,
        "uint64" => DataType::Uint64,
        "uint32" => DataType::Uint32,
        "uint16" => DataType::Uint16,
        "uint8" => DataType::Uint8,
        "bool" => DataType::Bool,
        _ => DataType::Float,
    }
}

/// Whether an input of this element type holds real numbers.
pub(super) fn is_real(dtype: Option<&String>) -> bool {
    data_type(dtype) == DataType::Float
}

struct Writer<'a> {
    file: &'a GraphFile,
    graph: &'a Graph,
    nodes: Nodes,
    /// Real tensors, as the ONNX graph names them.
    values: BTreeMap<NodeId, String>,
    /// Weights of linear maps, transposed.
    weights: BTreeMap<NodeId, String>,
    infos: Vec<ValueInfoProto>,
}

impl<'a> Writer<'a> {
    fn new(file: &'a GraphFile) -> Self {
        let (graph, mut nodes) = (&file.graph, Nodes::default());
        graph.inputs.iter().for_each(|id| nodes.reserve(&graph.node(*id).name));
        graph.outputs.iter().for_each(|(name, _)| nodes.reserve(name));
        Self { file, graph, nodes, values: BTreeMap::new(), weights: BTreeMap::new(), infos: Vec::new() }
    }

    fn graph(mut self) -> Result<GraphProto> {
        for id in self.graph.topological() {
            if let Op::Clear(op) = &self.graph.node(id).op {
                self.node(id, op)?;
            }
        }
        self.copies()?;
        let port = |name: &str, id: NodeId, dtype| value_info(name, dtype, &self.graph.node(id).shape);
        let input = |id: &NodeId| port(&self.graph.node(*id).name, *id, self.dtype(*id));
        Ok(GraphProto {
            name: self.file.model.trim_end_matches(".onnx").to_owned(),
            input: self.graph.inputs.iter().map(input).collect(),
            output: self.graph.outputs.iter().map(|(name, id)| port(name, *id, DataType::Float)).collect(),
            node: self.nodes.nodes,
            initializer: self.nodes.initializers,
            value_info: self.infos,
            ..GraphProto::default()
        })
    }

    fn dtype(&self, id: NodeId) -> DataType {
        data_type(self.file.dtypes.get(&self.graph.node(id).name))
    }

    /// The output that takes its name from the node: the first that is this node and was not an output before.
    fn output_name(&self, id: NodeId) -> Option<&'a str> {
        self.graph.outputs.iter().find(|(_, output)| *output == id).map(|(name, _)| name.as_str())
    }

    /// Outputs that are inputs, constants, or another output.
    fn copies(&mut self) -> Result<()> {
        for (name, id) in &self.graph.outputs {
            if self.values.get(id) != Some(name) {
                self.nodes.begin(name);
                let value = self.value(*id)?;
                let copy = self.nodes.add("Identity", &[&value], Vec::new());
                self.nodes.finish(&copy, name);
            }
        }
        Ok(())
    }

    /// One operation, and the final name of its result.
    fn node(&mut self, id: NodeId, op: &ClearOp) -> Result<()> {
        let node = self.graph.node(id);
        let name = match self.output_name(id) {
            Some(output) => output.to_owned(),
            None => self.nodes.unique(&node.name),
        };
        self.nodes.begin(&name);
        let result = self.operation(id, op)?;
        let is_operand = self.graph.operands(id).iter().any(|o| self.values.get(o) == Some(&result));
        let result = if is_operand { self.nodes.add("Identity", &[&result], Vec::new()) } else { result };
        self.nodes.finish(&result, &name);
        if self.output_name(id).is_none() {
            self.infos.push(value_info(&name, DataType::Float, &node.shape));
        }
        self.values.insert(id, name);
        Ok(())
    }

    /// A tensor of real numbers, made when it is first needed if it is an input of whole numbers or a constant.
    fn value(&mut self, id: NodeId) -> Result<String> {
        if let Some(name) = self.values.get(&id) {
            return Ok(name.clone());
        }
        let node = self.graph.node(id);
        let name = match &node.op {
            Op::Input if self.dtype(id) == DataType::Float => node.name.clone(),
            Op::Input => self.cast(&node.name, DataType::Float),
            Op::Constant(value) => self.nodes.constant(&node.name, value),
            Op::Clear(_) | Op::He(_) => {
                return Err(CompileError::Internal(format!("`{}` cannot be written as ONNX", node.name)));
            }
        };
        self.values.insert(id, name.clone());
        Ok(name)
    }

    fn cast(&mut self, x: &str, to: DataType) -> String {
        self.nodes.add("Cast", &[x], vec![("to", Value::Int(i64::from(to as i32)))])
    }

    /// A tensor of whole numbers, for look-ups.
    fn indices(&mut self, id: NodeId) -> Result<String> {
        let node = self.graph.node(id);
        match &node.op {
            Op::Constant(value) => Ok(self.nodes.indices(&node.name, value)),
            Op::Input if matches!(self.dtype(id), DataType::Int64 | DataType::Int32) => Ok(node.name.clone()),
            Op::Input | Op::Clear(_) | Op::He(_) => {
                let value = self.value(id)?;
                Ok(self.cast(&value, DataType::Int64))
            }
        }
    }

    fn operation(&mut self, id: NodeId, op: &ClearOp) -> Result<String> {
        if matches!(op, ClearOp::Linear) {
            return self.linear(id);
        }
        let operands = self.graph.operands(id);
        if let (ClearOp::Gather { axis }, [table, indices]) = (op, operands.as_slice()) {
            let (table, indices) = (self.value(*table)?, self.indices(*indices)?);
            return Ok(self.nodes.add("Gather", &[&table, &indices], vec![("axis", Value::Int(int(*axis)))]));
        }
        let names = operands.iter().map(|o| self.value(*o)).collect::<Result<Vec<_>>>()?;
        let operands: Vec<&str> = names.iter().map(String::as_str).collect();
        let shape = &self.graph.node(id).shape;
        Ok(simple(&mut self.nodes, op, &operands, shape))
    }

    /// Σ xᵢ·Wᵢᵀ + b.
    fn linear(&mut self, id: NodeId) -> Result<String> {
        let operands = self.graph.operands(id);
        let (terms, bias) = operands.split_at(operands.len().saturating_sub(1));
        let mut sum: Option<String> = None;
        for term in terms.chunks_exact(2) {
            let (x, weights) = (self.value(term[0])?, self.transposed(term[1])?);
            let product = self.nodes.add("MatMul", &[&x, &weights], Vec::new());
            sum = Some(match sum {
                Some(sum) => self.nodes.add("Add", &[&sum, &product], Vec::new()),
                None => product,
            });
        }
        let [bias] = bias else { return Err(CompileError::Internal("a linear map has no bias".into())) };
        let zero = self.graph.constant(*bias).is_some_and(|b| b.iter().all(|v| v.abs() < f64::MIN_POSITIVE));
        match sum {
            Some(sum) if zero => Ok(sum),
            Some(sum) => {
                let bias = self.value(*bias)?;
                Ok(self.nodes.add("Add", &[&sum, &bias], Vec::new()))
            }
            None => self.value(*bias),
        }
    }

    /// Weights as `[in, out]`.
    fn transposed(&mut self, id: NodeId) -> Result<String> {
        if let Some(name) = self.weights.get(&id) {
            return Ok(name.clone());
        }
        let name = match self.graph.constant(id) {
            Some(value) => self.nodes.constant(&self.graph.node(id).name, &turned(value)),
            None => {
                let value = self.value(id)?;
                self.nodes.add("Transpose", &[&value], vec![("perm", Value::Ints(vec![1, 0]))])
            }
        };
        self.weights.insert(id, name.clone());
        Ok(name)
    }
}

fn turned(value: &Tensor) -> Tensor {
    value.t().as_standard_layout().into_owned()
}

/// Operations whose operands are all real tensors.
fn simple(nodes: &mut Nodes, op: &ClearOp, operands: &[&str], shape: &[usize]) -> String {
    let x = operands.first().copied().unwrap_or_default();
    let axis = |axis: &usize| vec![("axis", Value::Int(int(*axis)))];
    match op {
        ClearOp::MatMul => nodes.add("MatMul", operands, Vec::new()),
        ClearOp::Add => nodes.add("Add", operands, Vec::new()),
        ClearOp::Mul => nodes.add("Mul", operands, Vec::new()),
        ClearOp::Unary { chain } => unary::chain(nodes, x, chain),
        ClearOp::Softmax { axis: a } => nodes.add("Softmax", operands, axis(a)),
        ClearOp::Concat { axis: a } => nodes.add("Concat", operands, axis(a)),
        ClearOp::LayerNorm { epsilon } => layer_norm(nodes, x, *epsilon, shape),
        ClearOp::RmsNorm { epsilon } => rms_norm(nodes, x, *epsilon),
        ClearOp::Reduce { reduction, axis } => reduce(nodes, x, *reduction, int(*axis)),
        ClearOp::Reshape { shape } => with_integers(nodes, "Reshape", x, shape),
        ClearOp::Broadcast { shape } => with_integers(nodes, "Expand", x, shape),
        ClearOp::Transpose { permutation } => {
            nodes.add("Transpose", &[x], vec![("perm", Value::Ints(ints(permutation)))])
        }
        ClearOp::Slice { axis, start, end } => {
            let [start, end, axis] = [start, end, axis].map(|n| nodes.integers(&[int(*n)]));
            nodes.add("Slice", &[x, &start, &end, &axis], Vec::new())
        }
        // Handled by the caller.
        ClearOp::Linear | ClearOp::Gather { .. } => nodes.add("Identity", &[x], Vec::new()),
    }
}

fn with_integers(nodes: &mut Nodes, op: &str, x: &str, values: &[usize]) -> String {
    let values = nodes.integers(&ints(values));
    nodes.add(op, &[x, &values], Vec::new())
}

/// ONNX's layer norm has a gain; ours is a product of its own.
fn layer_norm(nodes: &mut Nodes, x: &str, epsilon: f64, shape: &[usize]) -> String {
    let width = shape.last().copied().unwrap_or(1);
    let ones = nodes.constant(&format!("ones.{width}"), &ArrayD::ones(IxDyn(&[width])));
    let attributes = vec![("axis", Value::Int(-1)), ("epsilon", Value::Float(epsilon as f32))];
    nodes.add("LayerNormalization", &[x, &ones], attributes)
}

/// x ÷ √(mean(x²) + ε): a norm of its own only from opset 23 on.
fn rms_norm(nodes: &mut Nodes, x: &str, epsilon: f64) -> String {
    let square = nodes.add("Mul", &[x, x], Vec::new());
    let mean = reduce(nodes, &square, Reduction::Mean, -1);
    let epsilon = nodes.number(epsilon);
    let sum = nodes.add("Add", &[&mean, &epsilon], Vec::new());
    let root = nodes.add("Sqrt", &[&sum], Vec::new());
    nodes.add("Div", &[x, &root], Vec::new())
}

/// The axes are an input of ReduceSum, and attributes of the others, in opset 17.
fn reduce(nodes: &mut Nodes, x: &str, reduction: Reduction, axis: i64) -> String {
    let keep = ("keepdims", Value::Int(1));
    match reduction {
        Reduction::Sum => {
            let axes = nodes.integers(&[axis]);
            nodes.add("ReduceSum", &[x, &axes], vec![keep])
        }
        Reduction::Mean => nodes.add("ReduceMean", &[x], vec![("axes", Value::Ints(vec![axis])), keep]),
        Reduction::Max => nodes.add("ReduceMax", &[x], vec![("axes", Value::Ints(vec![axis])), keep]),
    }
}
