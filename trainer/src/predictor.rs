//! A network for inference: its predictions for batches, and its detections in the images of a data set.

use models::evaluation::ScoredBox;
use models::{Anchors, Checkpoint, ModelSpec, Placement, Predictions, RetinaNet, WeightsError, parameters};
use ndarray::{ArrayView2, ArrayView3};
use rayon::prelude::*;
use runtime::{Detection, postprocess, postprocess_for_coco};
use tch::{Device, Tensor};

use crate::loader::{Batch, BatchRequest, Loader};
use crate::loss::{Loss, LossConfig};
use crate::parameters::{Layout, Parameters};
use crate::torch::{Inference, Torch, images};

/// A network for inference on a device.
pub struct Predictor {
    /// The spec of the network.
    pub spec: ModelSpec,
    network: RetinaNet<Inference>,
    device: Device,
    channels_last: bool,
}

impl Predictor {
    /// A network that shares the tensors of `parameters`, so that later updates of the parameters change its
    /// predictions.
    ///
    /// # Errors
    /// When `parameters` lacks a tensor of the spec.
    pub fn new(spec: &ModelSpec, parameters: &Parameters) -> Result<Self, WeightsError> {
        let network = RetinaNet::new(spec, parameters)?;
        let channels_last = parameters.layout().channels_last;
        Ok(Self { spec: spec.clone(), network, device: parameters.trainable.device(), channels_last })
    }

    /// The network of a checkpoint.
    ///
    /// # Errors
    /// When the checkpoint's spec is invalid.
    pub fn from_checkpoint(checkpoint: &Checkpoint, device: Device) -> Result<Self, WeightsError> {
        let list = parameters(&checkpoint.spec)?;
        let parameters = Parameters::from_tensors(&list, Layout::default(), device, &checkpoint.tensors);
        Self::new(&checkpoint.spec, &parameters)
    }

    /// Scores `[N, anchors, classes]` and offsets `[N, anchors, 4]` of a batch, in CPU memory.
    pub fn predict(&self, batch: &Batch) -> [Tensor; 2] {
        tch::no_grad(|| on_cpu(&self.forward(batch)))
    }

    fn forward(&self, batch: &Batch) -> Predictions<Inference> {
        self.network.forward(&Torch(images(&batch.images, self.device, self.channels_last)))
    }

    /// Detections in the images of a batch, with the post-processing of the spec. Boxes are in pixels of the original
    /// image (upright, after EXIF rotation).
    pub(crate) fn detect(&self, batch: &Batch) -> Vec<ScoredBox> {
        self.detections(batch, &self.predict(batch), postprocess)
    }

    /// Those of the detections that COCO's metrics count, and the loss.
    pub(crate) fn validate(&self, batch: &Batch, config: &LossConfig) -> (Vec<ScoredBox>, [f64; 2]) {
        let (predictions, loss) = tch::no_grad(|| {
            let predictions = self.forward(batch);
            let Predictions { logits, offsets } = &predictions;
            let loss = Loss::new(&logits.0, &offsets.0, &batch.targets, config, &self.spec.box_coder);
            (on_cpu(&predictions), loss.values())
        });
        (self.detections(batch, &predictions, postprocess_for_coco), loss)
    }

    /// The detections that `select` finds in each image, with the scores and offsets of the batch.
    fn detections(&self, batch: &Batch, predictions: &[Tensor; 2], select: Postprocess) -> Vec<ScoredBox> {
        let per_image = detections(batch, predictions, &self.spec, select);
        let scored = batch.indices.iter().zip(per_image).flat_map(|(index, detections)| {
            detections.into_iter().map(|detection| ScoredBox {
                image: *index,
                class_index: detection.class_index,
                score: detection.score.into(),
                rectangle: detection.bounding_box.into(),
            })
        });
        scored.collect()
    }
}

/// From scores and offsets of one image to its detections.
type Postprocess = fn(ArrayView2<f32>, ArrayView2<f32>, &Anchors, &Placement, &ModelSpec) -> Vec<Detection>;

/// Scores and offsets in CPU memory.
fn on_cpu(predictions: &Predictions<Inference>) -> [Tensor; 2] {
    [&predictions.scores().0, &predictions.offsets.0].map(|tensor| tensor.to_device(Device::Cpu).contiguous())
}

/// Every image of the loader's data set once. Batches contain only images of the same padded size, because more padding
/// would change the predictions near the edges.
pub(crate) fn validation_batches(
    loader: &Loader,
    batch_size: usize,
) -> impl Iterator<Item = anyhow::Result<Batch>> + use<'_> {
    loader.batches(validation_requests(loader, batch_size).into_iter())
}

/// The requests for [`validation_batches`].
pub(crate) fn validation_requests(loader: &Loader, batch_size: usize) -> Vec<BatchRequest> {
    let images = loader.recipe().dataset.images();
    let preprocessing = &loader.recipe().spec.preprocessing;
    let size = |index: &usize| {
        let placement = preprocessing.place(images[*index].width.max(1), images[*index].height.max(1));
        (placement.padded_height, placement.padded_width)
    };
    let mut indices: Vec<_> = (0..images.len()).collect();
    indices.sort_by_key(size);
    let same_size = indices.chunk_by(|a, b| size(a) == size(b));
    let batches = same_size.flat_map(|indices| indices.chunks(batch_size));
    batches.map(|indices| BatchRequest { indices: indices.to_vec(), seed: 0 }).collect()
}

/// The detections of each image, in pixels of the original image (upright, after EXIF rotation).
fn detections(
    batch: &Batch,
    [scores, offsets]: &[Tensor; 2],
    spec: &ModelSpec,
    select: Postprocess,
) -> Vec<Vec<Detection>> {
    let values = |tensor: &Tensor| {
        let mut values = vec![0f32; tensor.numel()];
        tensor.copy_data(&mut values, tensor.numel());
        values
    };
    let shape = |tensor: &Tensor| {
        let (n, rows, width) = tensor.size3().expect("predictions have three dimensions");
        (n as usize, rows as usize, width as usize)
    };
    let (score_values, offset_values) = (values(scores), values(offsets));
    let scores = ArrayView3::from_shape(shape(scores), &score_values).expect("the values have this shape");
    let offsets = ArrayView3::from_shape(shape(offsets), &offset_values).expect("the values have this shape");
    let (_, _, height, width) = batch.images.dim();
    let anchors = Anchors::new(&spec.anchors, height, width);
    let images = batch.placements.par_iter().enumerate().map(|(index, placement)| {
        let (scores, offsets) =
            (scores.index_axis(ndarray::Axis(0), index), offsets.index_axis(ndarray::Axis(0), index));
        select(scores, offsets, &anchors, placement, spec)
    });
    images.collect()
}
