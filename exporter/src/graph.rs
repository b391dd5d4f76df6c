//! The graph between tracing and encoding: nodes that read and compute named values, in order of computation.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytemuck::NoUninit;
use half::f16;
use prost::bytes::Bytes;

use crate::onnx::{
    AttributeProto, AttributeType, DataType, Dimension, DimensionValue, GraphProto, NodeProto, TensorProto,
    TensorShapeProto, TensorType, TypeProto, ValueInfoProto,
};

/// A graph of ONNX operators.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// Nodes, each after those that it depends on.
    pub nodes: Vec<Node>,
    /// Constants, by name.
    pub initializers: BTreeMap<String, Constant>,
}

/// A node: one use of an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name, unique among the nodes.
    pub name: String,
    /// ONNX operator, such as `Conv`.
    pub operator: &'static str,
    /// Names of its input values.
    pub inputs: Vec<String>,
    /// Name of its first output value, unique among the values.
    pub output: String,
    /// Names of its other output values. Of the operators used here, only TopK has one.
    pub further: Vec<String>,
    /// Attributes.
    pub attributes: Vec<(&'static str, Attribute)>,
}

/// An attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A float.
    Float(f32),
    /// An integer.
    Int(i64),
    /// Integers.
    Ints(Vec<i64>),
    /// A string.
    Text(&'static str),
}

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub elements: Elements,
}

/// Elements of a constant.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// float32.
    Float(Vec<f32>),
    /// float16.
    Half(Vec<f16>),
    /// int64.
    Int(Vec<i64>),
    /// int32.
    ShortInt(Vec<i32>),
    /// int8.
    SignedByte(Vec<i8>),
    /// uint8.
    Byte(Vec<u8>),
}

/// An input or output of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Name of the value.
    pub name: &'static str,
    /// Type of the elements.
    pub elements: ElementType,
    /// Shape.
    pub shape: Vec<Side>,
    /// Doc string.
    pub meaning: String,
}

/// Element type of an input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// float32.
    Float,
    /// int64.
    Int,
}

/// A dimension of an input or output.
#[derive(Clone, Debug, PartialEq)]
pub enum Side {
    /// A fixed size.
    Fixed(usize),
    /// The name of a dynamic size.
    Dynamic(&'static str),
}

impl Graph {
    /// Number of uses of each value, as input of a node or as output of the graph.
    pub fn readers(&self) -> HashMap<&str, usize> {
        let read = self.nodes.iter().flat_map(|node| &node.inputs).map(String::as_str);
        let returned = self.outputs.iter().map(|port| port.name);
        read.chain(returned).fold(HashMap::new(), |mut readers, name| {
            *readers.entry(name).or_default() += 1;
            readers
        })
    }

    /// Removes the constants that no node reads.
    pub fn drop_unused_constants(&mut self) {
        let read: BTreeSet<_> = self.nodes.iter().flat_map(|node| &node.inputs).collect();
        self.initializers.retain(|name, _| read.contains(name));
    }

    /// Converts the graph to its ONNX message. Consumes it, so that the weights are not copied.
    pub(crate) fn into_proto(self, name: &str) -> GraphProto {
        GraphProto {
            name: name.to_owned(),
            node: self.nodes.into_iter().map(Node::into_proto).collect(),
            initializer: self.initializers.into_iter().map(|(name, constant)| constant.into_proto(name)).collect(),
            input: self.inputs.into_iter().map(Port::into_proto).collect(),
            output: self.outputs.into_iter().map(Port::into_proto).collect(),
            ..GraphProto::default()
        }
    }
}

impl Node {
    /// The integers of an attribute; empty if it is absent.
    #[cfg(test)]
    pub(crate) fn ints(&self, name: &str) -> &[i64] {
        match self.attributes.iter().find(|(known, _)| *known == name) {
            Some((_, Attribute::Ints(values))) => values,
            Some((_, Attribute::Int(value))) => std::slice::from_ref(value),
            _ => &[],
        }
    }

