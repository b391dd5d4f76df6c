//! Reads tensors from PyTorch files and pickles, and executes nothing in them.
//!
//! The formats: zip files of PyTorch 1.6 and later, the files of earlier versions, and pickles of numpy arrays, as Detectron2's
//! model zoo has them. What is in them may be a state dict, a dict that contains one, or a whole module.
//!
//! A pickle is a program: Python executes it, and may call any function that it names. Here it builds data only. Classes and
//! functions are names; those that stand for tensors, arrays and dictionaries are known (`call.rs`), all others become
//! objects without behavior.

mod call;
mod error;
mod names;
mod pickle;
mod value;

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::ops::Range;
use std::sync::Arc;

use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

use pickle::{Pickle, text, word};
use value::{Data, Dtype, Storage, Value};

pub use error::Error;

/// Bytes with which the files of PyTorch before 1.6 begin: a pickle of the number 0x1950a86a20f9469cfc6c.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Bound on a compressed pickle, whose instructions take longer than bytes of tensors; PyTorch does not compress.
const MAX_COMPRESSED: usize = 16 << 20;

/// An open file.
pub struct PyTorchFile {
    file: Vec<u8>,
    /// The pickle, if it is not the file itself.
    entry: Option<Vec<u8>>,
    pickle: Pickle,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    dtype: Dtype,
    source: Source,
    offset: usize,
    strides: Vec<usize>,
}

/// Where the elements of a tensor are.
#[derive(Clone, Debug)]
enum Source {
    File(Range<usize>),
    Pickle(Range<usize>),
    /// UTF-8 of the characters with the values of the bytes, in the pickle.
    Latin1(Range<usize>),
    /// The content of a compressed entry of the zip file.
    Unpacked(Arc<Vec<u8>>),
}

impl Source {
    fn bytes<'a>(&'a self, file: &'a [u8], pickle: &'a [u8]) -> &'a [u8] {
        let bytes = match self {
            Self::File(range) => file.get(range.clone()),
            Self::Pickle(range) | Self::Latin1(range) => pickle.get(range.clone()),
            Self::Unpacked(bytes) => Some(bytes.as_slice()),
        };
        bytes.unwrap_or_default()
    }
}

impl Tensor {
    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of the elements, as safetensors calls it: `F32`, `BF16`.
    pub fn dtype(&self) -> &'static str {
        self.dtype.name
    }
}

impl PyTorchFile {
    /// Reads the names, types and shapes in the content of a file, and checks that the elements are there.
    ///
    /// # Errors
    /// When it is no PyTorch file, or damaged; when a pickle exceeds the bounds of what weights need, or names a function that
    /// would run programs; when compressed entries, or all tensors together, are far larger than the file; when there
    /// is no tensor.
    pub fn new(file: Vec<u8>) -> Result<Self, Error> {
        if file.starts_with(b"PK\x03\x04") || file.starts_with(b"PK\x05\x06") {
            return Self::zip(file);
        }
        if file.starts_with(LEGACY) {
            return Self::legacy(file);
        }
        // A pickle of protocol 2 or later, or one that begins with a dictionary.
        let is_pickle = matches!(file.as_slice(), [0x80, 2..=5, ..] | [b'(', b'd', ..] | [b'}', b'q', ..]);
        if !is_pickle {
            return Err(Error::NotPyTorch);
        }
        let pickle = Pickle::read(&file, 0)?;
        Self::resolved(file, None, pickle, |_| None)
    }

