//! What computes the network: the processor or a graphics card.

use std::fmt;
use std::str::FromStr;

/// What computes the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// The processor.
    #[default]
    Cpu,
    /// A card of NVIDIA.
    Cuda {
        /// Number of the card, from 0.
        device: u16,
    },
}

/// Why a text names no provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no provider; there are `cpu`, `cuda` and `cuda:N`, where N is the number of the card")]
pub struct ParseProviderError {
    /// The text.
    pub found: String,
}

impl FromStr for Provider {
    type Err = ParseProviderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let device = match text {
            "cpu" => return Ok(Provider::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|device| device.parse().ok()),
        };
        device.map(|device| Provider::Cuda { device }).ok_or_else(|| ParseProviderError { found: text.to_owned() })
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Provider::Cpu => f.write_str("cpu"),
            Provider::Cuda { device } => write!(f, "cuda:{device}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_inverts_writing() {
        for provider in [Provider::Cpu, Provider::Cuda { device: 0 }, Provider::Cuda { device: 7 }] {
            assert_eq!(provider.to_string().parse(), Ok(provider));
        }
    }

    #[test]
    fn the_first_card_needs_no_number() {
        assert_eq!("cuda".parse(), Ok(Provider::Cuda { device: 0 }));
    }

    #[test]
    fn anything_else_is_an_error_that_shows_it() {
        for text in ["", "CUDA", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", "cpu:0"] {
            assert_eq!(text.parse::<Provider>(), Err(ParseProviderError { found: text.to_owned() }));
        }
    }
}
