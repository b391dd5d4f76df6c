//! The machine: what a measurement was made on, for those who compare numbers, and the memory that this program takes.

use std::fs;
use std::thread;

/// Name of the processor; none where the system does not say.
pub fn processor() -> Option<String> {
    let information = fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "))?;
    Some(name.to_owned())
}

/// The processor's extensions that networks gain from, of x86; none where the system does not say.
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

/// Memory that this program has now, in MiB; none where the system does not say.
pub fn memory() -> Option<u64> {
    mebibytes("VmRSS:")
}

/// Largest memory that this program has had so far, in MiB; none where the system does not say.
pub fn peak_memory() -> Option<u64> {
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

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_is_known() {
        assert!(cores() >= 1 && processor().is_some());
        assert!(memory().is_some_and(|now| now > 0 && peak_memory() >= Some(now)));
    }
}
