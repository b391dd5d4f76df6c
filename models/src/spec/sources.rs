//! Sources: other projects whose weights can be imported, each with the spec of its RetinaNet.

use super::{ModelSpec, SpecError};

/// A project whose weights can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// torchvision's `retinanet_resnet50_fpn`.
    TorchvisionV1,
    /// torchvision's `retinanet_resnet50_fpn_v2`.
    TorchvisionV2,
    /// yhenon/pytorch-retinanet.
    Yhenon,
    /// The RetinaNet of MLPerf's training benchmark.
    Mlperf,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 4] = [Self::TorchvisionV1, Self::TorchvisionV2, Self::Yhenon, Self::Mlperf];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchvisionV1 => "torchvision-v1",
            Self::TorchvisionV2 => "torchvision-v2",
            Self::Yhenon => "yhenon",
            Self::Mlperf => "mlperf",
        }
    }

    /// The commented YAML of its spec.
    pub fn text(self) -> &'static str {
        match self {
            Self::TorchvisionV1 => include_str!("../../specs/torchvision-v1.yaml"),
            Self::TorchvisionV2 => include_str!("../../specs/torchvision-v2.yaml"),
            Self::Yhenon => include_str!("../../specs/yhenon.yaml"),
            Self::Mlperf => include_str!("../../specs/mlperf.yaml"),
        }
    }

    /// Its spec, with depth 50 and without classes. What follows from the weights (depth, groups, widths, input of P6,
    /// norms of the heads) has the values of the published weights.
    ///
    /// # Errors
    /// When the compiled-in YAML is invalid, which a test excludes.
    pub fn spec(self) -> Result<ModelSpec, SpecError> {
        ModelSpec::from_yaml(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{AnchorSpec, NormKind, P6From, PostprocessingSpec, PreprocessingSpec};

    #[test]
    fn source_specs_survive_a_round_trip() {
        for source in Source::ALL {
            let spec = source.spec().unwrap();
            assert!(spec.classes.is_empty() && spec.backbone.depth == 50, "{}", source.name());
            assert_eq!(ModelSpec::from_yaml(&spec.to_yaml()).unwrap(), spec);
        }
    }

    #[test]
    fn source_specs_contain_every_field() {
        let default = ModelSpec::default().to_yaml();
        for source in Source::ALL {
            for key in default.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key.trim()) {
                // Read from the weights, or specific to this program.
                let not_in_sources = ["depth", "classes", "format"].contains(&key);
                assert!(not_in_sources || source.text().contains(&format!("{key}:")), "{}: {key}", source.name());
            }
        }
    }

    #[test]
    fn torchvision_v2_and_mlperf_differ_from_v1_in_few_fields() {
        let v1 = Source::TorchvisionV1.spec().unwrap();
        let mut v2 = Source::TorchvisionV2.spec().unwrap();
        assert_eq!(v2.heads.norm.take().map(|norm| (norm.kind, norm.groups)), Some((NormKind::Group, 32)));
        assert_eq!((v1.pyramid.p6_from, v2.pyramid.p6_from), (P6From::P5, P6From::C5));
        (v2.pyramid.p6_from, v2.backbone.norm.kind) = (P6From::P5, NormKind::FrozenBatch);
        assert_eq!(v2, v1);

        let mut mlperf = Source::Mlperf.spec().unwrap();
        assert_eq!((mlperf.backbone.groups, mlperf.backbone.width_per_group), (32, 4));
        mlperf.backbone = v1.backbone.clone();
        mlperf.preprocessing = PreprocessingSpec { longer_side: 1333, fixed_size: None, ..mlperf.preprocessing };
        assert_eq!(mlperf, v1);
        // torchvision.models.detection._utils.BoxCoder(weights=(1, 1, 1, 1)).bbox_xform_clip, in single precision
        assert_eq!(v1.box_coder.clamp, Some(4.135_166_6));
    }

    #[test]
    fn yhenon_differs_from_the_defaults_in_four_fields() {
        let default = ModelSpec::default();
        let spec = Source::Yhenon.spec().unwrap();
        assert_eq!(spec.anchors, AnchorSpec::default());
        let expected = ModelSpec {
            preprocessing: PreprocessingSpec {
                pad_rule: spec.preprocessing.pad_rule,
                resampling: spec.preprocessing.resampling,
                box_scale: spec.preprocessing.box_scale,
                ..default.preprocessing.clone()
            },
            postprocessing: PostprocessingSpec { clip: spec.postprocessing.clip, ..default.postprocessing.clone() },
            ..default.clone()
        };
        assert_eq!(spec, expected);
        assert!(spec.preprocessing.pad_rule != default.preprocessing.pad_rule);
        assert!(spec.preprocessing.resampling != default.preprocessing.resampling);
        assert!(spec.preprocessing.box_scale != default.preprocessing.box_scale);
        assert!(spec.postprocessing.clip != default.postprocessing.clip);
    }
}
