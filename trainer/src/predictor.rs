//! A network for inference: its predictions for batches, and its detections in the images of a data set.

use models::evaluation::ScoredBox;
use models::{Anchors, Checkpoint, ModelSpec, Placement, Predictions, RetinaNet, WeightsError, parameters};
use rayon::prelude::*;
use runtime::{Candidates, Detection, postprocess_candidates, postprocess_candidates_for_coco};
use tch::{Device, Tensor};

use crate::candidates::ImageCandidates;
use crate::loader::{Batch, BatchRequest, Loader};
use crate::loss::{Loss, LossConfig};
use crate::parameters::{Layout, Parameters};
use crate::torch::{Inference, Torch};

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
        let predictions = tch::no_grad(|| self.forward(batch));
        [predictions.scores(), predictions.offsets].map(|tensor| tensor.0.to_device(Device::Cpu).contiguous())
    }

    fn forward(&self, batch: &Batch) -> Predictions<Inference> {
        self.network.forward(&Torch(batch.images_on(self.device, self.channels_last, &self.spec.preprocessing)))
    }

    /// Detections in the images of a batch, with the post-processing of the spec. Boxes are in pixels of the original
    /// image (upright, after EXIF rotation).
    pub(crate) fn detect(&self, batch: &Batch) -> Vec<ScoredBox> {
        tch::no_grad(|| self.detections(batch, &self.forward(batch), postprocess_candidates))
    }

    /// Those of the detections that COCO's metrics count, and the loss.
    pub(crate) fn validate(&self, batch: &Batch, config: &LossConfig) -> (Vec<ScoredBox>, [f64; 2]) {
        tch::no_grad(|| {
            let targets = batch.targets_on(self.device);
            let predictions = self.forward(batch);
            let Predictions { logits, offsets } = &predictions;
            let loss = Loss::new(&logits.0, &offsets.0, &targets, config, &self.spec.box_coder);
            (self.detections(batch, &predictions, postprocess_candidates_for_coco), loss.values())
        })
    }

    /// The detections that `select` finds in each image.
    fn detections(&self, batch: &Batch, predictions: &Predictions<Inference>, select: Postprocess) -> Vec<ScoredBox> {
        let ([height, width], spec) = (batch.images.size(), &self.spec);
        let anchors = Anchors::new(&spec.anchors, height, width);
        let (scores, offsets) = (predictions.scores().0, &predictions.offsets.0);
        // Image by image, because early in training all scores may be candidates.
        let candidates = (0..batch.indices.len() as i64).map(|image| {
            let (scores, offsets) = (scores.get(image), offsets.get(image));
            ImageCandidates::select(&scores, &offsets, &anchors, &spec.postprocessing)
        });
        let candidates: Vec<_> = candidates.collect();
        let detections: Vec<_> = (batch.placements.par_iter().zip(&candidates))
            .map(|(placement, candidates)| select(&candidates.view(), &anchors, placement, spec))
            .collect();
        let scored = batch.indices.iter().zip(detections).flat_map(|(index, detections)| {
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

/// From candidates of one image to its detections.
type Postprocess = fn(&Candidates, &Anchors, &Placement, &ModelSpec) -> Vec<Detection>;

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
