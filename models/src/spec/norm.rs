//! Norm layers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::section::{Section, SpecError, checked, ensure, within};

/// A norm layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote)]
pub struct NormSpec {
    /// Kind of norm layer.
    pub kind: NormKind,
    /// Training of scale and shift (γ and β) of frozen batch normalization; frozen if absent. Other kinds always train
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affine: Option<Affine>,
    /// Added to the variance.
    pub epsilon: f32,
    /// Number of groups; group normalization only.
    pub groups: usize,
}

/// Kinds of norm layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Batch normalization with fixed statistics. For pretrained backbones.
    FrozenBatch,
    /// Batch normalization with the statistics of the batch. For training without a pretrained backbone.
    Batch,
    /// Group normalization, for any batch size. For training without a pretrained backbone.
    Group,
}

/// Training of scale and shift of frozen batch normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Affine {
    /// They keep their values, as in `FrozenBatchNorm2d` of Detectron2 and torchvision.
    Frozen,
    /// They are trained, as in yhenon/pytorch-retinanet, and in MMDetection with `norm_eval` and `requires_grad`.
    Trainable,
}

impl NormSpec {
    /// Whether scale and shift are trained.
    pub fn trains_affine(&self) -> bool {
        self.kind != NormKind::FrozenBatch || self.affine == Some(Affine::Trainable)
    }

    /// What it means in a spec of format 1, which had no `affine`: frozen batch norms trained scale and shift.
    pub(super) fn convert_from_format_1(&mut self) {
        if self.kind == NormKind::FrozenBatch {
            self.affine.get_or_insert(Affine::Trainable);
        }
    }

    /// Whether it can normalize that many channels.
    pub(super) fn check_channels(&self, field: &str, channels: usize) -> Result<(), SpecError> {
        let divides = self.kind != NormKind::Group || channels.is_multiple_of(self.groups);
        ensure(divides, field, self.groups, &format!("a divisor of the {channels} channels of a layer"))
    }
}

impl Section for NormSpec {
    fn check(&self) -> Result<(), SpecError> {
        within("norm.epsilon", &self.epsilon, 0.0..=1.0)?;
        within("norm.groups", &self.groups, 1.0..=4096.0)?;
        let known = self.affine.is_none() || self.kind == NormKind::FrozenBatch;
        ensure(known, "norm.affine", self.affine, "no value, because only `kind: frozen_batch` has it; remove it")
    }
}

checked!(NormSpec);

impl Default for NormSpec {
    fn default() -> Self {
        Self { kind: NormKind::FrozenBatch, affine: None, epsilon: 1e-5, groups: 32 }
    }
}
