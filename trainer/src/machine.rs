//! Versions and hardware, to make reported results comparable.

use std::fmt;
use std::fs;

use process_group::Launch;
use runtime::machine;
use schemars::JsonSchema;
use serde::Serialize;

/// This program and its version.
pub(crate) const PROGRAM: &str = concat!("trainer ", env!("CARGO_PKG_VERSION"));

/// Versions and hardware.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Machine {
    /// This program and its version.
    pub(crate) program: String,
    /// Version of libtorch that this program was built for.
    pub(crate) libtorch: &'static str,
    /// Name of the CPU.
    pub(crate) cpu: String,
    /// Number of cores that this program may use.
    pub(crate) cores: usize,
    /// Number of CUDA devices that libtorch finds.
    pub(crate) cuda_devices: i64,
}

impl Machine {
    /// The machine that runs this program.
    pub(crate) fn new() -> Self {
        Self {
            program: PROGRAM.to_owned(),
            libtorch: "2.11.0",
            cpu: machine::cpu().unwrap_or_else(|| "unknown CPU".to_owned()),
            cores: machine::cores(),
            cuda_devices: tch::Cuda::device_count(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { program, libtorch, cpu, cores, cuda_devices } = self;
        write!(f, "{program}, libtorch {libtorch}, {cpu}, {cores} cores, {cuda_devices} CUDA devices")
    }
}

/// The default of `run.workers`: one thread per core, divided by the number of processes that train on this machine.
pub(crate) fn default_workers() -> usize {
    // Invalid variables of a launcher are reported where the processes join.
    let processes = Launch::from_env().ok().flatten().map_or(1, |launch| launch.local_world_size);
    (machine::cores() / processes).clamp(2, 32)
}

/// Whether the CPU has instructions for bfloat16; none if unknown.
pub(crate) fn has_bfloat16_instructions() -> Option<bool> {
    let information = fs::read_to_string("/proc/cpuinfo").ok()?;
    // x86 and ARM
    let flags = information.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"))?;
    Some(flags.split_whitespace().any(|flag| ["amx_bf16", "avx512_bf16", "bf16"].contains(&flag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_cores_are_known() {
        let machine = Machine::new();
        assert!(machine.cores >= 1 && !machine.to_string().contains("unknown"), "{machine}");
    }
}
