//! What the network says about a batch, in ONNX Runtime's own memory.

use std::fmt::Debug;

use models::ModelSpec;
use ndarray::{ArrayView1, ArrayView2, ArrayView3, Axis, Ix2, Ix3, s};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorValueType};

use super::{CANDIDATE_ANCHORS, CANDIDATE_CLASSES, CANDIDATE_SCORES, CLASSIFICATION, EngineError, REGRESSION};
use crate::postprocess::Candidates;

/// What the network says about a batch of images.
#[derive(Debug)]
pub enum Outputs {
    /// A score for every class at every anchor.
    Dense(DenseOutputs),
    /// The best candidates, from a file that was exported with `--top-k`.
    Candidates(CandidateOutputs),
}

impl Outputs {
    /// The scores and offsets of all anchors.
    ///
    /// # Errors
    /// When the file hands over only the best.
    pub fn into_dense(self) -> Result<DenseOutputs, EngineError> {
        match self {
            Self::Dense(outputs) => Ok(outputs),
            Self::Candidates(_) => Err(EngineError::OnlyCandidates),
        }
    }
}

/// What the network says of every anchor.
#[derive(Debug)]
pub struct DenseOutputs {
    images: usize,
    scores: Tensor<f32>,
    offsets: Tensor<f32>,
}

impl DenseOutputs {
    /// The scores: `[N, anchors, classes]`, in [0, 1].
    pub fn scores(&self) -> ArrayView3<'_, f32> {
        let scores = self.scores.extract_array().into_dimensionality::<Ix3>().expect(CHECKED);
        scores.slice_move(s![..self.images, .., ..])
    }

    /// The offsets: `[N, anchors, 4]`.
    pub fn offsets(&self) -> ArrayView3<'_, f32> {
        let offsets = self.offsets.extract_array().into_dimensionality::<Ix3>().expect(CHECKED);
        offsets.slice_move(s![..self.images, .., ..])
    }

    /// The names of its tensors, in the order in which they are taken.
    pub(super) const NAMES: [&str; 2] = [CLASSIFICATION, REGRESSION];

    /// Takes the outputs of `batch` images, of which the first `images` mean something.
    pub(super) fn take(
        outputs: Vec<DynValue>,
        batch: usize,
        images: usize,
        spec: &ModelSpec,
        run_error: impl Fn(ort::Error) -> EngineError,
    ) -> Result<Self, EngineError> {
        let [scores, offsets] = exactly(outputs);
        let (scores, offsets) = (take(scores).map_err(&run_error)?, take(offsets).map_err(&run_error)?);
        let anchors = sizes(&scores).get(1).copied().unwrap_or(0);
        check(CLASSIFICATION, sizes(&scores), [batch, anchors, spec.class_count()])?;
        check(REGRESSION, sizes(&offsets), [batch, anchors, 4])?;
        Ok(Self { images, scores, offsets })
    }
}

/// The best candidates of every image of a batch.
#[derive(Debug)]
pub struct CandidateOutputs {
    images: usize,
    scores: Tensor<f32>,
    anchors: Tensor<i64>,
    classes: Tensor<i64>,
    offsets: Tensor<f32>,
}

impl CandidateOutputs {
    /// Number of images.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The candidates of one image of the batch.
    ///
    /// # Panics
    /// When there are not so many images.
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

    /// As [`DenseOutputs::take`].
    pub(super) fn take(
        outputs: Vec<DynValue>,
        batch: usize,
        images: usize,
        run_error: impl Fn(ort::Error) -> EngineError,
    ) -> Result<Self, EngineError> {
        let [scores, anchors, classes, offsets] = exactly(outputs);
        let scores = take(scores).map_err(&run_error)?;
        let anchors = take(anchors).map_err(&run_error)?;
        let classes = take(classes).map_err(&run_error)?;
        let offsets = take(offsets).map_err(&run_error)?;
        let count = sizes(&scores).get(1).copied().unwrap_or(0);
        check(CANDIDATE_SCORES, sizes(&scores), [batch, count])?;
        check(CANDIDATE_ANCHORS, sizes(&anchors), [batch, count])?;
        check(CANDIDATE_CLASSES, sizes(&classes), [batch, count])?;
        check(REGRESSION, sizes(&offsets), [batch, count, 4])?;
        Ok(Self { images, scores, anchors, classes, offsets })
    }
}

/// Why outputs have their rank.
const CHECKED: &str = "the shape was checked when the outputs were taken";

fn row<T: PrimitiveTensorElementType + Debug>(tensor: &Tensor<T>, image: usize) -> ArrayView1<'_, T> {
    let rows: ArrayView2<T> = tensor.extract_array().into_dimensionality::<Ix2>().expect(CHECKED);
    rows.index_axis_move(Axis(0), image)
}

fn exactly<const COUNT: usize>(outputs: Vec<DynValue>) -> [DynValue; COUNT] {
    outputs.try_into().expect("the file's outputs were checked when it was opened")
}

fn take<T: PrimitiveTensorElementType + Debug>(output: DynValue) -> ort::Result<Tensor<T>> {
    output.downcast::<TensorValueType<T>>()
}

fn sizes<T: PrimitiveTensorElementType + Debug>(tensor: &Tensor<T>) -> Vec<usize> {
    tensor.shape().iter().map(|size| *size as usize).collect()
}

fn check<const RANK: usize>(name: &'static str, found: Vec<usize>, expected: [usize; RANK]) -> Result<(), EngineError> {
    if found == expected { Ok(()) } else { Err(EngineError::Output { name, found, expected: expected.to_vec() }) }
}
