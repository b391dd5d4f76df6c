//! The device to train or evaluate on.

use std::fmt;
use std::str::FromStr;

use anyhow::{bail, ensure};
use process_group::ProcessGroup;
use runtime::Provider;
use runtime::drivers::{self, Capability};
use serde::{Deserialize, Serialize};
use tch::Cuda;

use crate::config::RunConfig;
use crate::loader::Recipe;
use crate::machine::has_bfloat16_instructions;
use crate::precision::Precision;

/// A device by name: `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Device(tch::Device);

impl Default for Device {
    fn default() -> Self {
        Self(tch::Device::Cpu)
    }
}

impl From<tch::Device> for Device {
    fn from(device: tch::Device) -> Self {
        Self(device)
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            tch::Device::Cuda(index) => write!(f, "cuda:{index}"),
            _ => f.write_str("cpu"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cuda = |index: &str| index.parse().map(|index: u16| Self(tch::Device::Cuda(index.into())));
        match (text, text.strip_prefix("cuda:")) {
            ("cpu", _) => Ok(Self(tch::Device::Cpu)),
            ("cuda", _) => Ok(Self(tch::Device::Cuda(0))),
            (_, Some(index)) => cuda(index).map_err(|_| format!("`{index}` is not a device index; expected cuda:N")),
            _ => Err("expected cpu, cuda or cuda:N".to_owned()),
        }
    }
}

impl Device {
    /// What to say about a precision on this device, which must be open; `None` if the device does not tell what it is
    /// good at, or if the precision is a good one.
    pub(crate) fn precision_advice(self, precision: Precision) -> Option<String> {
        match self.0 {
            tch::Device::Cuda(index) => {
                let capability = *drivers::capabilities()?.get(index)?;
                precision.advice(&format!("this GPU (compute capability {capability})"), fast_on_gpu(capability))
            }
            // libtorch computes float16 on CPUs in slow loops, also where they have instructions for it.
            _ if has_bfloat16_instructions()? => precision.advice("this CPU", &[Precision::Bfloat16]),
            _ => precision.advice("this CPU", &[]),
        }
    }

    /// The execution provider of ONNX Runtime for this device.
    pub(crate) fn provider(self) -> Provider {
        match self.0 {
            tch::Device::Cuda(index) => {
                Provider::Cuda { device: index.try_into().expect("device indices are parsed as u16") }
            }
            _ => Provider::Cpu,
        }
    }

    /// The device of one process of a group: if there are several on this machine, each has a GPU of its own.
    ///
    /// # Errors
    /// When another GPU than the default is given for all of them.
    pub(crate) fn of_rank(self, group: &ProcessGroup) -> anyhow::Result<Self> {
        let tch::Device::Cuda(index) = self.0 else { return Ok(self) };
        if group.local_world_size() == 1 {
            return Ok(self);
        }
        ensure!(
            index == 0,
            "`--device cuda:{index}`: all {} processes on this machine would use the same GPU; with `--device cuda`, each \
             uses the one of its local rank",
            group.local_world_size()
        );
        let is_restricted = std::env::var_os("CUDA_VISIBLE_DEVICES").is_some();
        Ok(Self(tch::Device::Cuda(gpu_of(group.local_rank(), Cuda::device_count(), is_restricted))))
    }

    /// Checks that the device is available.
    ///
    /// # Errors
    /// When this libtorch, driver or machine does not provide the CUDA device. There is no fallback to the CPU.
    pub(crate) fn open(self) -> anyhow::Result<tch::Device> {
        let tch::Device::Cuda(index) = self.0 else { return Ok(self.0) };
        let devices = Cuda::device_count();
        if !Cuda::is_available() {
            bail!(
                "`--device cuda`: libtorch finds no CUDA device; {}",
                if tch::utils::has_cudart() {
                    "this machine has no NVIDIA GPU, or its driver is too old for CUDA 13 (see `nvidia-smi`)"
                } else {
                    "this build supports only the CPU; run `make setup CUDA=1` and rebuild"
                }
            );
        }
        ensure!(
            (index as i64) < devices,
            "`--device cuda:{index}`: this machine has {devices} CUDA devices, numbered from 0"
        );
        Ok(self.0)
    }
}

/// The GPU of a rank. A launcher may show each process only its own one; a machine with a single GPU has too few.
fn gpu_of(local_rank: usize, visible: i64, is_restricted: bool) -> usize {
    if visible == 1 && is_restricted { 0 } else { local_rank }
}

/// On CUDA, lets cuDNN benchmark its algorithms if all inputs of each of `data` have the same size, unless the run is
/// `deterministic`.
pub(crate) fn set_cudnn_benchmark(device: tch::Device, config: &RunConfig, data: &[&Recipe]) {
    if device.is_cuda() {
        Cuda::cudnn_set_benchmark(!config.deterministic && data.iter().all(|data| data.has_one_input_size()));
    }
}

/// The data types for which a GPU has tensor cores, besides float32.
fn fast_on_gpu(Capability(major, _): Capability) -> &'static [Precision] {
    match major {
        8.. => &[Precision::Bfloat16, Precision::Float16],
        7 => &[Precision::Float16],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_use_the_gpu_of_their_number_unless_they_see_only_their_own() {
        assert_eq!([gpu_of(3, 8, false), gpu_of(3, 8, true), gpu_of(3, 1, true)], [3, 3, 0]);
        // Refused later, since there is no GPU 1.
        assert_eq!(gpu_of(1, 1, false), 1);
    }

    #[test]
    fn devices_parse_and_other_names_are_errors() {
        assert_eq!("cpu".parse(), Ok(Device(tch::Device::Cpu)));
        assert_eq!("cuda".parse(), Ok(Device(tch::Device::Cuda(0))));
        assert_eq!("cuda:3".parse(), Ok(Device(tch::Device::Cuda(3))));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn gpus_have_tensor_cores_since_volta() {
        use Precision::{Bfloat16, Float16};
        for (capability, expected) in [((6, 1), &[][..]), ((7, 5), &[Float16][..]), ((9, 0), &[Bfloat16, Float16][..])]
        {
            assert_eq!(fast_on_gpu(Capability(capability.0, capability.1)), expected);
        }
    }
}
