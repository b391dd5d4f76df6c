//! The graph between tracing and writing: nodes over named values, in the order of the computation.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytemuck::NoUninit;
use half::f16;
use prost::bytes::Bytes;

use crate::onnx::{
    AttributeProto, AttributeType, DataType, Dimension, DimensionValue, GraphProto, NodeProto, TensorProto,
    TensorShapeProto, TensorType, TypeProto, ValueInfoProto,
};

/// A computation in ONNX's operators.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// What the caller gives.
    pub inputs: Vec<Port>,
    /// What the caller gets.
    pub outputs: Vec<Port>,
    /// Operations, each after those that it depends on.
    pub nodes: Vec<Node>,
    /// Constants, by the names of their values.
    pub initializers: BTreeMap<String, Constant>,
}

/// One use of an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name, unique among nodes.
    pub name: String,
    /// ONNX's name of the operator.
    pub operator: &'static str,
    /// Names of the values that it reads.
    pub inputs: Vec<String>,
    /// Name of the value that it computes, unique among values.
    pub output: String,
    /// Names of the values that it computes after that; of our operators only TopK has one.
    pub further: Vec<String>,
    /// Settings of the operator.
    pub attributes: Vec<(&'static str, Attribute)>,
}

/// A setting of an operator.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A number.
    Float(f32),
    /// A whole number.
    Int(i64),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// A word.
    Text(&'static str),
}

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub elements: Elements,
}

/// Elements of a constant.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// 32-bit floating point.
    Float(Vec<f32>),
    /// 16-bit floating point.
    Half(Vec<f16>),
    /// 64-bit integers.
    Int(Vec<i64>),
    /// 32-bit integers.
    ShortInt(Vec<i32>),
    /// 8-bit integers from -128 to 127.
    SignedByte(Vec<i8>),
    /// 8-bit integers from 0 to 255.
    Byte(Vec<u8>),
}

/// A tensor at the border of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Name of the value.
    pub name: &'static str,
    /// What its elements are.
    pub elements: ElementType,
    /// Sizes, outermost first.
    pub shape: Vec<Side>,
    /// What it means, for people.
    pub meaning: String,
}

/// What the elements of a tensor at the border of the graph are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit floating point.
    Float,
    /// 64-bit integers.
    Int,
}

/// One size of a tensor at the border of the graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Side {
    /// Always this.
    Fixed(usize),
    /// Whatever the caller chooses, under a name.
    Dynamic(&'static str),
}

impl Graph {
    /// How often every value is read, by nodes or as an output of the graph.
    pub fn readers(&self) -> HashMap<&str, usize> {
        let read = self.nodes.iter().flat_map(|node| &node.inputs).map(String::as_str);
        let returned = self.outputs.iter().map(|port| port.name);
        read.chain(returned).fold(HashMap::new(), |mut readers, name| {
            *readers.entry(name).or_default() += 1;
            readers
        })
    }

    /// Drops the constants that no node reads.
    pub fn drop_unused_constants(&mut self) {
        let read: BTreeSet<_> = self.nodes.iter().flat_map(|node| &node.inputs).collect();
        self.initializers.retain(|name, _| read.contains(name));
    }

    /// The graph as ONNX writes it. Consumes the graph, so that no two copies of all weights exist at a time.
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
    /// The whole numbers of an attribute; empty where it is absent.
    #[cfg(test)]
    pub(crate) fn ints(&self, name: &str) -> &[i64] {
        match self.attributes.iter().find(|(known, _)| *known == name) {
            Some((_, Attribute::Ints(values))) => values,
            Some((_, Attribute::Int(value))) => std::slice::from_ref(value),
            _ => &[],
        }
    }

    /// The number in an attribute.
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
    /// A vector of whole numbers.
    pub(crate) fn ints(values: &[i64]) -> Self {
        Self { shape: vec![values.len()], elements: Elements::Int(values.to_vec()) }
    }

    /// A vector of numbers.
    pub(crate) fn floats(values: Vec<f32>) -> Self {
        Self { shape: vec![values.len()], elements: Elements::Float(values) }
    }

    /// A single value, without axes.
    pub(crate) fn scalar(elements: Elements) -> Self {
        Self { shape: Vec::new(), elements }
    }

    /// The elements, if they are 32-bit floating point.
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

/// The bytes of `values`, where they lie: no copy of the weights is made. ONNX wants them as this CPU has them, the
/// lowest first.
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
