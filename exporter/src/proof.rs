//! Verification: a file must reproduce libtorch's outputs in the checkpoint's probe.

use std::fmt;
use std::path::Path;

use models::{Deviation, HeadOutputs, ModelSpec, Probe, max_abs};
use runtime::{Engine, EngineError, EngineOptions};

use crate::heads::{HeadValues, NetworkOutputs};

/// Maximum ratio of a file's error to libtorch's float32 error, in any part of the probe. Both are errors against
/// libtorch's float64 outputs. Correct weights have ratios of 0.6 to 1.2: ResNet-18 to 152, each with frozen batch,
/// batch and group norm, with initial and with random weights, and the demo's after 0, 1, 3 and 7 epochs. If all values
/// of one tensor are wrong by 1 %, the ratio is at least 8: all 88 tensors of the demo after 1, 3 and 7 epochs (the
/// minimum is for biases that are still small), and 20 tensors of each depth. These ratios are printed by
/// `cargo run --release -p tests --example proof`.
pub const TOLERANCE: f64 = 3.0;

/// Limit of the probe's rounding errors, as a fraction of the expected values' RMS: 25 times the measured maximum. With
/// larger ones, a verification would be meaningless.
const MAX_ROUNDING: f64 = 1e-4;

/// Maximum difference of scores from the sigmoid of equal logits.
const SCORE_TOLERANCE: f64 = 1e-6;

/// Differences of a file's outputs from libtorch's float64 outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Differences {
    /// Maximum ratio of the file's error to libtorch's float32 error, over all parts of the probe.
    pub error_ratio: f64,
    /// RMS difference of the logits, divided by their standard deviation.
    pub logits: f64,
    /// RMS difference of the offsets, divided by their standard deviation.
    pub offsets: f64,
}

impl Differences {
    fn of(probe: &Probe, found: &HeadOutputs) -> Self {
        let size = [probe.images.dim().2, probe.images.dim().3];
        let deviations = probe.outputs.deviations(found, size);
        let ratio = |deviation: &Deviation, rounding: [f32; 2]| {
            let max_rounding = MAX_ROUNDING * deviation.expected_rms();
            let ratios =
                [deviation.rms(), deviation.systematic()].into_iter().zip(rounding).map(|(error, rounding)| {
                    // The last digit may differ even where libtorch happens to be exact.
                    let excess = error - f64::from(f32::EPSILON) * deviation.expected_rms();
                    // Comparisons with NaN are false.
                    let rounding = if f64::from(rounding) > max_rounding { max_rounding } else { f64::from(rounding) };
                    if excess <= 0.0 { 0.0 } else { excess / rounding }
                });
            ratios.fold(0.0, max_abs)
        };
        let [logits, offsets, ..] = &deviations;
        let (logits, offsets) = (logits.relative(), offsets.relative());
        let ratios = deviations.iter().zip(probe.rounding).map(|(deviation, rounding)| ratio(deviation, rounding));
        Self { error_ratio: ratios.fold(0.0, max_abs), logits, offsets }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { error_ratio, logits, offsets } = self;
        let digits = if *error_ratio < 100.0 { 1 } else { 0 };
        write!(
            f,
            "{error_ratio:.digits$} times libtorch's float32 error (limit {TOLERANCE}); RMS difference {logits:.1e} of \
             the standard deviation for logits and {offsets:.1e} for offsets"
        )
    }
}

/// Why a file is not verified.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// ONNX Runtime is missing, or cannot run the file.
    #[error("cannot verify the export")]
    Engine(#[from] EngineError),
    /// The outputs differ from libtorch's by more than rounding errors.
    #[error(
        "ONNX Runtime does not reproduce libtorch's outputs in the checkpoint's probe: its error is {0}; no file was \
         written. The weights may contain NaN or have changed after training: export another checkpoint of the run"
    )]
    Differs(Differences),
    /// The scores differ from the sigmoid of the logits.
    #[error(
        "scores differ from the sigmoid of libtorch's logits by {0:.1e}; no file was written. This is a bug in the \
         exporter or in ONNX Runtime: please report it"
    )]
    Scores(f64),
    /// The probe's expected outputs are constant.
    #[error(
        "the network's outputs in the checkpoint's probe are constant, so the export cannot be verified; no file was \
         written. The weights are broken: export another checkpoint of the run"
    )]
    Constant,
}

/// Runs the file `model` on the probe's images on the CPU and compares the outputs. `heads` are those of its graph.
///
/// # Errors
/// When ONNX Runtime is missing or cannot run the file, or a difference exceeds its tolerance or is NaN.
pub fn prove(
    model: &Path,
    heads: &HeadValues,
    spec: &ModelSpec,
    probe: &Probe,
    options: &EngineOptions,
) -> Result<Differences, ProofError> {
    let Probe { images, outputs: expected, .. } = probe;
    if expected.is_constant() {
        return Err(ProofError::Constant);
    }
    let NetworkOutputs { heads: mut found, .. } = heads.open(model, options)?.read(images.view(), spec)?;
    let with_inner_values = Differences::of(probe, &found);
    // The unmodified file, which ONNX Runtime may optimize differently.
    let outputs = Engine::open(model, options)?.run(images.view())?.into_dense()?;
    found.offsets = outputs.offsets().to_owned();
    let error_ratio = max_abs(with_inner_values.error_ratio, Differences::of(probe, &found).error_ratio);
    let differences = Differences { error_ratio, ..with_inner_values };
    let [mut logits, mut scores] = [Deviation::default(), Deviation::default()];
    logits.add(expected.logits.view(), found.logits.view());
    let sigmoid = |logit: f32| (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32;
    scores.add(expected.logits.mapv(sigmoid).view(), outputs.scores());
    // Comparisons with NaN are false, so NaN fails. The slope of the sigmoid is at most 1/4.
    let outputs_match = differences.error_ratio <= TOLERANCE;
    let scores_match = scores.max() <= SCORE_TOLERANCE + logits.max() / 2.0;
    match (outputs_match, scores_match) {
        (true, true) => Ok(differences),
        (true, false) => Err(ProofError::Scores(scores.max())),
        (false, _) => Err(ProofError::Differs(differences)),
    }
}
