//! Average precision of a network on a data set, with the post-processing that ships.

use image::RgbImage;
use models::evaluation::ScoredBox;
use models::{Anchors, ModelSpec};
use ndarray::ArrayView3;
use rayon::prelude::*;
use runtime::{Detection, postprocess};
use tch::Tensor;

use crate::learner::Learner;
use crate::loader::{Batch, Loader, Order, Recipe};

/// Detections per picture and class that count; COCO's evaluation ignores the rest.
const COUNTED: usize = 100;

/// The pictures of the loader's data set, in their order.
pub(crate) fn validation_batches(
    loader: &Loader,
    batch_size: usize,
) -> impl Iterator<Item = anyhow::Result<Batch>> + use<'_> {
    let pictures: Vec<_> = (0..loader.recipe().dataset.images.len()).collect();
    let orders: Vec<_> =
        pictures.chunks(batch_size).map(|pictures| Order { pictures: pictures.to_vec(), seed: 0 }).collect();
    loader.batches(orders.into_iter())
}

/// What the network finds in the pictures of a batch, as evaluation takes it.
pub(crate) fn score(learner: &Learner, batch: &Batch) -> Vec<ScoredBox> {
    let [scores, offsets] = learner.predict(batch);
    let found = detections(batch, &scores, &offsets, &counted(&learner.spec));
    let scored = batch.pictures.iter().zip(found).flat_map(|(picture, detections)| {
        detections.into_iter().map(|detection| ScoredBox {
            image: *picture,
            class: detection.label,
            score: detection.score.into(),
            rectangle: detection.bounding_box.into(),
        })
    });
    scored.collect()
}

/// Detections that are surer than this are drawn.
const DRAWN_FROM: f64 = 0.3;

/// Longest side of a drawn picture, in pixels.
const DRAWN_SIDE: u32 = 1024;

/// The picture at place `index` of the data set with what was found in it, no larger than a screen shows.
pub(crate) fn annotated(recipe: &Recipe, index: usize, scored: &[ScoredBox]) -> anyhow::Result<RgbImage> {
    let mut picture = runtime::picture::read(recipe.dataset.path_of(index))?;
    let factor = f64::from(DRAWN_SIDE) / f64::from(picture.width().max(picture.height()));
    let mut scale = 1.0;
    if factor < 1.0 {
        let side = |side: u32| (f64::from(side) * factor).round().max(1.0) as u32;
        picture = image::imageops::thumbnail(&picture, side(picture.width()), side(picture.height()));
        scale = factor as f32;
    }
    let detections = sure_detections(scored, index, DRAWN_FROM, scale);
    runtime::draw::draw(&mut picture, &detections, &recipe.spec.classes);
    Ok(picture)
}

/// What was found in the picture at place `index` with at least this `score`, surest first, in pixels of the picture made
/// larger by `scale`.
pub(crate) fn sure_detections(scored: &[ScoredBox], index: usize, score: f64, scale: f32) -> Vec<Detection> {
    let sure = scored.iter().filter(|scored| scored.image == index && scored.score >= score);
    let mut detections: Vec<_> = sure
        .map(|scored| Detection {
            label: scored.class,
            score: scored.score as f32,
            bounding_box: scored.rectangle.bounding_box().scale(scale, scale),
        })
        .collect();
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
    detections
}

/// The spec with an end to the detections of a picture: as many as count if every class has its share. A network at the
/// start of its training may believe in all anchors at once, and suppressing millions of boxes would take minutes.
fn counted(spec: &ModelSpec) -> ModelSpec {
    let mut spec = spec.clone();
    let most = COUNTED * spec.class_count();
    spec.postprocessing.max_detections = Some(spec.postprocessing.max_detections.unwrap_or(most).min(most));
    spec
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
    let pictures = batch.placements.par_iter().enumerate().map(|(index, placement)| {
        let (scores, offsets) =
            (scores.index_axis(ndarray::Axis(0), index), offsets.index_axis(ndarray::Axis(0), index));
        postprocess(scores, offsets, &anchors, placement, spec)
    });
    pictures.collect()
}
