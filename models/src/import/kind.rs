//! The kinds of weights that can be imported: one for each project whose networks differ in spec or names.

use std::fmt;
use std::str::FromStr;

use crate::spec::{Affine, ModelSpec, NormKind, SpecError};

/// A kind of weights that can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A ResNet of torchvision; its image classifier is dropped.
    TorchvisionBackbone,
    /// torchvision's `retinanet_resnet50_fpn`, or the same with another ResNet. DeepForest's too.
    TorchvisionV1,
    /// torchvision's published COCO weights of `retinanet_resnet50_fpn`, which need a norm epsilon of 0.
    TorchvisionV1Coco,
    /// torchvision's `retinanet_resnet50_fpn_v2`, or the same with another ResNet.
    TorchvisionV2,
    /// yhenon/pytorch-retinanet.
    Yhenon,
    /// The RetinaNet of MLPerf's training benchmark.
    Mlperf,
    /// Detectron2's RetinaNet with the backbones of its model zoo, which are MSRA's: BGR, and the stride in the 1x1
    /// convolutions.
    Detectron2,
    /// The same with a backbone of torchvision: RGB, and the stride in the 3x3 convolutions.
    Detectron2Rgb,
    /// MMDetection's RetinaNet with a backbone of `style='pytorch'`.
    Mmdetection,
    /// The same with `style='caffe'`: BGR, and the stride in the 1x1 convolutions.
    MmdetectionCaffe,
    /// NVIDIA/retinanet-examples (ODTK).
    Odtk,
}

/// Whose tensor names a kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    Ours,
    Torchvision,
    Detectron2,
    Mmdetection,
    Odtk,
}

/// What distinguishes a kind.
struct Entry {
    kind: Kind,
    name: &'static str,
    naming: Naming,
    /// Commented YAML of the spec.
    spec: &'static str,
}

const YHENON: &str = include_str!("../../specs/yhenon.yaml");
const TORCHVISION_V1: &str = include_str!("../../specs/torchvision-v1.yaml");
const TORCHVISION_V2: &str = include_str!("../../specs/torchvision-v2.yaml");
const MLPERF: &str = include_str!("../../specs/mlperf.yaml");
const DETECTRON2: &str = include_str!("../../specs/detectron2.yaml");
const MMDETECTION: &str = include_str!("../../specs/mmdetection.yaml");
const ODTK: &str = include_str!("../../specs/odtk.yaml");

const fn entry(kind: Kind, name: &'static str, naming: Naming, spec: &'static str) -> Entry {
    Entry { kind, name, naming, spec }
}

/// All kinds, in the order of the enum.
const ENTRIES: &[Entry] = &[
    entry(Kind::TorchvisionBackbone, "torchvision-backbone", Naming::Ours, "{}"),
    entry(Kind::TorchvisionV1, "torchvision-v1", Naming::Torchvision, TORCHVISION_V1),
    entry(Kind::TorchvisionV1Coco, "torchvision-v1-coco", Naming::Torchvision, TORCHVISION_V1),
    entry(Kind::TorchvisionV2, "torchvision-v2", Naming::Torchvision, TORCHVISION_V2),
    entry(Kind::Yhenon, "yhenon", Naming::Ours, YHENON),
    entry(Kind::Mlperf, "mlperf", Naming::Torchvision, MLPERF),
    entry(Kind::Detectron2, "detectron2", Naming::Detectron2, DETECTRON2),
    entry(Kind::Detectron2Rgb, "detectron2-rgb", Naming::Detectron2, DETECTRON2),
    entry(Kind::Mmdetection, "mmdetection", Naming::Mmdetection, MMDETECTION),
    entry(Kind::MmdetectionCaffe, "mmdetection-caffe", Naming::Mmdetection, MMDETECTION),
    entry(Kind::Odtk, "odtk", Naming::Odtk, ODTK),
];

impl Kind {
    /// Every kind.
    pub const ALL: [Self; ENTRIES.len()] = {
        let mut all = [Self::TorchvisionBackbone; ENTRIES.len()];
        let mut index = 0;
        while index < all.len() {
            all[index] = ENTRIES[index].kind;
            index += 1;
        }
        all
    };

