//! The machine: what a measurement was made on, for those who compare numbers, and the memory that this program takes.

use std::fs;
use std::thread;

/// Name of the CPU; none where the system does not say.
pub fn cpu() -> Option<String> {
    let information = fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "))?;
    Some(name.to_owned())
}

/// The CPU's extensions that networks gain from, of x86; none where the system does not say.
pub fn extensions() -> Vec<&'static str> {
    const KNOWN: [&str; 7] = ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"];
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = information.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    KNOWN.into_iter().filter(|known| flags.split_whitespace().any(|flag| flag == *known)).collect()
}

/// Cores that this program may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Whether this program may use a CPU, counted from 0; also where the system does not say.
pub fn has_cpu(cpu: usize) -> bool {
    let Some(allowed) = status("Cpus_allowed_list:") else { return true };
    // Such as `0-3,8`.
    allowed.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let ends: (Option<usize>, Option<usize>) = (first.parse().ok(), last.parse().ok());
        matches!(ends, (Some(first), Some(last)) if (first..=last).contains(&cpu))
    })
}

/// Memory that this program has now, in MiB; none where the system does not say.
pub fn memory() -> Option<u64> {
    mebibytes("VmRSS:")
}

/// Largest memory that this program has had so far, in MiB; none where the system does not say.
pub fn peak_memory() -> Option<u64> {
    mebibytes("VmHWM:")
}

fn mebibytes(field: &str) -> Option<u64> {
    let kibibytes: u64 = status(field)?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024)
}

/// A line of what Linux says of this program.
fn status(field: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_is_known() {
        assert!(cores() >= 1 && cpu().is_some());
        assert!((0..4096).filter(|cpu| has_cpu(*cpu)).count() >= cores());
        assert!(memory().is_some_and(|now| now > 0 && peak_memory() >= Some(now)));
    }
}
