//! Verification: the float32 file must reproduce libtorch's outputs in the checkpoint's probe, fp16 and int8 must be close to
//! float32 on images, and a variant must compute the same as the plain file of its precision.
//!
//! A difference passes if it is at most its limit. Every difference keeps NaN, which is at most nothing, so that NaN fails.

mod heads;
mod precision;
mod proof;
mod variant;

use std::path::{Path, PathBuf};

use models::{HeadOutputs, ModelSpec, Probe};
use ndarray::{Array3, Axis};
use runtime::{CheckReport, Engine, EngineError, EngineOptions, Provider};

use crate::error::ExportError;
use crate::inputs::{DRAWN_IMAGES, Inputs};
use crate::onnx::GraphProto;
use crate::precision::{Precision, PrecisionOptions};

pub(crate) use heads::checked_values;
pub use heads::{HeadReader, HeadValues, NetworkOutputs};
pub use precision::{Comparison, Difference, Limits};
pub use proof::{Differences, TOLERANCE};
pub use variant::VariantDifferences;

/// A provider, and its numbers or why it cannot run.
pub type ProviderCheck = (Provider, Result<CheckReport, String>);

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
    /// Compares the float32 file with libtorch, on the probe. Also returns what it computes for `image`, `[3, H, W]`.
    ///
    /// # Errors
    /// When ONNX Runtime cannot run the file, or the differences exceed the tolerance.
    pub(crate) fn prove(
        self,
        file: &NetworkFile,
        spec: &ModelSpec,
        image: &Array3<f32>,
    ) -> Result<(Differences, HeadOutputs), ExportError> {
        if self.probe.outputs.is_constant() {
            return Err(ExportError::ConstantProbe);
        }
        let images = self.probe.images.view();
        let mut reader = file.heads.open(&file.path, self.engine)?;
        let inner = reader.read(images, spec)?.heads;
        let of_image = reader.read(image.view().insert_axis(Axis(0)), spec)?.heads;
        drop(reader);
        // The unmodified file, which ONNX Runtime may optimize differently.
        let outputs = Engine::open(&file.path, self.engine)?.run(images)?.into_dense()?;
        let differences = Differences::of(self.probe, inner, outputs.offsets());
        if !differences.are_within_tolerance() {
            return Err(ExportError::NotReproduced(differences));
        }
        match proof::score_difference(&self.probe.outputs.logits, outputs.scores(), differences) {
            Some(excess) => Err(ExportError::Scores(excess)),
            None => Ok((differences, of_image)),
        }
    }

    /// Runs the check of a file on providers. Those that this machine does not have are not proven, with the reason.
    ///
    /// # Errors
    /// When a provider computes wrong numbers.
    pub(crate) fn prove_on(
        self,
        providers: &[Provider],
        run: impl Fn(&EngineOptions) -> Result<CheckReport, EngineError>,
    ) -> Result<Vec<ProviderCheck>, ExportError> {
        let prove = |&provider: &Provider| {
            let report = match run(&EngineOptions { provider, ..self.engine.clone() }) {
                Err(EngineError::Provider { reason, .. } | EngineError::Session { reason, .. }) => Err(reason),
                report => Ok(report?),
            };
            match report {
                Ok(report) if !report.passes() => Err(ExportError::Provider { provider, report: Box::new(report) }),
                report => Ok((provider, report)),
            }
        };
        providers.iter().map(prove).collect()
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
        let comparison = precision::compare(fp32?, converted?, inputs, options.lowest_logit(spec))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;
    use runtime::Check;

    #[test]
    fn a_provider_with_wrong_kernels_is_refused_and_an_absent_one_is_not_proven() {
        let (cpu, cuda) = (Provider::Cpu, Provider::Cuda { device: 0 });
        let values: Vec<f32> = (0..3000).map(|i| (i as f32 * 0.3).cos()).collect();
        let check = Check::new(Vec::new(), &values, &values, 0.01);
        let probe = Probe {
            images: Array4::zeros((1, 3, 64, 96)),
            outputs: HeadOutputs::default(),
            rounding: [[0.0; 2]; HeadOutputs::PARTS],
        };
        let verifier = Verifier { engine: &EngineOptions::default(), probe: &probe };
        let is_right = |options: &EngineOptions| match options.provider {
            Provider::Cpu => Ok(check.compare(&values, &values)),
            provider => Err(EngineError::Provider { provider, reason: "no driver".to_owned() }),
        };
        let proven = verifier.prove_on(&[cpu, cuda], is_right).unwrap();
        assert!(proven[0].0 == cpu && proven[0].1.as_ref().unwrap().passes());
        assert_eq!(proven[1], (cuda, Err("no driver".to_owned())));

        // This GPU computes the offsets of one feature level as zero.
        let mut wrong = values.clone();
        wrong[100..900].fill(0.0);
        let is_wrong = |options: &EngineOptions| match options.provider {
            Provider::Cpu => is_right(options),
            _ => Ok(check.compare(&values, &wrong)),
        };
        let error = verifier.prove_on(&[cpu, cuda], is_wrong).unwrap_err();
        assert!(matches!(&error, ExportError::Provider { provider, .. } if *provider == cuda), "{error}");
        assert!(error.to_string().contains("`cuda:0` computes wrong numbers"), "{error}");
    }
}
