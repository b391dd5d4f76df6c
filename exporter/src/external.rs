//! External data: the large constants of a model in a file beside it, for models that are too large for one, and for
//! engines that map weights into memory.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use models::AtomicFile;
use sha2::{Digest, Sha256};

use crate::onnx::{DATA_IS_EXTERNAL, GraphProto, StringStringEntryProto};

/// Constants of fewer bytes stay in the model.
const SMALLEST: usize = 1024;

/// Constants begin at multiples of this, so that they can be mapped into memory.
const ALIGNMENT: usize = 4096;

/// Large constants in a file beside the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct External {
    /// Name of the file. It follows from the content, so that no model can meet the constants of another one.
    name: String,
    bytes: Vec<u8>,
}

impl External {
    /// Takes the large constants out of `graph`; the file's name begins with `stem`.
    pub(crate) fn take_from(graph: &mut GraphProto, stem: &str) -> Self {
        let mut bytes = Vec::new();
        let mut places = Vec::new();
        for (index, constant) in graph.initializer.iter_mut().enumerate() {
            if constant.raw_data.len() >= SMALLEST {
                bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
                let data = std::mem::take(&mut constant.raw_data);
                places.push((index, bytes.len(), data.len()));
                bytes.extend_from_slice(&data);
            }
        }
        let hash = Sha256::digest(&bytes);
        let name = format!("{stem}-{:02x}{:02x}{:02x}{:02x}.bin", hash[0], hash[1], hash[2], hash[3]);
        for (index, offset, length) in places {
            let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
            let constant = &mut graph.initializer[index];
            constant.data_location = DATA_IS_EXTERNAL;
            constant.external_data = vec![
                entry("location", name.clone()),
                entry("offset", offset.to_string()),
                entry("length", length.to_string()),
            ];
        }
        Self { name, bytes }
    }

    /// Writes the file into `folder`, for a model that is still to be proven.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<ExternalFile> {
        let path = folder.join(&self.name);
        // The name says what is in it, so that one that is there belongs to an earlier export of the same weights.
        let is_new = !path.exists();
        let mut file = AtomicFile::create(&path)?;
        file.write_all(&self.bytes)?;
        file.commit()?;
        Ok(ExternalFile { path, bytes: self.bytes.len(), is_new })
    }
}

/// External data on the disk. It goes away with its model, unless it was there before.
#[derive(Debug)]
pub(crate) struct ExternalFile {
    path: PathBuf,
    bytes: usize,
    is_new: bool,
}

impl ExternalFile {
    /// Keeps the file. Says its size.
    pub(crate) fn keep(mut self) -> usize {
        self.is_new = false;
        self.bytes
    }
}

impl Drop for ExternalFile {
    fn drop(&mut self) {
        if self.is_new {
            // Nothing can be done about one that stays: its model does not exist.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::TensorProto;

    fn constant(name: &str, raw_data: Vec<u8>) -> TensorProto {
        TensorProto { name: name.to_owned(), raw_data: raw_data.into(), ..TensorProto::default() }
    }

    #[test]
    fn large_constants_move_and_can_be_found_again() {
        let [large, larger] = [vec![7; 1024], (0..10_000).map(|i| i as u8).collect::<Vec<_>>()];
        let initializer =
            vec![constant("a", large.clone()), constant("b", vec![1; 1023]), constant("c", larger.clone())];
        let mut graph = GraphProto { initializer, ..GraphProto::default() };
        let external = External::take_from(&mut graph, "model");
        let [a, b, c] = &graph.initializer[..] else { panic!() };
        assert!(b.external_data.is_empty() && b.raw_data.len() == 1023 && b.data_location != DATA_IS_EXTERNAL);
        for (constant, expected) in [(a, &large), (c, &larger)] {
            assert!(constant.raw_data.is_empty() && constant.data_location == DATA_IS_EXTERNAL);
            let value = |key: &str| &constant.external_data.iter().find(|entry| entry.key == key).unwrap().value;
            let [offset, length] = ["offset", "length"].map(|key| value(key).parse::<usize>().unwrap());
            assert!(offset.is_multiple_of(4096) && &external.bytes[offset..offset + length] == expected);
            assert_eq!(value("location"), &external.name);
        }
        assert!(external.name.starts_with("model-") && external.name.ends_with(".bin"));
    }

    #[test]
    fn a_file_goes_with_its_model_unless_it_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let external = External { name: "model-1.bin".to_owned(), bytes: vec![1, 2, 3] };
        let path = folder.path().join("model-1.bin");
        drop(external.write(folder.path()).unwrap());
        assert!(!path.exists());
        assert_eq!(external.write(folder.path()).unwrap().keep(), 3);
        drop(external.write(folder.path()).unwrap());
        assert_eq!(fs::read(&path).unwrap(), [1, 2, 3]);
    }
}
