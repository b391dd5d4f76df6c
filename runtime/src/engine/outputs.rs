//! Outputs of the network for a batch, in ONNX Runtime's memory.

use std::fmt::Debug;

use models::onnx_contract::{
    CANDIDATE_ANCHORS, CANDIDATE_CLASSES, CANDIDATE_SCORES, CLASSIFICATION, DETECTION_BOXES, DETECTION_CLASSES,
    DETECTION_SCORES, NUM_DETECTIONS, REGRESSION,
};
use models::{BoundingBox, ModelSpec};
use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis, Ix2, Ix3, s};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorValueType};

use super::error::EngineError;
use crate::postprocess::Candidates;

/// Outputs of the network for a batch of images.
#[derive(Debug)]
pub enum Outputs {
    /// The scores and offsets of all anchors.
    Dense(DenseOutputs),
    /// The highest-scoring candidates, from a file exported with `--top-k`.
    Candidates(CandidateOutputs),
    /// Detections, from a file exported with `--end-to-end`.
    Detections(DetectionOutputs),
}

impl Outputs {
    /// The scores and offsets of all anchors.
    ///
    /// # Errors
    /// When the file outputs only candidates or detections.
    pub fn into_dense(self) -> Result<DenseOutputs, EngineError> {
        match self {
            Self::Dense(outputs) => Ok(outputs),
            Self::Candidates(_) | Self::Detections(_) => Err(EngineError::OnlyCandidates),
        }
    }
}

/// Scores and offsets of all anchors.
#[derive(Debug)]
pub struct DenseOutputs {
    images: usize,
    scores: Tensor<f32>,
    offsets: Tensor<f32>,
}

impl DenseOutputs {
    /// Scores: `[N, anchors, classes]`, in [0, 1].
    pub fn scores(&self) -> ArrayView3<'_, f32> {
        let scores = self.scores.extract_array().into_dimensionality::<Ix3>().expect(CHECKED);
        scores.slice_move(s![..self.images, .., ..])
    }

    /// Offsets (box deltas): `[N, anchors, 4]`.
    pub fn offsets(&self) -> ArrayView3<'_, f32> {
        let offsets = self.offsets.extract_array().into_dimensionality::<Ix3>().expect(CHECKED);
        offsets.slice_move(s![..self.images, .., ..])
    }

    /// Names of the outputs, in the order that [`DenseOutputs::new`] expects.
    pub(super) const NAMES: [&str; 2] = [CLASSIFICATION, REGRESSION];

    /// Checks the shapes of the outputs for `batch` images, of which the first `images` are not padding.
    pub(super) fn new(
        outputs: Vec<DynValue>,
        batch: usize,
        images: usize,
        spec: &ModelSpec,
        run_error: impl Fn(ort::Error) -> EngineError,
    ) -> Result<Self, EngineError> {
        let [scores, offsets] = exactly(outputs);
        let anchors = size(&scores, 1);
        let scores = checked(CLASSIFICATION, scores, [batch, anchors, spec.class_count()], &run_error)?;
        let offsets = checked(REGRESSION, offsets, [batch, anchors, 4], &run_error)?;
        Ok(Self { images, scores, offsets })
    }
}

/// The highest-scoring candidates of every image of a batch.
#[derive(Debug)]
pub struct CandidateOutputs {
    images: usize,
    scores: Tensor<f32>,
    anchors: Tensor<i64>,
    classes: Tensor<i64>,
    offsets: Tensor<f32>,
}

impl CandidateOutputs {
    /// Number of images, without padding.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The candidates of one image of the batch.
    ///
    /// # Panics
    /// When `image` is not less than [`CandidateOutputs::images`].
    pub fn of(&self, image: usize) -> Candidates<'_> {
        assert!(image < self.images, "image {image} of {}", self.images);
        let offsets: ArrayView3<f32> = self.offsets.extract_array().into_dimensionality::<Ix3>().expect(CHECKED);
        Candidates {
            scores: row(&self.scores, image),
            anchors: row(&self.anchors, image),
            classes: row(&self.classes, image),
            offsets: offsets.index_axis_move(Axis(0), image),
        }
    }

    /// As [`DenseOutputs::NAMES`].
    pub(super) const NAMES: [&str; 4] = [CANDIDATE_SCORES, CANDIDATE_ANCHORS, CANDIDATE_CLASSES, REGRESSION];

    /// As [`DenseOutputs::new`].
    pub(super) fn new(
        outputs: Vec<DynValue>,
        batch: usize,
        images: usize,
        run_error: impl Fn(ort::Error) -> EngineError,
    ) -> Result<Self, EngineError> {
        let [scores, anchors, classes, offsets] = exactly(outputs);
        let count = size(&scores, 1);
        let scores = checked(CANDIDATE_SCORES, scores, [batch, count], &run_error)?;
        let anchors = checked(CANDIDATE_ANCHORS, anchors, [batch, count], &run_error)?;
        let classes = checked(CANDIDATE_CLASSES, classes, [batch, count], &run_error)?;
        let offsets = checked(REGRESSION, offsets, [batch, count, 4], &run_error)?;
        Ok(Self { images, scores, anchors, classes, offsets })
    }
}

