//! Why a file cannot be read.

/// Why a file cannot be read. Positions count bytes of the pickle, which is the file itself unless that is a zip file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It begins neither like a zip file nor like a pickle.
    #[error("it is not a PyTorch file")]
    NotPyTorch,
    /// It is a zip file without a pickle.
    #[error("it is a zip file, but not a PyTorch file; if it contains a weights file, unpack it first")]
    OtherZip,
    /// It was written on a big-endian machine.
    #[error("its numbers are big-endian; save it again on a little-endian machine")]
    BigEndian,
    /// The zip file is damaged.
    #[error("it is damaged: {0}")]
    Zip(#[from] zip::result::ZipError),
    /// The zip file cannot be read to its end.
    #[error("it is damaged: {0}")]
    Io(#[from] std::io::Error),
    /// It ends too early.
    #[error("it is damaged: {what} at byte {position} exceeds its end")]
    Truncated {
        /// What exceeds the end.
        what: &'static str,
        /// Where that begins.
        position: usize,
    },
    /// The pickle contradicts itself.
    #[error("it is damaged: byte {position} of its pickle: {what}")]
    Pickle {
        /// What is wrong.
        what: String,
        /// Where.
        position: usize,
    },
    /// The pickle exceeds a bound that weights stay far below.
    #[error("its pickle has {what}, more than weights have")]
    Limit {
        /// What there is too much of.
        what: &'static str,
    },
    /// Its entries or tensors are far larger than the file.
    #[error("it expands to more than {} MiB, over 64 times its size, which weights never do", max >> 20)]
    Expanded {
        /// Bound on their bytes.
        max: usize,
    },
    /// Loading the file with Python would call a function that runs commands or changes files.
    #[error(
        "its pickle refers to `{name}`, which weights never need: loading it with Python may run commands or change files"
    )]
    Harmful {
        /// Module and name.
        name: String,
    },
    /// A tensor lies outside its storage.
    #[error("it is damaged: tensor `{name}` {what}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// There is no such tensor.
    #[error("it has no tensor `{0}`")]
    Absent(String),
    /// It contains no tensor.
    #[error("it contains no tensors{}", if globals.is_empty() { String::new() } else { format!(", only {globals}") })]
    Empty {
        /// Classes and functions to which it refers.
        globals: String,
    },
}
