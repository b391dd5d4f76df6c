//! Sections of the spec check themselves: whenever they are read, from YAML, a checkpoint, an ONNX file or a training
//! configuration. Specs that were changed in code are checked where a network is built from them.

use std::fmt::Debug;
use std::ops::RangeInclusive;

/// The version of the spec format that this program writes. It also reads the older ones.
pub const FORMAT: u32 = 2;

/// Why a spec is invalid.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not YAML, an unknown key, or an invalid value; the message contains key and line.
    #[error("{0}")]
    Yaml(#[from] serde_yaml::Error),
    /// The spec was written by a newer version of this program.
    #[error("the spec has format {found}, this program reads up to {}; update this program", FORMAT)]
    Format {
        /// Its format.
        found: u32,
    },
    /// A value is out of range.
    #[error("`{field}` is {found}, expected {expected}")]
    Value {
        /// Path of the field, such as `backbone.depth`.
        field: String,
        /// Its value.
        found: String,
        /// Its valid values.
        expected: String,
    },
    /// There is no preset of that name.
    #[error("unknown preset `{name}`; presets: {known}")]
    Preset {
        /// The requested name.
        name: String,
        /// The names of all presets.
        known: String,
    },
}

impl SpecError {
    /// The same error, for a field inside `section`.
    pub(super) fn inside(self, section: &str) -> Self {
        match self {
            Self::Value { field, found, expected } => {
                Self::Value { field: format!("{section}.{field}"), found, expected }
            }
            other => other,
        }
    }
}

/// A part of the spec with rules for its values.
pub(crate) trait Section: Sized {
    /// Checks all rules.
    ///
    /// # Errors
    /// With the first field that violates one.
    fn check(&self) -> Result<(), SpecError>;

    /// What was read, converted to the current format.
    fn converted(self) -> Self {
        self
    }
}

/// Implements reading with checks, and writing, for sections that derive both with `#[serde(remote = "Self")]`.
macro_rules! checked {
    ($section:ident) => {
        impl serde::Serialize for $section {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Self::serialize(self, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $section {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                /// Checks while the deserializer is inside the section, so that errors have its path and line.
                struct Reader;

                impl<'de> serde::de::Visitor<'de> for Reader {
                    type Value = $section;

                    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                        f.write_str(concat!("a section with the keys of `", stringify!($section), "`"))
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<$section, A::Error> {
                        let map = serde::de::value::MapAccessDeserializer::new(map);
                        let section = crate::spec::section::Section::converted($section::deserialize(map)?);
                        section.check().map_err(serde::de::Error::custom)?;
                        Ok(section)
                    }
                }

                deserializer.deserialize_map(Reader)
            }
        }
    };
}

pub(super) use checked;

/// A rule: `field` with the value `found` is valid.
pub(super) fn ensure(valid: bool, field: &str, found: impl Debug, expected: &str) -> Result<(), SpecError> {
    if valid {
        return Ok(());
    }
    Err(SpecError::Value { field: field.to_owned(), found: format!("{found:?}"), expected: expected.to_owned() })
}

/// A rule: all numbers of `field` are in `range`, and a list is not empty.
pub(super) fn within(field: &str, found: &impl Numbers, range: RangeInclusive<f64>) -> Result<(), SpecError> {
    let numbers = match range.end().is_finite() {
        true => format!("{} to {}", range.start(), range.end()),
        false => format!("at least {}", range.start()),
    };
    ensure(found.are_within(&range), field, found, &(numbers + found.alternative()))
}

/// A number, a list of numbers, or none.
pub(super) trait Numbers: Debug {
    fn are_within(&self, range: &RangeInclusive<f64>) -> bool;

    /// What is valid besides numbers.
    fn alternative(&self) -> &'static str {
        ""
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl Numbers for $number {
            fn are_within(&self, range: &RangeInclusive<f64>) -> bool {
                range.contains(&(*self as f64))
            }
        })*
    };
}

numbers!(f32, f64, u32, usize);

impl<T: Numbers> Numbers for Vec<T> {
    fn are_within(&self, range: &RangeInclusive<f64>) -> bool {
        !self.is_empty() && self.iter().all(|number| number.are_within(range))
    }
}

impl<T: Numbers, const N: usize> Numbers for [T; N] {
    fn are_within(&self, range: &RangeInclusive<f64>) -> bool {
        self.iter().all(|number| number.are_within(range))
    }
}

impl<T: Numbers> Numbers for Option<T> {
    fn are_within(&self, range: &RangeInclusive<f64>) -> bool {
        self.as_ref().is_none_or(|numbers| numbers.are_within(range))
    }

    fn alternative(&self) -> &'static str {
        ", or null"
    }
}
