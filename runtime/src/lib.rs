//! Object detection: runs RetinaNet models that `exporter` wrote as ONNX files, with ONNX Runtime.
//!
//! # One image
//!
//! [`Detector::open`] finds and loads ONNX Runtime and checks the file; [`Detector::detect`] does the rest.
//!
//! ```no_run
#![doc = include_str!("../examples/image.rs")]
//! ```
//!
//! # Many images
//!
//! Threads share a detector, and inputs of one size that arrive together run as one batch. [`map_ordered`] processes any
//! number of items on several threads, and yields the results in order. [`detect_file`] reads within limits.
//!
//! ```no_run
#![doc = include_str!("../examples/folder.rs")]
//! ```
//!
//! # Stage by stage
//!
//! Programs that run the network themselves, or want its outputs, use [`models::preprocess`], [`Engine::run`] and
//! [`postprocess`].
//!
//! ```no_run
#![doc = include_str!("../examples/raw_outputs.rs")]
//! ```
//!
//! # What travels in the file
//!
//! The ONNX file contains the [`models::ModelSpec`]: class names, preprocessing, anchors and post-processing.
//! [`DetectorOptions`] overrides thresholds ([`Rules`]), adds tiles and flips ([`ViewOptions`]), and chooses provider, threads
//! and batches ([`EngineOptions`]).
//!
//! ONNX Runtime's library is loaded when the first detector opens, from where [`library::find`] finds it, and stays loaded;
//! there is no other global state. The library prints nothing; stages are spans, and ONNX Runtime's log events, of the crate
//! `tracing`. Errors are enums that name the thing and what to do.

mod detector;
mod call;
mod batcher;
mod rules;
mod views;
mod engine;
pub mod library;
mod provider;
mod activations;
mod check;
mod smoke_test;

mod nms;
mod soft_nms;
mod postprocess;

pub mod data;
pub mod draw;
pub mod drawn;
pub mod drivers;
pub mod evaluation_report;
mod file_detection;
pub mod inputs;
pub mod machine;
pub mod output;
pub mod image_file;
mod map_ordered;
mod pixel_budget;
pub mod schema;
#[cfg(feature = "args")]
pub mod cli;
#[cfg(feature = "args")]
pub mod interrupt;
#[cfg(feature = "args")]
mod log;
#[cfg(feature = "args")]
pub mod progress;
#[cfg(feature = "serve")]
pub mod protocol;
pub mod video;

pub use activations::ActivationReader;
pub use batcher::{BatchObserver, Statistics};
pub use call::{CallOptions, CancelOnDrop, Cancellation, Priority};
pub use check::{Check, CheckReport};
pub use detector::{Detector, DetectorError, DetectorOptions, Timing};
pub use engine::{
    CandidateOutputs, DenseOutputs, DetectionOutputs, Engine, EngineError, EngineOptions, Input, ModelInfo, Outputs,
    PixelType, Pixels, ShapeProfile, TensorrtOptions, ValueInfo,
};
pub use file_detection::detect_file;
pub use map_ordered::{Ordered, map_ordered};
pub use nms::suppress;
pub use pixel_budget::{PixelBudget, Reservation};
pub use postprocess::{
    Candidates, Detection, postprocess, postprocess_candidates, postprocess_candidates_for_coco, postprocess_for_coco,
};
pub use provider::{OpenvinoDevice, ParseProviderError, Provider};
pub use rules::{RuleError, Rules};
pub use smoke_test::smoke_test;
pub use views::{Tiling, TilingError, ViewOptions};

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use models::{ModelSpec, Provenance, parameters};
    use ndarray::{ArrayD, IxDyn};

    /// An ONNX file, for the tests of all files.
    pub(crate) fn model() -> Vec<u8> {
        let mut spec = ModelSpec::preset("resnet18").unwrap();
        spec.classes = vec![models::spec::Class { id: 0, name: "cat".to_owned() }];
        let tensors: BTreeMap<_, _> = parameters(&spec)
            .unwrap()
            .into_iter()
            .map(|parameter| {
                let value = |index: usize| (index % 13) as f32 * 0.01 - 0.04;
                let count = parameter.shape.iter().product();
                let is_variance = parameter.name.contains("running_var");
                let values = (0..count).map(|index| if is_variance { 1.0 } else { value(index) });
                let tensor = ArrayD::from_shape_vec(IxDyn(&parameter.shape), values.collect()).unwrap();
                (parameter.name, tensor)
            })
            .collect();
        exporter::to_onnx(&spec, tensors, &Provenance::default()).unwrap()
    }
}
