//! What a program leaves on a machine beside its output. Tests of several crates include this file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Says which machine this is, and so may be read by nobody who reports.
const MACHINE_ID: &str = "/etc/machine-id";

/// Runs a program with folders of its own for the user's files and for temporary ones, and makes sure that it leaves nothing in them,
/// writes no log of ONNX Runtime's telemetry, and does not ask which machine this is.
pub(crate) fn run_without_footprint(command: &mut Command) -> Output {
    let folder = tempfile::tempdir().expect("there is room for a folder");
    command.env("HOME", folder.path()).env("TMPDIR", folder.path());
    // With these, ONNX Runtime reports nothing, and nothing would be tested.
    for name in
        ["CI", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME", "GITHUB_ACTIONS"]
    {
        command.env_remove(name);
    }
    let opened = Inotify::init(InitFlags::IN_NONBLOCK).expect("the system watches files");
    if Path::new(MACHINE_ID).exists() {
        opened.add_watch(MACHINE_ID, AddWatchFlags::IN_OPEN).expect("the file is there");
    } else {
        eprintln!("skipped: there is no {MACHINE_ID} that could be read");
    }
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let log = PathBuf::from(format!("/tmp/mat-debug-{}.log", child.id()));
    let output = child.wait_with_output().expect("the program ends");
    let left: Vec<_> =
        fs::read_dir(folder.path()).expect("the folder is there").map(|entry| entry.map(|e| e.path())).collect();
    assert!(left.is_empty(), "{command:?} leaves {left:?}");
    assert!(!log.exists(), "{command:?} leaves {}", log.display());
    assert!(opened.read_events().is_err(), "{command:?} reads {MACHINE_ID}");
    output
}
