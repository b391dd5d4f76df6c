//! Execution providers: what computes the network.

use std::fmt;
use std::str::FromStr;

/// Execution provider: what computes the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// The CPU, with ONNX Runtime's own kernels.
    #[default]
    Cpu,
    /// An NVIDIA GPU, with CUDA.
    Cuda {
        /// Index of the GPU, from 0.
        device: u16,
    },
    /// An NVIDIA GPU, with TensorRT, which first builds an engine.
    Tensorrt {
        /// Index of the GPU, from 0.
        device: u16,
    },
    /// An Intel CPU, GPU or NPU, with OpenVINO.
    Openvino {
        /// The device.
        device: OpenvinoDevice,
    },
    /// The first of CUDA, OpenVINO and the CPU that works. TensorRT is not tried, because it takes minutes to start.
    Auto,
}

/// Device that OpenVINO uses.
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

/// The text is not the name of a provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown provider `{found}`; expected `cpu`, `cuda`, `tensorrt`, `openvino` or `auto`, optionally with a device such as \
     `cuda:1` (the second GPU), `openvino:gpu` or `openvino:npu`"
)]
pub struct ParseProviderError {
    /// The text.
    pub found: String,
}

impl Provider {
    /// Providers that [`Provider::Auto`] tries before the CPU, in order.
    pub const BEFORE_CPU: [Self; 2] = [Self::Cuda { device: 0 }, Self::Openvino { device: OpenvinoDevice::Cpu }];

    /// Whether it computes on an NVIDIA GPU.
    pub fn is_nvidia(self) -> bool {
        matches!(self, Self::Cuda { .. } | Self::Tensorrt { .. })
    }

    /// Whether it computes on the CPU, and so competes with decoding and post-processing.
    pub fn is_on_cpu(self) -> bool {
        matches!(self, Self::Cpu | Self::Openvino { device: OpenvinoDevice::Cpu })
    }
}

impl FromStr for Provider {
    type Err = ParseProviderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, device) = text.split_once(':').map_or((text, None), |(name, device)| (name, Some(device)));
        let index = || device.map_or(Some(0), |device| device.parse().ok());
        let provider = match (name, device) {
            ("cpu", None) => Some(Self::Cpu),
            ("auto", None) => Some(Self::Auto),
            ("cuda", _) => index().map(|device| Self::Cuda { device }),
            ("tensorrt", _) => index().map(|device| Self::Tensorrt { device }),
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
    fn parsing_inverts_display() {
        let devices = [OpenvinoDevice::Cpu, OpenvinoDevice::Gpu, OpenvinoDevice::Npu];
        let gpus = [0, 7].into_iter().flat_map(|device| [Provider::Cuda { device }, Provider::Tensorrt { device }]);
        let intel = devices.map(|device| Provider::Openvino { device });
        for provider in [Provider::Cpu, Provider::Auto].into_iter().chain(gpus).chain(intel) {
            assert_eq!(provider.to_string().parse(), Ok(provider));
        }
    }

    #[test]
    fn openvino_computes_on_the_cpu_by_default() {
        let on_cpu = ["cpu", "cuda", "tensorrt", "openvino", "openvino:gpu", "openvino:npu"]
            .map(|name| name.parse::<Provider>().unwrap().is_on_cpu());
        assert_eq!(on_cpu, [true, false, false, true, false, false]);
    }

    #[test]
    fn device_defaults_to_the_first() {
        assert_eq!("cuda".parse(), Ok(Provider::Cuda { device: 0 }));
        assert_eq!("tensorrt".parse(), Ok(Provider::Tensorrt { device: 0 }));
        assert_eq!("openvino".parse(), Ok(Provider::Openvino { device: OpenvinoDevice::Cpu }));
    }

    #[test]
    fn unknown_names_are_errors_that_quote_them() {
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
