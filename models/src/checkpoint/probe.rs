//! The probe: a small input and what libtorch computed for it, so that anyone can tell whether a copy of the network is right.

use std::collections::BTreeMap;

use ndarray::{Array, Array2, Array3, Array4, ArrayD, ArrayView3, Axis, CowArray, Dimension, Slice, arr2};

use crate::deviation::Deviation;
use crate::spec::ModelSpec;

/// A known answer of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// `[N, 3, H, W]`, normalized images.
    pub images: Array4<f32>,
    /// What libtorch computed in 64 bits.
    pub outputs: HeadOutputs,
    /// How far libtorch in 32 bits was from that, for each of [`HeadOutputs::deviations`]: their `rms` and `systematic`. It is
    /// what rounding does with these weights.
    pub rounding: [[f32; 2]; HeadOutputs::PARTS],
}

/// What the heads of a network compute for N images. Rows are ordered by level P3 to P7, y and x, and where there is one for
/// each anchor, by anchor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadOutputs {
    /// `[N, anchors, classes]`, before the sigmoid: a small score says too little of what it is computed from.
    pub logits: Array3<f32>,
    /// `[N, anchors, 4]`, in the box coder's units.
    pub offsets: Array3<f32>,
    /// What the classification's and the regression's `output` convolution read, each `[N, cells, channels]`. They show every
    /// other weight, also in a network that is not trained yet, whose `output` convolutions are all zero. Without rows in the
    /// checkpoints of versions before 0.2.
    pub features: [Array3<f32>; 2],
}

/// Names of the tensors; no parameter's name begins so.
const IMAGES: &str = "probe.images";
const ROUNDING: &str = "probe.rounding";
const OUTPUTS: [&str; 4] =
    ["probe.logits", "probe.offsets", "probe.classification_features", "probe.regression_features"];

/// What a probe of versions before 0.2 has in place of the first two of these: scores, and the same offsets.
const OLD_OUTPUTS: [&str; 2] = ["probe.classification", "probe.regression"];

/// What rounding does where no one has measured it, as a fraction of the spread: the most in ResNet-18 to 152, with every
/// norm, before training and with random weights, was 4.0e-6.
const USUAL_ROUNDING: f64 = 4e-6;

impl Probe {
    /// Size of the probe's images: large enough that every level has a cell, and not square, so that exchanged axes show.
    pub const SIZE: [usize; 4] = [2, 3, 64, 96];

    pub(super) fn named(&self) -> Vec<(&'static str, ArrayD<f32>)> {
        let outputs = OUTPUTS.into_iter().zip(self.outputs.each().map(|rows| rows.clone().into_dyn()));
        let rounding = arr2(&self.rounding).into_dyn();
        [(IMAGES, self.images.clone().into_dyn()), (ROUNDING, rounding)].into_iter().chain(outputs).collect()
    }

    pub(super) fn take_from(tensors: &mut BTreeMap<String, ArrayD<f32>>, spec: &ModelSpec) -> Result<Self, String> {
        fn shaped<D: Dimension>(tensor: ArrayD<f32>) -> Result<Array<f32, D>, String> {
            tensor.into_dimensionality().map_err(|error| format!("its probe is misshapen: {error}"))
        }
        let mut take = |name: &str| tensors.remove(name).ok_or_else(|| format!("it has no tensor `{name}`"));
        let images: Array4<f32> = shaped(take(IMAGES)?)?;
        let probe = if let Ok(rounding) = take(ROUNDING) {
            let rounding: Array2<f32> = shaped(rounding)?;
            let [logits, offsets, classification, regression] = OUTPUTS.map(|name| shaped(take(name)?));
            let rounding = rounding.as_slice().map(|rounding| rounding.as_chunks().0.try_into());
            let Some(Ok(rounding)) = rounding else { return Err(format!("its tensor `{ROUNDING}` is misshapen")) };
            let outputs = HeadOutputs { logits: logits?, offsets: offsets?, features: [classification?, regression?] };
            Self { images, outputs, rounding }
        } else {
            let [scores, offsets] = OLD_OUTPUTS.map(|name| shaped(take(name)?));
            let outputs = HeadOutputs { logits: scores?.mapv(logit), offsets: offsets?, ..HeadOutputs::default() };
            let size = [images.dim().2, images.dim().3];
            let usual = |deviation: Deviation| [(USUAL_ROUNDING * deviation.spread()) as f32; 2];
            let rounding = outputs.deviations(&outputs, size).map(usual);
            Self { images, outputs, rounding }
        };
        let (count, channels, height, width) = probe.images.dim();
        let cells = cells_of(height, width).iter().sum();
        let anchors = cells * spec.anchors_per_cell();
        let HeadOutputs { logits, offsets, features } = &probe.outputs;
        let fits = channels == 3
            && height % 32 == 0
            && width % 32 == 0
            && logits.dim() == (count, anchors, spec.class_count())
            && offsets.dim() == (count, anchors, 4)
            && features.iter().all(|rows| rows.is_empty() || (rows.dim().0, rows.dim().1) == (count, cells));
        fits.then_some(probe).ok_or_else(|| "its probe does not fit its spec".to_owned())
    }
}

impl HeadOutputs {
    /// Number of parts that are compared by themselves.
    pub const PARTS: usize = 12;

    /// Logits, offsets, and the features of the classification and of the regression.
    pub fn each(&self) -> [&Array3<f32>; 4] {
        let [classification, regression] = &self.features;
        [&self.logits, &self.offsets, classification, regression]
    }

    /// Whether one head computes the same for all cells and images, as far as these say it.
    pub fn is_constant(&self) -> bool {
        let heads = if self.features[0].is_empty() { [&self.logits, &self.offsets] } else { self.features.each_ref() };
        heads.into_iter().any(|rows| rows.iter().all(|value| Some(value) == rows.first()))
    }

    /// How far `found` is from these, for images of height and width `size`: in the logits, the offsets, and of each level
    /// in the features of the classification and of the regression, since a mistake may be in a level that has few rows.
    /// What is absent here is not compared.
    pub fn deviations(&self, found: &Self, size: [usize; 2]) -> [Deviation; Self::PARTS] {
        let cells = cells_of(size[0], size[1]);
        let all: usize = cells.iter().sum();
        let mut deviations = std::array::from_fn(|_| Deviation::default());
        let mut parts = deviations.iter_mut();
        let mut compare = |expected: ArrayView3<f32>, found: ArrayView3<f32>| {
            if let Some(deviation) = parts.next().filter(|_| !expected.is_empty()) {
                deviation.add(expected, found);
            }
        };
        for (expected, found) in [(&self.logits, &found.logits), (&self.offsets, &found.offsets)] {
            // Rows of cells, whose channels are those of all anchors.
            let of_cells = |rows: &Array3<f32>| {
                let shape = (rows.dim().0, all, rows.len() / (rows.dim().0 * all).max(1));
                rows.to_shape(shape).map(CowArray::into_owned).unwrap_or_default()
            };
            compare(of_cells(expected).view(), of_cells(found).view());
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

/// Cells of each level, P3 to P7, for images of this size, which are multiples of 32.
pub fn cells_of(height: usize, width: usize) -> [usize; 5] {
    std::array::from_fn(|level| height.div_ceil(8 << level) * width.div_ceil(8 << level))
}

/// What the sigmoid makes `score` of. The last digit of a small score makes a difference of 1e-7.
fn logit(score: f32) -> f32 {
    let score = f64::from(score);
    (score / (1.0 - score)).ln() as f32
}
