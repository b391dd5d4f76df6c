//! The safetensors files of checkpoints: 32-bit floats, and one metadata entry that describes them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors, View};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::CheckpointError;
use crate::atomic_file::write_atomically;

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, ArrayD<f32>>;

/// What the metadata entry describes. It is the only entry of `__metadata__`, because safetensors does not fix the order of
/// entries, and the same weights must give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A detector, with a probe.
    Detector,
    /// A backbone alone.
    Backbone,
}

impl Content {
    /// Key in the file's `__metadata__`.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Detector => "retinanet",
            Self::Backbone => "retinanet.backbone",
        }
    }
}

/// The description in the metadata entry, and the tensors of the file.
pub(crate) fn read<D: DeserializeOwned>(path: &Path, content: Content) -> Result<(D, Tensors), CheckpointError> {
    let io = |error| CheckpointError::Io { path: path.to_owned(), error };
    let damaged = |detail: String| CheckpointError::Damaged { path: path.to_owned(), detail };
    let invalid = |detail: &str| CheckpointError::NotCheckpoint { path: path.to_owned(), detail: detail.to_owned() };

    let bytes = fs::read(path).map_err(io)?;
    if is_pytorch(&bytes) {
        return Err(invalid("it is a PyTorch file"));
    }
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
    let text = |content: Content| metadata.metadata().as_ref().and_then(|metadata| metadata.get(content.key()));
    let description = text(content).ok_or_else(|| match content {
        Content::Detector if text(Content::Backbone).is_some() => CheckpointError::Backbone { path: path.to_owned() },
        _ => invalid("its metadata contains no spec"),
    })?;
    let description = serde_yaml::from_str(description)
        .map_err(|error| CheckpointError::Spec { path: path.to_owned(), error: error.into() })?;

    let mut tensors = Tensors::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(invalid(&format!("tensor `{name}` has type {:?}, expected F32", view.dtype())));
        }
        let values = bytemuck::pod_collect_to_vec(view.data());
        let tensor = ArrayD::from_shape_vec(IxDyn(view.shape()), values).map_err(|e| damaged(e.to_string()))?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok((description, tensors))
}

/// Writes a description, as YAML, and the tensors atomically.
pub(crate) fn write<'a>(
    path: &Path,
    content: Content,
    description: &impl Serialize,
    tensors: impl Iterator<Item = (&'a str, &'a ArrayD<f32>)>,
) -> Result<(), CheckpointError> {
    let description = serde_yaml::to_string(description)
        .map_err(|error| CheckpointError::Spec { path: path.to_owned(), error: error.into() })?;
    let metadata = HashMap::from([(content.key().to_owned(), description)]);
    let bytes = safetensors::serialize(tensors.map(|(name, tensor)| (name, Values(tensor))), Some(metadata))
        .map_err(|error| CheckpointError::Damaged { path: path.to_owned(), detail: error.to_string() })?;
    write_atomically(path, |file| file.write_all(&bytes))
        .map_err(|error| CheckpointError::Io { path: path.to_owned(), error })
}

/// Whether these bytes are a zip file or a pickle, as `torch.save` writes them, rather than safetensors.
fn is_pytorch(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || (bytes.starts_with(b"\x80\x02") && bytes.get(8) != Some(&b'{'))
}

/// A tensor as a safetensors [`View`].
pub(super) struct Values<'a>(pub(super) &'a ArrayD<f32>);

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.0.as_slice() {
            Some(values) => Cow::Borrowed(bytemuck::cast_slice(values)),
            None => Cow::Owned(self.0.iter().flat_map(|value| value.to_le_bytes()).collect()),
        }
    }

    fn data_len(&self) -> usize {
        self.0.len() * size_of::<f32>()
    }
}
