//! Presets: specs for new trainings. They contain all keys with comments, and differ in the depth of the backbone.

use super::backbone::RESNETS;
use super::section::SpecError;

/// The names of all presets.
pub fn preset_names() -> Vec<&'static str> {
    RESNETS.iter().map(|layout| layout.name).collect()
}

/// The commented YAML of a preset.
///
/// # Errors
/// When there is no preset of that name.
pub fn preset_text(name: &str) -> Result<String, SpecError> {
    let layout = RESNETS.iter().find(|layout| layout.name == name);
    let layout = layout.ok_or_else(|| SpecError::Preset { name: name.to_owned(), known: preset_names().join(", ") })?;
    let depth = layout.depth.to_string();
    let text = include_str!("../../specs/resnet.yaml");
    Ok(text.replace("ResNet-50", &format!("ResNet-{depth}")).replace("depth: 50 ", &format!("depth: {depth:<3}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{BackboneSpec, ModelSpec, PreprocessingSpec};

    #[test]
    fn presets_equal_the_defaults_except_for_depth_and_rounding_and_survive_a_round_trip() {
        for name in preset_names() {
            let spec = ModelSpec::preset(name).unwrap();
            let depth = spec.backbone.depth;
            assert_eq!(name, format!("resnet{depth}"));
            assert!(preset_text(name).unwrap().starts_with(&format!("# RetinaNet with a ResNet-{depth} backbone")));
            let expected = ModelSpec {
                backbone: BackboneSpec { depth, ..BackboneSpec::default() },
                preprocessing: PreprocessingSpec { round_pixels: true, ..PreprocessingSpec::default() },
                ..ModelSpec::default()
            };
            assert_eq!(spec, expected);
            assert_eq!(ModelSpec::from_yaml(&spec.to_yaml()).unwrap(), spec);
        }
        assert!(ModelSpec::preset("resnet19").unwrap_err().to_string().contains("resnet19"));
    }

    #[test]
    fn presets_contain_every_field() {
        let default = ModelSpec::default().to_yaml();
        let text = preset_text("resnet50").unwrap();
        let found: Vec<_> = text.lines().filter_map(|line| Some(line.trim().split_once(':')?.0)).collect();
        for key in default.lines().filter_map(|line| Some(line.trim().split_once(':')?.0)) {
            assert!(key == "classes" || found.contains(&key), "{key}");
        }
    }
}
