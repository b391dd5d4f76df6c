//! Training targets of a batch, per anchor.

use models::spec::BoxCoderSpec;
use models::{Anchors, Assignment, BoundingBox, Matcher};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

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

    /// All values in one tensor of bytes, so that they reach a device in one copy. [`TargetTensors::unpack`] is the inverse.
    pub(crate) fn packed(&self) -> Tensor {
        let Self { rows, classes, anchors, offsets, object_weights, anchor_weights } = self;
        let integers = [rows, classes].map(|values| bytemuck::cast_slice::<_, u8>(values));
        let floats = [anchors.as_flattened(), offsets.as_flattened(), object_weights, anchor_weights];
        let floats = floats.map(bytemuck::cast_slice::<_, u8>);
        Tensor::from_slice(&[integers.as_slice(), floats.as_slice()].concat().concat())
    }

    /// The targets in the CPU's memory as tensors.
    pub fn tensors(&self) -> TargetTensors {
        TargetTensors::unpack(&self.packed(), self.rows.len())
    }
}

/// The [`Targets`] of a batch as tensors on a device, which share one block of memory.
#[derive(Debug)]
pub struct TargetTensors {
    /// `[foreground]`, int64.
    pub rows: Tensor,
    /// `[foreground]`, int64.
    pub classes: Tensor,
    /// `[foreground, 4]`, float32.
    pub anchors: Tensor,
    /// `[foreground, 4]`, float32.
    pub offsets: Tensor,
    /// `[foreground]`, float32.
    pub object_weights: Tensor,
    /// `[images * anchors]`, float32.
    pub anchor_weights: Tensor,
}

impl TargetTensors {
    /// The tensors in those bytes; `foreground` is the number of foreground anchors.
    pub(crate) fn unpack(packed: &Tensor, foreground: usize) -> Self {
        let count = foreground as i64;
        let mut start = 0;
        let mut take = |kind: Kind, count: i64| {
            let length = count * kind.elt_size_in_bytes() as i64;
            let part = packed.narrow(0, start, length).view_dtype(kind);
            start += length;
            part
        };
        let [rows, classes] = [(); 2].map(|()| take(Kind::Int64, count));
        let [anchors, offsets] = [(); 2].map(|()| take(Kind::Float, 4 * count).view([-1, 4]));
        let object_weights = take(Kind::Float, count);
        let rest = (packed.size()[0] - (2 * 8 + 9 * 4) * count) / 4;
        Self { rows, classes, anchors, offsets, object_weights, anchor_weights: take(Kind::Float, rest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_targets_have_the_same_values() {
        let floats = |first: u8| std::array::from_fn(|index| f32::from(first) + index as f32 / 3.0);
        let targets = Targets {
            rows: vec![1 << 40, 7],
            classes: vec![3, 0],
            anchors: vec![floats(1), floats(2)],
            offsets: vec![floats(3), floats(4)],
            object_weights: vec![0.25, 0.5],
            anchor_weights: vec![0.125, 0.0, 0.75],
        };
        let nothing = Targets { anchor_weights: vec![1.0], ..Targets::default() };
        for targets in [targets, nothing] {
            let tensors = targets.tensors();
            let integers = |tensor: Tensor| Vec::<i64>::try_from(tensor).unwrap();
            let floats = |tensor: Tensor| Vec::<f32>::try_from(tensor.view(-1)).unwrap();
            assert_eq!((integers(tensors.rows), integers(tensors.classes)), (targets.rows.clone(), targets.classes));
            assert_eq!(tensors.anchors.size(), [targets.rows.len() as i64, 4]);
            assert_eq!(floats(tensors.anchors), targets.anchors.as_flattened());
            assert_eq!(floats(tensors.offsets), targets.offsets.as_flattened());
            assert_eq!(floats(tensors.object_weights), targets.object_weights);
            assert_eq!(floats(tensors.anchor_weights), targets.anchor_weights);
        }
    }
}
