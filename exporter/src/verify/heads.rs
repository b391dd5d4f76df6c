//! Values of the heads: a file's outputs, and the values before them that it does not output: the logits and the inputs
//! of the `output` convolutions.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use models::onnx_contract::{CHECKED_VALUES, CLASSIFICATION, REGRESSION};
use models::{HeadOutputs, ModelSpec, cells_per_level};
use ndarray::{Array3, ArrayView4, Axis, concatenate};
use prost::Message;
use runtime::{ActivationReader, EngineError, EngineOptions};

use crate::onnx::{DataType, GraphProto, ModelProto, NodeProto, ValueInfoProto};

/// Names of the output layers of both heads.
const OUTPUT_LAYERS: [&str; 2] = ["classificationModel.output", "regressionModel.output"];

/// Name of the additional output for the logits.
const LOGITS: &str = "heads.logits";

/// Name of the additional output for the inputs of a head's `output` convolution.
fn feature_name(head: usize, level: usize) -> String {
    format!("heads.{head}.features.{level}")
}

/// Outputs of a file.
#[derive(Clone, Debug)]
pub struct NetworkOutputs {
    /// Logits, offsets and features, as in a checkpoint's probe.
    pub heads: HeadOutputs,
    /// `[N, anchors, classes]`, in (0, 1).
    pub scores: Array3<f32>,
}

/// Names of the values that the heads of a graph compute.
#[derive(Clone, Debug)]
pub struct HeadValues {
    logits: String,
    /// Inputs of both `output` convolutions, at the five levels.
    features: [Vec<String>; 2],
}

impl HeadValues {
    /// The values of a graph that outputs all scores, not only candidates.
    pub fn of(graph: &GraphProto) -> Self {
        let input = |node: &NodeProto| node.input[0].clone();
        let sigmoid = graph.node.iter().find(|node| node.output[0] == CLASSIFICATION);
        let convolutions = |layer: &str| {
            let nodes = graph.node.iter();
            nodes.filter(|node| node.op_type == "Conv" && node.name.starts_with(layer)).map(input).collect()
        };
        Self {
            logits: input(sigmoid.expect("a graph without selection of candidates outputs all scores")),
            features: OUTPUT_LAYERS.map(convolutions),
        }
    }

    fn fragment(&self) -> Vec<u8> {
        let features = self.features.iter().enumerate().flat_map(|(head, levels)| {
            levels.iter().enumerate().map(move |(level, value)| (feature_name(head, level), value))
        });
        let values = std::iter::once((LOGITS.to_owned(), &self.logits)).chain(features);
        let (names, values): (Vec<_>, Vec<_>) = values.unzip();
        fragment(names.iter().map(String::as_str).zip(values))
    }

    /// Opens the file `model` of that graph. The file is extended while ONNX Runtime reads it, then restored.
    ///
    /// # Errors
    /// When the file cannot be extended, or ONNX Runtime cannot load it.
    pub fn open(&self, model: &Path, options: &EngineOptions) -> Result<HeadReader, EngineError> {
        let error =
            |error: io::Error| EngineError::Read { model: model.display().to_string(), reason: error.to_string() };
        let mut file = File::options().append(true).open(model).map_err(error)?;
        let length = file.metadata().map_err(error)?.len();
        file.write_all(&self.fragment()).map_err(error)?;
        let reader = ActivationReader::open(model, options);
        file.set_len(length).map_err(error)?;
        Ok(HeadReader(reader?))
    }
}

/// Bytes that, appended to a file, add values to its outputs, each with the name of the output: a file is a protocol buffer, and
/// concatenated protocol buffers are decoded as one, with their repeated fields joined.
fn fragment<'a>(values: impl Iterator<Item = (&'a str, &'a String)>) -> Vec<u8> {
    let (names, values): (Vec<_>, Vec<_>) = values.unzip();
    // In a float16 file, the values may be float16.
    let node = names.iter().zip(values).map(|(name, value)| NodeProto::cast(value, name, DataType::Float)).collect();
    let output = names.iter().map(|name| ValueInfoProto::float(name)).collect();
    let graph = GraphProto { node, output, ..GraphProto::default() };
    ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
}

/// The fragment that adds logits and offsets of each level to the outputs of a file with this graph, of any variant.
pub(crate) fn checked_values(graph: &GraphProto) -> Vec<u8> {
    let rows = OUTPUT_LAYERS.iter().flat_map(|layer| {
        let nodes = graph.node.iter();
        nodes.filter(move |node| node.name.starts_with(layer) && node.name.ends_with(".per_anchor"))
    });
    fragment(CHECKED_VALUES.into_iter().zip(rows.map(|node| &node.output[0])))
}

/// An open file that also outputs the values of its heads.
#[derive(Debug)]
pub struct HeadReader(ActivationReader);

impl HeadReader {
    /// Runs the network of `spec` on `images`, `[N, 3, H, W]`.
    ///
    /// # Errors
    /// When ONNX Runtime fails.
    pub fn read(&mut self, images: ArrayView4<f32>, spec: &ModelSpec) -> Result<NetworkOutputs, EngineError> {
        let (count, _, height, width) = images.dim();
        let mut values = BTreeMap::new();
        self.0.read(images, |name, numbers| drop(values.insert(name.to_owned(), numbers.to_vec())))?;
        let mut take = |name: &str| values.remove(name).unwrap_or_default();
        // Values that do not fit the shape become an empty array, which differs from every expected one.
        let mut rows = |name: &str, width: usize| {
            let numbers = take(name);
            let shape = (count, numbers.len() / (count * width).max(1), width);
            Array3::from_shape_vec(shape, numbers).unwrap_or_default()
        };
        let classes = spec.class_count();
        let (logits, scores) = (rows(LOGITS, classes), rows(CLASSIFICATION, classes));
        let offsets = rows(REGRESSION, 4);
        let features = [0, 1].map(|head| {
            let levels = cells_per_level(height, width).into_iter().enumerate().map(|(level, cells)| {
                let maps = take(&feature_name(head, level));
                let shape = (count, maps.len() / (count * cells).max(1), cells);
                Array3::from_shape_vec(shape, maps).unwrap_or_default().permuted_axes([0, 2, 1])
            });
            let levels: Vec<Array3<f32>> = levels.collect();
            let views: Vec<_> = levels.iter().map(|level| level.view()).collect();
            concatenate(Axis(1), &views).unwrap_or_default()
        });
        Ok(NetworkOutputs { heads: HeadOutputs { logits, offsets, features }, scores })
    }
}
