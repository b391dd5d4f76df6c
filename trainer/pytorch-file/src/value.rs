//! The values of a pickle, in an arena: no value owns another one, so nothing recurses, however deep they are nested.

use std::ops::Range;

/// Index of a value.
pub(crate) type Id = usize;

/// A value. Texts and bytes are ranges of the pickle, so values that occur often take no memory twice.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// None, and everything that weights do not need.
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// UTF-8, which was checked.
    Text(Range<usize>),
    Bytes(Range<usize>),
    /// Bytes that are stored as the UTF-8 of the Latin-1 characters with their values.
    Latin1(Range<usize>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// The name of a class or function.
    Global(Global),
    /// What a call of a function or class returns that is unknown here. It is not called.
    Object(Object),
    Storage(Storage),
    Tensor(Tensor),
    /// numpy's type of array elements.
    Dtype(Dtype),
    /// numpy's array before its state is set.
    Array,
}

impl Value {
    /// Number of its entries; of a tensor, of its sizes and strides.
    pub(crate) fn entries(&self) -> usize {
        match self {
            Self::Tuple(elements) | Self::List(elements) => elements.len(),
            Self::Dict(items) => items.len(),
            Self::Tensor(tensor) => tensor.shape.len() + tensor.strides.len(),
            _ => 0,
        }
    }
}

/// Module and name of a class or function, both UTF-8.
#[derive(Clone, Debug)]
pub(crate) struct Global {
    pub(crate) module: Range<usize>,
    pub(crate) name: Range<usize>,
}

/// An instance of a class that is not available.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object {
    /// What Python would assign to its attributes.
    pub(crate) state: Option<Id>,
    /// Its entries, if it is a dictionary.
    pub(crate) items: Vec<(Id, Id)>,
}

/// Memory that tensors share.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// Its name: UTF-8.
    pub(crate) key: Range<usize>,
    pub(crate) dtype: Dtype,
    /// Number of elements.
    pub(crate) count: usize,
    /// First element of a part of another storage; files of old versions have such parts.
    pub(crate) first: usize,
}

/// A tensor. Element `i, j, ..` is at `offset + i * strides[0] + j * strides[1] + ..`.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) data: Data,
    pub(crate) dtype: Dtype,
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// Where the elements of a tensor are.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Storage(Storage),
    /// Bytes of the pickle.
    Inline(Range<usize>),
    /// As [`Value::Latin1`].
    Latin1(Range<usize>),
}

/// Type of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dtype {
    /// As safetensors calls it.
    pub(crate) name: &'static str,
    /// Bytes per element.
    pub(crate) size: usize,
    /// Whether the most significant byte comes first.
    pub(crate) big_endian: bool,
}

impl Dtype {
    const fn new(name: &'static str, size: usize) -> Self {
        Self { name, size, big_endian: false }
    }

    /// The elements of a storage class of PyTorch; none for unknown ones.
    pub(crate) fn of_storage(class: &str) -> Option<Self> {
        Some(match class.strip_suffix("Storage")? {
            "Double" => Self::new("F64", 8),
            "Float" => Self::new("F32", 4),
            "Half" => Self::new("F16", 2),
            "BFloat16" => Self::new("BF16", 2),
            "Long" => Self::new("I64", 8),
            "Int" => Self::new("I32", 4),
            "Short" => Self::new("I16", 2),
            "Char" => Self::new("I8", 1),
            "Byte" | "Untyped" => Self::new("U8", 1),
            "Bool" => Self::new("BOOL", 1),
            "ComplexFloat" => Self::new("C64", 8),
            "ComplexDouble" => Self::new("C128", 16),
            _ => return None,
        })
    }

    /// The type that numpy calls `code`, such as `f4`; none for unknown ones.
    pub(crate) fn of_numpy(code: &str) -> Option<Self> {
        let (big_endian, code) = match code.as_bytes().first() {
            Some(b'>') => (true, &code[1..]),
            Some(b'<' | b'|' | b'=') => (false, &code[1..]),
            _ => (false, code),
        };
        let dtype = match code {
            "f8" => Self::new("F64", 8),
            "f4" => Self::new("F32", 4),
            "f2" => Self::new("F16", 2),
            "i8" => Self::new("I64", 8),
            "i4" => Self::new("I32", 4),
            "i2" => Self::new("I16", 2),
            "i1" => Self::new("I8", 1),
            "u1" => Self::new("U8", 1),
            "b1" => Self::new("BOOL", 1),
            _ => return None,
        };
        Some(Self { big_endian, ..dtype })
    }
}
