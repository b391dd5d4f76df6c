//! Detection in the images of a data set, for evaluation.

use std::path::PathBuf;

use models::ModelSpec;
use models::dataset::Dataset;
use models::evaluation::ScoredBox;

use crate::Detector;
use crate::file_detection::detect_file;
use crate::image_file::Limits;
use crate::map_ordered::map_ordered;
use crate::output::{Failure, Found};
use crate::pixel_budget::PixelBudget;
use crate::rules::class_names;

/// The detector cannot run on a whole data set. Skipping an image would give another average precision.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetectDatasetError {
    /// The data set has none of the model's classes.
    #[error(
        "none of the model's classes ({model}) is in the data set, whose classes are {data}; set their names in a class file"
    )]
    Classes {
        /// Names of the model's classes, abridged.
        model: String,
        /// Names of the data set's classes, abridged.
        data: String,
    },
    /// An image could not be read, or the network failed on it.
    #[error("`{}`: {reason}", .path.display())]
    Image {
        /// Path of the file.
        path: PathBuf,
        /// The reason.
        reason: Failure,
    },
    /// The size of an image differs from that in the ground truth, so its boxes would not fit.
    #[error(
        "`{}` is {}x{} after EXIF rotation, but {}x{} in the ground truth",
        .path.display(), .found[0], .found[1], .expected[0], .expected[1]
    )]
    Size {
        /// Path of the file.
        path: PathBuf,
        /// Width and height of the image.
        found: [u32; 2],
        /// Width and height in the ground truth.
        expected: [u32; 2],
    },
}

/// The detections in all images of `truth`, with the class indices of the data set and boxes in pixels of the original
/// image (upright, after EXIF rotation). Processes `workers` images at a time, and calls `advance` after each.
///
/// # Errors
/// When the data set has none of the model's classes, an image cannot be read or differs in size from the ground truth, or
/// ONNX Runtime fails.
pub fn detect_dataset(
    detector: &Detector,
    truth: &Dataset,
    workers: usize,
    mut advance: impl FnMut(),
) -> Result<Vec<ScoredBox>, DetectDatasetError> {
    let class_indices = class_indices(detector.spec(), truth)?;
    let (limits, budget) = (Limits::DEFAULT, PixelBudget::new(Limits::DEFAULT.pixels));
    let detect = |image: usize| {
        let path = truth.path_of(image);
        let found = detect_file(detector, &path, &limits, &budget)
            .map_err(|reason| DetectDatasetError::Image { path, reason })?;
        scored_boxes(truth, image, &class_indices, &found)
    };
    map_ordered(0..truth.images().len(), workers, detect, |images| {
        let mut scored = Vec::new();
        for boxes in images {
            scored.extend(boxes?);
            advance();
        }
        Ok(scored)
    })
}

/// The index in the data set of each class of the model; `None` for classes that it lacks, whose detections do not count, as in
/// pycocotools. Classes match by id and name, or else by name alone, because formats of one data set differ in ids.
///
/// # Errors
/// When it has none of them.
pub fn class_indices(spec: &ModelSpec, truth: &Dataset) -> Result<Vec<Option<usize>>, DetectDatasetError> {
    let indices: Vec<_> = spec.classes.iter().map(|class| class.index_in(truth.classes())).collect();
    if indices.iter().all(Option::is_none) {
        let (model, data) = (class_names(&spec.classes), class_names(truth.classes()));
        return Err(DetectDatasetError::Classes { model, data });
    }
    Ok(indices)
}

/// Converts the detections in an image for evaluation.
fn scored_boxes(
    truth: &Dataset,
    image: usize,
    class_indices: &[Option<usize>],
    found: &Found,
) -> Result<Vec<ScoredBox>, DetectDatasetError> {
    let expected = &truth.images()[image];
    if (found.width, found.height) != (expected.width, expected.height) {
        let (found, expected) = ([found.width, found.height], [expected.width, expected.height]);
        return Err(DetectDatasetError::Size { path: truth.path_of(image), found, expected });
    }
    let scored = found.detections.iter().filter_map(|detection| {
        let class_index = class_indices[detection.class_index]?;
        Some(ScoredBox { image, class_index, score: detection.score.into(), rectangle: detection.bounding_box.into() })
    });
    Ok(scored.collect())
}

#[cfg(test)]
mod tests {
    use models::spec::Class;

    use super::*;

    fn classes(classes: &[(i64, &str)]) -> Vec<Class> {
        classes.iter().map(|(id, name)| Class { id: *id, name: (*name).to_owned() }).collect()
    }

    #[test]
    fn classes_are_matched_by_name_where_ids_differ() {
        let indices = |model: &[(i64, &str)], data: &[(i64, &str)]| {
            let spec = ModelSpec { classes: classes(model), ..ModelSpec::default() };
            class_indices(&spec, &Dataset::new("", Vec::new(), Vec::new(), classes(data)).unwrap())
        };
        assert_eq!(
            indices(&[(1, "dog"), (2, "cat")], &[(0, "cat"), (1, "cow"), (2, "dog")]).unwrap(),
            [Some(2), Some(0)]
        );
        assert_eq!(indices(&[(2, "dog")], &[(1, "dog"), (2, "dog")]).unwrap(), [Some(1)]);
        assert_eq!(indices(&[(1, "dog"), (2, "cow")], &[(1, "dog")]).unwrap(), [Some(0), None]);
        let error = indices(&[(1, "dog")], &[(1, "0"), (2, "1")]).unwrap_err().to_string();
        assert!(
            error.contains("none of the model's classes (`dog`) is in the data set, whose classes are `0`, `1`;"),
            "{error}"
        );
    }
}
