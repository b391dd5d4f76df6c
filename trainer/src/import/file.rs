//! Weights files of other programs: PyTorch files, pickles and safetensors. No code in them is executed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use anyhow::{anyhow, bail, ensure};
use half::{bf16, f16};
use models::import::{Stored, StoredTensors};
use ndarray::{ArrayD, IxDyn};
use pytorch_file::PyTorchFile;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

/// What to do with a file that contains more than can be read without executing code.
const SAVE_STATE_DICT: &str =
    "if you trust it and PyTorch can load it, save only its weights: torch.save(model.state_dict(), \"weights.pth\")";

/// Prefix of the metadata keys in files of `trainer`.
const OURS: &str = "retinanet";

/// An open weights file.
pub(super) struct WeightsFile {
    /// Its tensors.
    pub(super) tensors: StoredTensors,
    /// SHA-256 of the file, as hexadecimal digits.
    pub(super) sha256: String,
    content: Content,
}

enum Content {
    PyTorch(Box<PyTorchFile>),
    /// The content of the file, and where in it the tensors are, by name.
    Safetensors(Vec<u8>, HashMap<String, Range<usize>>),
}

impl WeightsFile {
    /// Opens a file and reads the names and shapes of its tensors.
    ///
    /// # Errors
    /// When it cannot be read or is not a weights file.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut start = Vec::new();
        File::open(path)?.take(64).read_to_end(&mut start)?;
        ensure!(!start.is_empty(), "it is empty");
        ensure!(
            !start.starts_with(b"version https://git-lfs"),
            "it is a Git LFS pointer; download the file with git lfs pull"
        );
        // A safetensors file begins with the length of its header, which may look like a text.
        let is_safetensors = start.get(8) == Some(&b'{');
        ensure!(
            is_safetensors || !start.trim_ascii_start().starts_with(b"<"),
            "it is a web page; check the URL that it was downloaded from"
        );
        let bytes = fs::read(path)?;
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let (tensors, content) = if is_safetensors { safetensors(bytes)? } else { pytorch(bytes)? };
        Ok(Self { tensors, sha256, content })
    }

    /// What the file says besides tensors, at a path of keys; none if there is nothing.
    pub(super) fn value(&self, path: &[&str]) -> Option<serde_json::Value> {
        match &self.content {
            Content::PyTorch(file) => file.value(path),
            Content::Safetensors(..) => None,
        }
    }

    /// The values of a tensor of this file.
    pub(super) fn read(&self, name: &str) -> anyhow::Result<ArrayD<f32>> {
        let stored = self.tensors.get(name).ok_or_else(|| anyhow!("it has no tensor `{name}`"))?;
        let values = match &self.content {
            Content::PyTorch(file) => to_f32(&stored.dtype, &file.read(name)?),
            Content::Safetensors(bytes, ranges) => {
                let range = ranges.get(name).cloned().and_then(|range| bytes.get(range));
                to_f32(&stored.dtype, range.unwrap_or_default())
            }
        };
        let values = values
            .ok_or_else(|| anyhow!("tensor `{name}` has type {}, expected F32, F64, F16 or BF16", stored.dtype))?;
        Ok(ArrayD::from_shape_vec(IxDyn(&stored.shape), values)?)
    }
}

fn safetensors(bytes: Vec<u8>) -> anyhow::Result<(StoredTensors, Content)> {
    let damaged = |error: safetensors::SafeTensorError| anyhow!("it is damaged: {error}");
    let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    if metadata.metadata().iter().flatten().any(|(key, _)| key.starts_with(OURS)) {
        bail!("it was written by `trainer` and needs no import");
    }
    // The length of the header takes 8 bytes.
    let start = 8 + header;
    let mut tensors = StoredTensors::new();
    let mut ranges = HashMap::new();
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        ranges.insert(name.clone(), start + from..start + to);
        tensors.insert(name, Stored { shape: info.shape.clone(), dtype: info.dtype.to_string() });
    }
    Ok((tensors, Content::Safetensors(bytes, ranges)))
}

