//! Transfer learning: initial weights of a network from a pretrained one.

use std::collections::BTreeMap;

use anyhow::ensure;
use models::spec::{BackboneSpec, Class};
use models::{BackboneCheckpoint, ModelSpec, Pretrained, grouped};
use ndarray::{ArrayD, Axis};

/// The layer whose output channels belong to classes.
const CLASSIFIER: &str = "classificationModel.output.";

/// Tensors by name.
type Tensors = BTreeMap<String, ArrayD<f32>>;

/// What became of the tensors of both networks, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// Loaded from the file completely.
    loaded: Vec<String>,
    /// Loaded for the classes of both networks.
    partly_loaded: Vec<String>,
    /// Names of these classes.
    classes: Vec<String>,
    /// Not loaded: not in the file, or with another shape or other classes.
    not_loaded: Vec<String>,
    /// In the file only.
    unused: Vec<String>,
    /// Sections in which the specs of both networks differ.
    differing: Vec<&'static str>,
}

impl Transfer {
    /// Copies the weights of `pretrained` to `tensors`, the initial values of a network of `spec`: all tensors whose
    /// name and shape match, and of the last classification layer the output channels of classes with the same name.
    ///
    /// # Errors
    /// When the backbones differ in depth, groups or width.
    pub(crate) fn new(pretrained: &Pretrained, spec: &ModelSpec, tensors: &mut Tensors) -> anyhow::Result<Self> {
        let backbone = |spec: &BackboneSpec| {
            let BackboneSpec { depth, groups, width_per_group, .. } = spec;
            format!("depth {depth}, groups {groups}, width_per_group {width_per_group}")
        };
        let (theirs, ours) = (backbone(pretrained.backbone()), backbone(&spec.backbone));
        ensure!(
            theirs == ours,
            "its backbone has {theirs}, the configured one has {ours}; change `model.backbone`, or omit --weights"
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
                    if shared.is_empty() { &mut transfer.not_loaded } else { &mut transfer.partly_loaded }
                        .push(name.clone());
                    transfer.classes = shared;
                }
                Some(source) if source.shape() == tensor.shape() => {
                    tensor.assign(source);
                    transfer.loaded.push(name.clone());
                }
                _ => transfer.not_loaded.push(name.clone()),
            }
        }
        transfer.unused.extend(pretrained.tensors().keys().filter(|name| !tensors.contains_key(*name)).cloned());
        Ok(transfer)
    }

    /// A report, with one line per kind of tensors.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{} tensors loaded: {}", self.loaded.len(), grouped(&self.loaded))];
        if !self.partly_loaded.is_empty() {
            lines.push(format!("loaded for the classes {}: {}", self.classes.join(", "), grouped(&self.partly_loaded)));
        }
        if !self.not_loaded.is_empty() {
            lines.push(format!(
                "{} tensors keep their initial values (not in the file, or with another shape or other classes): {}",
                self.not_loaded.len(),
                grouped(&self.not_loaded)
            ));
        }
        if !self.unused.is_empty() {
            lines.push(format!("{} tensors of the file ignored: {}", self.unused.len(), grouped(&self.unused)));
        }
        if !self.differing.is_empty() {
            lines.push(format!("warning: its spec differs in {}", self.differing.join(", ")));
        }
        lines
    }
}

/// Copies the output channels of the classes of both networks from `source` to `tensor`, and returns the names of these
/// classes. Channel `a * K + k` is class k of K at anchor a. Copies nothing if the networks have different numbers of
/// anchors per cell or different widths.
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

