//! `run.batch_size`: a number of images, or the largest that fits.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// Images per batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub enum BatchSize {
    /// This number, at least 1.
    Images(usize),
    /// The largest number with which training fits in the memory of the device; `fit` finds it.
    Auto,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number of images, or `auto`")]
enum Text {
    /// A number of images.
    Images(#[schemars(range(min = 1))] usize),
    Word(Word),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Word {
    Auto,
}

impl TryFrom<Text> for BatchSize {
    type Error = &'static str;

    fn try_from(text: Text) -> Result<Self, Self::Error> {
        match text {
            Text::Images(0) => Err("expected at least 1 image, or `auto`"),
            Text::Images(images) => Ok(Self::Images(images)),
            Text::Word(Word::Auto) => Ok(Self::Auto),
        }
    }
}

impl From<BatchSize> for Text {
    fn from(size: BatchSize) -> Self {
        match size {
            BatchSize::Images(images) => Self::Images(images),
            BatchSize::Auto => Self::Word(Word::Auto),
        }
    }
}

impl JsonSchema for BatchSize {
    fn schema_name() -> Cow<'static, str> {
        "BatchSize".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Text::json_schema(generator)
    }
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
        for wrong in ["0", "-1", "2.5", "all", "[1]", "null"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains("expected") && error.contains("`auto`"), "{wrong}: {error}");
        }
    }
}
