//! What serves a model: a detector, or in tests something that fails on purpose.

use image::RgbImage;
use models::ModelSpec;
use runtime::{CallOptions, Detection, Detector, DetectorError, Timing};

/// What serves a model.
pub(super) trait Backend: Send + Sync {
    fn spec(&self) -> &ModelSpec;

    /// As [`Detector::detect_with`].
    fn detect(&self, image: &RgbImage, options: &CallOptions) -> Result<(Vec<Detection>, Timing), DetectorError>;

    /// Number of runs of the network that have failed since the last successful one.
    fn failures_in_a_row(&self) -> u64;

    /// Runs the network once, to find out whether it works again.
    fn try_run(&self) -> Result<(), DetectorError>;

    /// Name of the provider, and version of ONNX Runtime.
    fn provider(&self) -> [String; 2];
}

/// A detector that is warmed up.
pub(super) struct WarmDetector {
    detector: Detector,
    /// Width and height of images whose inputs have been run.
    size: (u32, u32),
}

impl WarmDetector {
    /// Runs the network on images of these sizes, at least one, in all batch sizes.
    pub(super) fn new(detector: Detector, sizes: &[(u32, u32)]) -> Result<Self, DetectorError> {
        for (width, height) in sizes {
            detector.warm_up(*width, *height)?;
        }
        Ok(Self { detector, size: sizes[0] })
    }
}

impl Backend for WarmDetector {
    fn spec(&self) -> &ModelSpec {
        self.detector.spec()
    }

    fn detect(&self, image: &RgbImage, options: &CallOptions) -> Result<(Vec<Detection>, Timing), DetectorError> {
        self.detector.detect_with(image, options)
    }

    fn failures_in_a_row(&self) -> u64 {
        self.detector.statistics().failures_in_a_row
    }

    fn try_run(&self) -> Result<(), DetectorError> {
        self.detector.try_run(self.size.0, self.size.1)
    }

    fn provider(&self) -> [String; 2] {
        let engine = self.detector.engine();
        [engine.provider().to_string(), engine.library().version.clone()]
    }
}
