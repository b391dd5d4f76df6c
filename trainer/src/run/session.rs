//! `sessions.jsonl`: when, how and where a run was started and resumed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use crate::device::Device;
use crate::machine::Machine;

/// The file's name in a run folder.
pub(crate) const FILE: &str = "sessions.jsonl";

/// A line of the file.
#[derive(Serialize)]
struct Session {
    /// In seconds since 1970.
    started: u64,
    command: String,
    device: String,
    #[serde(flatten)]
    machine: Machine,
}

/// Adds this process to the sessions of a run.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn record(run: &Path, device: Device) -> anyhow::Result<()> {
    let session = Session {
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        command: command_line(),
        device: device.to_string(),
        machine: Machine::new(),
    };
    let path = run.join(FILE);
    let write = |line: String| File::options().create(true).append(true).open(&path)?.write_all(line.as_bytes());
    write(serde_json::to_string(&session)? + "\n").with_context(|| format!("cannot write `{}`", path.display()))
}

/// The command line of this process, as a shell takes it.
fn command_line() -> String {
    let words: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    // Arguments have no NUL.
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}

/// The sessions of a run, and the numbers of damaged lines. Runs of older versions have none.
pub(crate) fn read(run: &Path) -> (Vec<Value>, Vec<usize>) {
    let text = fs::read(run.join(FILE)).unwrap_or_default();
    let (mut sessions, mut damaged) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(String::from_utf8_lossy(&text).lines()) {
        match serde_json::from_str(line) {
            Ok(session @ Value::Object(_)) => sessions.push(session),
            _ => damaged.push(number),
        }
    }
    (sessions, damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_back_and_damaged_lines_counted() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), (vec![], vec![]));
        record(folder.path(), Device::default()).unwrap();
        let mut file = File::options().append(true).open(folder.path().join(FILE)).unwrap();
        file.write_all(b"{\"started\": 1\n7\n").unwrap();
        record(folder.path(), Device::default()).unwrap();
        let (sessions, damaged) = read(folder.path());
        assert_eq!((sessions.len(), damaged), (2, vec![2, 3]));
        assert!(sessions[0]["device"] == "cpu" && sessions[1]["cores"].as_u64() > Some(0), "{sessions:?}");
        assert!(!sessions[0]["command"].as_str().unwrap().is_empty());
    }
}