/// The detections in every image of a batch.
#[derive(Debug)]
pub struct DetectionOutputs {
    images: usize,
    counts: Tensor<i32>,
    boxes: Tensor<f32>,
    scores: Tensor<f32>,
    classes: Tensor<i32>,
}

impl DetectionOutputs {
    /// Number of images, without padding.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Scores, class indices and boxes (pixels of the padded input) of the detections in one image of the batch, the highest
    /// score first.
    ///
    /// # Panics
    /// When `image` is not less than [`DetectionOutputs::images`].
    pub fn of(&self, image: usize) -> impl Iterator<Item = (f32, i32, BoundingBox)> + '_ {
        assert!(image < self.images, "image {image} of {}", self.images);
        let boxes: ArrayView3<f32> = self.boxes.extract_array().into_dimensionality::<Ix3>().expect(CHECKED);
        let boxes = boxes.index_axis_move(Axis(0), image);
        let (scores, classes) = (row(&self.scores, image), row(&self.classes, image));
        let count = usize::try_from(row(&self.counts, image)[0]).unwrap_or(0).min(scores.len());
        (0..count).map(move |index| {
            let corners: [f32; 4] = std::array::from_fn(|corner| boxes[[index, corner]]);
            (scores[index], classes[index], corners.into())
        })
    }

    /// As [`DenseOutputs::NAMES`].
    pub(super) const NAMES: [&str; 4] = [NUM_DETECTIONS, DETECTION_BOXES, DETECTION_SCORES, DETECTION_CLASSES];

    /// As [`DenseOutputs::new`], for at most `max` detections per image.
    pub(super) fn new(
        outputs: Vec<DynValue>,
        batch: usize,
        images: usize,
        max: usize,
        run_error: impl Fn(ort::Error) -> EngineError,
    ) -> Result<Self, EngineError> {
        let [counts, boxes, scores, classes] = exactly(outputs);
        let counts = checked(NUM_DETECTIONS, counts, [batch, 1], &run_error)?;
        let boxes = checked(DETECTION_BOXES, boxes, [batch, max, 4], &run_error)?;
        let scores = checked(DETECTION_SCORES, scores, [batch, max], &run_error)?;
        let classes = checked(DETECTION_CLASSES, classes, [batch, max], &run_error)?;
        Ok(Self { images, counts, boxes, scores, classes })
    }
}

/// Why an output cannot have another rank.
const CHECKED: &str = "`new` checked the shape";

fn row<T: PrimitiveTensorElementType + Debug>(tensor: &Tensor<T>, image: usize) -> ArrayView1<'_, T> {
    let rows: ArrayView2<T> = tensor.extract_array().into_dimensionality::<Ix2>().expect(CHECKED);
    rows.index_axis_move(Axis(0), image)
}

fn exactly<const COUNT: usize>(outputs: Vec<DynValue>) -> [DynValue; COUNT] {
    outputs.try_into().expect("the file's outputs were checked when it was opened")
}

/// A side of an output; 0 if it has none.
fn size(output: &DynValue, axis: usize) -> usize {
    output.dtype().tensor_shape().and_then(|shape| shape.get(axis)).map_or(0, |size| *size as usize)
}

/// The output as a tensor of this type and shape.
fn checked<T: PrimitiveTensorElementType + Debug, const RANK: usize>(
    name: &'static str,
    output: DynValue,
    expected: [usize; RANK],
    run_error: impl Fn(ort::Error) -> EngineError,
) -> Result<Tensor<T>, EngineError> {
    let tensor = output.downcast::<TensorValueType<T>>().map_err(run_error)?;
    let found: Vec<_> = tensor.shape().iter().map(|size| *size as usize).collect();
    if found == expected { Ok(tensor) } else { Err(EngineError::Output { name, found, expected: expected.to_vec() }) }
}
