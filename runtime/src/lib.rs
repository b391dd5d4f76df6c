//! Object detection: runs RetinaNet models that `exporter` wrote as ONNX files, with ONNX Runtime.
//!
//! ```no_run
//! use runtime::{Detector, DetectorOptions, image_file};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let detector = Detector::open("retinanet.onnx", DetectorOptions::default())?;
//!     let image = image_file::read("street.jpg")?;
//!     for detection in detector.detect(&image)? {
//!         let class = &detector.spec().classes[detection.class_index];
//!         println!("{} {:.2} {:?}", class.name, detection.score, detection.bounding_box);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A [`pipeline`](pipeline::pipeline) processes any number of images. It decodes, runs the network and post-processes
//! concurrently, and yields the results in order:
//!
//! ```no_run
//! use runtime::pipeline::{Content, Item, PipelineOptions, pipeline};
//! use runtime::{Detector, DetectorOptions, Provider, Rules};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let rules = Rules { score_threshold: Some(0.5), ..Rules::default() };
//!     let mut options = DetectorOptions { rules, ..DetectorOptions::default() };
//!     options.engine.provider = Provider::Cuda { device: 0 };
//!     let detector = Detector::open("retinanet.onnx", options)?;
//!     let files = runtime::inputs::expand(&["photos"], true)?;
//!     let items = files.into_iter().map(|file| Item { file, frame: None, content: Content::File, tag: () });
//!     let options = PipelineOptions { batch: 8, workers: 4, ..PipelineOptions::default() };
//!     pipeline(&detector, &options, items, |finished| finished.report, |reports| {
//!         for report in reports {
//!             match &report.outcome {
//!                 Ok(found) => println!("{}: {} detections", report.name(), found.detections.len()),
//!                 Err(reason) => println!("{}: {reason}", report.name()),
//!             }
//!         }
//!     });
//!     Ok(())
//! }
//! ```
//!
//! The ONNX file contains the [`models::ModelSpec`]: class names, preprocessing, anchors and post-processing. ONNX
//! Runtime's library is loaded when the first detector opens, from where [`library::find`] finds it, and stays loaded;
//! there is no other global state. Only [`progress`], which is for programs, prints anything.

mod detector;
mod rules;
mod views;
mod engine;
pub mod library;
mod provider;
mod activations;
mod trial;

mod nms;
mod soft_nms;
mod postprocess;

pub mod data;
pub mod draw;
pub mod drawn;
pub mod drivers;
pub mod evaluation_report;
pub mod inputs;
pub mod machine;
pub mod output;
pub mod image_file;
pub mod pipeline;
pub mod cli;
pub mod progress;
pub mod video;

pub use activations::ActivationReader;
pub use detector::{Detector, DetectorError, DetectorOptions};
pub use engine::{
    CANDIDATE_ANCHORS, CANDIDATE_CLASSES, CANDIDATE_SCORES, CLASSIFICATION, CandidateOutputs, DenseOutputs, Engine,
    EngineError, EngineOptions, IMAGES, ModelInfo, Outputs, REGRESSION, SPEC_KEY, ShapeProfile, TOP_K_KEY,
    TensorrtOptions, ValueInfo,
};
pub use nms::suppress;
pub use postprocess::{Candidates, Detection, postprocess, postprocess_candidates, postprocess_for_coco};
pub use provider::{OpenvinoDevice, ParseProviderError, Provider};
pub use rules::{RuleError, Rules};
pub use trial::smoke_test;
pub use views::{Area, PreparedView, Tiling, TilingError, ViewOptions, ViewSpec};
