//! What the network should have said: the truth of a batch, anchor by anchor.

use models::spec::BoxCoderSpec;
use models::{Anchors, Assignment, BoundingBox, Matcher};

/// An object in a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Index of its class.
    pub class: usize,
    /// Where it is, in pixels of the network's input.
    pub bounding_box: BoundingBox,
}

/// The truth of a batch of pictures. `rows`, `classes`, `offsets` and `object_weights` belong together, one for each
/// foreground anchor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Row of a foreground anchor in the batch: picture * anchors + anchor.
    pub rows: Vec<i64>,
    /// Its class.
    pub classes: Vec<i64>,
    /// The offsets that decode to its object.
    pub offsets: Vec<[f32; 4]>,
    /// 1 / (foreground anchors of the picture * pictures).
    pub object_weights: Vec<f32>,
    /// The same for every anchor of the batch, and zero for anchors that are ignored.
    pub anchor_weights: Vec<f32>,
}

impl Targets {
    /// Assigns the objects of every picture of a batch to anchors.
    pub fn new(pictures: &[Vec<Object>], anchors: &Anchors, matcher: &Matcher, coder: &BoxCoderSpec) -> Self {
        let mut targets = Self::default();
        for (picture, objects) in pictures.iter().enumerate() {
            let boxes: Vec<_> = objects.iter().map(|object| object.bounding_box).collect();
            let assignments = matcher.assign(anchors.boxes(), &boxes);
            let first = targets.rows.len();
            for (index, assignment) in assignments.iter().enumerate() {
                if let Assignment::Object(object) = assignment {
                    targets.rows.push((picture * assignments.len() + index) as i64);
                    targets.classes.push(objects[*object].class as i64);
                    targets.offsets.push(coder.encode(&anchors.boxes()[index], &boxes[*object]));
                }
            }
            let foreground = targets.rows.len() - first;
            let weight = 1.0 / (foreground.max(1) * pictures.len()) as f32;
            targets.object_weights.resize(targets.rows.len(), weight);
            let weigh = |assignment| if assignment == &Assignment::Ignored { 0.0 } else { weight };
            targets.anchor_weights.extend(assignments.iter().map(weigh));
        }
        targets
    }
}