    fn zip(file: Vec<u8>) -> Result<Self, Error> {
        // The archive begins with the file. `Detect` would guess, and guess wrong where a name's length makes PyTorch's
        // padding look like a directory.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut archive = ZipArchive::with_config(config, Cursor::new(file.as_slice()))?;
        let roots = archive.file_names().filter_map(|name| Some(name.ok()?.strip_suffix("data.pkl")?.to_owned()));
        let root = roots.min_by_key(String::len).ok_or(Error::OtherZip)?;
        let max = max_expanded(&file);
        let mut rest = max;
        let mut entries = HashMap::new();
        for index in 0..archive.len() {
            let entry = archive.by_index(index)?;
            let Some(name) = entry.name()?.strip_prefix(&root).map(str::to_owned) else { continue };
            let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
            let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
            let source = match start.filter(|_| entry.compression() == zip::CompressionMethod::Stored) {
                Some(start) => {
                    let end = start.checked_add(size).filter(|end| *end <= file.len());
                    Source::File(start..end.ok_or(Error::Truncated { what: "an entry", position: start })?)
                }
                None => {
                    let size = if name == "data.pkl" { size.min(MAX_COMPRESSED) } else { size };
                    rest = rest.checked_sub(size).ok_or(Error::Expanded { max })?;
                    let mut bytes = Vec::new();
                    entry.take(size as u64).read_to_end(&mut bytes)?;
                    Source::Unpacked(Arc::new(bytes))
                }
            };
            entries.insert(name, source);
        }
        let content = |name: &str| entries.get(name).map(|source| source.bytes(&file, &[])).unwrap_or_default();
        if content("byteorder").starts_with(b"big") {
            return Err(Error::BigEndian);
        }
        let pickled = content("data.pkl").to_vec();
        let pickle = Pickle::read(&pickled, 0)?;
        Self::resolved(file, Some(pickled), pickle, |key| entries.get(&format!("data/{key}")).cloned())
    }

    /// Reads a file of PyTorch before 1.6: magic number, protocol, system, the pickle, the storages' keys, and for each of
    /// these the number of its elements and their bytes.
    fn legacy(file: Vec<u8>) -> Result<Self, Error> {
        let protocol = Pickle::read(&file, LEGACY.len())?;
        let system = Pickle::read(&file, protocol.end)?;
        let little = names::json(&system, &file, &["little_endian"]);
        if little == Some(serde_json::Value::Bool(false)) {
            return Err(Error::BigEndian);
        }
        let pickle = Pickle::read(&file, system.end)?;
        let keys = Pickle::read(&file, pickle.end)?;
        let sizes = pickle.values.iter().filter_map(|value| match value {
            Value::Storage(Storage { key, dtype, .. }) => Some((text(&file, key), dtype.size)),
            _ => None,
        });
        let sizes = sizes.collect::<HashMap<_, _>>();
        let mut storages = HashMap::new();
        let mut position = keys.end;
        let Value::List(list) = &keys.values[keys.root] else {
            return Err(Error::Truncated { what: "the list of storages", position: pickle.end });
        };
        for key in list {
            let Some(key) = word(&file, &keys.values[*key]) else { continue };
            let truncated = Error::Truncated { what: "a storage", position };
            let Some(count) = file.get(position..).and_then(|rest| rest.first_chunk::<8>()) else {
                return Err(truncated);
            };
            let size = *sizes.get(key).ok_or_else(|| Error::Pickle {
                what: format!("storage `{key}` has an unknown type"),
                position: pickle.end,
            })?;
            let length = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|count| count.checked_mul(size));
            let start = position + 8;
            let end = length.and_then(|length| start.checked_add(length)).filter(|end| *end <= file.len());
            let Some(end) = end else { return Err(truncated) };
            storages.insert(key.to_owned(), Source::File(start..end));
            position = end;
        }
        Self::resolved(file, None, pickle, |key| storages.get(key).cloned())
    }

    /// Names the tensors of a pickle, and finds their elements. `storages` returns the bytes of a storage.
    fn resolved(
        file: Vec<u8>,
        entry: Option<Vec<u8>>,
        pickle: Pickle,
        storages: impl Fn(&str) -> Option<Source>,
    ) -> Result<Self, Error> {
        let bytes = entry.as_ref().unwrap_or(&file);
        let max = max_expanded(&file);
        let mut rest = max;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in names::tensors(&pickle, bytes)? {
            let wrong = |what: &str| Error::Tensor { name: name.clone(), what: what.to_owned() };
            let size = tensor.shape.iter().try_fold(tensor.dtype.size, |size: usize, side| size.checked_mul(*side));
            let size = size.filter(|size| *size <= rest).ok_or(Error::Expanded { max })?;
            rest -= size;
            let (source, first, count) = match &tensor.data {
                Data::Inline(range) => (Source::Pickle(range.clone()), 0, None),
                Data::Latin1(range) => (Source::Latin1(range.clone()), 0, None),
                Data::Storage(Storage { key, count, first, .. }) => {
                    let source = storages(text(bytes, key)).ok_or_else(|| wrong("has no storage"))?;
                    (source, *first, Some(*count))
                }
            };
            let length = match &source {
                // A byte takes two at most, so the rest of the text would be unused. Otherwise many small arrays could
                // share a long text, which is decoded for each.
                Source::Latin1(range) if range.len() > 2 * size => return Err(wrong("is smaller than its text")),
                Source::Latin1(range) => text(bytes, range).chars().count(),
                source => source.bytes(&file, bytes).len(),
            };
            let available = (length / tensor.dtype.size).saturating_sub(first);
            let available = count.map_or(available, |count| count.min(available));
            if extent(tensor).is_none_or(|extent| extent > available) {
                return Err(wrong("exceeds its storage"));
            }
            let value::Tensor { dtype, offset, shape, strides, .. } = tensor.clone();
            tensors.insert(name, Tensor { shape, dtype, source, offset: first + offset, strides });
        }
        if tensors.is_empty() {
            return Err(Error::Empty { globals: names::globals(&pickle, bytes) });
        }
        Ok(Self { entry, tensors, file, pickle })
    }

    /// The tensors, by name: the keys and attributes that lead to them, joined by dots.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// What is not a tensor, at a path of keys and attributes: dictionaries, lists, texts and numbers. None if there is no
    /// such value, or if it is larger than 16 MiB.
    pub fn value(&self, path: &[&str]) -> Option<serde_json::Value> {
        names::json(&self.pickle, self.entry.as_ref().unwrap_or(&self.file), path)
    }

    /// The elements of a tensor in row-major order, as little-endian bytes.
    ///
    /// # Errors
    /// When there is no such tensor, or it is damaged.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::Absent(name.to_owned()))?;
        let wrong = |what: &str| Error::Tensor { name: name.to_owned(), what: what.to_owned() };
        let pickle = self.entry.as_ref().unwrap_or(&self.file);
        let decoded: Vec<u8>;
        let bytes = match &tensor.source {
            Source::Latin1(range) => {
                let letters = text(pickle, range).chars().map(|letter| u8::try_from(u32::from(letter)).ok());
                decoded = letters.collect::<Option<_>>().ok_or_else(|| wrong("has letters that are no bytes"))?;
                &decoded
            }
            source => source.bytes(&self.file, pickle),
        };
        tensor.gather(bytes).ok_or_else(|| wrong("exceeds its storage"))
    }
}

