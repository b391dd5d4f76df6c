//! Versions of NVIDIA's driver and libraries, as far as they can be queried without starting a session.

use std::ffi::{c_int, c_uint};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

/// NVIDIA GPUs, driver and libraries; `None` where not found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Drivers {
    /// Names of the GPUs.
    pub gpus: Vec<String>,
    /// Compute capabilities of the GPUs that are visible to CUDA, such as 9.0.
    pub capabilities: Vec<Capability>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// The newest CUDA version that the driver supports.
    pub cuda_driver: Option<String>,
    /// Version of CUDA's runtime library.
    pub cuda_runtime: Option<String>,
    /// Version of cuDNN.
    pub cudnn: Option<String>,
}

impl Drivers {
    /// Searches the system and `../../nvidia` from the folder of `library`, ONNX Runtime's file.
    pub fn find(library: &Path) -> Self {
        let wheels = library.parent().unwrap_or(library).join("../../nvidia");
        let near = |folder: &str, name: &str| [wheels.join(folder).join(name), name.into()];
        let cuda_version = |version: c_int| format!("{}.{}", version / 1000, version % 1000 / 10);
        Self {
            gpus: gpus(),
            capabilities: capabilities().unwrap_or_default(),
            driver: driver(),
            cuda_driver: version_by_pointer(&["libcuda.so.1".into()], b"cuDriverGetVersion\0").map(cuda_version),
            cuda_runtime: version_by_pointer(&near("cu13/lib", "libcudart.so.13"), b"cudaRuntimeGetVersion\0")
                .map(cuda_version),
            cudnn: version(&near("cudnn/lib", "libcudnn.so.9"), b"cudnnGetVersion\0")
                .map(|version| format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)),
        }
    }
}

/// A GPU's compute capability: major and minor version. <https://developer.nvidia.com/cuda-gpus>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "String")]
pub struct Capability(pub c_int, pub c_int);

impl Capability {
    /// Whether the CUDA library in Microsoft's wheel of ONNX Runtime 1.30 supports it: the wheel contains code for
    /// sm_75, 80, 86, 89, 90a and 120a, and no PTX that a driver could compile for others.
    pub fn is_in_wheel(self) -> bool {
        matches!(self, Self(7, 5..) | Self(8, _) | Self(9, 0) | Self(12, 0))
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> Self {
        capability.to_string()
    }
}

/// Compute capabilities of all GPUs that are visible to CUDA, from the driver; none without one.
/// <https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__DEVICE.html>
#[allow(unsafe_code, reason = "the compiler cannot check calls of C libraries")]
pub fn capabilities() -> Option<Vec<Capability>> {
    type Init = unsafe extern "C" fn(c_uint) -> c_uint;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_uint;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_uint, c_int) -> c_uint;
    const MAJOR: c_uint = 75;
    const MINOR: c_uint = 76;
    let library = Path::new("libcuda.so.1");
    // SAFETY: the driver's functions have these types in every version, and write to integers that outlive the calls.
    // Device handles are integers from 0.
    unsafe {
        let mut count = 0;
        let initialized = function::<Init>(library, b"cuInit\0")?(0) == 0;
        let has_count = initialized && function::<Count>(library, b"cuDeviceGetCount\0")?(&raw mut count) == 0;
        let get_attribute = function::<Attribute>(library, b"cuDeviceGetAttribute\0")?;
        let attribute = |attribute, device| {
            let mut value = 0;
            (get_attribute(&raw mut value, attribute, device) == 0).then_some(value)
        };
        let capability = |device| Some(Capability(attribute(MAJOR, device)?, attribute(MINOR, device)?));
        if has_count { (0..count).map(capability).collect() } else { None }
    }
}

fn gpus() -> Vec<String> {
    let folders = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let name = |folder: fs::DirEntry| {
        let information = fs::read_to_string(folder.path().join("information")).ok()?;
        let name = information.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(name.trim().to_owned())
    };
    folders.filter_map(name).collect()
}

fn driver() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// The version that the function `name` of the first of these libraries that has it returns.
#[allow(unsafe_code, reason = "the compiler cannot check calls of C libraries")]
fn version(libraries: &[PathBuf], name: &[u8]) -> Option<usize> {
    type Function = unsafe extern "C" fn() -> usize;
    // SAFETY: the functions have this type in every version.
    libraries.iter().find_map(|library| unsafe { Some(function::<Function>(library, name)?()) })
}

/// As [`version`], for functions that write the version to a pointer and return an error code.
#[allow(unsafe_code, reason = "the compiler cannot check calls of C libraries")]
fn version_by_pointer(libraries: &[PathBuf], name: &[u8]) -> Option<c_int> {
    type Function = unsafe extern "C" fn(*mut c_int) -> c_uint;
    let mut version = 0;
    // SAFETY: as above; the pointer is to an integer that outlives the call.
    let read = |library: &PathBuf| unsafe { Some(function::<Function>(library, name)?(&raw mut version) == 0) };
    libraries.iter().filter_map(read).any(|succeeded| succeeded).then_some(version)
}

/// The function `name`, which ends with a zero, of one of NVIDIA's libraries.
///
/// # Safety
/// It must have this type.
#[allow(unsafe_code, reason = "the compiler cannot check loading a library")]
unsafe fn function<F: Copy>(library: &Path, name: &[u8]) -> Option<F> {
    // SAFETY: loading NVIDIA's libraries has no preconditions, and the caller knows the type.
    unsafe {
        let library = libloading::Library::new(library).ok()?;
        let function = *library.get::<F>(name).ok()?;
        // CUDA's libraries must not be unloaded once initialized.
        std::mem::forget(library);
        Some(function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpu_code_also_runs_on_later_minor_versions() {
        let supported =
            [(7, 0), (7, 5), (8, 6), (8, 7), (9, 0), (10, 0), (12, 0)].map(|(a, b)| Capability(a, b).is_in_wheel());
        assert_eq!(supported, [false, true, true, true, true, false, true]);
        assert_eq!(serde_json::to_string(&Capability(9, 0)).unwrap(), "\"9.0\"");
    }

    #[test]
    fn missing_libraries_and_functions_give_none() {
        let nowhere = [PathBuf::from("/nonexistent/libcudart.so.13")];
        assert_eq!(
            (version(&nowhere, b"cudnnGetVersion\0"), version_by_pointer(&nowhere, b"cudaRuntimeGetVersion\0")),
            (None, None)
        );
        // A library without that function.
        #[cfg(target_os = "linux")]
        assert_eq!(version(&["libc.so.6".into()], b"cudnnGetVersion\0"), None);
    }
}
