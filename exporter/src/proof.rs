//! The proof: a file computes for the checkpoint's probe what libtorch computed.

use std::fmt;
use std::path::Path;

use models::{Deviation, HeadOutputs, ModelSpec, Probe, larger};
use runtime::{Engine, EngineError, EngineOptions};

use crate::heads::{Answer, HeadValues};

/// How many times as far as libtorch in 32 bits a file may be from what libtorch computed in 64, in any of the probe's parts.
/// Right weights are 0.6 to 1.2 times as far: ResNet-18 to 152, each with frozen, live and group norms, before training and
/// random, and the demo's after 0, 1, 3 and 7 epochs. Where each number of one tensor is off by 1 %, it is at least 8 times: all
/// 88 tensors of the demo after 1, 3 and 7 epochs, the fewest for biases that are still small, and 20 tensors of each depth.
/// `cargo run --release -p tests --example proof` prints these numbers.
pub const TOLERANCE: f64 = 3.0;

/// Most that rounding may do for a proof to mean something, as a fraction of the numbers' size: 25 times what was measured.
const LARGEST_ROUNDING: f64 = 1e-4;

/// How far scores may be off that are the sigmoid of the right logits.
const SCORE_TOLERANCE: f64 = 1e-6;

/// How far a file is from what libtorch computed in 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Differences {
    /// How many times as far as libtorch in 32 bits, where it is most.
    pub times: f64,
    /// In the logits, as the root of the mean square, in units of their spread.
    pub logits: f64,
    /// In the offsets, likewise.
    pub offsets: f64,
}

impl Differences {
    fn of(probe: &Probe, found: &HeadOutputs) -> Self {
        let size = [probe.images.dim().2, probe.images.dim().3];
        let deviations = probe.outputs.deviations(found, size);
        let times = |deviation: &Deviation, rounding: [f32; 2]| {
            let largest = LARGEST_ROUNDING * deviation.size();
            let off = [deviation.rms(), deviation.systematic()].into_iter().zip(rounding).map(|(off, rounding)| {
                // The last place may be another one also where libtorch happens to be exact.
                let beyond = off - f64::from(f32::EPSILON) * deviation.size();
                // Comparisons with NaN are false.
                let rounding = if f64::from(rounding) > largest { largest } else { f64::from(rounding) };
                if beyond <= 0.0 { 0.0 } else { beyond / rounding }
            });
            off.fold(0.0, larger)
        };
        let [logits, offsets, ..] = &deviations;
        let (logits, offsets) = (logits.relative(), offsets.relative());
        let times = deviations.iter().zip(probe.rounding).map(|(deviation, rounding)| times(deviation, rounding));
        Self { times: times.fold(0.0, larger), logits, offsets }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { times, logits, offsets } = self;
        let digits = if *times < 100.0 { 1 } else { 0 };
        write!(
            f,
            "by {times:.digits$} times what rounding does in libtorch ({TOLERANCE} times are allowed), by {logits:.1e} of the logits' \
             spread and {offsets:.1e} of the offsets'"
        )
    }
}

/// Why a file is not what libtorch computed.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// ONNX Runtime is missing, or does not take the file.
    #[error("cannot prove the export")]
    Engine(#[from] EngineError),
    /// ONNX Runtime computes other numbers.
    #[error(
        "ONNX Runtime and libtorch differ on the checkpoint's probe {0}; no file was written. The weights may hold NaN or have \
         changed after training: export another checkpoint of the run"
    )]
    Differs(Differences),
    /// The scores are not those of the logits.
    #[error(
        "scores differ from the sigmoid of what libtorch computed by {0:.1e}; no file was written. This is a mistake of the \
         exporter or of ONNX Runtime"
    )]
    Scores(f64),
    /// There is nothing to compare.
    #[error(
        "the network computes the same for everything, so that nothing can be proven; no file was written. Its weights are \
         broken: export another checkpoint of the run"
    )]
    Constant,
}

/// Runs the probe through the file `model` on the CPU and compares. `heads` are those of its graph.
///
/// # Errors
/// When ONNX Runtime is missing or refuses the file, or a difference is over its tolerance or NaN.
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
    let Answer { heads: mut found, .. } = heads.open(model, options)?.read(images.view(), spec)?;
    let inside = Differences::of(probe, &found);
    // The file as it is, which ONNX Runtime may optimize otherwise.
    let outputs = Engine::open(model, options)?.run(images.view())?.into_dense()?;
    found.offsets = outputs.offsets().to_owned();
    let differences = Differences { times: larger(inside.times, Differences::of(probe, &found).times), ..inside };
    let [mut logits, mut scores] = [Deviation::default(), Deviation::default()];
    logits.add(expected.logits.view(), found.logits.view());
    let sigmoid = |logit: f32| (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32;
    scores.add(expected.logits.mapv(sigmoid).view(), outputs.scores());
    // Comparisons with NaN are false, so that NaN is a failure. The sigmoid is at most a quarter as steep as its input.
    let (same, same_scores) = (differences.times <= TOLERANCE, scores.max() <= SCORE_TOLERANCE + logits.max() / 2.0);
    match (same, same_scores) {
        (true, true) => Ok(differences),
        (true, false) => Err(ProofError::Scores(scores.max())),
        (false, _) => Err(ProofError::Differs(differences)),
    }
}