/// The sections in which two specs differ, among those that change the meaning of weights.
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

    /// The tensors of `spec`, with a different value in every element.
    fn tensors(spec: &ModelSpec, mut next: f32) -> Tensors {
        let mut numbers = || {
            next += 1.0;
            next
        };
        let mut tensor = |shape: &[usize]| ArrayD::from_shape_simple_fn(IxDyn(shape), &mut numbers);
        let list = parameters(spec).unwrap();
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
    fn all_tensors_of_the_same_network_are_loaded() {
        let spec = spec(&["a", "b"]);
        let (source, mut target) = (checkpoint(&spec), tensors(&spec, 0.5));
        let transfer = Transfer::new(&source, &spec, &mut target).unwrap();
        assert_eq!(&target, source.tensors());
        assert_eq!(transfer, Transfer { loaded: transfer.loaded.clone(), ..Transfer::default() });
        assert_eq!(transfer.loaded.len(), target.len());
    }

    #[test]
    fn classes_are_matched_by_name_and_others_keep_their_initial_values() {
        let (theirs, ours) = (spec(&["a", "b", "c"]), spec(&["c", "new", "a", "x"]));
        let (source, initial) = (checkpoint(&theirs), tensors(&ours, 0.5));
        let mut target = initial.clone();
        let transfer = Transfer::new(&source, &ours, &mut target).unwrap();
        assert_eq!(transfer.classes, ["c", "a"]);
        assert_eq!(transfer.partly_loaded, ["classificationModel.output.bias", "classificationModel.output.weight"]);
        for name in &transfer.partly_loaded {
            for anchor in 0..9 {
                let row = |tensors: &Tensors, row| tensors[name].index_axis(Axis(0), row).to_owned();
                assert_eq!(row(&target, anchor * 4), row(source.tensors(), anchor * 3 + 2), "c");
                assert_eq!(row(&target, anchor * 4 + 1), row(&initial, anchor * 4 + 1), "new");
                assert_eq!(row(&target, anchor * 4 + 2), row(source.tensors(), anchor * 3), "a");
            }
        }
        assert!(transfer.not_loaded.is_empty() && target["fpn.P3_1.weight"] == source.tensors()["fpn.P3_1.weight"]);
        let lines = transfer.lines();
        assert!(lines[1].contains("the classes c, a: classificationModel.output (2)"), "{lines:?}");
    }

    #[test]
    fn tensors_of_another_shape_are_reported_as_not_loaded() {
        let theirs = spec(&["a"]);
        let mut ours = spec(&["b"]);
        ours.heads.width = 8;
        let mut target = tensors(&ours, 0.5);
        let transfer = Transfer::new(&checkpoint(&theirs), &ours, &mut target).unwrap();
        assert!(transfer.not_loaded.iter().all(|name| name.contains("Model.")), "{:?}", transfer.not_loaded);
        assert_eq!(transfer.differing, ["heads"]);
        assert!(transfer.lines().last().unwrap().contains("differs in heads"));
    }

    #[test]
    fn different_backbones_are_an_error() {
        let theirs = spec(&["a"]);
        let mut ours = theirs.clone();
        ours.backbone.depth = 34;
        let mut target = tensors(&ours, 0.5);
        let error = Transfer::new(&checkpoint(&theirs), &ours, &mut target).unwrap_err().to_string();
        assert!(error.contains("depth 18") && error.contains("depth 34") && error.contains("--weights"), "{error}");
    }

    #[test]
    fn backbone_leaves_the_other_tensors_unchanged() {
        let ours = spec(&["a", "b"]);
        let mut pretrained = tensors(&ours, 0.0);
        pretrained.retain(|name, _| !name.contains("Model.") && !name.starts_with("fpn."));
        let spec =
            BackboneCheckpointSpec { backbone: ours.backbone.clone(), mean: [0.5; 3], std: ours.preprocessing.std };
        let backbone = BackboneCheckpoint { spec, provenance: Provenance::default(), tensors: pretrained.clone() };
        let initial = tensors(&ours, 0.5);
        let mut target = initial.clone();
        let transfer = Transfer::new(&Pretrained::Backbone(backbone), &ours, &mut target).unwrap();
        assert!(target.iter().all(|(name, tensor)| tensor == pretrained.get(name).unwrap_or(&initial[name])));
        assert_eq!(transfer.loaded.len(), pretrained.len());
        assert_eq!(transfer.differing, ["preprocessing"]);
        assert!(transfer.unused.is_empty() && transfer.partly_loaded.is_empty() && transfer.classes.is_empty());
    }
}
