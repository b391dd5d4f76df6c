//! The detector: backbone, feature pyramid and two heads. <https://arxiv.org/abs/1708.02002>, figure 3.

use crate::heads::{Head, HeadConfig};
use crate::pyramid::Pyramid;
use crate::resnet::ResNet;
use crate::spec::ModelSpec;
use crate::tensor::{Layer, Tensor};
use crate::weights::{Scope, Weights, WeightsError};

/// Raw outputs of the network. Row i of both belongs to anchor i; anchors are ordered by level P3 to P7, y, x, and anchor
/// of a cell.
#[derive(Clone, Debug)]
pub struct Predictions<T> {
    /// `[N, anchors, classes]`, before the sigmoid.
    pub logits: T,
    /// `[N, anchors, 4]`, box deltas in the box coder's units.
    pub offsets: T,
}

impl<T: Tensor> Predictions<T> {
    /// `[N, anchors, classes]`, in (0, 1).
    pub fn scores(&self) -> T {
        self.logits.sigmoid()
    }
}

/// The detector's network.
pub struct RetinaNet<T> {
    backbone: ResNet<T>,
    fpn: Pyramid<T>,
    regression: Head<T>,
    classification: Head<T>,
}

impl<T: Tensor> RetinaNet<T> {
    /// Builds the network of `spec` with the tensors of `weights`.
    ///
    /// # Errors
    /// When a tensor is missing or has the wrong shape, or the spec is invalid or has no classes.
    pub fn new(spec: &ModelSpec, weights: &dyn Weights<T>) -> Result<Self, WeightsError> {
        spec.check()?;
        if spec.classes.is_empty() {
            return Err(WeightsError::Spec("the spec has no classes".to_owned()));
        }
        let root = Scope::root(weights);
        let [_, widths @ ..] = spec.backbone.layout()?.widths();
        let head = |name: &str, width: usize, prior: f32| {
            let config = HeadConfig { inputs: spec.pyramid.width, anchors: spec.anchors_per_cell(), width, prior };
            Head::new(&root.at(name), &spec.heads, config)
        };
        let prior = spec.heads.prior;
        Ok(Self {
            backbone: ResNet::new(&root, &spec.backbone)?,
            fpn: Pyramid::new(&root.at("fpn"), &spec.pyramid, widths)?,
            regression: head("regressionModel", 4, 0.0)?,
            // With this bias, all scores are `prior` before training.
            classification: head("classificationModel", spec.class_count(), (prior / (1.0 - prior)).ln())?,
        })
    }

    /// Runs the network on `images`, `[N, 3, H, W]` with H and W multiples of 32.
    pub fn forward(&self, images: &T) -> Predictions<T> {
        self.predict(&self.levels(images))
    }

    /// Like [`forward`](Self::forward), but also returns the inputs of the `output` convolutions of classification and
    /// regression, `[N, cells, channels]` each, with rows ordered by level P3 to P7, y and x.
    pub fn forward_with_features(&self, images: &T) -> (Predictions<T>, [T; 2]) {
        let levels = self.levels(images);
        let rows = |head: &Head<T>| T::concat(&levels.each_ref().map(|level| head.feature_rows(level)));
        (self.predict(&levels), [rows(&self.classification), rows(&self.regression)])
    }

    fn predict(&self, levels: &[T; 5]) -> Predictions<T> {
        let rows = |head: &Head<T>| T::concat(&levels.each_ref().map(|level| head.forward(level)));
        Predictions { logits: rows(&self.classification), offsets: rows(&self.regression) }
    }

    /// P3 to P7.
    fn levels(&self, images: &T) -> [T; 5] {
        self.fpn.forward(&self.backbone.forward(images))
    }
}
