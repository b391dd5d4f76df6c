//! The tensors of a file, known by name and shape.

use std::collections::BTreeMap;

/// A tensor in a file whose values have not been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Type of its values, as safetensors calls it: `F32`, `BF16`.
    pub dtype: String,
}

/// The tensors of a file, by their names in the file.
pub type StoredTensors = BTreeMap<String, Stored>;

/// The tensors whose names start with `prefix`, by their names without it.
pub(super) fn part<'a>(tensors: &'a StoredTensors, prefix: &str) -> BTreeMap<&'a str, &'a Stored> {
    tensors.iter().filter_map(|(name, stored)| Some((name.strip_prefix(prefix)?, stored))).collect()
}

/// The first ten names in backticks, and the number of the others.
pub(super) fn some_names(tensors: &StoredTensors) -> String {
    const SHOWN: usize = 10;
    let rest = tensors.len().saturating_sub(SHOWN);
    let mut list: Vec<_> = tensors.keys().take(SHOWN).map(|name| format!("`{name}`")).collect();
    if rest > 0 {
        list.push(format!("{rest} more"));
    }
    list.join(", ")
}
