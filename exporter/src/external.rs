//! External data: the large constants of a model in a separate file next to it, for models over 2 GB and for engines
//! that map weights into memory.

use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::onnx::{DATA_IS_EXTERNAL, GraphProto, StringStringEntryProto};

/// Minimum size in bytes of the constants that are moved; smaller ones stay in the model.
const MIN_BYTES: usize = 1024;

/// Alignment of the constants in bytes, for mapping them into memory.
const ALIGNMENT: usize = 4096;

/// The large constants of a model, for a separate file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct External {
    /// Name of the file. It contains a hash of the content, so that no model is loaded with another model's constants.
    pub(crate) name: String,
    bytes: Vec<u8>,
}

impl External {
    /// Moves the large constants out of `graph`. The file name starts with `stem`.
    pub(crate) fn take_from(graph: &mut GraphProto, stem: &str) -> Self {
        let mut bytes = Vec::new();
        let mut moved = Vec::new();
        for (index, constant) in graph.initializer.iter_mut().enumerate() {
            if constant.raw_data.len() >= MIN_BYTES {
                bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
                let data = std::mem::take(&mut constant.raw_data);
                moved.push((index, bytes.len(), data.len()));
                bytes.extend_from_slice(&data);
            }
        }
        let hash = Sha256::digest(&bytes);
        let name = format!("{stem}-{:02x}{:02x}{:02x}{:02x}.bin", hash[0], hash[1], hash[2], hash[3]);
        for (index, offset, length) in moved {
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

    /// Writes the file into `folder`. Returns its size in bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<usize> {
        fs::write(folder.join(&self.name), &self.bytes)?;
        Ok(self.bytes.len())
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
    fn large_constants_are_at_the_declared_offsets_of_the_file() {
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
}
