//! Checks that a program leaves no files behind except its output. Tests of several crates include this file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Identifies the machine. Telemetry reads it; our programs must not.
const MACHINE_ID: &str = "/etc/machine-id";

/// Runs a program with empty `HOME` and `TMPDIR` folders. Asserts that both are empty afterwards, that ONNX
/// Runtime's telemetry wrote no log and that nothing opened [`MACHINE_ID`].
pub(crate) fn run_without_footprint(command: &mut Command) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    command.env("HOME", folder.path()).env("TMPDIR", folder.path());
    // These turn off ONNX Runtime's telemetry or redirect its files, so the test would prove nothing.
    for name in
        ["CI", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME", "GITHUB_ACTIONS"]
    {
        command.env_remove(name);
    }
    let opened = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify is available");
    if Path::new(MACHINE_ID).exists() {
        opened.add_watch(MACHINE_ID, AddWatchFlags::IN_OPEN).expect("the file exists");
    } else {
        eprintln!("skipped: {MACHINE_ID} does not exist");
    }
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program can be started");
    let log = PathBuf::from(format!("/tmp/mat-debug-{}.log", child.id()));
    let output = child.wait_with_output().expect("the program can be waited for");
    let left: Vec<_> =
        fs::read_dir(folder.path()).expect("the folder exists").map(|entry| entry.map(|e| e.path())).collect();
    assert!(left.is_empty(), "{command:?} leaves {left:?} behind");
    assert!(!log.exists(), "{command:?} leaves {} behind", log.display());
    assert!(opened.read_events().is_err(), "{command:?} opens {MACHINE_ID}");
    output
}
