//! Images with their detections drawn.

use image::RgbImage;
use models::evaluation::ScoredBox;
use runtime::Detection;

use crate::loader::Recipe;

/// Minimum score of the drawn detections.
const MIN_SCORE: f64 = 0.3;

/// Larger images are scaled down to this longer side, in pixels.
const MAX_SIDE: u32 = 1024;

/// The image at index `index` of the data set with its detections drawn. `scored` may contain other images' detections.
pub(crate) fn annotated(recipe: &Recipe, index: usize, scored: &[ScoredBox]) -> anyhow::Result<RgbImage> {
    let mut image = runtime::image_file::read(recipe.dataset.path_of(index))?;
    let factor = f64::from(MAX_SIDE) / f64::from(image.width().max(image.height()));
    let mut scale = 1.0;
    if factor < 1.0 {
        let side = |side: u32| (f64::from(side) * factor).round().max(1.0) as u32;
        image = image::imageops::thumbnail(&image, side(image.width()), side(image.height()));
        scale = factor as f32;
    }
    let confident = scored.iter().filter(|scored| scored.image == index && scored.score >= MIN_SCORE);
    let mut detections: Vec<_> = confident
        .map(|scored| Detection {
            class_index: scored.class_index,
            score: scored.score as f32,
            bounding_box: scored.rectangle.bounding_box().scale(scale, scale),
        })
        .collect();
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
    runtime::draw::draw(&mut image, &detections, &recipe.spec.classes);
    Ok(image)
}
