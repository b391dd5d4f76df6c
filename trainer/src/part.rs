//! Parts of the network, for freezing and for the learning rate of the backbone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A part of the network, ordered from input to output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The backbone's first convolution and its norm.
    Stem,
    /// The backbone's first stage, `layer1`, with output C2.
    Stage1,
    /// `layer2`, with output C3.
    Stage2,
    /// `layer3`, with output C4.
    Stage3,
    /// `layer4`, with output C5.
    Stage4,
    /// The feature pyramid.
    Pyramid,
    /// The classification and the regression head.
    Heads,
}

impl Part {
    /// The part that a tensor belongs to, by the prefix of its name.
    pub fn of(name: &str) -> Self {
        match name.split_once('.').map_or(name, |(first, _)| first) {
            "conv1" | "bn1" => Self::Stem,
            "layer1" => Self::Stage1,
            "layer2" => Self::Stage2,
            "layer3" => Self::Stage3,
            "layer4" => Self::Stage4,
            "fpn" => Self::Pyramid,
            _ => Self::Heads,
        }
    }

    /// Whether this is a part of the backbone.
    pub fn is_backbone(self) -> bool {
        self <= Self::Stage4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::{ModelSpec, parameters, spec::Class};

    #[test]
    fn tensors_are_ordered_by_part_and_no_part_is_empty() {
        let classes = vec![Class { id: 1, name: "cell".to_owned() }];
        let spec = ModelSpec { classes, ..ModelSpec::default() };
        let mut parts: Vec<_> = parameters(&spec).unwrap().iter().map(|parameter| Part::of(&parameter.name)).collect();
        assert!(parts.is_sorted());
        parts.dedup();
        assert_eq!(parts.len(), 7);
    }
}