    fn entry(self) -> &'static Entry {
        &ENTRIES[self as usize]
    }

    /// Its name, as provenance and users write it.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The spec of its detector, without classes; the default one for a backbone. What follows from the weights (depth,
    /// groups, widths, input of P6, norms of the heads) has the values of the published weights.
    ///
    /// # Errors
    /// When the compiled-in YAML is invalid, which a test excludes.
    pub fn spec(self) -> Result<ModelSpec, SpecError> {
        let mut spec = ModelSpec::from_yaml(self.entry().spec)?;
        let backbone = &mut spec.backbone;
        match self {
            Self::TorchvisionV1Coco => backbone.norm.epsilon = 0.0,
            // tools/convert-torchvision-to-d2.py
            Self::Detectron2Rgb => {
                backbone.stride_in_1x1 = false;
                spec.preprocessing.std = [0.229, 0.224, 0.225];
            }
            // configs/retinanet/retinanet_r50-caffe_fpn_1x_coco.py
            Self::MmdetectionCaffe => {
                backbone.stride_in_1x1 = true;
                backbone.norm.affine = Some(Affine::Frozen);
                spec.preprocessing.std = [1.0 / 255.0; 3];
            }
            _ => {}
        }
        Ok(spec)
    }

    /// Whether its networks take images as blue, green, red. Their first convolution is converted.
    pub(super) fn is_bgr(self) -> bool {
        matches!(self, Self::Detectron2 | Self::MmdetectionCaffe)
    }

    /// Whether labels start at 1 where its project trains it: output 0 is then the background, which is never trained.
    pub(super) fn may_have_background(self) -> bool {
        matches!(self, Self::TorchvisionV1 | Self::TorchvisionV1Coco | Self::TorchvisionV2)
    }

    /// The kind of norm layers of a backbone whose file has (`counted`) or has not the counters of live batch norms; none
    /// if they do not matter.
    pub(super) fn norm_kind(self, counted: bool) -> Option<NormKind> {
        let tells = matches!(self.naming(), Naming::Torchvision | Naming::Detectron2);
        tells.then_some(if counted { NormKind::Batch } else { NormKind::FrozenBatch })
    }

    /// Whose tensor names it has.
    pub(super) fn naming(self) -> Naming {
        self.entry().naming
    }

    /// The tensor by which it is recognized in a file. Its name may have a prefix there.
    pub(super) fn landmark(self) -> &'static str {
        match self.naming() {
            Naming::Ours if self == Self::TorchvisionBackbone => "layer1.0.conv1.weight",
            Naming::Ours => "classificationModel.output.weight",
            Naming::Torchvision => "head.classification_head.cls_logits.weight",
            Naming::Detectron2 => "head.cls_score.weight",
            Naming::Mmdetection => "bbox_head.retina_cls.weight",
            Naming::Odtk => "cls_head.8.weight",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("expected one of {names}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{AnchorSpec, BackboneSpec, NormSpec, P6From, PostprocessingSpec, PreprocessingSpec};

    /// The kinds of whole networks.
    fn detectors() -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| *kind != Kind::TorchvisionBackbone)
    }

    #[test]
    fn entries_are_in_the_order_of_the_kinds() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!((kind as usize, kind.entry().kind), (index, kind));
            assert_eq!(kind.name().parse(), Ok(kind));
        }
    }

    #[test]
    fn source_specs_survive_a_round_trip() {
        for kind in detectors() {
            let spec = kind.spec().unwrap();
            assert!(spec.classes.is_empty() && spec.backbone.depth == 50, "{}", kind.name());
            assert_eq!(ModelSpec::from_yaml(&spec.to_yaml()).unwrap(), spec);
        }
    }

    #[test]
    fn source_specs_contain_every_field() {
        let default = ModelSpec::default().to_yaml();
        for kind in detectors() {
            for key in default.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key.trim()) {
                // Read from the weights, or specific to this program.
                let not_in_sources = ["depth", "classes", "format"].contains(&key);
                assert!(not_in_sources || kind.entry().spec.contains(&format!("{key}:")), "{}: {key}", kind.name());
            }
        }
    }

    #[test]
    fn torchvision_v2_and_mlperf_differ_from_v1_in_few_fields() {
        let v1 = Kind::TorchvisionV1.spec().unwrap();
        let mut v2 = Kind::TorchvisionV2.spec().unwrap();
        let frozen = NormSpec { affine: Some(Affine::Frozen), ..NormSpec::default() };
        assert_eq!((&v1.backbone.norm, v2.backbone.norm.kind), (&frozen, NormKind::Batch));
        assert_eq!(v2.heads.norm.take().map(|norm| (norm.kind, norm.groups)), Some((NormKind::Group, 32)));
        assert_eq!((v1.pyramid.p6_from, v2.pyramid.p6_from), (P6From::P5, P6From::C5));
        (v2.pyramid.p6_from, v2.backbone.norm) = (P6From::P5, v1.backbone.norm.clone());
        assert_eq!(v2, v1);

        let mut mlperf = Kind::Mlperf.spec().unwrap();
        assert_eq!(mlperf.backbone.norm, frozen);
        assert_eq!((mlperf.backbone.groups, mlperf.backbone.width_per_group), (32, 4));
        mlperf.backbone = v1.backbone.clone();
        mlperf.preprocessing = PreprocessingSpec { longer_side: 1333, fixed_size: None, ..mlperf.preprocessing };
        assert_eq!(mlperf, v1);
        // torchvision.models.detection._utils.BoxCoder(weights=(1, 1, 1, 1)).bbox_xform_clip, in single precision
        assert_eq!(v1.box_coder.clamp, Some(4.135_166_6));
    }

    #[test]
    fn yhenon_differs_from_the_defaults_in_five_fields() {
        let default = ModelSpec::default();
        let spec = Kind::Yhenon.spec().unwrap();
        assert_eq!(spec.anchors, AnchorSpec::default());
        assert!(spec.backbone.norm.trains_affine() && !default.backbone.norm.trains_affine());
        let norm = NormSpec { affine: Some(Affine::Trainable), ..NormSpec::default() };
        let expected = ModelSpec {
            backbone: BackboneSpec { norm, ..BackboneSpec::default() },
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
