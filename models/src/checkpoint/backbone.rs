//! Checkpoints of backbones: pretrained ResNets, from which a training starts. They have no heads and no probe.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::tensor_file::{self, Content, Tensors};
use super::{Checkpoint, CheckpointError, Provenance, compare};
use crate::shape::backbone_parameters;
use crate::spec::{BackboneSpec, ModelSpec};

/// A pretrained backbone.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneCheckpoint {
    /// Spec of the backbone and its inputs.
    pub spec: BackboneCheckpointSpec,
    /// Where the weights came from.
    pub provenance: Provenance,
    /// Exactly the tensors of the spec's backbone, by name.
    pub tensors: Tensors,
}

/// Everything needed to interpret the weights of a backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneCheckpointSpec {
    /// The backbone.
    pub backbone: BackboneSpec,
    /// Mean of red, green and blue, subtracted from images in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue, by which images are then divided.
    pub std: [f32; 3],
}

/// The YAML text in the file's metadata.
#[derive(Serialize, Deserialize)]
struct Description {
    spec: BackboneCheckpointSpec,
    provenance: Provenance,
}

impl BackboneCheckpoint {
    /// Reads a backbone and checks its tensors against its spec.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, is not a checkpoint, or its tensors do not match its spec exactly.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let (description, tensors) = tensor_file::read(path, Content::Backbone)?;
        let Description { spec, provenance } = serde_yaml::from_str(&description)
            .map_err(|error| CheckpointError::Spec { path: path.to_owned(), error: error.into() })?;
        let spec_of_detector = ModelSpec { backbone: spec.backbone.clone(), ..ModelSpec::default() };
        spec_of_detector.validate().map_err(|error| CheckpointError::Spec { path: path.to_owned(), error })?;
        let expected = backbone_parameters(&spec.backbone)
            .map_err(|error| CheckpointError::NotCheckpoint { path: path.to_owned(), detail: error.to_string() })?;
        let problems = compare(&expected, &tensors);
        if !problems.is_empty() {
            return Err(CheckpointError::Tensors { path: path.to_owned(), problems });
        }
        Ok(Self { spec, provenance, tensors })
    }

    /// Writes the backbone atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let description = Description { spec: self.spec.clone(), provenance: self.provenance.clone() };
        let description = serde_yaml::to_string(&description)
            .expect("spec and provenance hold only strings, numbers and lists, all of which YAML can write");
        let named = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        tensor_file::write(path, Content::Backbone, description, named)
    }
}

/// Pretrained weights from which a training can start.
#[derive(Clone, Debug, PartialEq)]
pub enum Pretrained {
    /// A whole detector.
    Detector(Box<Checkpoint>),
    /// A backbone alone.
    Backbone(BackboneCheckpoint),
}

impl Pretrained {
    /// Reads a detector or a backbone.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, is not a checkpoint, or its tensors do not match its spec exactly.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        match Checkpoint::open(path) {
            Err(CheckpointError::Backbone { .. }) => BackboneCheckpoint::open(path).map(Self::Backbone),
            checkpoint => checkpoint.map(|checkpoint| Self::Detector(Box::new(checkpoint))),
        }
    }

    /// Its tensors, by name.
    pub fn tensors(&self) -> &Tensors {
        match self {
            Self::Detector(checkpoint) => &checkpoint.tensors,
            Self::Backbone(backbone) => &backbone.tensors,
        }
    }

    /// Spec of its backbone.
    pub fn backbone(&self) -> &BackboneSpec {
        match self {
            Self::Detector(checkpoint) => &checkpoint.spec.backbone,
            Self::Backbone(backbone) => &backbone.spec.backbone,
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    fn backbone() -> BackboneCheckpoint {
        let backbone = BackboneSpec { depth: 18, ..BackboneSpec::default() };
        let tensors = backbone_parameters(&backbone).unwrap().into_iter();
        let tensors = tensors.map(|parameter| (parameter.name, ArrayD::ones(IxDyn(&parameter.shape)))).collect();
        let spec = BackboneCheckpointSpec { backbone, mean: [0.5, 0.25, 0.75], std: [0.5; 3] };
        BackboneCheckpoint { spec, provenance: Provenance::default(), tensors }
    }

    #[test]
    fn open_inverts_write_and_detector_open_rejects_a_backbone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backbone.safetensors");
        backbone().write(&path).unwrap();
        assert_eq!(BackboneCheckpoint::open(&path).unwrap(), backbone());
        assert_eq!(Pretrained::open(&path).unwrap(), Pretrained::Backbone(backbone()));
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains("is a backbone") && error.contains("trainer fit --weights"), "{error}");
    }

    #[test]
    fn error_lists_tensors_that_do_not_match_the_backbone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backbone.safetensors");
        let mut wrong = backbone();
        wrong.tensors.remove("bn1.bias");
        wrong.tensors.insert("fpn.P6.bias".to_owned(), ArrayD::zeros(IxDyn(&[9])));
        wrong.write(&path).unwrap();
        let message = BackboneCheckpoint::open(&path).unwrap_err().to_string();
        assert!(message.contains("missing: bn1.bias") && message.contains("unexpected: fpn.P6.bias"), "{message}");
    }
}
