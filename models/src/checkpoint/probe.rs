//! The probe: a small input and the outputs that libtorch computed for it. It verifies any copy of the network.

use std::collections::BTreeMap;

use ndarray::{Array, Array2, Array3, Array4, ArrayD, ArrayView3, Axis, CowArray, Dimension, Slice, arr2};

use crate::deviation::Deviation;
use crate::spec::ModelSpec;

/// An input of a network with its expected outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// `[N, 3, H, W]`, normalized images.
    pub images: Array4<f32>,
    /// Outputs of libtorch in 64-bit floats.
    pub outputs: HeadOutputs,
    /// Rounding errors of libtorch in 32-bit floats with these weights: `rms` and `systematic` of each of the
    /// [`HeadOutputs::deviations`] from `outputs`.
    pub rounding: [[f32; 2]; HeadOutputs::PARTS],
}

/// Outputs of the heads for N images. Rows are ordered by level P3 to P7, y and x; rows of anchors then by anchor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadOutputs {
    /// `[N, anchors, classes]`, before the sigmoid, which would hide differences between low scores.
    pub logits: Array3<f32>,
    /// `[N, anchors, 4]`, box deltas in the box coder's units.
    pub offsets: Array3<f32>,
    /// Inputs of the `output` convolutions of classification and regression, each `[N, cells, channels]`. They depend on
    /// all other weights, also before training, when the weights of the `output` convolutions are zero. Empty in
    /// older checkpoints.
    pub features: [Array3<f32>; 2],
}

/// Names of the probe's tensors. No parameter has the prefix `probe.`.
const IMAGES: &str = "probe.images";
const ROUNDING: &str = "probe.rounding";
const OUTPUTS: [&str; 4] =
    ["probe.logits", "probe.offsets", "probe.classification_features", "probe.regression_features"];

/// Older probes have these instead of `OUTPUTS`: scores and offsets.
const OLD_OUTPUTS: [&str; 2] = ["probe.classification", "probe.regression"];

/// Rounding error of probes that do not contain it, as a fraction of the expected values' standard deviation. The maximum
/// measured with ResNet-18 to 152, every norm, before training and with random weights, was 4.0e-6.
const TYPICAL_ROUNDING: f64 = 4e-6;

impl Probe {
    /// Shape of the probe's images. Every level has a cell, and height and width differ, so that swapped axes are detected.
    pub const SIZE: [usize; 4] = [2, 3, 64, 96];

    pub(super) fn tensors(&self) -> Vec<(&'static str, ArrayD<f32>)> {
        let outputs = OUTPUTS.into_iter().zip(self.outputs.each().map(|rows| rows.clone().into_dyn()));
        let rounding = arr2(&self.rounding).into_dyn();
        [(IMAGES, self.images.clone().into_dyn()), (ROUNDING, rounding)].into_iter().chain(outputs).collect()
    }

    pub(super) fn take_from(tensors: &mut BTreeMap<String, ArrayD<f32>>, spec: &ModelSpec) -> Result<Self, String> {
        fn shaped<D: Dimension>(tensor: ArrayD<f32>) -> Result<Array<f32, D>, String> {
            tensor.into_dimensionality().map_err(|error| format!("a tensor of its probe has the wrong shape: {error}"))
        }
        let mut take = |name: &str| tensors.remove(name).ok_or_else(|| format!("it has no tensor `{name}`"));
        let images: Array4<f32> = shaped(take(IMAGES)?)?;
        let probe = if let Ok(rounding) = take(ROUNDING) {
            let rounding: Array2<f32> = shaped(rounding)?;
            let [logits, offsets, classification, regression] = OUTPUTS.map(|name| shaped(take(name)?));
            let rounding = rounding.as_slice().map(|rounding| rounding.as_chunks().0.try_into());
            let Some(Ok(rounding)) = rounding else {
                return Err(format!("`{ROUNDING}` has the wrong shape"));
            };
            let outputs = HeadOutputs { logits: logits?, offsets: offsets?, features: [classification?, regression?] };
            Self { images, outputs, rounding }
        } else {
            let [scores, offsets] = OLD_OUTPUTS.map(|name| shaped(take(name)?));
            let outputs = HeadOutputs { logits: scores?.mapv(logit), offsets: offsets?, ..HeadOutputs::default() };
            let size = [images.dim().2, images.dim().3];
            let typical = |deviation: Deviation| [(TYPICAL_ROUNDING * deviation.expected_std()) as f32; 2];
            let rounding = outputs.deviations(&outputs, size).map(typical);
            Self { images, outputs, rounding }
        };
        let (count, channels, height, width) = probe.images.dim();
        let cells = cells_per_level(height, width).iter().sum();
        let anchors = cells * spec.anchors_per_cell();
        let HeadOutputs { logits, offsets, features } = &probe.outputs;
        let matches = channels == 3
            && height % 32 == 0
            && width % 32 == 0
            && logits.dim() == (count, anchors, spec.class_count())
            && offsets.dim() == (count, anchors, 4)
            && features.iter().all(|rows| rows.is_empty() || (rows.dim().0, rows.dim().1) == (count, cells));
        matches.then_some(probe).ok_or_else(|| "its probe does not match its spec".to_owned())
    }
}

