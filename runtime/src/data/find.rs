//! What a detector finds in the images of a data set, as evaluation takes it.

use std::path::PathBuf;

use models::ModelSpec;
use models::dataset::{Dataset, named};
use models::evaluation::ScoredBox;
use models::spec::Class;

use crate::Detector;
use crate::output::{Failure, Found};
use crate::pipeline::{Content, Finished, Item, PipelineOptions, pipeline};

/// Why a data set can't be evaluated on. An average precision without some image would not be that of the data set.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// A class of the model is none of the data set's.
    #[error(
        "the model's class `{}`, id {}, is none of the data set's, {known}; give its own data, or name its classes with \
         --classes",
        .class.name, .class.id
    )]
    Class {
        /// The model's.
        class: Class,
        /// The data set's, in part.
        known: String,
    },
    /// An image could not be read, or the network failed on it.
    #[error("{}: {reason}", .path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: Failure,
    },
    /// An image has another size than the ground truth says, so that boxes would not fit it.
    #[error(
        "{} is {}x{} upright, but the ground truth says {}x{}",
        .path.display(), .found[0], .found[1], .expected[0], .expected[1]
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its width and height.
        found: [u32; 2],
        /// Those that the ground truth says.
        expected: [u32; 2],
    },
}

/// What `detector` finds in every image of `truth`. `advance` is called after each.
///
/// # Errors
/// When a class is unknown, an image can't be read or is not of the size that the ground truth says, or ONNX Runtime
/// fails.
pub fn find(detector: &Detector, truth: &Dataset, mut advance: impl FnMut()) -> Result<Vec<ScoredBox>, FindError> {
    let places = class_places(detector.spec(), truth)?;
    let images = 0..truth.images.len();
    let items =
        images.map(|image| Item { file: truth.path_of(image), frame: None, content: Content::File, tag: image });
    let (_, scored) = pipeline(
        detector,
        &PipelineOptions::of(detector),
        items,
        |Finished { report, tag: image, .. }| {
            let reason = |reason| FindError::Image { path: truth.path_of(image), reason };
            boxes(truth, image, &places, &report.outcome.map_err(reason)?)
        },
        |finished| {
            let mut scored = Vec::new();
            for found in finished {
                scored.extend(found?);
                advance();
            }
            Ok(scored)
        },
    );
    scored
}

/// The place in the data set of each of the model's classes. Where ids differ, as between formats of one data set, the name
/// decides.
///
/// # Errors
/// When the data set lacks one of them.
pub fn class_places(spec: &ModelSpec, truth: &Dataset) -> Result<Vec<usize>, FindError> {
    let places = spec.classes.iter().map(|class| {
        let same = truth.classes.iter().position(|known| known == class);
        let place = same.or_else(|| truth.classes.iter().position(|known| known.name == class.name));
        place.ok_or_else(|| {
            let names: Vec<_> = truth.classes.iter().map(|known| format!("`{}`", known.name)).collect();
            FindError::Class { class: class.clone(), known: named(&names) }
        })
    });
    places.collect()
}

/// What was found in an image, as evaluation takes it.
fn boxes(truth: &Dataset, image: usize, places: &[usize], found: &Found) -> Result<Vec<ScoredBox>, FindError> {
    let expected = &truth.images[image];
    if (found.width, found.height) != (expected.width, expected.height) {
        let (found, expected) = ([found.width, found.height], [expected.width, expected.height]);
        return Err(FindError::Size { path: truth.path_of(image), found, expected });
    }
    let scored = found.detections.iter().map(|detection| ScoredBox {
        image,
        class_index: places[detection.class_index],
        score: detection.score.into(),
        rectangle: detection.bounding_box.into(),
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
        let places = |model: &[(i64, &str)], data: &[(i64, &str)]| {
            let spec = ModelSpec { classes: classes(model), ..ModelSpec::default() };
            class_places(&spec, &Dataset { classes: classes(data), ..Dataset::default() })
        };
        assert_eq!(places(&[(1, "dog"), (2, "cat")], &[(0, "cat"), (1, "cow"), (2, "dog")]).unwrap(), [2, 0]);
        assert_eq!(places(&[(2, "dog")], &[(1, "dog"), (2, "dog")]).unwrap(), [1]);
        let error = places(&[(1, "dog")], &[(1, "0"), (2, "1")]).unwrap_err().to_string();
        assert!(error.contains("class `dog`, id 1, is none of the data set's, `0`, `1`;"), "{error}");
    }
}
