//! Checkpoints of backbones: pretrained ResNets, from which a training starts. They have no heads and no probe.

use std::path::Path;

use super::tensor_file::{self, Content, Tensors};
use super::{Checkpoint, CheckpointError, Description, Provenance, compare};
use crate::shape::backbone_parameters;
use crate::spec::{BackboneCheckpointSpec, BackboneSpec, Section};

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

impl BackboneCheckpoint {
    /// Reads a backbone and checks its tensors against its spec.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, is not a checkpoint, or its tensors do not match its spec exactly.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let (description, tensors) = tensor_file::read(path, Content::Backbone)?;
        let Description::<BackboneCheckpointSpec> { spec, provenance } = description;
        compare(path, backbone_parameters(&spec.backbone), &tensors)?;
        Ok(Self { spec, provenance, tensors })
    }

    /// Writes the backbone atomically.
    ///
    /// # Errors
    /// When its spec is invalid, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        self.spec.check().map_err(|error| CheckpointError::Spec { path: path.to_owned(), error })?;
        let description = Description { spec: &self.spec, provenance: self.provenance.clone() };
        let named = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        tensor_file::write(path, Content::Backbone, &description, named)
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
