//! The messages of the ONNX file format that this program writes and reads, with the field numbers of
//! <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>.
//!
//! Written by hand, so that the build does not need protoc. Fields that the exporter does not use are left out:
//! decoding skips them. Scalars whose zero has a meaning are `Option`s; other scalars are omitted from the file when
//! they are zero.

use prost::bytes::Bytes;
use prost::{Message, Oneof};

/// A model: a graph and its metadata.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ModelProto {
    /// Version of the file format.
    #[prost(int64, tag = "1")]
    pub(crate) ir_version: i64,
    /// Versions of the operator sets that the graph uses.
    #[prost(message, repeated, tag = "8")]
    pub(crate) opset_import: Vec<OperatorSetIdProto>,
    /// Program that wrote the file.
    #[prost(string, tag = "2")]
    pub(crate) producer_name: String,
    /// Version of that program.
    #[prost(string, tag = "3")]
    pub(crate) producer_version: String,
    /// Documentation.
    #[prost(string, tag = "6")]
    pub(crate) doc_string: String,
    /// The graph.
    #[prost(message, optional, tag = "7")]
    pub(crate) graph: Option<GraphProto>,
    /// Metadata entries.
    #[prost(message, repeated, tag = "14")]
    pub(crate) metadata_props: Vec<StringStringEntryProto>,
}

/// Version of an operator set.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct OperatorSetIdProto {
    /// Empty for ONNX's own operators.
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    /// Version of the set.
    #[prost(int64, tag = "2")]
    pub(crate) version: i64,
}

/// A metadata entry.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct StringStringEntryProto {
    /// Key.
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

/// A graph.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    /// Nodes, each after those that it depends on.
    #[prost(message, repeated, tag = "1")]
    pub(crate) node: Vec<NodeProto>,
    /// Name.
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    /// Constants.
    #[prost(message, repeated, tag = "5")]
    pub(crate) initializer: Vec<TensorProto>,
    /// Documentation.
    #[prost(string, tag = "10")]
    pub(crate) doc_string: String,
    /// Inputs.
    #[prost(message, repeated, tag = "11")]
    pub(crate) input: Vec<ValueInfoProto>,
    /// Outputs.
    #[prost(message, repeated, tag = "12")]
    pub(crate) output: Vec<ValueInfoProto>,
}

/// A node.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NodeProto {
    /// Names of its input values.
    #[prost(string, repeated, tag = "1")]
    pub(crate) input: Vec<String>,
    /// Names of its output values.
    #[prost(string, repeated, tag = "2")]
    pub(crate) output: Vec<String>,
    /// Name.
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    /// Operator.
    #[prost(string, tag = "4")]
    pub(crate) op_type: String,
    /// Attributes.
    #[prost(message, repeated, tag = "5")]
    pub(crate) attribute: Vec<AttributeProto>,
}

/// An attribute of a node.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AttributeProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Which of the other fields holds the value.
    #[prost(enumeration = "AttributeType", tag = "20")]
    pub(crate) r#type: i32,
    /// A float.
    #[prost(float, optional, tag = "2")]
    pub(crate) f: Option<f32>,
    /// An integer.
    #[prost(int64, optional, tag = "3")]
    pub(crate) i: Option<i64>,
    /// A string, in UTF-8.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub(crate) s: Option<Vec<u8>>,
    /// Integers.
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub(crate) ints: Vec<i64>,
}

/// Type of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum AttributeType {
    /// Undefined.
    Undefined = 0,
    /// A float.
    Float = 1,
    /// An integer.
    Int = 2,
    /// A string.
    String = 3,
    /// Integers.
    Ints = 7,
}

/// A constant.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TensorProto {
    /// Sizes, outermost first.
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub(crate) dims: Vec<i64>,
    /// Type of the elements.
    #[prost(enumeration = "DataType", tag = "2")]
    pub(crate) data_type: i32,
    /// Name of the value.
    #[prost(string, tag = "8")]
    pub(crate) name: String,
    /// The elements in row-major order, each in little-endian bytes.
    #[prost(bytes = "bytes", tag = "9")]
    pub(crate) raw_data: Bytes,
    /// If the elements are in another file: its name, and offset and length in bytes.
    #[prost(message, repeated, tag = "13")]
    pub(crate) external_data: Vec<StringStringEntryProto>,
    /// [`DATA_IS_EXTERNAL`], or zero if the elements are here.
    #[prost(int32, tag = "14")]
    pub(crate) data_location: i32,
}

/// `TensorProto.DataLocation.EXTERNAL`.
pub(crate) const DATA_IS_EXTERNAL: i32 = 1;

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum DataType {
    /// Undefined.
    Undefined = 0,
    /// 32-bit floating point.
    Float = 1,
    /// 8-bit integer from 0 to 255.
    Uint8 = 2,
    /// 8-bit integer from -128 to 127.
    Int8 = 3,
    /// 32-bit integer.
    Int32 = 6,
    /// 64-bit integer.
    Int64 = 7,
    /// 16-bit floating point.
    Float16 = 10,
}

