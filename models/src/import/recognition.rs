//! Recognizes the kind of weights by names and shapes of their tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::error::ImportError;
use super::hints::Hints;
use super::kind::Kind;
use super::names::is_of_backbone;
use super::stored::{Stored, StoredTensors, part, some_names};

/// The first digits of the SHA-256 of torchvision's published COCO weights, which are also part of their file name.
const PUBLISHED: &str = "eeacb38b";

/// Parts of tensor names by which unsupported networks are recognized, and what they are.
const UNSUPPORTED: [(&str, &str); 7] = [
    ("backbone.bottom_up.", "a Detectron2 model, but not its RetinaNet"),
    ("bbox_head.", "an MMDetection model, but not its RetinaNet"),
    ("cls_head.", "a model of NVIDIA's ODTK with other heads"),
    ("head.classification_head.module_list.", "an SSD of torchvision"),
    ("rpn.head.", "a Faster or Mask R-CNN of torchvision"),
    ("transformer.", "a transformer"),
    ("model.24.", "a YOLO"),
];

/// What is assumed about weights, because a file does not contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assumption {
    /// The norm epsilon, which differs between torchvision's published COCO weights and others like them.
    Epsilon,
    /// The names of the classes.
    ClassNames,
    /// A backbone as in Detectron2's model zoo.
    MsraBackbone,
    /// A backbone of MMDetection with `style='pytorch'`.
    PytorchStyle,
}

impl fmt::Display for Assumption {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Epsilon => "a norm epsilon of 1e-5, where torchvision's published COCO weights need 0",
            Self::ClassNames => "the names of the classes, from the number of outputs",
            Self::MsraBackbone => {
                "a backbone of Detectron2's model zoo, with BGR images and the stride in the 1x1 convolutions"
            }
            Self::PytorchStyle => {
                "a backbone of `style='pytorch'`, with RGB images and the stride in the 3x3 convolutions"
            }
        })
    }
}

/// Kind and location of the weights in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) kind: Kind,
    /// The common prefix of the names of its tensors.
    pub(super) prefix: String,
    /// How the kind was recognized, as the end of a sentence.
    pub(super) reason: &'static str,
    /// What distinguishes the kind from another one, but is not in the file.
    pub(super) assumption: Option<Assumption>,
}

/// Finds the weights of the given kind, or of the kind recognized by their names.
pub(super) fn find(tensors: &StoredTensors, hints: &Hints) -> Result<Found, ImportError> {
    let at = |kind: Kind| prefix(tensors, kind, hints.key.as_deref());
    if let Some(kind) = hints.kind {
        let prefix = at(kind)?.ok_or_else(|| ImportError::Absent {
            kind,
            tensor: kind.landmark(),
            names: some_names(tensors),
        })?;
        return Ok(Found { kind, prefix, reason: "as requested", assumption: None });
    }
    let found = |kind: Kind, prefix: String, reason| Ok(Found { kind, prefix, reason, assumption: None });
    if let Some(prefix) = at(Kind::TorchvisionV1)? {
        let (kind, reason, assumption) = torchvision(&part(tensors, &prefix), hints);
        return Ok(Found { kind, prefix, reason, assumption });
    }
    if let Some(prefix) = at(Kind::Yhenon)? {
        return found(Kind::Yhenon, prefix, "it has a `classificationModel`");
    }
    if let Some(prefix) = at(Kind::Detectron2)?
        && part(tensors, &prefix).contains_key("backbone.top_block.p7.weight")
    {
        let reason = "it has a `top_block` and `cls_score`";
        return Ok(Found { kind: Kind::Detectron2, prefix, reason, assumption: Some(Assumption::MsraBackbone) });
    }
    if let Some(prefix) = at(Kind::Mmdetection)? {
        let (kind, reason, assumption) = mmdetection(hints);
        return Ok(Found { kind, prefix, reason, assumption });
    }
    if let Some(prefix) = at(Kind::Odtk)?
        && part(tensors, &prefix).keys().any(|name| name.starts_with("backbones."))
    {
        return found(Kind::Odtk, prefix, "it has `backbones` and a `cls_head`");
    }
    if let Some(prefix) = at(Kind::TorchvisionBackbone)?
        && part(tensors, &prefix).keys().all(|name| is_of_backbone(name) || name.starts_with("fc."))
    {
        return found(Kind::TorchvisionBackbone, prefix, "it has the stages of a ResNet and no heads");
    }
    let guess = UNSUPPORTED.iter().find(|(part, _)| tensors.keys().any(|name| name.contains(part)));
    Err(ImportError::Unknown {
        guess: guess.map(|(_, what)| format!("; it looks like {what}")).unwrap_or_default(),
        names: some_names(tensors),
    })
}

/// The prefix of the kind's tensor names; none if its landmark is not in the file.
fn prefix(tensors: &StoredTensors, kind: Kind, key: Option<&str>) -> Result<Option<String>, ImportError> {
    let places = tensors.keys().filter_map(|name| name.strip_suffix(kind.landmark()));
    let places = places.filter(|place| place.is_empty() || place.ends_with('.'));
    let wanted = |place: &&str| key.is_none_or(|key| place.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')));
    let places: BTreeSet<_> = places.filter(wanted).collect();
    let mut iter = places.iter();
    match (iter.next(), iter.next()) {
        (Some(_), Some(_)) => Err(ImportError::Several {
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
fn torchvision(tensors: &BTreeMap<&str, &Stored>, hints: &Hints) -> (Kind, &'static str, Option<Assumption>) {
    let shape = |name: &str| tensors.get(name).map(|stored| stored.shape.as_slice());
    if shape("head.classification_head.conv.0.1.weight").is_some() {
        return (Kind::TorchvisionV2, "its heads have norm layers", None);
    }
    let rows = |name: &str| shape(name).and_then(|shape| shape.first().copied()).unwrap_or_default();
    let anchors = rows("head.regression_head.bbox_reg.weight") / 4;
    let outputs = rows("head.classification_head.cls_logits.weight").checked_div(anchors).unwrap_or_default();
    if outputs == 264 && shape("backbone.body.layer1.0.conv2.weight") == Some(&[128, 4, 3, 3]) {
        return (Kind::Mlperf, "it has a ResNeXt-50 32x4d and 264 outputs", None);
    }
    let frozen = !tensors.keys().any(|name| name.ends_with(".num_batches_tracked"));
    let without_norms = "its heads have no norm layers";
    if frozen && outputs == 91 {
        if hints.sha256.starts_with(PUBLISHED) || hints.file.contains(PUBLISHED) {
            let reason = "it is torchvision's published file (eeacb38b), which needs a norm epsilon of 0";
            return (Kind::TorchvisionV1Coco, reason, None);
        }
        return (Kind::TorchvisionV1, without_norms, Some(Assumption::Epsilon));
    }
    (Kind::TorchvisionV1, without_norms, None)
}

/// The kind of weights that have MMDetection's tensor names, and how it was recognized.
fn mmdetection(hints: &Hints) -> (Kind, &'static str, Option<Assumption>) {
    let configuration = hints.configuration.as_deref().unwrap_or_default();
    let says = |style: &str| {
        [format!("style='{style}'"), format!("style=\"{style}\"")].iter().any(|part| configuration.contains(part))
    };
    match (says("caffe"), says("pytorch")) {
        (true, false) => (Kind::MmdetectionCaffe, "the configuration in it says style='caffe'", None),
        (false, true) => (Kind::Mmdetection, "the configuration in it says style='pytorch'", None),
        _ => (Kind::Mmdetection, "it has a `bbox_head.retina_cls`", Some(Assumption::PytorchStyle)),
    }
}
