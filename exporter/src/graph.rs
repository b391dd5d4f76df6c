//! Building and changing graphs. A graph is its ONNX message; clones share the bytes of its constants.

use std::collections::{BTreeSet, HashMap};

use bytemuck::NoUninit;
use half::f16;
use prost::bytes::Bytes;

use crate::onnx::{
    AttributeProto, AttributeType, DataType, Dimension, DimensionValue, GraphProto, NodeProto, TensorProto,
    TensorShapeProto, TensorType, TypeProto, ValueInfoProto,
};

impl GraphProto {
    /// Index of a constant, or where to insert it. The constants are in order of their names.
    fn index_of(&self, name: &str) -> Result<usize, usize> {
        self.initializer.binary_search_by(|constant| constant.name.as_str().cmp(name))
    }

    /// The constant of this name.
    pub(crate) fn constant(&self, name: &str) -> Option<&TensorProto> {
        self.index_of(name).ok().map(|index| &self.initializer[index])
    }

    /// The float32 elements of the constant of this name; `None` if it has another type or does not exist.
    pub(crate) fn floats(&self, name: &str) -> Option<&[f32]> {
        self.constant(name)?.floats()
    }

    /// Adds a constant, in place of one of the same name. Returns the name.
    pub(crate) fn add_constant(&mut self, constant: TensorProto) -> String {
        let name = constant.name.clone();
        match self.index_of(&name) {
            Ok(index) => self.initializer[index] = constant,
            Err(index) => self.initializer.insert(index, constant),
        }
        name
    }

    /// Adds a node. It and its output are called `name`, which is returned.
    pub(crate) fn add_node(
        &mut self,
        op_type: &str,
        name: &str,
        inputs: &[&str],
        attributes: impl Into<Vec<AttributeProto>>,
    ) -> String {
        self.node.push(NodeProto::new(op_type, name, inputs, name, attributes));
        name.to_owned()
    }

    /// Adds a constant vector of integers, or finds it. Returns its name.
    pub(crate) fn ints(&mut self, name: &str, values: &[i64]) -> String {
        self.add_constant(TensorProto::vector(name, values.to_vec()))
    }

    /// Adds a node for the `k` highest values of every row of `values` `[N, columns]`, sorted; of equal values, the first come
    /// first. `k` is a constant or value with one element. Returns the values and their columns.
    pub(crate) fn add_top_k(&mut self, name: &str, values: &str, k: &str) -> [String; 2] {
        self.add_extreme_k(name, values, k, 1)
    }

    /// As [`add_top_k`](Self::add_top_k), for the `k` lowest values.
    pub(crate) fn add_lowest_k(&mut self, name: &str, values: &str, k: &str) -> [String; 2] {
        self.add_extreme_k(name, values, k, 0)
    }

    fn add_extreme_k(&mut self, name: &str, values: &str, k: &str, largest: i64) -> [String; 2] {
        let attributes =
            [("axis", 1), ("largest", largest), ("sorted", 1)].map(|(key, value)| AttributeProto::int(key, value));
        let columns = format!("{name}.columns");
        let mut node = NodeProto::new("TopK", name, &[values, k], name, attributes);
        node.output.push(columns.clone());
        self.node.push(node);
        [name.to_owned(), columns]
    }

    /// Adds nodes that gather rows of `values` `[N, rows, width]` by index `rows` `[N, k]`: `[N, k, width]`.
    pub(crate) fn gather_rows(&mut self, name: &str, values: &str, rows: &str) -> String {
        let axes = self.ints("axis.2", &[2]);
        let indices = self.add_node("Unsqueeze", &format!("{name}.indices"), &[rows, &axes], []);
        self.add_node("GatherND", name, &[values, &indices], [AttributeProto::int("batch_dims", 1)])
    }

    /// Number of uses of each value, as input of a node or as output of the graph.
    pub(crate) fn readers(&self) -> HashMap<&str, usize> {
        let read = self.node.iter().flat_map(|node| &node.input);
        let returned = self.output.iter().map(|value| &value.name);
        read.chain(returned).fold(HashMap::new(), |mut readers, name| {
            *readers.entry(name.as_str()).or_default() += 1;
            readers
        })
    }

    /// Removes the nodes whose outputs nothing reads, and then the constants.
    pub(crate) fn drop_unused(&mut self) {
        let mut read: BTreeSet<_> = self.output.iter().map(|value| value.name.clone()).collect();
        let mut nodes = Vec::with_capacity(self.node.len());
        for node in std::mem::take(&mut self.node).into_iter().rev() {
            if node.output.iter().any(|output| read.contains(output)) {
                read.extend(node.input.iter().cloned());
                nodes.push(node);
            }
        }
        nodes.reverse();
        self.node = nodes;
        self.drop_unused_constants();
    }

    /// Removes the constants that no node reads.
    pub(crate) fn drop_unused_constants(&mut self) {
        let read: BTreeSet<_> = self.node.iter().flat_map(|node| &node.input).collect();
        self.initializer.retain(|constant| read.contains(&constant.name));
    }
}

impl NodeProto {
    /// A node with one output.
    pub(crate) fn new(
        op_type: &str,
        name: &str,
        inputs: &[impl AsRef<str>],
        output: &str,
        attributes: impl Into<Vec<AttributeProto>>,
    ) -> Self {
        Self {
            input: inputs.iter().map(|input| input.as_ref().to_owned()).collect(),
            output: vec![output.to_owned()],
            name: name.to_owned(),
            op_type: op_type.to_owned(),
            attribute: attributes.into(),
        }
    }

