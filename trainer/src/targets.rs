//! What the network should have said: the truth of a batch, anchor by anchor.

use models::spec::BoxCoderSpec;
use models::{Anchors, Assignment, BoundingBox, Matcher};
use serde::{Deserialize, Serialize};

/// An object in an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Index of its class.
    pub class_index: usize,
    /// Where it is, in pixels of the network's input.
    pub bounding_box: BoundingBox,
}

/// What the losses of an image's anchors are divided by. It counts as one at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalizer {
    /// The number of its own foreground anchors, so that every image counts alike.
    #[default]
    Image,
    /// The mean of that number over the images of the batch, so that every object counts alike.
    Batch,
}

/// The truth of a batch of images. `rows`, `classes`, `anchors`, `offsets` and `object_weights` belong together, one for
/// each foreground anchor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Row of a foreground anchor in the batch: image * anchors + anchor.
    pub rows: Vec<i64>,
    /// Its class.
    pub classes: Vec<i64>,
    /// Its corners.
    pub anchors: Vec<[f32; 4]>,
    /// The offsets that decode to its object.
    pub offsets: Vec<[f32; 4]>,
    /// 1 / (foreground anchors of the image, or their mean over images, times images).
    pub object_weights: Vec<f32>,
    /// The same for every anchor of the batch, and zero for anchors that are ignored.
    pub anchor_weights: Vec<f32>,
}

impl Targets {
    /// Assigns the objects of every image of a batch to anchors.
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
