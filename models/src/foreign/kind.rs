//! The project that weights come from, recognized by names and shapes of their tensors or given by the user.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::names::{OURS, TORCHVISION};
use super::{ForeignError, Stored, StoredTensors};
use crate::spec::Source;

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

    /// The source of its spec; none for a backbone.
    pub fn source(self) -> Option<Source> {
        match self {
            Self::TorchvisionBackbone => None,
            Self::TorchvisionV1 | Self::TorchvisionV1Coco => Some(Source::TorchvisionV1),
            Self::TorchvisionV2 => Some(Source::TorchvisionV2),
            Self::Yhenon => Some(Source::Yhenon),
            Self::Mlperf => Some(Source::Mlperf),
        }
    }

    /// The table that maps its tensor names to ours.
    pub(super) fn names(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::TorchvisionBackbone | Self::Yhenon => OURS,
            Self::TorchvisionV1 | Self::TorchvisionV1Coco | Self::TorchvisionV2 | Self::Mlperf => TORCHVISION,
        }
    }

    /// The tensor by which it is recognized in a file. Its name may have a prefix there.
    fn landmark(self) -> &'static str {
        match self {
            Self::TorchvisionBackbone => "layer1.0.conv1.weight",
            Self::Yhenon => "classificationModel.output.weight",
            Self::TorchvisionV1 | Self::TorchvisionV1Coco | Self::TorchvisionV2 | Self::Mlperf => {
                "head.classification_head.cls_logits.weight"
            }
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

/// What the user gave of a [`Request`](super::Request).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Said<'a> {
    pub(super) kind: Option<Kind>,
    pub(super) key: Option<&'a str>,
    pub(super) file: &'a str,
    pub(super) sha256: &'a str,
}

/// Finds the weights of the given kind, or of the kind recognized by their names.
pub(super) fn find(tensors: &StoredTensors, said: Said) -> Result<Found, ForeignError> {
    let at = |kind: Kind| prefix(tensors, kind, said.key);
    if let Some(kind) = said.kind {
        let prefix = at(kind)?.ok_or_else(|| ForeignError::Absent {
            kind,
            tensor: kind.landmark(),
            names: some_names(tensors.keys()),
        })?;
        return Ok(Found { kind, prefix, reason: "given by --kind".to_owned() });
    }
    if let Some(prefix) = at(Kind::TorchvisionV1)? {
        let (kind, reason) = torchvision(&part(tensors, &prefix), said);
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
fn torchvision(tensors: &BTreeMap<&str, &Stored>, said: Said) -> (Kind, String) {
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
        if said.sha256.starts_with(PUBLISHED) || said.file.contains(PUBLISHED) {
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