    /// A node that casts a value to another type.
    pub(crate) fn cast(input: &str, output: &str, to: DataType) -> Self {
        Self::new("Cast", &format!("{output}.cast"), &[input], output, [AttributeProto::int("to", to as i64)])
    }

    /// The attribute of this name.
    pub(crate) fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// The integers of an attribute; empty if it is absent.
    #[cfg(test)]
    pub(crate) fn ints(&self, name: &str) -> Vec<i64> {
        let attribute = self.attribute(name).cloned().unwrap_or_default();
        attribute.ints.into_iter().chain(attribute.i).collect()
    }
}

impl AttributeProto {
    fn new(name: &str, kind: AttributeType) -> Self {
        Self { name: name.to_owned(), r#type: kind.into(), ..Self::default() }
    }

    /// A float.
    pub(crate) fn float(name: &str, value: f32) -> Self {
        Self { f: Some(value), ..Self::new(name, AttributeType::Float) }
    }

    /// An integer.
    pub(crate) fn int(name: &str, value: i64) -> Self {
        Self { i: Some(value), ..Self::new(name, AttributeType::Int) }
    }

    /// Integers.
    pub(crate) fn ints(name: &str, values: impl Into<Vec<i64>>) -> Self {
        Self { ints: values.into(), ..Self::new(name, AttributeType::Ints) }
    }

    /// A string.
    pub(crate) fn text(name: &str, value: &str) -> Self {
        Self { s: Some(value.into()), ..Self::new(name, AttributeType::String) }
    }
}

/// A type of a constant's elements.
pub(crate) trait Element: NoUninit + Send {
    /// ONNX's name of it.
    const DATA_TYPE: DataType;
}

impl Element for f32 {
    const DATA_TYPE: DataType = DataType::Float;
}

impl Element for f16 {
    const DATA_TYPE: DataType = DataType::Float16;
}

impl Element for i64 {
    const DATA_TYPE: DataType = DataType::Int64;
}

impl Element for i32 {
    const DATA_TYPE: DataType = DataType::Int32;
}

impl Element for i8 {
    const DATA_TYPE: DataType = DataType::Int8;
}

impl Element for u8 {
    const DATA_TYPE: DataType = DataType::Uint8;
}

impl TensorProto {
    /// A constant with elements in row-major order, which are not copied.
    pub(crate) fn new<T: Element>(name: impl Into<String>, dims: impl Into<Vec<i64>>, elements: Vec<T>) -> Self {
        let (name, dims, data_type) = (name.into(), dims.into(), T::DATA_TYPE.into());
        Self { dims, data_type, name, raw_data: in_place(elements), ..Self::default() }
    }

    /// A constant with one axis.
    pub(crate) fn vector<T: Element>(name: impl Into<String>, elements: Vec<T>) -> Self {
        Self::new(name, [elements.len() as i64], elements)
    }

    /// A constant without axes.
    pub(crate) fn scalar<T: Element>(name: impl Into<String>, element: T) -> Self {
        Self::new(name, [], vec![element])
    }

    /// The elements, if they are float32.
    pub(crate) fn floats(&self) -> Option<&[f32]> {
        self.elements()
    }

    /// The elements, if they have this type.
    pub(crate) fn elements<T: Element + bytemuck::AnyBitPattern>(&self) -> Option<&[T]> {
        let is_type = self.data_type == T::DATA_TYPE as i32;
        is_type.then(|| bytemuck::try_cast_slice(&self.raw_data).ok()).flatten()
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

impl ValueInfoProto {
    /// An input or output of a graph.
    pub(crate) fn new(name: &str, elements: DataType, dim: impl Into<Vec<Dimension>>, doc: &str) -> Self {
        let shape = Some(TensorShapeProto { dim: dim.into() });
        let tensor_type = Some(TensorType { elem_type: elements.into(), shape });
        Self { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }), doc_string: doc.to_owned() }
    }

    /// A float32 output of any shape.
    pub(crate) fn float(name: &str) -> Self {
        let tensor_type = Some(TensorType { elem_type: DataType::Float.into(), shape: None });
        Self { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }), ..Self::default() }
    }

    /// Sizes, outermost first; empty if unknown.
    pub(crate) fn dims(&self) -> &[Dimension] {
        let shape = self.tensor_type().and_then(|tensor| tensor.shape.as_ref());
        shape.map(|shape| shape.dim.as_slice()).unwrap_or_default()
    }

    /// Type of the elements; `None` if unknown.
    pub(crate) fn data_type(&self) -> Option<DataType> {
        DataType::try_from(self.tensor_type()?.elem_type).ok()
    }

    fn tensor_type(&self) -> Option<&TensorType> {
        self.r#type.as_ref()?.tensor_type.as_ref()
    }
}

impl Dimension {
    /// A fixed size.
    pub(crate) fn fixed(size: usize) -> Self {
        Self { value: Some(DimensionValue::Size(size as i64)) }
    }

    /// A dynamic size.
    pub(crate) fn dynamic(name: &str) -> Self {
        Self { value: Some(DimensionValue::Name(name.to_owned())) }
    }
}
