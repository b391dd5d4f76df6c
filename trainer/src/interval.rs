//! How often something happens in a run.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A number of epochs or steps, at least 1. In a configuration: `2 epochs`, `500 steps`, or a number of epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Text", into = "String")]
pub enum Interval {
    /// Every so many epochs.
    Epochs(u32),
    /// Every so many steps.
    Steps(u64),
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected an interval, such as `2 epochs` or `500 steps`")]
enum Text {
    Number(u32),
    Words(String),
}

impl TryFrom<Text> for Interval {
    type Error = String;

    fn try_from(text: Text) -> Result<Self, String> {
        let words = match text {
            Text::Number(epochs) => format!("{epochs} epochs"),
            Text::Words(words) => words,
        };
        let interval = match words.split_whitespace().collect::<Vec<_>>()[..] {
            [number, "epoch" | "epochs"] => number.parse().ok().filter(|epochs: &u32| *epochs > 0).map(Self::Epochs),
            [number, "step" | "steps"] => number.parse().ok().filter(|steps: &u64| *steps > 0).map(Self::Steps),
            _ => None,
        };
        interval.ok_or_else(|| {
            format!("`{words}` is not an interval, expected a number from 1 with its unit, such as `2 epochs` or `500 steps`")
        })
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Epochs(1) => f.write_str("1 epoch"),
            Self::Epochs(epochs) => write!(f, "{epochs} epochs"),
            Self::Steps(1) => f.write_str("1 step"),
            Self::Steps(steps) => write!(f, "{steps} steps"),
        }
    }
}

impl From<Interval> for String {
    fn from(interval: Interval) -> Self {
        interval.to_string()
    }
}

impl Interval {
    /// Whether it ends with epoch `epoch` and its last step `step`, both numbered from 1.
    pub(crate) fn ends_with_epoch(self, epoch: u32, step: u64) -> bool {
        match self {
            Self::Epochs(epochs) => epoch.is_multiple_of(epochs),
            Self::Steps(_) => self.ends_with_step(step),
        }
    }

    /// Whether it ends with step `step`, from 1, within an epoch.
    pub(crate) fn ends_with_step(self, step: u64) -> bool {
        matches!(self, Self::Steps(steps) if step.is_multiple_of(steps))
    }

    /// How many begin in a run of `epochs` epochs and `steps` steps.
    pub(crate) fn count(self, epochs: u32, steps: u64) -> u64 {
        match self {
            Self::Epochs(length) => epochs.div_ceil(length).into(),
            Self::Steps(length) => steps.div_ceil(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_epochs_or_steps() {
        let parse = |text: &str| serde_yaml::from_str::<Interval>(text).map_err(|error| error.to_string());
        let (epochs, steps) = (Interval::Epochs, Interval::Steps);
        for (text, expected) in [
            ("2", epochs(2)),
            ("1 epoch", epochs(1)),
            ("3 epochs", epochs(3)),
            ("1 step", steps(1)),
            ("500  steps", steps(500)),
        ] {
            assert_eq!(parse(text), Ok(expected));
            assert_eq!(parse(&serde_yaml::to_string(&expected).unwrap()), Ok(expected));
        }
        for wrong in ["0", "0 steps", "steps", "5 minutes", "1.5 epochs", "-1 steps", "2 epochs 3"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains("such as `2 epochs` or `500 steps`") && error.contains(wrong), "{error}");
        }
        for wrong in ["-1", "[1]", "1.5"] {
            assert!(parse(wrong).unwrap_err().contains("expected an interval"), "{wrong}");
        }
    }

    #[test]
    fn intervals_end_at_multiples() {
        let of_steps: Vec<_> = (1..=6).filter(|step| Interval::Steps(3).ends_with_step(*step)).collect();
        assert_eq!(of_steps, [3, 6]);
        assert!(!Interval::Epochs(1).ends_with_step(3));
        // Epochs of four steps.
        let at_epochs = |interval: Interval| {
            (1..=6).filter(|n| interval.ends_with_epoch(*n, 4 * u64::from(*n))).collect::<Vec<_>>()
        };
        assert_eq!(at_epochs(Interval::Epochs(2)), [2, 4, 6]);
        assert_eq!(at_epochs(Interval::Steps(6)), [3, 6]);
        assert_eq!([Interval::Epochs(4), Interval::Steps(6)].map(|interval| interval.count(6, 24)), [2, 4]);
    }
}
