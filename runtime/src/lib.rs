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
//! Threads can share a detector, and inputs that arrive together run as one batch. [`map_ordered`] reads, detects and
//! writes any number of images on several threads, and yields the results in order:
//!
//! ```no_run
//! use runtime::{Detector, DetectorOptions, Provider, image_file, map_ordered};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut options = DetectorOptions::default();
//!     options.engine.provider = Provider::Cuda { device: 0 };
//!     options.rules.score_threshold = Some(0.5);
//!     options.max_batch = 8.try_into().ok();
//!     let detector = Detector::open("retinanet.onnx", options)?;
//!     let files = runtime::inputs::expand(&["photos"], true)?;
//!     let detect = |file| -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
//!         let image = image_file::read(&file)?;
//!         Ok((file, detector.detect(&image)?))
//!     };
//!     map_ordered(files.into_iter(), detector.suggested_threads(), detect, |results| {
//!         for result in results {
//!             match result {
//!                 Ok((file, detections)) => println!("{}: {} detections", file.display(), detections.len()),
//!                 Err(reason) => println!("{reason}"),
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
mod batcher;
mod rules;
mod views;
mod engine;
pub mod library;
mod provider;
mod activations;
mod check;
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
mod map_ordered;
mod pixel_budget;
#[cfg(feature = "args")]
pub mod cli;
pub mod progress;
pub mod video;

pub use activations::ActivationReader;
pub use batcher::Statistics;
pub use check::{Check, CheckReport};
pub use detector::{Detector, DetectorError, DetectorOptions, Timing};
pub use engine::{
    CandidateOutputs, DenseOutputs, DetectionOutputs, Engine, EngineError, EngineOptions, Input, ModelInfo, Outputs,
    PixelType, Pixels, ShapeProfile, TensorrtOptions, ValueInfo,
};
pub use map_ordered::{Ordered, map_ordered};
pub use nms::suppress;
pub use pixel_budget::{PixelBudget, Reservation};
pub use postprocess::{Candidates, Detection, postprocess, postprocess_candidates, postprocess_for_coco};
pub use provider::{OpenvinoDevice, ParseProviderError, Provider};
pub use rules::{RuleError, Rules};
pub use trial::smoke_test;
pub use views::{Tiling, TilingError, ViewOptions};