/// Bound on the bytes of all compressed entries, and on those of all tensors, which may repeat an element often.
fn max_expanded(file: &[u8]) -> usize {
    file.len().saturating_mul(64).max(1 << 30)
}

/// Number of elements that the storage of a tensor has at least; none if that overflows.
fn extent(tensor: &value::Tensor) -> Option<usize> {
    if tensor.shape.contains(&0) {
        return Some(0);
    }
    let steps = tensor.shape.iter().zip(&tensor.strides);
    let mut last = steps.map(|(size, stride)| (size - 1).checked_mul(*stride));
    let last = last.try_fold(tensor.offset, |sum, step| sum.checked_add(step?));
    last?.checked_add(1)
}

impl Tensor {
    /// The elements in row-major order, from the bytes of the storage.
    fn gather(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let size = self.dtype.size;
        let count = self.shape.iter().try_fold(1, |count: usize, side| count.checked_mul(*side))?;
        let mut elements = Vec::new();
        elements.try_reserve_exact(count.checked_mul(size)?).ok()?;
        if count > 0 {
            self.append(bytes, 0, self.offset, &mut elements)?;
        }
        if self.dtype.big_endian {
            elements.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        Some(elements)
    }

    /// Appends the elements of the dimensions from `axis` on that begin at element `start`.
    fn append(&self, bytes: &[u8], axis: usize, start: usize, elements: &mut Vec<u8>) -> Option<()> {
        let size = self.dtype.size;
        let contiguous = (axis..self.shape.len())
            .rev()
            .try_fold(1, |expected: usize, axis| (self.strides[axis] == expected).then(|| expected * self.shape[axis]));
        if let Some(count) = contiguous {
            elements.extend_from_slice(bytes.get(start * size..(start + count) * size)?);
            return Some(());
        }
        (0..self.shape[axis])
            .try_for_each(|index| self.append(bytes, axis + 1, start + index * self.strides[axis], elements))
    }
}

#[cfg(test)]
mod tests;