/// A named value and its type.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ValueInfoProto {
    /// Name of the value.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Type of the value.
    #[prost(message, optional, tag = "2")]
    pub(crate) r#type: Option<TypeProto>,
    /// Documentation.
    #[prost(string, tag = "3")]
    pub(crate) doc_string: String,
}

/// Type of a value. ONNX has other kinds of types, but all values of these graphs are tensors.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TypeProto {
    /// Type of a tensor.
    #[prost(message, optional, tag = "1")]
    pub(crate) tensor_type: Option<TensorType>,
}

/// `TypeProto.Tensor`: element type and shape.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TensorType {
    /// Type of the elements.
    #[prost(enumeration = "DataType", tag = "1")]
    pub(crate) elem_type: i32,
    /// Shape.
    #[prost(message, optional, tag = "2")]
    pub(crate) shape: Option<TensorShapeProto>,
}

/// A shape.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct TensorShapeProto {
    /// Sizes, outermost first.
    #[prost(message, repeated, tag = "1")]
    pub(crate) dim: Vec<Dimension>,
}

/// `TensorShapeProto.Dimension`: one size.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Dimension {
    /// The size, or its name.
    #[prost(oneof = "DimensionValue", tags = "1, 2")]
    pub(crate) value: Option<DimensionValue>,
}

/// A size, or the name of a size that the caller chooses.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub(crate) enum DimensionValue {
    /// `dim_value`.
    #[prost(int64, tag = "1")]
    Size(i64),
    /// `dim_param`.
    #[prost(string, tag = "2")]
    Name(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_bytes_equal_those_of_the_onnx_python_package() {
        // onnx 1.23.2:
        // from onnx import *; from onnx.helper import *
        // node = NodeProto(input=["x"], output=["y"], name="n", op_type="Conv")
        // node.attribute.append(AttributeProto(name="group", type=AttributeProto.INT, i=0))
        // node.attribute.append(AttributeProto(name="pads", type=AttributeProto.INTS, ints=[1, 300]))
        // shape = TensorShapeProto(); shape.dim.add().dim_param = "N"; shape.dim.add().dim_value = 3
        // tensor = TypeProto.Tensor(elem_type=1, shape=shape)
        // graph = GraphProto(name="g", node=[node], input=[ValueInfoProto(name="x", type=TypeProto(tensor_type=tensor))])
        // graph.initializer.append(TensorProto(dims=[2], data_type=7, name="c", raw_data=bytes(16)))
        // model = ModelProto(ir_version=8, producer_name="p", graph=graph)
        // model.opset_import.add().version = 17
        // model.metadata_props.add(key="k", value="v")
        // model.SerializeToString().hex()
        let expected = "08081201703a630a2d0a01781201791a016e2204436f6e762a0c0a0567726f75701800a001022a0e0a0470616473400140ac02\
                        a001071201672a19080210074201634a10000000000000000000000000000000005a140a0178120f0a0d080112090a0312014e\
                        0a0208034202101172060a016b120176";
        let node = NodeProto {
            input: vec!["x".into()],
            output: vec!["y".into()],
            name: "n".into(),
            op_type: "Conv".into(),
            attribute: vec![
                AttributeProto { name: "group".into(), r#type: 2, i: Some(0), ..Default::default() },
                AttributeProto { name: "pads".into(), r#type: 7, ints: vec![1, 300], ..Default::default() },
            ],
        };
        let dimensions = [DimensionValue::Name("N".into()), DimensionValue::Size(3)];
        let dim = dimensions.map(|value| Dimension { value: Some(value) }).into();
        let tensor_type = Some(TensorType { elem_type: 1, shape: Some(TensorShapeProto { dim }) });
        let input = ValueInfoProto { name: "x".into(), r#type: Some(TypeProto { tensor_type }), ..Default::default() };
        let constant = TensorProto {
            dims: vec![2],
            data_type: 7,
            name: "c".into(),
            raw_data: vec![0; 16].into(),
            ..Default::default()
        };
        let graph = GraphProto {
            name: "g".into(),
            node: vec![node],
            input: vec![input],
            initializer: vec![constant],
            ..Default::default()
        };
        let model = ModelProto {
            ir_version: 8,
            producer_name: "p".into(),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { version: 17, ..Default::default() }],
            metadata_props: vec![StringStringEntryProto { key: "k".into(), value: "v".into() }],
            ..Default::default()
        };
        let bytes = model.encode_to_vec();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
        assert_eq!(ModelProto::decode(&bytes[..]).unwrap(), model);
    }
}
