//! The project that weights come from, recognized by names and shapes of their tensors or given by the user.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::names;
use super::{ForeignError, Request, Stored, StoredTensors};
use crate::spec::{ModelSpec, SpecError};

/// A kind of weights that can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A ResNet of torchvision; its image classifier is dropped.
    TorchvisionBackbone,
    /// torchvision's `retinanet_resnet50_fpn`, or the same with another ResNet.
    TorchvisionV1,
    /// torchvision's published COCO weights of `retinanet_resnet50_fpn`, which need a norm epsilon of 0.
    TorchvisionV1Coco,
    /// torchvision's `retinanet_resnet50_fpn_v2`, or the same with another ResNet.
    TorchvisionV2,
    /// yhenon/pytorch-retinanet.
    Yhenon,
    /// The RetinaNet of MLPerf's training benchmark.
    Mlperf,
}

/// The first digits of the SHA-256 of torchvision's published COCO weights, which are also part of their file name.
const PUBLISHED: &str = "eeacb38b";

/// Parts of tensor names by which unsupported networks are recognized, and what they are.
const STRANGERS: [(&str, &str); 7] = [
    ("backbone.bottom_up.", "a Detectron2 model"),
    ("bbox_head.", "an MMDetection model"),
    ("cls_head.", "a model of NVIDIA's ODTK"),
    ("head.classification_head.module_list.", "an SSD of torchvision"),
    ("rpn.head.", "a Faster or Mask R-CNN of torchvision"),
    ("transformer.", "a transformer"),
    ("model.24.", "a YOLO"),
];

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::TorchvisionBackbone,
        Self::TorchvisionV1,
        Self::TorchvisionV1Coco,
        Self::TorchvisionV2,
        Self::Yhenon,
        Self::Mlperf,
    ];

    /// Its name in `--kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchvisionBackbone => "torchvision-backbone",
            Self::TorchvisionV1 => "torchvision-v1",
            Self::TorchvisionV1Coco => "torchvision-v1-coco",
            Self::TorchvisionV2 => "torchvision-v2",
            Self::Yhenon => "yhenon",
            Self::Mlperf => "mlperf",
        }
    }

    /// The commented YAML of its spec; none for a backbone.
    fn text(self) -> &'static str {
        match self {
            Self::TorchvisionBackbone => "{}",
            Self::TorchvisionV1 | Self::TorchvisionV1Coco => include_str!("../../specs/torchvision-v1.yaml"),
            Self::TorchvisionV2 => include_str!("../../specs/torchvision-v2.yaml"),
            Self::Yhenon => include_str!("../../specs/yhenon.yaml"),
            Self::Mlperf => include_str!("../../specs/mlperf.yaml"),
        }
    }

    /// The spec of its detector, without classes; the default one for a backbone. What follows from the weights (depth,
    /// groups, widths, input of P6, norms of the heads) has the values of the published weights.
    ///
    /// # Errors
    /// When the compiled-in YAML is invalid, which a test excludes.
    pub fn spec(self) -> Result<ModelSpec, SpecError> {
        let mut spec = ModelSpec::from_yaml(self.text())?;
        if self == Self::TorchvisionV1Coco {
            spec.backbone.norm.epsilon = 0.0;
        }
        Ok(spec)
    }

    /// Whether its tensors have the names of torchvision's RetinaNets.
    pub(super) fn has_torchvision_names(self) -> bool {
        !matches!(self, Self::TorchvisionBackbone | Self::Yhenon)
    }

    /// The table that maps its tensor names to ours.
    pub(super) fn names(self) -> Vec<(String, String)> {
        if self.has_torchvision_names() { names::torchvision() } else { names::ours() }
    }

    /// The tensor by which it is recognized in a file. Its name may have a prefix there.
    fn landmark(self) -> &'static str {
        match self {
            Self::TorchvisionBackbone => "layer1.0.conv1.weight",
            Self::Yhenon => "classificationModel.output.weight",
            _ => "head.classification_head.cls_logits.weight",
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

/// Kind and location of the weights in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) kind: Kind,
    /// The common prefix of the names of its tensors.
    pub(super) prefix: String,
    /// How the kind was recognized, as the end of a sentence.
    pub(super) reason: String,
}

/// Finds the weights of the given kind, or of the kind recognized by their names.
pub(super) fn find(tensors: &StoredTensors, request: &Request) -> Result<Found, ForeignError> {
    let at = |kind: Kind| prefix(tensors, kind, request.key.as_deref());
    if let Some(kind) = request.kind {
        let prefix = at(kind)?.ok_or_else(|| ForeignError::Absent {
            kind,
            tensor: kind.landmark(),
            names: some_names(tensors.keys()),
        })?;
        return Ok(Found { kind, prefix, reason: "given by --kind".to_owned() });
    }
    if let Some(prefix) = at(Kind::TorchvisionV1)? {
        let (kind, reason) = torchvision(&part(tensors, &prefix), request);
        return Ok(Found { kind, prefix, reason });
    }
    if let Some(prefix) = at(Kind::Yhenon)? {
        let reason = "it has a `classificationModel`".to_owned();
        return Ok(Found { kind: Kind::Yhenon, prefix, reason });
    }
    if let Some(prefix) = at(Kind::TorchvisionBackbone)?
        && part(tensors, &prefix).keys().all(|name| is_of_backbone(name) || name.starts_with("fc."))
    {
        let reason = "it has the stages of a ResNet and no heads".to_owned();
        return Ok(Found { kind: Kind::TorchvisionBackbone, prefix, reason });
    }
    let stranger = STRANGERS.iter().find(|(part, _)| tensors.keys().any(|name| name.contains(part)));
    Err(ForeignError::Unknown {
        stranger: stranger.map(|(_, what)| format!("; it looks like {what}")).unwrap_or_default(),
        names: some_names(tensors.keys()),
    })
}

