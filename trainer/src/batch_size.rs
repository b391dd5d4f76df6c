//! `run.batch_size`: a number of images, or the largest that fits.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Images per batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", expecting = "expected a number of images, or `auto`")]
pub enum BatchSize {
    /// The largest number with which training fits in the memory of the device; `fit` finds it.
    Auto,
    /// This number, at least 1.
    #[serde(untagged)]
    Images(#[schemars(range(min = 1))] usize),
}

impl fmt::Display for BatchSize {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Images(images) => images.fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl BatchSize {
    /// The number of images.
    ///
    /// # Panics
    /// When it is `auto`; `fit` replaces that before it uses it.
    pub fn images(self) -> usize {
        match self {
            Self::Images(images) => images,
            Self::Auto => panic!("`run.batch_size: auto` is replaced before training starts"),
        }
    }

    /// This number, or `known` in place of `auto`.
    pub(crate) fn or(self, known: Self) -> Self {
        if self == Self::Auto { known } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_sizes_are_numbers_or_auto() {
        let parse = |text: &str| serde_yaml::from_str::<BatchSize>(text).map_err(|error| error.to_string());
        for (text, expected) in [("8", BatchSize::Images(8)), ("auto", BatchSize::Auto)] {
            assert_eq!(parse(text), Ok(expected));
            assert_eq!(serde_yaml::to_string(&expected).unwrap().trim(), text);
        }
        for wrong in ["-1", "2.5", "all", "[1]", "null"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains("expected") && error.contains("`auto`"), "{wrong}: {error}");
        }
    }
}
