//! Anchor coverage: which objects of a data set have a matched anchor, without which they cannot be learned; and
//! anchors that match more objects.

use std::collections::HashMap;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use crate::anchors::Anchors;
use crate::boxes::BoundingBox;
use crate::dataset::Dataset;
use crate::matching::{Assignment, Matcher, max_ious};
use crate::spec::{AnchorSpec, ModelSpec};

/// An object and the anchors that training matches to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObjectMatch {
    /// Index in [`Dataset::annotations`].
    pub annotation: usize,
    /// The object's box, in pixels of the padded input.
    pub bounding_box: BoundingBox,
    /// Maximum IoU with any anchor.
    pub max_iou: f32,
    /// Number of anchors matched to it.
    pub anchors: usize,
}

/// Matches the objects on `images` (indices in the data set) to the anchors of `spec`, at the input size of training.
/// Crowd regions are skipped, and so are images of unknown size, since their input size is unknown.
pub fn match_objects(dataset: &Dataset, images: &[usize], spec: &ModelSpec, matcher: &Matcher) -> Vec<ObjectMatch> {
    let mut anchors_by_size = HashMap::new();
    let placements: Vec<_> = images
        .iter()
        .filter_map(|&index| {
            let image = &dataset.images()[index];
            let known = image.width > 0 && image.height > 0;
            let placement = known.then(|| spec.preprocessing.place(image.width, image.height))?;
            let size = (placement.padded_height as usize, placement.padded_width as usize);
            anchors_by_size.entry(size).or_insert_with(|| Anchors::new(&spec.anchors, size.0, size.1));
            Some((index, placement, size))
        })
        .collect();
    let matched =
        placements.par_iter().flat_map_iter(|(index, placement, size)| {
            let anchors = anchors_by_size[size].boxes();
            let first = dataset.annotations().partition_point(|annotation| annotation.image < *index);
            let annotations = (first..).zip(dataset.annotations_of(*index)).filter(|(_, annotation)| !annotation.crowd);
            let objects: Vec<_> = annotations
                .map(|(index, annotation)| (index, placement.to_input(&annotation.rectangle.bounding_box())))
                .collect();
            let boxes: Vec<_> = objects.iter().map(|(_, bounding_box)| *bounding_box).collect();
            let mut counts = vec![0; boxes.len()];
            for assignment in matcher.assign(anchors, &boxes) {
                if let Assignment::Object(object) = assignment {
                    counts[object] += 1;
                }
            }
            let ious = max_ious(anchors, &boxes);
            objects.into_iter().zip(ious).zip(counts).map(|(((annotation, bounding_box), max_iou), anchors)| {
                ObjectMatch { annotation, bounding_box, max_iou, anchors }
            })
        });
    matched.collect()
}

/// Fraction of the objects with a matched anchor; 1 without objects.
pub fn matched_fraction(matched: &[ObjectMatch]) -> f64 {
    if matched.is_empty() {
        return 1.0;
    }
    matched.iter().filter(|object| object.anchors > 0).count() as f64 / matched.len() as f64
}

/// Anchors that match more objects.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Suggestion {
    /// The anchors.
    pub anchors: AnchorSpec,
    /// Fraction of the objects with a matched anchor: with the anchors of the spec, and with these.
    pub matched_fraction: [f64; 2],
}

