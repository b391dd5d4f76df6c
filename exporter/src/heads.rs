//! What the heads of a network compute: a file's outputs and, on the way to them, the logits and what the `output`
//! convolutions read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use models::{HeadOutputs, ModelSpec, cells_of};
use ndarray::{Array3, ArrayView4, Axis, concatenate};
use prost::Message;
use runtime::{ActivationReader, CLASSIFICATION, EngineError, EngineOptions, REGRESSION};

use crate::graph::{Graph, Node};
use crate::model::float_output;
use crate::onnx::ModelProto;
use crate::precision::cast_node;

/// Names of the layers that compute the outputs.
const OUTPUT_LAYERS: [&str; 2] = ["classificationModel.output", "regressionModel.output"];

/// Names that values get as further outputs of a file.
const LOGITS: &str = "heads.logits";

fn feature_name(head: usize, level: usize) -> String {
    format!("heads.{head}.features.{level}")
}

/// What a file computes.
#[derive(Clone, Debug)]
pub struct Answer {
    /// As in a checkpoint's probe.
    pub heads: HeadOutputs,
    /// `[N, anchors, classes]`, in (0, 1).
    pub scores: Array3<f32>,
}

/// Which values of a graph its heads compute.
#[derive(Clone, Debug)]
pub struct HeadValues {
    logits: String,
    /// Of the five levels.
    features: [Vec<String>; 2],
}

impl HeadValues {
    /// Those of a graph that computes all scores.
    pub fn of(graph: &Graph) -> Self {
        let input = |node: &Node| node.inputs[0].clone();
        let sigmoid = graph.nodes.iter().find(|node| node.output == CLASSIFICATION);
        let convolutions = |layer: &str| {
            let nodes = graph.nodes.iter();
            nodes.filter(|node| node.operator == "Conv" && node.name.starts_with(layer)).map(input).collect()
        };
        Self {
            logits: input(sigmoid.expect("a graph that is not a selection of candidates has the output of all scores")),
            features: OUTPUT_LAYERS.map(convolutions),
        }
    }

    /// The bytes that make the values outputs of a file when they stand after its own: a file is one message of protocol
    /// buffers, and messages that follow each other are read as one, with the items of both in its lists.
    fn fragment(&self) -> Vec<u8> {
        let features = self.features.iter().enumerate().flat_map(|(head, levels)| {
            levels.iter().enumerate().map(move |(level, value)| (feature_name(head, level), value))
        });
        let values = std::iter::once((LOGITS.to_owned(), &self.logits)).chain(features);
        let (names, values): (Vec<_>, Vec<_>) = values.unzip();
        // In a file of 16 bits, they may have these.
        let nodes = names.iter().zip(values).map(|(name, value)| cast_node(value, name, false)).collect();
        let mut graph = Graph { nodes, ..Graph::default() }.into_proto("");
        graph.output = names.into_iter().map(float_output).collect();
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    /// Opens the file `model`, of that graph. While ONNX Runtime reads it, it is longer; then it is as it was.
    ///
    /// # Errors
    /// When the file can't be lengthened, or ONNX Runtime does not take it.
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

/// A file whose heads are read.
#[derive(Debug)]
pub struct HeadReader(ActivationReader);

impl HeadReader {
    /// Runs the network of `spec` on `[N, 3, H, W]`.
    ///
    /// # Errors
    /// When ONNX Runtime fails.
    pub fn read(&mut self, images: ArrayView4<f32>, spec: &ModelSpec) -> Result<Answer, EngineError> {
        let (count, _, height, width) = images.dim();
        let mut values = BTreeMap::new();
        self.0.read(images, |name, numbers| drop(values.insert(name.to_owned(), numbers.to_vec())))?;
        let mut take = |name: &str| values.remove(name).unwrap_or_default();
        // Numbers that make no such shape are as good as none: they differ from whatever is expected.
        let mut rows = |name: &str, width: usize| {
            let numbers = take(name);
            let shape = (count, numbers.len() / (count * width).max(1), width);
            Array3::from_shape_vec(shape, numbers).unwrap_or_default()
        };
        let classes = spec.class_count();
        let (logits, scores) = (rows(LOGITS, classes), rows(CLASSIFICATION, classes));
        let offsets = rows(REGRESSION, 4);
        let features = [0, 1].map(|head| {
            let levels = cells_of(height, width).into_iter().enumerate().map(|(level, cells)| {
                let maps = take(&feature_name(head, level));
                let shape = (count, maps.len() / (count * cells).max(1), cells);
                Array3::from_shape_vec(shape, maps).unwrap_or_default().permuted_axes([0, 2, 1])
            });
            let levels: Vec<Array3<f32>> = levels.collect();
            let views: Vec<_> = levels.iter().map(|level| level.view()).collect();
            concatenate(Axis(1), &views).unwrap_or_default()
        });
        Ok(Answer { heads: HeadOutputs { logits, offsets, features }, scores })
    }
}
