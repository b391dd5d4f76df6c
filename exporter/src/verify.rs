//! Verification: the float32 file must reproduce libtorch's outputs in the checkpoint's probe, fp16 and int8 must be close to
//! float32 on images, and a variant must compute the same as the plain file of its precision.
//!
//! A difference passes if it is at most its limit. Every difference keeps NaN, which is at most nothing, so that NaN fails.

mod heads;
mod precision;
mod proof;
mod variant;

use std::path::{Path, PathBuf};

use models::{ModelSpec, Probe};
use runtime::{Engine, EngineOptions};

use crate::error::ExportError;
use crate::inputs::{DRAWN_IMAGES, Inputs};
use crate::onnx::GraphProto;
use crate::precision::{Precision, PrecisionOptions};

pub use heads::{HeadReader, HeadValues, NetworkOutputs};
pub use precision::{Comparison, Difference, Limits};
pub use proof::{Differences, TOLERANCE};
pub use variant::VariantDifferences;

/// Maximum number of calibration images on which a file is compared with the float32 file.
const COMPARED_IMAGES: usize = 8;

/// A file that outputs the scores of all anchors.
pub(crate) struct NetworkFile {
    /// Its path.
    pub(crate) path: PathBuf,
    /// The values that the heads of its graph compute.
    heads: HeadValues,
}

impl NetworkFile {
    /// A file with this graph.
    pub(crate) fn new(path: PathBuf, graph: &GraphProto) -> Self {
        Self { path, heads: HeadValues::of(graph) }
    }
}

/// What files are verified with.
#[derive(Clone, Copy)]
pub(crate) struct Verifier<'a> {
    /// How the files run.
    pub(crate) engine: &'a EngineOptions,
    /// The checkpoint's probe.
    pub(crate) probe: &'a Probe,
}

impl Verifier<'_> {
    /// Compares the float32 file with libtorch, on the probe.
    ///
    /// # Errors
    /// When ONNX Runtime cannot run the file, or the differences exceed the tolerance.
    pub(crate) fn prove(self, file: &NetworkFile, spec: &ModelSpec) -> Result<Differences, ExportError> {
        if self.probe.outputs.is_constant() {
            return Err(ExportError::ConstantProbe);
        }
        let images = self.probe.images.view();
        let inner = file.heads.open(&file.path, self.engine)?.read(images, spec)?.heads;
        // The unmodified file, which ONNX Runtime may optimize differently.
        let outputs = Engine::open(&file.path, self.engine)?.run(images)?.into_dense()?;
        let differences = Differences::of(self.probe, inner, outputs.offsets());
        if !differences.are_within_tolerance() {
            return Err(ExportError::NotReproduced(differences));
        }
        match proof::score_difference(&self.probe.outputs.logits, outputs.scores(), differences) {
            Some(excess) => Err(ExportError::Scores(excess)),
            None => Ok(differences),
        }
    }

    /// Compares a converted file with the float32 file, on calibration images and on drawn ones, since the ranges were not
    /// measured on the latter.
    ///
    /// # Errors
    /// When ONNX Runtime cannot run one of them, or the differences exceed the limits of the precision.
    pub(crate) fn compare_precision(
        self,
        fp32: &NetworkFile,
        converted: &NetworkFile,
        spec: &ModelSpec,
        options: &PrecisionOptions,
    ) -> Result<Comparison, ExportError> {
        let count = options.calibration.len().min(COMPARED_IMAGES);
        let inputs = Inputs { files: &options.calibration[..count], drawn: DRAWN_IMAGES, spec };
        let [fp32, converted] = [fp32, converted].map(|file| file.heads.open(&file.path, self.engine));
        let comparison = precision::compare(fp32?, converted?, inputs)?;
        if Limits::of(options.precision).allow(&comparison) {
            Ok(comparison)
        } else {
            Err(ExportError::PrecisionDiffers { precision: options.precision, comparison: Box::new(comparison) })
        }
    }

    /// Compares the file `variant` with the plain file of the same network and precision, on the probe's images. If it selects
    /// candidates, also with a lower threshold: `with_threshold` makes such a file.
    ///
    /// # Errors
    /// When ONNX Runtime cannot run one of them, or a difference exceeds the rounding of the precision.
    pub(crate) fn compare_variant(
        self,
        plain: &Path,
        variant: &Path,
        precision: Precision,
        with_threshold: Option<&dyn Fn(f32) -> Vec<u8>>,
    ) -> Result<VariantDifferences, ExportError> {
        let variant = Engine::open(variant, self.engine)?;
        let inputs = variant::Pair::new(&self.probe.images, &variant);
        let expected = inputs.run_plain(&Engine::open(plain, self.engine)?)?;
        let mut differences = inputs.compare(&expected, &variant)?;
        let threshold = variant::busy_threshold(&expected);
        if let Some(with_threshold) = with_threshold
            && threshold < variant.spec().postprocessing.score_threshold
        {
            drop(variant);
            let variant = Engine::from_bytes("the variant", &with_threshold(threshold), self.engine)?;
            differences = differences.max(inputs.compare(&expected, &variant)?);
        }
        if differences.are_within(VariantDifferences::rounding(precision)) {
            Ok(differences)
        } else {
            Err(ExportError::VariantDiffers(differences))
        }
    }
}
