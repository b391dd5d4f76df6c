//! Checkpoints: the weights by name, the spec of their network, their provenance, and a probe to verify them.

mod error;
mod probe;
mod tensor_file;
mod backbone;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use crate::shape::parameters;
use crate::spec::ModelSpec;
use crate::weights::{Parameter, WeightsError};
use tensor_file::{Content, Tensors};

pub use error::{CheckpointError, TensorProblems};

pub use backbone::{BackboneCheckpoint, Pretrained};
pub use probe::{HeadOutputs, Probe, cells_per_level};

/// A trained network with everything needed to use it.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Spec of the network.
    pub spec: ModelSpec,
    /// Where the weights came from.
    pub provenance: Provenance,
    /// Exactly the tensors of the spec's network, by name.
    pub tensors: BTreeMap<String, ArrayD<f32>>,
    /// An input with its expected outputs.
    pub probe: Probe,
}

/// Where a checkpoint came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Program and version that wrote the weights.
    pub program: String,
    /// Epochs trained; none if the weights were not trained by this program.
    pub epoch: Option<u32>,
    /// COCO AP on the validation data, in [0, 1]; none if it was not measured.
    pub ap: Option<f64>,
    /// The file that the weights were imported from; none if they were trained by this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// A file of another project that was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its name, without folders.
    pub file: String,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// Its kind, as `trainer import --kind` calls it.
    pub kind: String,
}

/// The YAML text in the file's metadata.
#[derive(Serialize, Deserialize)]
struct Description<S> {
    spec: S,
    provenance: Provenance,
}

impl Checkpoint {
    /// Reads a checkpoint and checks its tensors against its spec.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, is not a checkpoint, or its tensors do not match its spec exactly.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let (description, mut tensors) = tensor_file::read(path, Content::Detector)?;
        let Description::<ModelSpec> { spec, provenance } = description;
        let probe = Probe::take_from(&mut tensors, &spec)
            .map_err(|detail| CheckpointError::NotCheckpoint { path: path.to_owned(), detail })?;
        compare(path, parameters(&spec), &tensors)?;
        Ok(Self { spec, provenance, tensors, probe })
    }

    /// Writes the checkpoint atomically.
    ///
    /// # Errors
    /// When its spec is invalid, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let Self { spec, provenance, tensors, probe } = self;
        spec.check().map_err(|error| CheckpointError::Spec { path: path.to_owned(), error })?;
        let description = Description { spec, provenance: provenance.clone() };
        let probe = probe.tensors();
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        let named = named.chain(probe.iter().map(|(name, tensor)| (*name, tensor)));
        tensor_file::write(path, Content::Detector, &description, named)
    }
}

