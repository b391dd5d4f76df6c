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
    mebibytes(&status("VmRSS:")?)
}

/// Peak resident memory of this process so far, in MiB; `None` if the system does not report it.
pub fn peak_memory() -> Option<u64> {
    mebibytes(&status("VmHWM:")?)
}

/// Memory that this process may take besides what it has, in MiB, according to the system and the limit of its control group;
/// `None` if the system does not report it.
pub fn available_memory() -> Option<u64> {
    let information = fs::read_to_string("/proc/meminfo").ok()?;
    let free = mebibytes(information.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?)?;
    // In containers, the control group is the root of what they see. Files that it has in memory count as used, but give way.
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let files =
        read("memory.stat").and_then(|stat| number(stat.lines().find_map(|l| l.strip_prefix("inactive_file "))?));
    let [max, used] = ["memory.max", "memory.current"].map(|name| number(&read(name)?));
    let group = max.zip(used).map(|(max, used)| max.saturating_sub(used.saturating_sub(files.unwrap_or(0))) >> 20);
    Some(group.map_or(free, |group| group.min(free)))
}

/// The MiB in a text such as `1024 kB`.
fn mebibytes(text: &str) -> Option<u64> {
    let kibibytes: u64 = text.trim().strip_suffix("kB")?.trim().parse().ok()?;
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
        assert!(available_memory().is_some_and(|free| free > 0));
    }
}