    /// The float of an attribute.
    pub(crate) fn float(&self, name: &str) -> Option<f32> {
        self.attributes.iter().find_map(|(known, value)| match value {
            Attribute::Float(value) if *known == name => Some(*value),
            _ => None,
        })
    }

    fn into_proto(self) -> NodeProto {
        NodeProto {
            input: self.inputs,
            output: std::iter::once(self.output).chain(self.further).collect(),
            name: self.name,
            op_type: self.operator.to_owned(),
            attribute: self.attributes.into_iter().map(|(name, value)| value.into_proto(name)).collect(),
        }
    }
}

impl Attribute {
    fn into_proto(self, name: &str) -> AttributeProto {
        let mut proto = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
        proto.set_type(match self {
            Attribute::Float(_) => AttributeType::Float,
            Attribute::Int(_) => AttributeType::Int,
            Attribute::Ints(_) => AttributeType::Ints,
            Attribute::Text(_) => AttributeType::String,
        });
        match self {
            Attribute::Float(value) => proto.f = Some(value),
            Attribute::Int(value) => proto.i = Some(value),
            Attribute::Ints(values) => proto.ints = values,
            Attribute::Text(word) => proto.s = Some(word.into()),
        }
        proto
    }
}

impl Constant {
    /// A vector of int64.
    pub(crate) fn ints(values: &[i64]) -> Self {
        Self { shape: vec![values.len()], elements: Elements::Int(values.to_vec()) }
    }

    /// A vector of float32.
    pub(crate) fn floats(values: Vec<f32>) -> Self {
        Self { shape: vec![values.len()], elements: Elements::Float(values) }
    }

    /// A scalar.
    pub(crate) fn scalar(elements: Elements) -> Self {
        Self { shape: Vec::new(), elements }
    }

    /// The elements, if they are float32.
    pub(crate) fn as_floats(&self) -> Option<&[f32]> {
        match &self.elements {
            Elements::Float(values) => Some(values),
            _ => None,
        }
    }

    fn into_proto(self, name: String) -> TensorProto {
        let (data_type, raw_data) = match self.elements {
            Elements::Float(values) => (DataType::Float, in_place(values)),
            Elements::Half(values) => (DataType::Float16, in_place(values)),
            Elements::Int(values) => (DataType::Int64, in_place(values)),
            Elements::ShortInt(values) => (DataType::Int32, in_place(values)),
            Elements::SignedByte(values) => (DataType::Int8, in_place(values)),
            Elements::Byte(values) => (DataType::Uint8, in_place(values)),
        };
        let dims = self.shape.into_iter().map(|size| size as i64).collect();
        TensorProto { dims, data_type: data_type.into(), name, raw_data, ..TensorProto::default() }
    }
}

/// The bytes of `values`, without copying them. ONNX stores little-endian numbers, as this CPU does.
fn in_place<T: NoUninit + Send>(values: Vec<T>) -> Bytes {
    struct Values<T>(Vec<T>);

    impl<T: NoUninit> AsRef<[u8]> for Values<T> {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }

    Bytes::from_owner(Values(values))
}

impl Port {
    fn into_proto(self) -> ValueInfoProto {
        let dim = self.shape.into_iter().map(|side| {
            let value = match side {
                Side::Fixed(size) => DimensionValue::Size(size as i64),
                Side::Dynamic(name) => DimensionValue::Name(name.to_owned()),
            };
            Dimension { value: Some(value) }
        });
        let shape = Some(TensorShapeProto { dim: dim.collect() });
        let data_type = match self.elements {
            ElementType::Float => DataType::Float,
            ElementType::Int => DataType::Int64,
        };
        let tensor_type = Some(TensorType { elem_type: data_type.into(), shape });
        ValueInfoProto { name: self.name.to_owned(), r#type: Some(TypeProto { tensor_type }), doc_string: self.meaning }
    }
}
