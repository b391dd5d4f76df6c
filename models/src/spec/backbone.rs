//! The backbone section of the spec, and the depths of ResNets.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::norm::NormSpec;
use super::preprocessing::check_normalization;
use super::section::{Section, SpecError, checked, ensure, within};

/// The backbone: a ResNet. <https://arxiv.org/abs/1512.03385>
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote)]
pub struct BackboneSpec {
    /// Number of layers: 18 or 34 (basic blocks), 50, 101 or 152 (bottleneck blocks).
    pub depth: u32,
    /// Normalization after each convolution.
    pub norm: NormSpec,
    /// Groups of the 3x3 convolution in bottleneck blocks; more than 1 for a ResNeXt. <https://arxiv.org/abs/1611.05431>
    pub groups: usize,
    /// Channels per group of the first stage's bottlenecks; 64 for a ResNet.
    pub width_per_group: usize,
    /// Whether the stride of a bottleneck is in its first 1x1 convolution, as in the original ResNets (Caffe, MSRA,
    /// Detectron2's model zoo), instead of in its 3x3 convolution, as in torchvision.
    pub stride_in_1x1: bool,
}

/// Everything needed to interpret the weights of a backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct BackboneCheckpointSpec {
    /// The backbone.
    pub backbone: BackboneSpec,
    /// Mean of red, green and blue, subtracted from images in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue, by which images are then divided.
    pub std: [f32; 3],
}

/// The residual blocks of a ResNet. <https://arxiv.org/abs/1512.03385>, table 1
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ResNetLayout {
    /// Its name, which is also that of the preset.
    pub(crate) name: &'static str,
    /// Number of layers.
    pub(crate) depth: u32,
    /// Whether blocks are bottlenecks: two 1x1 convolutions around a 3x3 one, instead of two 3x3 ones.
    pub(crate) bottleneck: bool,
    /// Number of blocks in each of the four stages.
    pub(crate) blocks: [usize; 4],
}

/// All layouts.
pub(crate) const RESNETS: [ResNetLayout; 5] = [
    ResNetLayout { name: "resnet18", depth: 18, bottleneck: false, blocks: [2, 2, 2, 2] },
    ResNetLayout { name: "resnet34", depth: 34, bottleneck: false, blocks: [3, 4, 6, 3] },
    ResNetLayout { name: "resnet50", depth: 50, bottleneck: true, blocks: [3, 4, 6, 3] },
    ResNetLayout { name: "resnet101", depth: 101, bottleneck: true, blocks: [3, 4, 23, 3] },
    ResNetLayout { name: "resnet152", depth: 152, bottleneck: true, blocks: [3, 8, 36, 3] },
];

impl ResNetLayout {
    /// Ratio of a block's output channels to the channels inside it.
    pub(crate) fn expansion(&self) -> usize {
        if self.bottleneck { 4 } else { 1 }
    }

    /// Output channels of each of the four stages.
    pub(crate) fn widths(&self) -> [usize; 4] {
        [64, 128, 256, 512].map(|planes| planes * self.expansion())
    }
}

impl BackboneSpec {
    /// Its residual blocks.
    ///
    /// # Errors
    /// When there is no ResNet of its depth.
    pub(crate) fn layout(&self) -> Result<&'static ResNetLayout, SpecError> {
        RESNETS.iter().find(|layout| layout.depth == self.depth).ok_or_else(|| SpecError::Value {
            field: "backbone.depth".to_owned(),
            found: self.depth.to_string(),
            expected: format!("one of {:?}", RESNETS.map(|layout| layout.depth)),
        })
    }
}

impl Section for BackboneSpec {
    fn check(&self) -> Result<(), SpecError> {
        let Self { norm, groups, width_per_group, .. } = self;
        let layout = self.layout()?;
        norm.check().map_err(|error| error.inside("backbone"))?;
        within("backbone.groups", groups, 1.0..=256.0)?;
        within("backbone.width_per_group", width_per_group, 1.0..=256.0)?;
        let plain = (*groups, *width_per_group) == (1, 64);
        let expected = "1 and 64, because depths 18 and 34 have basic blocks";
        ensure(layout.bottleneck || plain, "backbone.groups, width_per_group", (groups, width_per_group), expected)?;
        let width = groups * width_per_group;
        // ResNeXt-101 32x48d is the widest that was published. <https://arxiv.org/abs/1805.00932>
        ensure(width <= 1536, "backbone.groups", groups, "at most 1536 / width_per_group")?;
        // The channels of the stem, and of the narrowest convolutions in the blocks; all others are multiples of these.
        [64, width].iter().try_for_each(|channels| norm.check_channels("backbone.norm.groups", *channels))
    }
}

checked!(BackboneSpec);

impl Section for BackboneCheckpointSpec {
    fn check(&self) -> Result<(), SpecError> {
        self.backbone.check()?;
        check_normalization(&self.mean, &self.std)
    }
}

checked!(BackboneCheckpointSpec);

impl Default for BackboneSpec {
    fn default() -> Self {
        Self { depth: 50, norm: NormSpec::default(), groups: 1, width_per_group: 64, stride_in_1x1: false }
    }
}
