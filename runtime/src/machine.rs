//! The machine: CPU, cores and this process's memory, for comparing measurements.

use std::fs;
use std::thread;

/// Name of the CPU; `None` if the system does not report it.
pub fn cpu() -> Option<String> {
    let information = fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "))?;
    Some(name.to_owned())
}

/// The x86 extensions of the CPU that speed up networks; empty if the system does not report them.
pub fn extensions() -> Vec<&'static str> {
    const KNOWN: [&str; 7] = ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"];
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = information.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    KNOWN.into_iter().filter(|known| flags.split_whitespace().any(|flag| flag == *known)).collect()
}

/// Number of cores that this process may use, according to its CPUs and the quota of its control group.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Number of cores that this process may use, if a quota of its control group makes them fewer than its CPUs.
pub fn quota() -> Option<usize> {
    let cpus = allowed_cpus()?.into_iter().map(|(first, last)| last + 1 - first).sum();
    Some(cores()).filter(|cores| *cores < cpus)
}

/// Whether this process may use a CPU, counted from 0; true if the system does not report it.
pub fn has_cpu(cpu: usize) -> bool {
    allowed_cpus().is_none_or(|ranges| ranges.iter().any(|(first, last)| (*first..=*last).contains(&cpu)))
}

/// First and last CPU of the ranges of CPUs that this process may use; `None` if the system does not report it.
fn allowed_cpus() -> Option<Vec<(usize, usize)>> {
    // For example `0-3,8`.
    let ranges = status("Cpus_allowed_list:")?;
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        first.parse().ok().zip(last.parse().ok()).filter(|(first, last)| first <= last)
    };
    ranges.split(',').map(range).collect()
}

/// Whether this process ignores a signal, by its number; false if the system does not report it.
pub fn ignores_signal(signal: i32) -> bool {
    let ignored = status("SigIgn:").and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0);
    ignored >> (signal - 1) & 1 == 1
}

/// Resident memory of this process, in MiB; `None` if the system does not report it.
pub fn memory() -> Option<u64> {
    mebibytes("VmRSS:")
}

/// Peak resident memory of this process so far, in MiB; `None` if the system does not report it.
pub fn peak_memory() -> Option<u64> {
    mebibytes("VmHWM:")
}

fn mebibytes(field: &str) -> Option<u64> {
    let kibibytes: u64 = status(field)?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024)
}

/// The value of a field in `/proc/self/status`.
fn status(field: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_reports_cpu_cores_and_memory() {
        assert!(cores() >= 1 && cpu().is_some());
        assert!((0..4096).filter(|cpu| has_cpu(*cpu)).count() >= cores());
        // Rust's runtime handles SIGSEGV and ignores SIGPIPE.
        assert_eq!([11, 13].map(ignores_signal), [false, true]);
        assert!(memory().is_some_and(|now| now > 0 && peak_memory() >= Some(now)));
    }
}
