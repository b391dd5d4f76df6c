//! What a run was made with: versions and hardware, for those who compare numbers.

use std::fmt;
use std::fs;
use std::thread;

use serde::Serialize;

/// Versions and hardware.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// This program and its version.
    pub(crate) program: String,
    /// Version of libtorch that this program is built for.
    pub(crate) libtorch: &'static str,
    /// Name of the processor.
    pub(crate) processor: String,
    /// Cores that this program may use.
    pub(crate) cores: usize,
    /// CUDA devices that libtorch sees.
    pub(crate) cuda_devices: i64,
}

impl Machine {
    /// The machine that this program runs on.
    pub(crate) fn new() -> Self {
        let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            program: concat!("trainer ", env!("CARGO_PKG_VERSION")).to_owned(),
            libtorch: "2.11.0",
            processor: processor.map_or("unknown processor", |(_, name)| name).to_owned(),
            cores: thread::available_parallelism().map_or(1, usize::from),
            cuda_devices: tch::Cuda::device_count(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { program, libtorch, processor, cores, cuda_devices } = self;
        write!(f, "{program}, libtorch {libtorch}, {processor}, {cores} cores, {cuda_devices} CUDA devices")
    }
}

/// Whether the processor has instructions for bfloat16; true where the system does not say.
pub(crate) fn computes_bfloat16() -> bool {
    let Ok(information) = fs::read_to_string("/proc/cpuinfo") else { return true };
    let flags = information.lines().find(|line| line.starts_with("flags"));
    flags.is_none_or(|flags| flags.split_whitespace().any(|flag| ["amx_bf16", "avx512_bf16"].contains(&flag)))
}

/// Memory that this program has now, in MiB; none where the system does not say.
pub(crate) fn memory() -> Option<u64> {
    mebibytes("VmRSS:")
}

/// Largest memory that this program has had so far, in MiB; none where the system does not say.
pub(crate) fn peak_memory() -> Option<u64> {
    mebibytes("VmHWM:")
}

/// A line of what Linux says of this program.
fn mebibytes(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_known() {
        let machine = Machine::new();
        assert!(machine.cores >= 1 && !machine.to_string().contains("unknown"), "{machine}");
        assert!(memory().is_some_and(|now| now > 0 && peak_memory() >= Some(now)));
    }
}
