//! RetinaNet, written once, and everything that training and deployment must agree on.
//!
//! The network is generic over [`Tensor`]: the trainer runs it with libtorch, the exporter traces it to ONNX, and [`Shape`]
//! computes only shapes and costs. <https://arxiv.org/abs/1708.02002>

mod tensor;
mod weights;
mod layers;
mod resnet;
mod pyramid;
mod heads;
mod retinanet;
mod shape;

pub mod spec;
mod deviation;
mod checkpoint;
pub mod atomic_file;
pub mod onnx_contract;
pub mod import;

mod boxes;
mod rectangle;
mod anchors;
mod coder;
mod matching;
mod rgb;
mod resize;
mod preprocessing;

pub mod dataset;
pub mod coverage;
pub mod evaluation;

pub use anchors::{Anchors, Grid};
pub use atomic_file::{AtomicFile, is_device, remove_partial_files, write_atomically, write_unsynced};
pub use boxes::BoundingBox;
pub use checkpoint::{
    BackboneCheckpoint, Checkpoint, CheckpointError, HeadOutputs, Origin, Pretrained, Probe, Provenance,
    TensorProblems, cells_per_level,
};
pub use deviation::{Deviation, max_abs};
pub use layers::{BatchNorm, Conv2d, Conv2dConfig, GroupNorm, MaxPool, Norm, NormedConv2d, Statistics};
pub use matching::{Assignment, Matcher};
pub use preprocessing::{CommonScale, Placement, Preprocessed, preprocess, preprocess_bytes, preprocess_rows};
pub use resize::resize;
pub use retinanet::{Predictions, RetinaNet};
pub use rgb::{RgbRows, RgbView, RgbViewError};
pub use shape::{LayerCost, Shape, backbone_parameters, parameters, summarize};
pub use spec::{BackboneCheckpointSpec, ModelSpec, SpecError};
pub use tensor::{Layer, Tensor};
pub use weights::{Initial, Parameter, Role, Scope, Weights, WeightsError, grouped};
