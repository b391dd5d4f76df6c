//! How the C library hands out memory while training on the CPU.
//!
//! libtorch takes and returns some gigabytes at every step. By default glibc gives each large block back to the system, so
//! that the next step pays again for its pages to be found and cleared. Keeping blocks, in huge pages, spares that.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The variable that glibc reads when a program starts, and never again.
const VARIABLE: &str = "GLIBC_TUNABLES";

/// Keep blocks of any size (no mapping of their own, never trimmed), and ask for huge pages.
const SETTINGS: &str = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776:glibc.malloc.hugetlb=1";

/// Starts this program again, in this process, with memory kept. To be called before anything else; does nothing when the
/// variable is set, by the user or by this function, and goes on as before when the system refuses.
pub fn keep() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    if let Ok(program) = env::current_exe() {
        // `exec` returns only when it has failed.
        let _ = Command::new(program).args(env::args_os().skip(1)).env(VARIABLE, SETTINGS).exec();
    }
}