/// The tensors whose names start with `prefix`, by their names without it.
pub(super) fn part<'a>(tensors: &'a StoredTensors, prefix: &str) -> BTreeMap<&'a str, &'a Stored> {
    tensors.iter().filter_map(|(name, stored)| Some((name.strip_prefix(prefix)?, stored))).collect()
}

/// Whether a tensor of that name belongs to the backbone.
pub(super) fn is_of_backbone(name: &str) -> bool {
    ["conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4."].iter().any(|start| name.starts_with(start))
}

/// The prefix of the kind's tensor names; none if its landmark is not in the file.
fn prefix(tensors: &StoredTensors, kind: Kind, key: Option<&str>) -> Result<Option<String>, ForeignError> {
    let places = tensors.keys().filter_map(|name| name.strip_suffix(kind.landmark()));
    let places = places.filter(|place| place.is_empty() || place.ends_with('.'));
    let wanted = |place: &&str| key.is_none_or(|key| place.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')));
    let places: BTreeSet<_> = places.filter(wanted).collect();
    let mut iter = places.iter();
    match (iter.next(), iter.next()) {
        (Some(_), Some(_)) => Err(ForeignError::Several {
            kind,
            places: places
                .iter()
                .map(|place| format!("`{}`", place.trim_end_matches('.')))
                .collect::<Vec<_>>()
                .join(", "),
        }),
        (place, _) => Ok(place.map(|place| (*place).to_owned())),
    }
}

/// The kind of weights that have torchvision's tensor names, and how it was recognized.
fn torchvision(tensors: &BTreeMap<&str, &Stored>, request: &Request) -> (Kind, String) {
    let shape = |name: &str| tensors.get(name).map(|stored| stored.shape.as_slice());
    if shape("head.classification_head.conv.0.1.weight").is_some() {
        return (Kind::TorchvisionV2, "its heads have norm layers".to_owned());
    }
    let rows = |name: &str| shape(name).and_then(|shape| shape.first().copied()).unwrap_or_default();
    let anchors = rows("head.regression_head.bbox_reg.weight") / 4;
    let outputs = rows("head.classification_head.cls_logits.weight").checked_div(anchors).unwrap_or_default();
    if outputs == 264 && shape("backbone.body.layer1.0.conv2.weight") == Some(&[128, 4, 3, 3]) {
        return (Kind::Mlperf, "it has a ResNeXt-50 32x4d and 264 outputs".to_owned());
    }
    let frozen = !tensors.keys().any(|name| name.ends_with(".num_batches_tracked"));
    if frozen && outputs == 91 {
        if request.sha256.starts_with(PUBLISHED) || request.file.contains(PUBLISHED) {
            let reason = format!("it is torchvision's published file ({PUBLISHED}), which needs a norm epsilon of 0");
            return (Kind::TorchvisionV1Coco, reason);
        }
        let reason = format!(
            "its heads have no norm layers; norm epsilon assumed to be 1e-5. For torchvision's published COCO weights, \
             which need 0, pass --kind {}",
            Kind::TorchvisionV1Coco
        );
        return (Kind::TorchvisionV1, reason);
    }
    (Kind::TorchvisionV1, "its heads have no norm layers".to_owned())
}

/// The first ten names in backticks, and the number of the others.
fn some_names<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    const SHOWN: usize = 10;
    let rest = names.len().saturating_sub(SHOWN);
    let mut list: Vec<_> = names.take(SHOWN).map(|name| format!("`{name}`")).collect();
    if rest > 0 {
        list.push(format!("{rest} more"));
    }
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{
        Affine, AnchorSpec, BackboneSpec, NormKind, NormSpec, P6From, PostprocessingSpec, PreprocessingSpec,
    };

    /// The kinds with a spec of their own.
    const DETECTORS: [Kind; 4] = [Kind::TorchvisionV1, Kind::TorchvisionV2, Kind::Yhenon, Kind::Mlperf];

    #[test]
    fn source_specs_survive_a_round_trip() {
        for kind in DETECTORS {
            let spec = kind.spec().unwrap();
            assert!(spec.classes.is_empty() && spec.backbone.depth == 50, "{}", kind.name());
            assert_eq!(ModelSpec::from_yaml(&spec.to_yaml()).unwrap(), spec);
        }
    }

    #[test]
    fn source_specs_contain_every_field() {
        let default = ModelSpec::default().to_yaml();
        for kind in DETECTORS {
            for key in default.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key.trim()) {
                // Read from the weights, or specific to this program.
                let not_in_sources = ["depth", "classes", "format"].contains(&key);
                assert!(not_in_sources || kind.text().contains(&format!("{key}:")), "{}: {key}", kind.name());
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
