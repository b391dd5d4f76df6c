//! The detections of the best checkpoint in the validation images, as COCO results in the folder of a run.

use std::path::Path;

use anyhow::Context;
use models::dataset::Dataset;
use models::evaluation::{CocoResult, LocatedResults, ResultFile, ScoredBox, write_results};

/// The file's name.
pub(super) const FILE: &str = "best.detections.json";

/// Writes the detections in the images of `truth`.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_detections(run: &Path, truth: &Dataset, detections: &[ScoredBox]) -> anyhow::Result<()> {
    let results = detections.iter().map(|found| CocoResult {
        image_id: truth.images()[found.image].id,
        category_id: truth.classes()[found.class_index].id,
        bbox: [found.rectangle.x, found.rectangle.y, found.rectangle.width, found.rectangle.height],
        score: found.score,
    });
    let path = run.join(FILE);
    write_results(&path, &results.collect::<Vec<_>>()).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Reads the detections; those in unknown images or of unknown classes are apart.
///
/// # Errors
/// When the file cannot be read or is damaged.
pub(super) fn read(run: &Path, truth: &Dataset) -> anyhow::Result<LocatedResults> {
    Ok(ResultFile::read(&run.join(FILE))?.locate(truth)?)
}