/// Searches anchor sizes and ratios that match more objects on `images` than those of `spec`. Candidate sizes are the
/// spec's times a power of 2^(1/3) from 1/8 to 8. Candidate ratios are the spec's, and as many geometric means of
/// height over width, each of an equally large group of objects. Scales stay. Of the candidates with almost the highest
/// matched fraction, the closest to the spec wins: with its ratios if possible, then with the factor closest to 1. None
/// if that is the spec itself.
pub fn suggest(dataset: &Dataset, images: &[usize], spec: &ModelSpec, matcher: &Matcher) -> Option<Suggestion> {
    const STEPS: i32 = 9;
    /// Smaller differences of the fraction are ignored: a few odd boxes are not worth anchors of odd shapes.
    const TOLERANCE: f64 = 0.005;
    // Low-quality matches would match every object.
    let matcher = Matcher { allow_low_quality_matches: false, ..matcher.clone() };
    let own = match_objects(dataset, images, spec, &matcher);
    let data_ratios = quantile_ratios(&own, spec.anchors.ratios.len());
    let mut steps: Vec<_> = (-STEPS..=STEPS).collect();
    steps.sort_by_key(|step| step.abs());
    let mut candidates = Vec::new();
    for ratios in [Some(spec.anchors.ratios.clone()), data_ratios].into_iter().flatten() {
        for step in &steps {
            let factor = 2f64.powf(f64::from(*step) / 3.0);
            let sizes = match *step {
                // Without rounding, so that the spec itself is recognized below.
                0 => spec.anchors.sizes,
                // A tenth of a pixel is precise enough for anchors.
                _ => spec.anchors.sizes.map(|size| (10.0 * size * factor).round() / 10.0),
            };
            let anchors = AnchorSpec { sizes, ratios: ratios.clone(), ..spec.anchors.clone() };
            let spec = ModelSpec { anchors, ..spec.clone() };
            candidates.push((matched_fraction(&match_objects(dataset, images, &spec, &matcher)), spec.anchors));
        }
    }
    let max = candidates.iter().map(|(fraction, _)| *fraction).fold(0.0, f64::max);
    let (fraction, anchors) = candidates.into_iter().find(|(fraction, _)| *fraction >= max - TOLERANCE)?;
    (anchors != spec.anchors).then(|| Suggestion { anchors, matched_fraction: [matched_fraction(&own), fraction] })
}

