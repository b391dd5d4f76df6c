//! Training targets of a batch, per anchor.

use models::spec::BoxCoderSpec;
use models::{Anchors, Assignment, BoundingBox, Matcher};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An object in an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Class index.
    pub class_index: usize,
    /// Box in pixels of the padded input.
    pub bounding_box: BoundingBox,
}

/// Divisor of the losses of an image's anchors, at least 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalizer {
    /// The number of foreground anchors of the image: all images have the same weight.
    #[default]
    Image,
    /// The mean number of foreground anchors per image of the batch: all foreground anchors have the same weight.
    Batch,
}

/// Training targets of a batch. `rows`, `classes`, `anchors`, `offsets` and `object_weights` have one entry per
/// foreground anchor, in the same order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Index of the anchor in the batch: image * anchors + anchor.
    pub rows: Vec<i64>,
    /// Class index of its object.
    pub classes: Vec<i64>,
    /// Box of the anchor, in pixels of the padded input.
    pub anchors: Vec<[f32; 4]>,
    /// Target offsets: those that decode to the box of its object.
    pub offsets: Vec<[f32; 4]>,
    /// Weight: 1 / ([`Normalizer`] * images).
    pub object_weights: Vec<f32>,
    /// The same weight for every anchor of the batch, `[images * anchors]`; zero for ignored anchors.
    pub anchor_weights: Vec<f32>,
}

impl Targets {
    /// Matches the anchors of each image to its objects. `images` contains the objects per image.
    pub fn new(
        images: &[Vec<Object>],
        anchors: &Anchors,
        matcher: &Matcher,
        coder: &BoxCoderSpec,
        normalizer: Normalizer,
    ) -> Self {
        let mut targets = Self::default();
        for (image, objects) in images.iter().enumerate() {
            let boxes: Vec<_> = objects.iter().map(|object| object.bounding_box).collect();
            let assignments = matcher.assign(anchors.boxes(), &boxes);
            let first = targets.rows.len();
            for (index, assignment) in assignments.iter().enumerate() {
                if let Assignment::Object(object) = assignment {
                    let anchor = anchors.boxes()[index];
                    targets.rows.push((image * assignments.len() + index) as i64);
                    targets.classes.push(objects[*object].class_index as i64);
                    targets.anchors.push(anchor.into());
                    targets.offsets.push(coder.encode(&anchor, &boxes[*object]));
                }
            }
            let foreground = targets.rows.len() - first;
            let weight = 1.0 / (foreground.max(1) * images.len()) as f32;
            targets.object_weights.resize(targets.rows.len(), weight);
            let weigh = |assignment| if assignment == &Assignment::Ignored { 0.0 } else { weight };
            targets.anchor_weights.extend(assignments.iter().map(weigh));
        }
        if normalizer == Normalizer::Batch {
            let weight = 1.0 / targets.rows.len().max(1) as f32;
            targets.object_weights.fill(weight);
            for anchor_weight in targets.anchor_weights.iter_mut().filter(|weight| **weight > 0.0) {
                *anchor_weight = weight;
            }
        }
        targets
    }
}