impl HeadOutputs {
    /// Number of [`deviations`](Self::deviations): of logits, offsets, and the features of two heads at five levels.
    pub const PARTS: usize = 12;

    /// Logits, offsets, and the features of the classification and of the regression.
    pub fn each(&self) -> [&Array3<f32>; 4] {
        let [classification, regression] = &self.features;
        [&self.logits, &self.offsets, classification, regression]
    }

    /// Whether the features of one head, or its outputs where features are absent, all have the same value. Such a
    /// probe cannot verify the weights.
    pub fn is_constant(&self) -> bool {
        let heads = if self.features[0].is_empty() { [&self.logits, &self.offsets] } else { self.features.each_ref() };
        heads.into_iter().any(|rows| rows.iter().all(|value| Some(value) == rows.first()))
    }

    /// Deviations of `found` from these outputs, for images of `size` (height, width): of the logits, the offsets, and the
    /// features of each head at each level, since an error may be limited to a level with few rows. Outputs that are empty
    /// in `self` are not compared.
    pub fn deviations(&self, found: &Self, size: [usize; 2]) -> [Deviation; Self::PARTS] {
        let cells = cells_per_level(size[0], size[1]);
        let cell_count: usize = cells.iter().sum();
        let mut deviations = std::array::from_fn(|_| Deviation::default());
        let mut parts = deviations.iter_mut();
        let mut compare = |expected: ArrayView3<f32>, found: ArrayView3<f32>| {
            if let Some(deviation) = parts.next().filter(|_| !expected.is_empty()) {
                deviation.add(expected, found);
            }
        };
        for (expected, found) in [(&self.logits, &found.logits), (&self.offsets, &found.offsets)] {
            // One row per cell, with the channels of all its anchors.
            let per_cell = |rows: &Array3<f32>| {
                let shape = (rows.dim().0, cell_count, rows.len() / (rows.dim().0 * cell_count).max(1));
                rows.to_shape(shape).map(CowArray::into_owned).unwrap_or_default()
            };
            compare(per_cell(expected).view(), per_cell(found).view());
        }
        for (expected, found) in self.features.iter().zip(&found.features) {
            let mut start = 0;
            for cells in cells {
                let level = |rows: &Array3<f32>| {
                    let end = (start + cells).min(rows.dim().1);
                    rows.slice_axis(Axis(1), Slice::from(start.min(end)..end)).into_owned()
                };
                compare(level(expected).view(), level(found).view());
                start += cells;
            }
        }
        deviations
    }
}

/// Number of cells at levels P3 to P7, for images whose height and width are multiples of 32.
pub fn cells_per_level(height: usize, width: usize) -> [usize; 5] {
    std::array::from_fn(|level| height.div_ceil(8 << level) * width.div_ceil(8 << level))
}

/// The inverse of the sigmoid. The last digit of a low score changes it by 1e-7.
fn logit(score: f32) -> f32 {
    let score = f64::from(score);
    (score / (1.0 - score)).ln() as f32
}
