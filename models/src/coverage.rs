//! Anchor coverage: which objects of a data set an anchor is matched to, before any training. An object without one can't be
//! learned. And what anchors would match more of them.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::Serialize;

use crate::anchors::Anchors;
use crate::boxes::BoundingBox;
use crate::dataset::Dataset;
use crate::matching::{Assignment, Matcher, max_ious};
use crate::spec::{AnchorSpec, ModelSpec};

/// One object, as training meets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObjectMatch {
    /// Place in [`Dataset::annotations`].
    pub annotation: usize,
    /// Where the object is, in pixels of the network's input.
    pub bounding_box: BoundingBox,
    /// The largest IoU that an anchor has with it.
    pub max_iou: f32,
    /// Anchors matched to it.
    pub anchors: usize,
}

/// How well each object of `images`, places in the data set, is matched by the anchors of `spec` at the size of
/// training. Crowds are left out, and what is on images of unknown size, since nobody knows at which size the network
/// would see it.
pub fn match_objects(dataset: &Dataset, images: &[usize], spec: &ModelSpec, matcher: &Matcher) -> Vec<ObjectMatch> {
    let mut sizes = HashMap::new();
    let placements: Vec<_> = images
        .iter()
        .filter_map(|&index| {
            let image = &dataset.images[index];
            let known = image.width > 0 && image.height > 0;
            let placement = known.then(|| spec.preprocessing.place(image.width, image.height))?;
            let size = (placement.padded_height as usize, placement.padded_width as usize);
            sizes.entry(size).or_insert_with(|| Anchors::new(&spec.anchors, size.0, size.1));
            Some((index, placement, size))
        })
        .collect();
    let matched =
        placements.par_iter().flat_map_iter(|(index, placement, size)| {
            let anchors = sizes[size].boxes();
            let first = dataset.annotations.partition_point(|annotation| annotation.image < *index);
            let places = (first..).zip(dataset.annotations_of(*index)).filter(|(_, annotation)| !annotation.crowd);
            let objects: Vec<_> = places
                .map(|(place, annotation)| (place, placement.to_input(&annotation.rectangle.bounding_box())))
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

/// Fraction of the objects that some anchor is matched to; 1 where there are none.
pub fn matched_fraction(matched: &[ObjectMatch]) -> f64 {
    if matched.is_empty() {
        return 1.0;
    }
    matched.iter().filter(|object| object.anchors > 0).count() as f64 / matched.len() as f64
}

/// Anchors that match more objects, and how many.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suggestion {
    /// The anchors.
    pub anchors: AnchorSpec,
    /// Fraction of the objects that some anchor is matched to, with the spec's own anchors and with these.
    pub share: [f64; 2],
}

/// Looks for sizes and ratios with which more objects of `images` are matched, by this rule: sizes are the spec's times
/// one factor, of the powers of 2^(1/3) from 1/8 to 8; ratios are the spec's, or as many centers of the objects' height
/// over width, between which their logarithms are divided evenly. Scales stay. Of the pairs that match nearly as much as
/// the best, the one nearest to the spec is taken: with its own ratios if possible, then with the factor nearest to 1.
/// None when that is the spec itself.
pub fn suggest(dataset: &Dataset, images: &[usize], spec: &ModelSpec, matcher: &Matcher) -> Option<Suggestion> {
    const STEPS: i32 = 9;
    /// Shares that differ by less are as good as equal: anchors of odd shapes for a few odd boxes cost all others.
    const NEARLY: f64 = 0.005;
    // With low-quality matches every object is matched, well or not.
    let matcher = Matcher { allow_low_quality_matches: false, ..matcher.clone() };
    let own = match_objects(dataset, images, spec, &matcher);
    let found = quantile_ratios(&own, spec.anchors.ratios.len());
    let mut steps: Vec<_> = (-STEPS..=STEPS).collect();
    steps.sort_by_key(|step| step.abs());
    let mut tried = Vec::new();
    for ratios in [Some(spec.anchors.ratios.clone()), found].into_iter().flatten() {
        for step in &steps {
            let factor = 2f64.powf(f64::from(*step) / 3.0);
            let sizes = match *step {
                // The spec itself is no suggestion, so it has to stay what it is.
                0 => spec.anchors.sizes,
                // A tenth of a pixel is more than anchors need.
                _ => spec.anchors.sizes.map(|size| (10.0 * size * factor).round() / 10.0),
            };
            let anchors = AnchorSpec { sizes, ratios: ratios.clone(), ..spec.anchors.clone() };
            let spec = ModelSpec { anchors, ..spec.clone() };
            tried.push((matched_fraction(&match_objects(dataset, images, &spec, &matcher)), spec.anchors));
        }
    }
    let best = tried.iter().map(|(share, _)| *share).fold(0.0, f64::max);
    let (share, anchors) = tried.into_iter().find(|(share, _)| *share >= best - NEARLY)?;
    (anchors != spec.anchors).then(|| Suggestion { anchors, share: [matched_fraction(&own), share] })
}

/// `count` heights over widths that are matched by equal numbers of objects each; none without objects.
fn quantile_ratios(objects: &[ObjectMatch], count: usize) -> Option<Vec<f64>> {
    let mut logarithms: Vec<_> = objects
        .iter()
        .map(|object| f64::from((object.bounding_box.height() / object.bounding_box.width()).ln()))
        .filter(|logarithm| logarithm.is_finite())
        .collect();
    logarithms.sort_by(f64::total_cmp);
    let groups = (0..count).map(|group| {
        let bound = |group: usize| group * logarithms.len() / count;
        let part = logarithms.get(bound(group)..bound(group + 1)).filter(|part| !part.is_empty())?;
        let mean = part.iter().sum::<f64>() / part.len() as f64;
        Some((100.0 * mean.exp()).round() / 100.0)
    });
    groups.collect::<Option<Vec<_>>>().filter(|ratios| ratios.iter().all(|ratio| *ratio > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Annotation, Image, Rectangle};
    use crate::spec::{Class, PreprocessingSpec};

    /// One image of 256x256 pixels that the network sees as it is, with objects of these sides, each in the middle of a
    /// cell of the finest level.
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
            }
        };
        let annotations = sides.iter().enumerate().map(|(index, sides)| annotation(index, sides)).collect();
        let images = vec![Image { id: 1, file_name: "a.png".to_owned(), width: 256, height: 256 }];
        let classes = vec![Class { id: 1, name: "cell".to_owned() }];
        let preprocessing = PreprocessingSpec { shorter_side: 256, longer_side: 256, ..PreprocessingSpec::default() };
        (
            Dataset { images, annotations, classes, ..Dataset::default() },
            ModelSpec { preprocessing, ..ModelSpec::default() },
        )
    }

    #[test]
    fn an_object_like_an_anchor_is_reached_and_a_tiny_one_is_not() {
        let (mut dataset, spec) = dataset(&[(32.0, 32.0), (5.0, 5.0), (60.0, 30.0), (40.0, 40.0)]);
        dataset.annotations[3].crowd = true;
        let matched = match_objects(&dataset, &[0], &spec, &Matcher::default());
        assert_eq!(matched.iter().map(|object| object.annotation).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(matched[0].anchors > 0 && matched[0].max_iou > 0.7 && matched[2].anchors > 0);
        assert!(matched[1].anchors == 0 && matched[1].max_iou < 0.1);
        assert!((matched_fraction(&matched) - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn objects_are_measured_as_the_network_sees_them() {
        let (dataset, mut spec) = dataset(&[(16.0, 16.0)]);
        assert_eq!(matched_fraction(&match_objects(&dataset, &[0], &spec, &Matcher::default())), 0.0);
        (spec.preprocessing.shorter_side, spec.preprocessing.longer_side) = (512, 512);
        let matched = match_objects(&dataset, &[0], &spec, &Matcher::default());
        assert!(matched[0].anchors > 0 && matched[0].bounding_box.width() == 32.0);
    }

    #[test]
    fn objects_on_images_of_unknown_size_are_left_out() {
        let (mut dataset, spec) = dataset(&[(32.0, 32.0)]);
        let image = Image { id: 2, ..dataset.images[0].clone() };
        dataset.images.push(image);
        let annotation = Annotation { id: 2, image: 1, ..dataset.annotations[0].clone() };
        dataset.annotations.push(annotation);
        for (width, height, expected) in [(256, 256, 2), (0, 256, 1), (256, 0, 1), (0, 0, 1)] {
            (dataset.images[1].width, dataset.images[1].height) = (width, height);
            let matched = match_objects(&dataset, &[0, 1], &spec, &Matcher::default());
            assert_eq!((matched.len(), matched[0].annotation), (expected, 0), "{width} x {height}");
        }
    }

    #[test]
    fn small_objects_ask_for_small_anchors() {
        let (dataset, spec) = dataset(&[(9.0, 9.0), (10.0, 10.0), (12.0, 11.0)]);
        let Suggestion { anchors, share } = suggest(&dataset, &[0], &spec, &Matcher::default()).unwrap();
        assert!(share[0] == 0.0 && share[1] == 1.0, "{share:?}");
        assert!(anchors.sizes[0] < 16.0 && anchors.ratios == spec.anchors.ratios, "{anchors:?}");
    }

    #[test]
    fn long_objects_ask_for_long_anchors() {
        let (dataset, spec) = dataset(&[(8.0, 80.0), (10.0, 90.0), (9.0, 70.0)]);
        let Suggestion { anchors, share } = suggest(&dataset, &[0], &spec, &Matcher::default()).unwrap();
        assert!(share[1] > share[0] && anchors.ratios.iter().all(|ratio| *ratio > 5.0), "{share:?} {anchors:?}");
    }

    #[test]
    fn anchors_that_reach_everything_are_left_alone() {
        let (dataset, mut spec) = dataset(&[(32.0, 32.0), (64.0, 64.0)]);
        assert_eq!(suggest(&dataset, &[0], &spec, &Matcher::default()), None);
        // Whatever digits they have.
        spec.anchors.sizes = spec.anchors.sizes.map(|size| size + 0.04);
        assert_eq!(suggest(&dataset, &[0], &spec, &Matcher::default()), None);
        let nothing = Dataset { annotations: Vec::new(), ..dataset };
        assert_eq!(suggest(&nothing, &[0], &spec, &Matcher::default()), None);
        assert_eq!(matched_fraction(&[]), 1.0);
    }
}
