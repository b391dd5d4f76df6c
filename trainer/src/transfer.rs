//! Weights of a trained network as the beginning of another one's.

use std::collections::BTreeMap;

use anyhow::ensure;
use models::spec::{BackboneSpec, Class};
use models::{BackboneCheckpoint, ModelSpec, Pretrained, grouped};
use ndarray::{ArrayD, Axis};

/// The layer whose channels belong to classes.
const CLASSIFIER: &str = "classificationModel.output.";

/// Tensors by name.
type Tensors = BTreeMap<String, ArrayD<f32>>;

/// Which tensors of a network came from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// Taken whole from the checkpoint.
    taken: Vec<String>,
    /// Taken for the classes that both have.
    partly: Vec<String>,
    /// The names of these classes.
    classes: Vec<String>,
    /// Left as they were, for want of a tensor of that name and shape.
    fresh: Vec<String>,
    /// In the checkpoint only.
    unused: Vec<String>,
    /// Sections of the spec in which the two differ.
    differing: Vec<&'static str>,
}

impl Transfer {
    /// Puts the weights of `pretrained` into `tensors`, those of a network of `spec` before training: whole tensors where
    /// name and shape agree, and of the layer that tells classes apart the rows of the classes that have the same name.
    ///
    /// # Errors
    /// When their backbones are of different kinds.
    pub(crate) fn new(pretrained: &Pretrained, spec: &ModelSpec, tensors: &mut Tensors) -> anyhow::Result<Self> {
        let backbone = |spec: &BackboneSpec| {
            let BackboneSpec { depth, groups, width_per_group, .. } = spec;
            format!("depth {depth}, groups {groups}, width_per_group {width_per_group}")
        };
        let (theirs, ours) = (backbone(pretrained.backbone()), backbone(&spec.backbone));
        ensure!(
            theirs == ours,
            "its backbone has {theirs}, this network's {ours}; set `model.backbone` alike, or leave --weights out"
        );
        let mut transfer = Self { differing: differing(pretrained, spec), ..Self::default() };
        let classes: &[Class] = match pretrained {
            Pretrained::Detector(checkpoint) => &checkpoint.spec.classes,
            Pretrained::Backbone(_) => &[],
        };
        for (name, tensor) in tensors.iter_mut() {
            match pretrained.tensors().get(name) {
                Some(source) if name.starts_with(CLASSIFIER) && classes != spec.classes => {
                    let shared = copy_classes(source, tensor, [classes, &spec.classes]);
                    if shared.is_empty() { &mut transfer.fresh } else { &mut transfer.partly }.push(name.clone());
                    transfer.classes = shared;
                }
                Some(source) if source.shape() == tensor.shape() => {
                    tensor.assign(source);
                    transfer.taken.push(name.clone());
                }
                _ => transfer.fresh.push(name.clone()),
            }
        }
        transfer.unused.extend(pretrained.tensors().keys().filter(|name| !tensors.contains_key(*name)).cloned());
        Ok(transfer)
    }

    /// What happened, a line for each origin.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{} tensors taken: {}", self.taken.len(), grouped(&self.taken))];
        if !self.partly.is_empty() {
            lines.push(format!("taken for the classes {}: {}", self.classes.join(", "), grouped(&self.partly)));
        }
        if !self.fresh.is_empty() {
            lines.push(format!("{} tensors fresh: {}", self.fresh.len(), grouped(&self.fresh)));
        }
        if !self.unused.is_empty() {
            lines.push(format!("{} tensors of the file unused: {}", self.unused.len(), grouped(&self.unused)));
        }
        if !self.differing.is_empty() {
            lines.push(format!("warning: its spec differs in {}", self.differing.join(", ")));
        }
        lines
    }
}

/// Copies the channels of the classes that both networks have from `source` to `tensor`, and names them. Channel
/// `a * K + k` is class k of K at anchor a. None are shared when the networks have different anchors per cell or widths.
fn copy_classes(source: &ArrayD<f32>, tensor: &mut ArrayD<f32>, [theirs, ours]: [&[Class]; 2]) -> Vec<String> {
    let anchors = tensor.shape()[0] / ours.len();
    if source.shape()[0] != anchors * theirs.len() || source.shape()[1..] != tensor.shape()[1..] {
        return Vec::new();
    }
    let mut shared = Vec::new();
    for (to, class) in ours.iter().enumerate() {
        let Some(from) = theirs.iter().position(|known| known.name == class.name) else { continue };
        for anchor in 0..anchors {
            let channel = source.index_axis(Axis(0), anchor * theirs.len() + from);
            tensor.index_axis_mut(Axis(0), anchor * ours.len() + to).assign(&channel);
        }
        shared.push(class.name.clone());
    }
    shared
}

