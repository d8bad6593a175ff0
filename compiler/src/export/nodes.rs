//! Building blocks of an ONNX graph: unique names, nodes, initialisers, shapes.

use std::collections::{BTreeMap, BTreeSet};

use thex_circuit::clear::Tensor;
use tract_onnx::pb::{
    AttributeProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto,
    tensor_proto::DataType, tensor_shape_proto, type_proto,
};

/// An attribute's value.
pub(super) enum Value {
    /// A number.
    Int(i64),
    /// Numbers.
    Ints(Vec<i64>),
    /// A real number.
    Float(f32),
}

/// An axis or length as ONNX counts it.
pub(super) fn int(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Axes or lengths as ONNX counts them.
pub(super) fn ints(values: &[usize]) -> Vec<i64> {
    values.iter().map(|v| int(*v)).collect()
}

/// An ONNX graph in the making.
#[derive(Default)]
pub(super) struct Nodes {
    /// The nodes in order.
    pub(super) nodes: Vec<NodeProto>,
    /// Weights and other constants.
    pub(super) initializers: Vec<TensorProto>,
    taken: BTreeSet<String>,
    shared: BTreeMap<(i32, Vec<i64>, Vec<u8>), String>,
    base: String,
}

impl Nodes {
    /// From here on, what is added belongs to the tensor `base`.
    pub(super) fn begin(&mut self, base: &str) {
        base.clone_into(&mut self.base);
    }

    /// Keeps a name for one use.
    pub(super) fn reserve(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    /// A name that nothing has yet, from `wish`.
    pub(super) fn unique(&mut self, wish: &str) -> String {
        let mut name = wish.to_owned();
        let mut i = 1;
        while !self.taken.insert(name.clone()) {
            name = format!("{wish}.{i}");
            i += 1;
        }
        name
    }

    /// Adds a node; gives its result, named after the tensor in the making and the operator.
    pub(super) fn add(&mut self, op: &str, inputs: &[&str], attributes: Vec<(&str, Value)>) -> String {
        let name = self.unique(&format!("{}.{op}", self.base));
        self.nodes.push(NodeProto {
            name: name.clone(),
            op_type: op.to_owned(),
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: vec![name.clone()],
            attribute: attributes.into_iter().map(|(name, value)| attribute(name, value)).collect(),
            ..NodeProto::default()
        });
        name
    }

    /// Gives the tensor `value` its final name: that of the last node, when it made it, else of a copy.
    pub(super) fn finish(&mut self, value: &str, name: &str) {
        if !self.nodes.last().is_some_and(|node| node.output == [value] && node.name == value) {
            self.add("Identity", &[value], Vec::new());
        }
        if let Some(last) = self.nodes.last_mut() {
            name.clone_into(&mut last.name);
            last.output = vec![name.to_owned()];
        }
    }

    /// Adds a constant in single precision.
    pub(super) fn constant(&mut self, name: &str, value: &Tensor) -> String {
        let name = self.unique(name);
        self.initializers.push(floats(&name, value));
        name
    }

    /// A constant number; equal ones are one initialiser.
    pub(super) fn number(&mut self, value: f64) -> String {
        let value = value as f32;
        self.shared(&format!("number.{value:?}"), DataType::Float, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// Constant whole numbers; equal ones are one initialiser.
    pub(super) fn integers(&mut self, values: &[i64]) -> String {
        let text: Vec<String> = values.iter().map(ToString::to_string).collect();
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.shared(&format!("integers.{}", text.join("x")), DataType::Int64, vec![int(values.len())], bytes)
    }

    /// A tensor of whole numbers.
    pub(super) fn indices(&mut self, name: &str, value: &Tensor) -> String {
        let bytes = value.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect();
        self.shared(name, DataType::Int64, ints(value.shape()), bytes)
    }

    fn shared(&mut self, wish: &str, dtype: DataType, dims: Vec<i64>, bytes: Vec<u8>) -> String {
        let key = (dtype as i32, dims, bytes);
        if let Some(name) = self.shared.get(&key) {
            return name.clone();
        }
        let name = self.unique(wish);
        let (data_type, dims, raw_data) = key.clone();
        self.initializers.push(TensorProto { name: name.clone(), data_type, dims, raw_data, ..TensorProto::default() });
        self.shared.insert(key, name.clone());
        name
    }
}

fn attribute(name: &str, value: Value) -> AttributeProto {
    let mut attribute = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    match value {
        Value::Int(i) => {
            attribute.r#type = attribute_proto::AttributeType::Int as i32;
            attribute.i = i;
        }
        Value::Ints(ints) => {
            attribute.r#type = attribute_proto::AttributeType::Ints as i32;
            attribute.ints = ints;
        }
        Value::Float(f) => {
            attribute.r#type = attribute_proto::AttributeType::Float as i32;
            attribute.f = f;
        }
    }
    attribute
}

fn floats(name: &str, value: &Tensor) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        data_type: DataType::Float as i32,
        dims: ints(value.shape()),
        raw_data: value.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

/// Name, element type and shape of a tensor.
pub(super) fn value_info(name: &str, dtype: DataType, shape: &[usize]) -> ValueInfoProto {
    let dim = |d: &usize| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(int(*d))),
        ..tensor_shape_proto::Dimension::default()
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: dtype as i32, shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() }
}
