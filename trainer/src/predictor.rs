//! A network in use: what it says of batches, and what it finds in the images of a data set.

use models::evaluation::ScoredBox;
use models::{Anchors, Checkpoint, ModelSpec, RetinaNet, WeightsError, parameters};
use ndarray::ArrayView3;
use rayon::prelude::*;
use runtime::{Detection, postprocess};
use tch::{Device, Tensor};

use crate::loader::{Batch, Loader, Order};
use crate::parameters::{Layout, Parameters};
use crate::torch::{Inference, Torch, images};

/// Detections of an image, for every class that there is, that are looked at during training. COCO's evaluation counts as
/// many of each class.
const ENOUGH: usize = 100;

/// A network in use, on some device.
pub struct Predictor {
    /// What the network is.
    pub spec: ModelSpec,
    network: RetinaNet<Inference>,
    device: Device,
    channels_last: bool,
}

impl Predictor {
    /// A network on `parameters`, whose numbers may go on changing.
    ///
    /// # Errors
    /// When the spec's network has other tensors.
    pub fn new(spec: &ModelSpec, parameters: &Parameters) -> Result<Self, WeightsError> {
        let network = RetinaNet::new(spec, parameters)?;
        let channels_last = parameters.layout().channels_last;
        Ok(Self { spec: spec.clone(), network, device: parameters.trainable.device(), channels_last })
    }

    /// The network of a checkpoint.
    ///
    /// # Errors
    /// When the spec has no network.
    pub fn of_checkpoint(checkpoint: &Checkpoint, device: Device) -> Result<Self, WeightsError> {
        let list = parameters(&checkpoint.spec)?;
        let parameters = Parameters::of_tensors(&list, Layout::default(), device, &checkpoint.tensors);
        Self::new(&checkpoint.spec, &parameters)
    }

    /// Scores `[N, anchors, classes]` and offsets `[N, anchors, 4]` of a batch, in the CPU's memory.
    pub fn predict(&self, batch: &Batch) -> [Tensor; 2] {
        tch::no_grad(|| {
            let predictions = self.network.forward(&Torch(images(&batch.images, self.device, self.channels_last)));
            [predictions.scores().0, predictions.offsets.0].map(|tensor| tensor.to_device(Device::Cpu).contiguous())
        })
    }

    /// What the network finds in the images of a batch, as evaluation takes it, with the post-processing that ships.
    pub(crate) fn find(&self, batch: &Batch) -> Vec<ScoredBox> {
        self.find_with(batch, &self.spec)
    }

    /// The same with an end to the detections of an image. A network at the start of its training may believe in all anchors
    /// at once, and suppressing millions of boxes would take minutes.
    pub(crate) fn find_enough(&self, batch: &Batch) -> Vec<ScoredBox> {
        let mut spec = self.spec.clone();
        let enough = ENOUGH * spec.class_count();
        spec.postprocessing.max_detections = Some(spec.postprocessing.max_detections.unwrap_or(enough).min(enough));
        self.find_with(batch, &spec)
    }

    fn find_with(&self, batch: &Batch, spec: &ModelSpec) -> Vec<ScoredBox> {
        let [scores, offsets] = self.predict(batch);
        let found = detections(batch, &scores, &offsets, spec);
        let scored = batch.indices.iter().zip(found).flat_map(|(index, detections)| {
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

/// Every image of the loader's data set once. Only those of one size share a batch, since padding of another size would
/// change what the network says near the edges.
pub(crate) fn validation_batches(
    loader: &Loader,
    batch_size: usize,
) -> impl Iterator<Item = anyhow::Result<Batch>> + use<'_> {
    let images = &loader.recipe().dataset.images;
    let preprocessing = &loader.recipe().spec.preprocessing;
    let size = |index: &usize| {
        let placement = preprocessing.place(images[*index].width.max(1), images[*index].height.max(1));
        (placement.padded_height, placement.padded_width)
    };
    let mut indices: Vec<_> = (0..images.len()).collect();
    indices.sort_by_key(size);
    let alike = indices.chunk_by(|a, b| size(a) == size(b));
    let batches = alike.flat_map(|indices| indices.chunks(batch_size));
    let orders: Vec<_> = batches.map(|indices| Order { indices: indices.to_vec(), seed: 0 }).collect();
    loader.batches(orders.into_iter())
}

fn detections(batch: &Batch, scores: &Tensor, offsets: &Tensor, spec: &ModelSpec) -> Vec<Vec<Detection>> {
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
    let scores = ArrayView3::from_shape(shape(scores), &score_values).expect("values fill the shape they came in");
    let offsets = ArrayView3::from_shape(shape(offsets), &offset_values).expect("values fill the shape they came in");
    let (_, _, height, width) = batch.images.dim();
    let anchors = Anchors::new(&spec.anchors, height, width);
    let images = batch.placements.par_iter().enumerate().map(|(index, placement)| {
        let (scores, offsets) =
            (scores.index_axis(ndarray::Axis(0), index), offsets.index_axis(ndarray::Axis(0), index));
        postprocess(scores, offsets, &anchors, placement, spec)
    });
    images.collect()
}