/// Checks that the tensors of a file are exactly the `expected` ones.
fn compare(
    path: &Path,
    expected: Result<Vec<Parameter>, WeightsError>,
    tensors: &Tensors,
) -> Result<(), CheckpointError> {
    let expected = expected
        .map_err(|error| CheckpointError::NotCheckpoint { path: path.to_owned(), detail: error.to_string() })?;
    let mut problems = TensorProblems::default();
    let known: BTreeSet<_> = expected.iter().map(|parameter| parameter.name.as_str()).collect();
    problems.unexpected.extend(tensors.keys().filter(|name| !known.contains(name.as_str())).cloned());
    for Parameter { name, shape, .. } in &expected {
        match tensors.get(name) {
            None => problems.missing.push(name.clone()),
            Some(tensor) if tensor.shape() != shape.as_slice() => problems.wrong_shape.push(WeightsError::Shape {
                name: name.clone(),
                expected: shape.clone(),
                found: tensor.shape().to_vec(),
            }),
            Some(_) => {}
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(CheckpointError::Tensors { path: path.to_owned(), problems }) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ndarray::{Array3, Array4, IxDyn};

    use super::tensor_file::Values;
    use super::*;
    use crate::spec::Class;

    fn checkpoint() -> Checkpoint {
        let mut spec = ModelSpec::preset("resnet18").unwrap();
        spec.classes = vec![Class { id: 7, name: "cell".to_owned() }];
        spec.pyramid.width = 8;
        spec.heads.width = 8;
        let tensors = parameters(&spec).unwrap().into_iter().map(|parameter| {
            let values = ArrayD::from_elem(IxDyn(&parameter.shape), parameter.len() as f32);
            (parameter.name, values)
        });
        let cells = 32 + 8 + 2 + 1 + 1;
        let probe = Probe {
            images: Array4::from_elem((1, 3, 32, 64), 0.5),
            outputs: HeadOutputs {
                logits: Array3::from_elem((1, cells * 9, 1), -4.5),
                offsets: Array3::zeros((1, cells * 9, 4)),
                features: [Array3::zeros((1, cells, 8)), Array3::ones((1, cells, 8))],
            },
            rounding: [[1e-6, 1e-7]; HeadOutputs::PARTS],
        };
        let provenance = Provenance { program: "trainer".to_owned(), epoch: Some(3), ap: Some(0.5), origin: None };
        Checkpoint { tensors: tensors.collect(), spec, provenance, probe }
    }

    #[test]
    fn open_inverts_write_and_written_bytes_are_deterministic() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name));
        checkpoint().write(&first).unwrap();
        assert_eq!(Checkpoint::open(&first).unwrap(), checkpoint());
        checkpoint().write(&second).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    }

    #[test]
    fn error_lists_all_missing_unexpected_and_wrongly_shaped_tensors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("best.safetensors");
        let mut wrong = checkpoint();
        wrong.tensors.remove("conv1.weight");
        wrong.tensors.insert("fc.weight".to_owned(), ArrayD::zeros(IxDyn(&[1])));
        wrong.tensors.insert("fpn.P6.bias".to_owned(), ArrayD::zeros(IxDyn(&[9])));
        wrong.write(&path).unwrap();
        let message = Checkpoint::open(&path).unwrap_err().to_string();
        for line in [
            "missing: conv1.weight",
            "unexpected: fc.weight",
            "wrong shape: tensor `fpn.P6.bias` has shape [9], expected [8]",
        ] {
            assert!(message.contains(line), "{message}");
        }
    }

    #[test]
    fn errors_of_damaged_files_and_other_files_contain_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("best.safetensors");
        assert!(matches!(Checkpoint::open(&path), Err(CheckpointError::Io { .. })));

        checkpoint().write(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = Checkpoint::open(&path).unwrap_err();
            assert!(matches!(error, CheckpointError::Damaged { .. }), "{length}: {error}");
            assert!(error.to_string().contains("best.safetensors"));
        }

        let tensor = ArrayD::zeros(IxDyn(&[1]));
        fs::write(&path, safetensors::serialize([("conv1.weight", Values(&tensor))], None).unwrap()).unwrap();
        assert!(matches!(Checkpoint::open(&path), Err(CheckpointError::NotCheckpoint { .. })));
    }

    #[test]
    fn probe_that_does_not_match_the_spec_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("best.safetensors");
        let changes: [fn(&mut Probe); 3] = [
            |probe| probe.outputs.offsets = Array3::zeros((1, 5, 4)),
            |probe| probe.outputs.logits = Array3::zeros((2, 44 * 9, 1)),
            |probe| probe.outputs.features[1] = Array3::zeros((1, 43, 8)),
        ];
        for change in changes {
            let mut wrong = checkpoint();
            change(&mut wrong.probe);
            wrong.write(&path).unwrap();
            assert!(matches!(Checkpoint::open(&path), Err(CheckpointError::NotCheckpoint { .. })));
        }
    }

    #[test]
    fn invalid_specs_are_neither_written_nor_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("best.safetensors");
        let mut invalid = checkpoint();
        invalid.spec.box_coder.std[2] = f32::NAN;
        let error = invalid.write(&path).unwrap_err();
        assert!(
            matches!(error, CheckpointError::Spec { .. }) && error.to_string().contains("`box_coder.std`"),
            "{error}"
        );
        assert!(!path.exists());
        let read = |spec: &str| {
            let description: serde_yaml::Value =
                serde_yaml::from_str(&format!("{{spec: {spec}, provenance: {{program: test}}}}")).unwrap();
            tensor_file::write(&path, Content::Detector, &description, [].into_iter()).unwrap();
            Checkpoint::open(&path).unwrap_err().to_string()
        };
        assert!(read("{pyramid: {width: 0}}").contains("spec.pyramid: `pyramid.width` is 0, expected 1 to 2048"));
        assert!(read("{format: 3, unknown: 1}").contains("the spec has format 3"));
    }

    #[test]
    fn old_probe_of_scores_is_converted_to_logits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("best.safetensors");
        let Checkpoint { spec, mut tensors, probe, .. } = checkpoint();
        let scores = probe.outputs.logits.mapv(|logit: f32| (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32);
        for (name, tensor) in [
            ("images", probe.images.clone().into_dyn()),
            ("classification", scores.into_dyn()),
            ("regression", probe.outputs.offsets.clone().into_dyn()),
        ] {
            tensors.insert(format!("probe.{name}"), tensor);
        }
        let description = Description { spec, provenance: Provenance::default() };
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        tensor_file::write(&path, Content::Detector, &description, named).unwrap();
        let read = Checkpoint::open(&path).unwrap().probe;
        assert_eq!((&read.images, &read.outputs.offsets), (&probe.images, &probe.outputs.offsets));
        assert!(read.outputs.features.iter().all(|rows| rows.is_empty()));
        assert!((&read.outputs.logits - &probe.outputs.logits).iter().all(|difference| difference.abs() < 1e-6));
    }
}
