//! Errors of checkpoints.

use std::path::PathBuf;
use std::{fmt, io};

use crate::spec::SpecError;
use crate::weights::WeightsError;

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error("checkpoint `{}`: {error}", path.display())]
    Io {
        /// The checkpoint.
        path: PathBuf,
        /// The error of the file system.
        error: io::Error,
    },
    /// The file is not a safetensors file, or is truncated.
    #[error("`{}` is damaged or not a safetensors file: {detail}", path.display())]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The file was not written by this program.
    #[error("`{}` is not a checkpoint: {detail}; pass a file written by `trainer fit` or `trainer import`", path.display())]
    NotCheckpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The file contains a backbone, but a detector is needed.
    #[error("`{}` is a backbone; train a detector from it with `trainer fit --weights {}`", path.display(), path.display())]
    Backbone {
        /// The file.
        path: PathBuf,
    },
    /// The spec in the file is invalid.
    #[error("the spec in `{}` is invalid: {error}", path.display())]
    Spec {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        error: SpecError,
    },
    /// The tensors do not match the spec's network.
    #[error("the tensors in `{}` do not match its spec:{problems}", path.display())]
    Tensors {
        /// The checkpoint.
        path: PathBuf,
        /// All of the differences.
        problems: TensorProblems,
    },
}

/// Differences between the tensors of a file and those of a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorProblems {
    /// In the network only.
    pub missing: Vec<String>,
    /// In the file only.
    pub unexpected: Vec<String>,
    /// In both, with different shapes.
    pub wrong_shape: Vec<WeightsError>,
}

impl TensorProblems {
    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.wrong_shape.is_empty()
    }
}

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.missing.iter().try_for_each(|name| write!(f, "\n  missing: {name}"))?;
        self.unexpected.iter().try_for_each(|name| write!(f, "\n  unexpected: {name}"))?;
        self.wrong_shape.iter().try_for_each(|problem| write!(f, "\n  wrong shape: {problem}"))
    }
}
