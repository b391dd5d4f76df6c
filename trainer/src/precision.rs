//! The data type of convolutions in training.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

/// Data type of convolutions in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    Float32,
    /// bfloat16: faster if the CPU or GPU has instructions for it. It has the range of float32.
    Bfloat16,
    /// float16 with a loss scaler (`LossScaler`), for GPUs without bfloat16: more digits than bfloat16, less range.
    Float16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        })
    }
}

impl Precision {
    /// libtorch's data type.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            Self::Bfloat16 => Kind::BFloat16,
            Self::Float16 => Kind::Half,
        }
    }

    /// What to say about this choice on `device`, which has fast instructions for the data types `fast`, best first, and
    /// for float32; `None` if it is a good one.
    pub(crate) fn advice(self, device: &str, fast: &[Self]) -> Option<String> {
        if fast.contains(&self) {
            return None;
        }
        match (self, fast) {
            (Self::Float32, []) => None,
            (Self::Float32, [best, ..]) => Some(format!(
                "{device} has instructions for {best}; `run.precision: {best}` with `run.channels_last: true` would be much \
                 faster"
            )),
            _ => {
                let best = fast.first().unwrap_or(&Self::Float32);
                Some(format!("{device} has no fast {self} in libtorch; `run.precision: {best}` is faster"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_faster_precision_is_advised_if_the_device_has_one() {
        use Precision::{Bfloat16, Float16, Float32};
        let advised = |precision: Precision, fast: &[Precision]| precision.advice("this GPU", fast);
        for (precision, fast, words) in [
            (Float32, &[Bfloat16, Float16][..], "instructions for bfloat16; `run.precision: bfloat16`"),
            (Float32, &[Float16][..], "`run.precision: float16`"),
            (Bfloat16, &[Float16][..], "no fast bfloat16 in libtorch; `run.precision: float16`"),
            (Bfloat16, &[][..], "`run.precision: float32` is faster"),
            (Float16, &[Bfloat16][..], "no fast float16 in libtorch; `run.precision: bfloat16`"),
        ] {
            let text = advised(precision, fast).unwrap();
            assert!(text.starts_with("this GPU has ") && text.contains(words), "{text}");
        }
        for (precision, fast) in [(Float32, &[][..]), (Bfloat16, &[Bfloat16][..]), (Float16, &[Bfloat16, Float16][..])]
        {
            assert_eq!(advised(precision, fast), None);
        }
    }

    #[test]
    fn precisions_are_printed_as_in_the_configuration() {
        for precision in [Precision::Float32, Precision::Bfloat16, Precision::Float16] {
            assert_eq!(serde_yaml::to_string(&precision).unwrap().trim(), precision.to_string());
        }
    }
}