fn pytorch(bytes: Vec<u8>) -> anyhow::Result<(StoredTensors, Content)> {
    use pytorch_file::Error;
    let file = PyTorchFile::new(bytes).map_err(|error| match error {
        Error::NotPyTorch => anyhow!("it is neither a PyTorch file nor safetensors"),
        Error::Harmful { .. } => anyhow!("{error}; nothing was executed; get the weights from a source that you trust"),
        Error::Empty { .. } | Error::Limit { .. } | Error::Pickle { .. } => anyhow!("{error}; {SAVE_STATE_DICT}"),
        error => anyhow!(error),
    })?;
    let stored =
        |tensor: &pytorch_file::Tensor| Stored { shape: tensor.shape().to_vec(), dtype: tensor.dtype().to_owned() };
    let tensors = file.tensors().iter().map(|(name, tensor)| (name.clone(), stored(tensor))).collect();
    Ok((tensors, Content::PyTorch(Box::new(file))))
}

/// Converts little-endian values of type `dtype` to float32; none for other types than F32, F64, F16 and BF16.
fn to_f32(dtype: &str, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const SIZE: usize>(bytes: &[u8], convert: impl Fn([u8; SIZE]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<SIZE>().0.iter().map(|number| convert(*number)).collect()
    }
    Some(match dtype {
        "F32" => each(bytes, f32::from_le_bytes),
        "F64" => each(bytes, |number| f64::from_le_bytes(number) as f32),
        "F16" => each(bytes, |number| f16::from_le_bytes(number).to_f32()),
        "BF16" => each(bytes, |number| bf16::from_le_bytes(number).to_f32()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(name: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
    }

    /// Writes a file with these bytes, opens it, and reads all of its tensors.
    fn read(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        fs::write(path, bytes)?;
        let file = WeightsFile::open(path)?;
        for (name, stored) in &file.tensors {
            let length: usize = stored.shape.iter().product();
            // Larger shapes come from damaged files; an import would refuse them before reading.
            if length < 1 << 16 {
                file.read(name)?;
            }
        }
        Ok(())
    }

    #[test]
    fn truncated_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.pth");
        for name in
            ["state_dict.pth", "legacy.pth", "module.pth", "legacy_module.pth", "backbone.pth", "detectron2.pkl"]
        {
            let bytes = data(name);
            read(&path, &bytes).unwrap();
            for length in (0..bytes.len()).step_by(bytes.len() / 100) {
                assert!(read(&path, &bytes[..length]).is_err(), "{name} of {length} bytes");
            }
        }
    }

    #[test]
    fn flipped_bits_never_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.pth");
        for name in ["state_dict.pth", "legacy.pth", "legacy_module.pth", "detectron2.pkl"] {
            let bytes = data(name);
            for index in (0..bytes.len()).step_by(bytes.len() / 300) {
                let mut changed = bytes.clone();
                changed[index] ^= 1 << (index % 8);
                // The file may still be valid.
                let _ = read(&path, &changed);
            }
        }
    }

    #[test]
    fn safetensors_are_read_also_if_the_length_of_their_header_looks_like_a_web_page() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let a = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        let b = r#""b":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}"#;
        let header = format!("{{{a},{b}}}");
        let numbers = [1.5f32.to_le_bytes().as_slice(), &f16::ONE.to_le_bytes(), &f16::NEG_ONE.to_le_bytes()].concat();
        // Little-endian, these begin with `<` and with a line feed and `<`.
        for length in [0x013C_u64, 0x3C0A] {
            let padded = format!("{header:<width$}", width = length as usize);
            fs::write(&path, [length.to_le_bytes().as_slice(), padded.as_bytes(), &numbers].concat()).unwrap();
            let file = WeightsFile::open(&path).unwrap();
            assert_eq!(file.read("a").unwrap().into_raw_vec_and_offset().0, [1.5]);
            assert_eq!(file.read("b").unwrap().into_raw_vec_and_offset().0, [1.0, -1.0]);
        }
    }

    #[test]
    fn every_float_type_is_converted_to_float32() {
        assert_eq!(to_f32("F32", &1.5f32.to_le_bytes()).unwrap(), [1.5]);
        assert_eq!(to_f32("F64", &(-0.1f64).to_le_bytes()).unwrap(), [-0.1]);
        assert_eq!(to_f32("F16", &f16::from_f32(0.25).to_le_bytes()).unwrap(), [0.25]);
        assert_eq!(to_f32("BF16", &bf16::from_f32(-3.0).to_le_bytes()).unwrap(), [-3.0]);
        assert_eq!(to_f32("I64", &[0; 8]), None);
    }
}
