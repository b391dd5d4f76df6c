//! What computes the network: the CPU, or a GPU.

use std::fmt;
use std::str::FromStr;

/// What computes the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// The CPU, by ONNX Runtime itself.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Number of the GPU, from 0.
        device: u16,
    },
    /// An NVIDIA GPU, by TensorRT, which first builds an engine for it.
    Tensorrt {
        /// Number of the GPU, from 0.
        device: u16,
    },
    /// An Intel CPU or GPU, by OpenVINO.
    Openvino {
        /// Which one.
        device: OpenvinoDevice,
    },
    /// The first that starts of CUDA, OpenVINO and the CPU. TensorRT is none of them, because it takes minutes to start.
    Auto,
}

/// What OpenVINO uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenvinoDevice {
    /// The CPU.
    #[default]
    Cpu,
    /// A GPU.
    Gpu,
    /// A neural processing unit.
    Npu,
}

/// Why a text names no provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is no provider; there are `cpu`, `cuda`, `tensorrt`, `openvino` and `auto`; `cuda:1` and `tensorrt:1` name the \
     second GPU, `openvino:gpu` and `openvino:npu` other devices than the CPU"
)]
pub struct ParseProviderError {
    /// The text.
    pub found: String,
}

impl Provider {
    /// Those that [`Provider::Auto`] tries before the CPU, in order.
    pub const BEFORE_CPU: [Self; 2] = [Self::Cuda { device: 0 }, Self::Openvino { device: OpenvinoDevice::Cpu }];

    /// Whether it computes on a GPU of NVIDIA.
    pub fn is_nvidia(self) -> bool {
        matches!(self, Self::Cuda { .. } | Self::Tensorrt { .. })
    }

    /// Whether it computes on the CPU, which then has less time for all else.
    pub fn is_on_cpu(self) -> bool {
        matches!(self, Self::Cpu | Self::Openvino { device: OpenvinoDevice::Cpu })
    }
}

impl FromStr for Provider {
    type Err = ParseProviderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, device) = text.split_once(':').map_or((text, None), |(name, device)| (name, Some(device)));
        let number = || device.map_or(Some(0), |device| device.parse().ok());
        let provider = match (name, device) {
            ("cpu", None) => Some(Self::Cpu),
            ("auto", None) => Some(Self::Auto),
            ("cuda", _) => number().map(|device| Self::Cuda { device }),
            ("tensorrt", _) => number().map(|device| Self::Tensorrt { device }),
            ("openvino", None | Some("cpu")) => Some(Self::Openvino { device: OpenvinoDevice::Cpu }),
            ("openvino", Some("gpu")) => Some(Self::Openvino { device: OpenvinoDevice::Gpu }),
            ("openvino", Some("npu")) => Some(Self::Openvino { device: OpenvinoDevice::Npu }),
            _ => None,
        };
        provider.ok_or_else(|| ParseProviderError { found: text.to_owned() })
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { device } => write!(f, "cuda:{device}"),
            Self::Tensorrt { device } => write!(f, "tensorrt:{device}"),
            Self::Openvino { device } => write!(f, "openvino:{device}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl fmt::Display for OpenvinoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
            Self::Npu => "npu",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_inverts_writing() {
        let devices = [OpenvinoDevice::Cpu, OpenvinoDevice::Gpu, OpenvinoDevice::Npu];
        let gpus = [0, 7].into_iter().flat_map(|device| [Provider::Cuda { device }, Provider::Tensorrt { device }]);
        let intel = devices.map(|device| Provider::Openvino { device });
        for provider in [Provider::Cpu, Provider::Auto].into_iter().chain(gpus).chain(intel) {
            assert_eq!(provider.to_string().parse(), Ok(provider));
        }
    }

    #[test]
    fn openvino_computes_on_the_cpu_unless_told_otherwise() {
        let on_cpu = ["cpu", "cuda", "tensorrt", "openvino", "openvino:gpu", "openvino:npu"]
            .map(|name| name.parse::<Provider>().unwrap().is_on_cpu());
        assert_eq!(on_cpu, [true, false, false, true, false, false]);
    }

    #[test]
    fn the_first_device_needs_no_name() {
        assert_eq!("cuda".parse(), Ok(Provider::Cuda { device: 0 }));
        assert_eq!("tensorrt".parse(), Ok(Provider::Tensorrt { device: 0 }));
        assert_eq!("openvino".parse(), Ok(Provider::Openvino { device: OpenvinoDevice::Cpu }));
    }

    #[test]
    fn anything_else_is_an_error_that_shows_it() {
        for text in [
            "",
            "CUDA",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:x",
            "cuda:0 ",
            "cpu:0",
            "auto:1",
            "openvino:0",
            "tensorrt:gpu",
        ] {
            assert_eq!(text.parse::<Provider>(), Err(ParseProviderError { found: text.to_owned() }));
        }
    }
}
