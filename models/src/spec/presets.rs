//! Presets: specs to start from. They contain all defaults with comments, and differ in the depth of the backbone.

use super::{ModelSpec, SpecError};

/// Names and YAML of the presets.
const PRESETS: [(&str, &str); 5] = [
    ("resnet18", include_str!("../../specs/resnet18.yaml")),
    ("resnet34", include_str!("../../specs/resnet34.yaml")),
    ("resnet50", include_str!("../../specs/resnet50.yaml")),
    ("resnet101", include_str!("../../specs/resnet101.yaml")),
    ("resnet152", include_str!("../../specs/resnet152.yaml")),
];

/// The names of all presets.
pub fn preset_names() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

/// The commented YAML of a preset.
///
/// # Errors
/// When there is no preset of that name.
pub fn preset_text(name: &str) -> Result<&'static str, SpecError> {
    let preset = PRESETS.iter().find(|(known, _)| *known == name);
    preset.map(|(_, text)| *text).ok_or_else(|| SpecError::Preset { name: name.to_owned() })
}

impl ModelSpec {
    /// The spec of a preset, without classes.
    ///
    /// # Errors
    /// When there is no preset of that name.
    pub fn preset(name: &str) -> Result<Self, SpecError> {
        Self::from_yaml(preset_text(name)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::BackboneSpec;

    #[test]
    fn presets_equal_the_defaults_except_for_depth_and_survive_a_round_trip() {
        for name in preset_names() {
            let spec = ModelSpec::preset(name).unwrap();
            let depth = spec.backbone.depth;
            assert_eq!(name, format!("resnet{depth}"));
            let expected = BackboneSpec { depth, ..BackboneSpec::default() };
            assert_eq!(spec, ModelSpec { backbone: expected, ..ModelSpec::default() });
            assert_eq!(ModelSpec::from_yaml(&spec.to_yaml()).unwrap(), spec);
        }
        assert!(ModelSpec::preset("resnet19").unwrap_err().to_string().contains("resnet19"));
    }

    #[test]
    fn presets_contain_every_field() {
        let default = ModelSpec::default().to_yaml();
        let keys =
            |text: &str| text.lines().filter_map(|line| Some(line.trim().split_once(':')?.0.to_owned())).collect();
        let expected: Vec<String> = keys(&default);
        for name in preset_names() {
            let text = preset_text(name).unwrap();
            let found: Vec<String> = keys(text);
            let missing: Vec<_> = expected.iter().filter(|key| !found.contains(key) && *key != "classes").collect();
            assert!(missing.is_empty(), "{name}: {missing:?}");
        }
    }
}