/// `count` ratios of height over width: geometric means of equally large groups of objects. None if a group is empty.
fn quantile_ratios(objects: &[ObjectMatch], count: usize) -> Option<Vec<f64>> {
    let mut logarithms: Vec<_> = objects
        .iter()
        .map(|object| f64::from((object.bounding_box.height() / object.bounding_box.width()).ln()))
        .filter(|logarithm| logarithm.is_finite())
        .collect();
    logarithms.sort_by(f64::total_cmp);
    let groups = (0..count).map(|group| {
        let bound = |group: usize| group * logarithms.len() / count;
        let members = logarithms.get(bound(group)..bound(group + 1)).filter(|members| !members.is_empty())?;
        let mean = members.iter().sum::<f64>() / members.len() as f64;
        Some((100.0 * mean.exp()).round() / 100.0)
    });
    groups.collect::<Option<Vec<_>>>().filter(|ratios| ratios.iter().all(|ratio| *ratio > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Annotation, Image, Rectangle};
    use crate::spec::{Class, PreprocessingSpec};

    /// One image of 256x256 pixels, which preprocessing does not resize, with objects of these widths and heights, each
    /// centered in a cell of the finest feature level.
    fn dataset(sides: &[(f64, f64)]) -> (Dataset, ModelSpec) {
        let annotation = |index: usize, &(width, height): &(f64, f64)| {
            let (x, y) = (44.0 + 64.0 * index as f64 - width / 2.0, 124.0 - height / 2.0);
            let rectangle = Rectangle { x, y, width, height };
            Annotation {
                id: 1 + index as i64,
                image: 0,
                class_index: 0,
                rectangle,
                area: rectangle.area(),
                crowd: false,
                difficult: false,
            }
        };
        let annotations = sides.iter().enumerate().map(|(index, sides)| annotation(index, sides)).collect();
        let images = vec![Image { id: 1, file_name: "a.png".to_owned(), width: 256, height: 256 }];
        let classes = vec![Class { id: 1, name: "cell".to_owned() }];
        let preprocessing = PreprocessingSpec { shorter_side: 256, longer_side: 256, ..PreprocessingSpec::default() };
        let dataset = Dataset::new("", images, annotations, classes).unwrap();
        (dataset, ModelSpec { preprocessing, ..ModelSpec::default() })
    }

    #[test]
    fn object_like_an_anchor_is_matched_and_a_tiny_one_is_not() {
        let (dataset, spec) = dataset(&[(32.0, 32.0), (5.0, 5.0), (60.0, 30.0), (40.0, 40.0)]);
        let mut annotations = dataset.annotations().to_vec();
        annotations[3].crowd = true;
        let dataset = Dataset::new("", dataset.images().to_vec(), annotations, dataset.classes().to_vec()).unwrap();
        let matched = match_objects(&dataset, &[0], &spec, &Matcher::default());
        assert_eq!(matched.iter().map(|object| object.annotation).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(matched[0].anchors > 0 && matched[0].max_iou > 0.7 && matched[2].anchors > 0);
        assert!(matched[1].anchors == 0 && matched[1].max_iou < 0.1);
        assert!((matched_fraction(&matched) - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn objects_are_matched_at_the_input_size() {
        let (dataset, mut spec) = dataset(&[(16.0, 16.0)]);
        assert_eq!(matched_fraction(&match_objects(&dataset, &[0], &spec, &Matcher::default())), 0.0);
        (spec.preprocessing.shorter_side, spec.preprocessing.longer_side) = (512, 512);
        let matched = match_objects(&dataset, &[0], &spec, &Matcher::default());
        assert!(matched[0].anchors > 0 && matched[0].bounding_box.width() == 32.0);
    }

    #[test]
    fn objects_on_images_of_unknown_size_are_skipped() {
        let (dataset, spec) = dataset(&[(32.0, 32.0)]);
        let (image, annotation) = (&dataset.images()[0], &dataset.annotations()[0]);
        for (width, height, expected) in [(256, 256, 2), (0, 256, 1), (256, 0, 1), (0, 0, 1)] {
            let images = vec![image.clone(), Image { id: 2, width, height, ..image.clone() }];
            let annotations = vec![annotation.clone(), Annotation { id: 2, image: 1, ..annotation.clone() }];
            let dataset = Dataset::new("", images, annotations, dataset.classes().to_vec()).unwrap();
            let matched = match_objects(&dataset, &[0, 1], &spec, &Matcher::default());
            assert_eq!((matched.len(), matched[0].annotation), (expected, 0), "{width} x {height}");
        }
    }

    #[test]
    fn small_objects_suggest_small_anchors() {
        let (dataset, spec) = dataset(&[(9.0, 9.0), (10.0, 10.0), (12.0, 11.0)]);
        let Suggestion { anchors, matched_fraction } = suggest(&dataset, &[0], &spec, &Matcher::default()).unwrap();
        assert_eq!(matched_fraction, [0.0, 1.0]);
        assert!(anchors.sizes[0] < 16.0 && anchors.ratios == spec.anchors.ratios, "{anchors:?}");
    }

    #[test]
    fn elongated_objects_suggest_elongated_anchors() {
        let (dataset, spec) = dataset(&[(8.0, 80.0), (10.0, 90.0), (9.0, 70.0)]);
        let Suggestion { anchors, matched_fraction } = suggest(&dataset, &[0], &spec, &Matcher::default()).unwrap();
        assert!(matched_fraction[1] > matched_fraction[0], "{matched_fraction:?}");
        assert!(anchors.ratios.iter().all(|ratio| *ratio > 5.0), "{anchors:?}");
    }

    #[test]
    fn anchors_that_match_all_objects_give_no_suggestion() {
        let (dataset, mut spec) = dataset(&[(32.0, 32.0), (64.0, 64.0)]);
        assert_eq!(suggest(&dataset, &[0], &spec, &Matcher::default()), None);
        // Also for sizes that rounding to a tenth would change.
        spec.anchors.sizes = spec.anchors.sizes.map(|size| size + 0.04);
        assert_eq!(suggest(&dataset, &[0], &spec, &Matcher::default()), None);
        assert_eq!(suggest(&Dataset::default(), &[], &spec, &Matcher::default()), None);
        assert_eq!(matched_fraction(&[]), 1.0);
    }
}
