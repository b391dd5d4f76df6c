//! Settings of glibc's memory allocator for training on the CPU.
//!
//! libtorch allocates and frees some gigabytes in every step. By default, glibc returns each large block to the system,
//! and the next step waits again for the system to map and clear its pages. Keeping freed blocks, in huge pages, avoids
//! this.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The environment variable of the settings. glibc reads it only at program start.
const VARIABLE: &str = "GLIBC_TUNABLES";

/// Keep freed blocks of any size (no separate mappings, no trimming), and request huge pages.
const SETTINGS: &str = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776:glibc.malloc.hugetlb=1";

/// Restarts this program in the same process with these settings. Must be called first in `main`. Returns without
/// effect if the variable is set already, by the user or by this function, and if the restart fails.
pub fn restart_with_huge_pages() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    if let Ok(program) = env::current_exe() {
        // `exec` returns only if it fails.
        let _ = Command::new(program).args(env::args_os().skip(1)).env(VARIABLE, SETTINGS).exec();
    }
}
