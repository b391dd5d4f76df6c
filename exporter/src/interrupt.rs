//! Ctrl-C and termination signals: nothing stays of an export that they end.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// Exit code of a program stopped by Ctrl-C, as shells report it.
const EXIT_CODE: i32 = 130;

/// Attempts to delete the folder, since the program may add a file while it is deleted.
const ATTEMPTS: u32 = 20;

/// Installs signal handlers that delete `folder` and end the process. Call at most once per process.
pub(crate) fn delete_on_signal(folder: &Path) -> anyhow::Result<()> {
    let folder = folder.to_owned();
    let delete = move || {
        for _ in 0..ATTEMPTS {
            if fs::remove_dir_all(&folder).is_ok() || !folder.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        exit_now();
    };
    ctrlc::set_handler(delete).context("cannot install the handler of Ctrl-C")
}

/// Ends the process without running destructors, which ONNX Runtime's threads, still running, would not survive.
#[allow(unsafe_code, reason = "the standard library can only exit with destructors or abort")]
fn exit_now() {
    // SAFETY: `_exit` only ends the process.
    unsafe { libc::_exit(EXIT_CODE) }
}