/// The sections of two specs that differ and change what weights mean.
fn differing(pretrained: &Pretrained, ours: &ModelSpec) -> Vec<&'static str> {
    let theirs = match pretrained {
        Pretrained::Detector(checkpoint) => &checkpoint.spec,
        Pretrained::Backbone(BackboneCheckpoint { spec, .. }) => {
            let images = (spec.mean, spec.std) == (ours.preprocessing.mean, ours.preprocessing.std);
            let sections = [("backbone", spec.backbone == ours.backbone), ("preprocessing", images)];
            return sections.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect();
        }
    };
    let sections = [
        ("backbone", theirs.backbone == ours.backbone),
        ("pyramid", theirs.pyramid == ours.pyramid),
        ("heads", theirs.heads == ours.heads),
        ("anchors", theirs.anchors == ours.anchors),
        ("box_coder", theirs.box_coder == ours.box_coder),
        ("preprocessing", theirs.preprocessing == ours.preprocessing),
    ];
    sections.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::{BackboneCheckpointSpec, Checkpoint, HeadOutputs, Probe, Provenance, parameters};
    use ndarray::{Array4, IxDyn};

    fn spec(classes: &[&str]) -> ModelSpec {
        let classes = (1..).zip(classes).map(|(id, name)| Class { id, name: (*name).to_owned() }).collect();
        let mut spec = ModelSpec { classes, ..ModelSpec::preset("resnet18").unwrap() };
        (spec.pyramid.width, spec.heads.width, spec.heads.depth) = (16, 16, 1);
        spec
    }

    /// The tensors of `spec`, every number another one.
    fn tensors(spec: &ModelSpec, mut next: f32) -> Tensors {
        let mut numbers = || {
            next += 1.0;
            next
        };
        let tensor = |shape: &[usize]| ArrayD::from_shape_simple_fn(IxDyn(shape), &mut numbers);
        let list = parameters(spec).unwrap();
        let mut tensor = tensor;
        list.into_iter().map(|parameter| (parameter.name, tensor(&parameter.shape))).collect()
    }

    fn checkpoint(spec: &ModelSpec) -> Pretrained {
        let probe = Probe {
            images: Array4::zeros((1, 3, 1, 1)),
            outputs: HeadOutputs::default(),
            rounding: [[0.0; 2]; HeadOutputs::PARTS],
        };
        let provenance = Provenance::default();
        let tensors = tensors(spec, 0.0);
        Pretrained::Detector(Box::new(Checkpoint { spec: spec.clone(), provenance, tensors, probe }))
    }

    #[test]
    fn the_same_network_is_taken_whole() {
        let spec = spec(&["a", "b"]);
        let (source, mut target) = (checkpoint(&spec), tensors(&spec, 0.5));
        let transfer = Transfer::new(&source, &spec, &mut target).unwrap();
        assert_eq!(&target, source.tensors());
        assert_eq!(transfer, Transfer { taken: transfer.taken.clone(), ..Transfer::default() });
        assert_eq!(transfer.taken.len(), target.len());
    }

    #[test]
    fn classes_are_found_by_name_and_the_others_are_fresh() {
        let (theirs, ours) = (spec(&["a", "b", "c"]), spec(&["c", "new", "a", "x"]));
        let (source, fresh) = (checkpoint(&theirs), tensors(&ours, 0.5));
        let mut target = fresh.clone();
        let transfer = Transfer::new(&source, &ours, &mut target).unwrap();
        assert_eq!(transfer.classes, ["c", "a"]);
        assert_eq!(transfer.partly, ["classificationModel.output.bias", "classificationModel.output.weight"]);
        for name in &transfer.partly {
            for anchor in 0..9 {
                let row = |tensors: &Tensors, row| tensors[name].index_axis(Axis(0), row).to_owned();
                assert_eq!(row(&target, anchor * 4), row(source.tensors(), anchor * 3 + 2), "c");
                assert_eq!(row(&target, anchor * 4 + 1), row(&fresh, anchor * 4 + 1), "new");
                assert_eq!(row(&target, anchor * 4 + 2), row(source.tensors(), anchor * 3), "a");
            }
        }
        assert!(transfer.fresh.is_empty() && target["fpn.P3_1.weight"] == source.tensors()["fpn.P3_1.weight"]);
        let lines = transfer.lines();
        assert!(lines[1].contains("the classes c, a: classificationModel.output (2)"), "{lines:?}");
    }

    #[test]
    fn what_has_another_shape_is_fresh_and_named() {
        let theirs = spec(&["a"]);
        let mut ours = spec(&["b"]);
        ours.heads.width = 8;
        let mut target = tensors(&ours, 0.5);
        let transfer = Transfer::new(&checkpoint(&theirs), &ours, &mut target).unwrap();
        assert!(transfer.fresh.iter().all(|name| name.contains("Model.")), "{:?}", transfer.fresh);
        assert_eq!(transfer.differing, ["heads"]);
        assert!(transfer.lines().last().unwrap().contains("differs in heads"));
    }

    #[test]
    fn another_backbone_is_refused() {
        let theirs = spec(&["a"]);
        let mut ours = theirs.clone();
        ours.backbone.depth = 34;
        let mut target = tensors(&ours, 0.5);
        let error = Transfer::new(&checkpoint(&theirs), &ours, &mut target).unwrap_err().to_string();
        assert!(error.contains("depth 18") && error.contains("depth 34") && error.contains("--weights"), "{error}");
    }

    #[test]
    fn a_backbone_leaves_the_rest_fresh() {
        let ours = spec(&["a", "b"]);
        let mut given = tensors(&ours, 0.0);
        given.retain(|name, _| !name.contains("Model.") && !name.starts_with("fpn."));
        let spec =
            BackboneCheckpointSpec { backbone: ours.backbone.clone(), mean: [0.5; 3], std: ours.preprocessing.std };
        let backbone = BackboneCheckpoint { spec, provenance: Provenance::default(), tensors: given.clone() };
        let fresh = tensors(&ours, 0.5);
        let mut target = fresh.clone();
        let transfer = Transfer::new(&Pretrained::Backbone(backbone), &ours, &mut target).unwrap();
        assert!(target.iter().all(|(name, tensor)| tensor == given.get(name).unwrap_or(&fresh[name])));
        assert_eq!(transfer.taken.len(), given.len());
        assert_eq!(transfer.differing, ["preprocessing"]);
        assert!(transfer.unused.is_empty() && transfer.partly.is_empty() && transfer.classes.is_empty());
    }
}
