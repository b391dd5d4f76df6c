//! Images of the validation data with what was found in them.

use image::RgbImage;
use models::evaluation::ScoredBox;
use runtime::Detection;

use crate::loader::Recipe;

/// Detections that are surer than this are drawn.
const DRAWN_FROM: f64 = 0.3;

/// Longest side of a drawn image, in pixels.
const DRAWN_SIDE: u32 = 1024;

/// The image at place `index` of the data set with what was found in it, no larger than a screen shows.
pub(crate) fn annotated(recipe: &Recipe, index: usize, scored: &[ScoredBox]) -> anyhow::Result<RgbImage> {
    let mut image = runtime::image_file::read(recipe.dataset.path_of(index))?;
    let factor = f64::from(DRAWN_SIDE) / f64::from(image.width().max(image.height()));
    let mut scale = 1.0;
    if factor < 1.0 {
        let side = |side: u32| (f64::from(side) * factor).round().max(1.0) as u32;
        image = image::imageops::thumbnail(&image, side(image.width()), side(image.height()));
        scale = factor as f32;
    }
    let detections = sure_detections(scored, index, DRAWN_FROM, scale);
    runtime::draw::draw(&mut image, &detections, &recipe.spec.classes);
    Ok(image)
}

/// What was found in the image at place `index` with at least this `score`, surest first, in pixels of the image made
/// larger by `scale`.
pub(crate) fn sure_detections(scored: &[ScoredBox], index: usize, score: f64, scale: f32) -> Vec<Detection> {
    let sure = scored.iter().filter(|scored| scored.image == index && scored.score >= score);
    let mut detections: Vec<_> = sure
        .map(|scored| Detection {
            class_index: scored.class_index,
            score: scored.score as f32,
            bounding_box: scored.rectangle.bounding_box().scale(scale, scale),
        })
        .collect();
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
    detections
}
