//! The program `ffmpeg` in a process of its own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::VideoError;

const PROGRAM: &str = "ffmpeg";

/// So much of its last words is read.
const MOST_WORDS: u64 = 4096;

/// Whether there is an `ffmpeg`, so that what needs one can be refused before the work.
///
/// # Errors
/// When there is none, or it does not start.
pub fn check() -> Result<(), VideoError> {
    let mut process = Process::start(["-version".into()], Stdio::null(), Stdio::null())?;
    process.finish()
}

/// A file as ffmpeg's argument, so that no name is taken for an option or an address.
pub(super) fn file(path: &Path) -> OsString {
    let mut name = OsString::from("file:");
    name.push(path);
    name
}

/// A running `ffmpeg`, which ends with this value at the latest.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// What it complains of. A file takes any length, and nobody has to read along.
    complaints: File,
}

impl Process {
    pub(super) fn start(
        arguments: impl IntoIterator<Item = OsString>,
        input: Stdio,
        output: Stdio,
    ) -> Result<Self, VideoError> {
        let complaints = tempfile::tempfile().map_err(VideoError::Start)?;
        let errors = complaints.try_clone().map_err(VideoError::Start)?;
        let mut command = Command::new(PROGRAM);
        command.args(["-v", "error", "-nostdin"].map(OsStr::new)).args(arguments);
        command.stdin(input).stdout(output).stderr(errors);
        // Ctrl-C is for this program, which lets what was begun come to its end.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VideoError::NoFfmpeg,
            _ => VideoError::Start(error),
        })?;
        Ok(Self { child, complaints })
    }

    /// Its stdin, to be taken once.
    pub(super) fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("stdin is a pipe where it is asked for")
    }

    /// Its stdout, to be taken once.
    pub(super) fn output(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("stdout is a pipe where it is asked for")
    }

    /// Waits for its end.
    pub(super) fn finish(&mut self) -> Result<(), VideoError> {
        let status = self.child.wait().map_err(VideoError::Start)?;
        if status.success() {
            return Ok(());
        }
        let words = self.complaints().unwrap_or_else(|| format!("it ended with {status}"));
        Err(VideoError::Failed { words })
    }

    /// The first things that it complained of, in a line.
    pub(super) fn complaints(&mut self) -> Option<String> {
        const SHOWN: usize = 2;
        let mut words = Vec::new();
        self.complaints.seek(SeekFrom::Start(0)).ok()?;
        self.complaints.by_ref().take(MOST_WORDS).read_to_end(&mut words).ok()?;
        let words = String::from_utf8_lossy(&words);
        let lines: Vec<_> = words.lines().map(without_address).filter(|line| !line.is_empty()).take(SHOWN).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

/// A line without the part of ffmpeg that says it, such as `[mov,mp4 @ 0x5581d0]`.
fn without_address(line: &str) -> &str {
    let mut rest = line.trim();
    while let Some((part, said)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        if !part.contains(" @ ") {
            break;
        }
        rest = said.trim();
    }
    rest
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_come_without_addresses() {
        let cases = [
            ("[mov,mp4,m4a @ 0x55d0] moov atom not found", "moov atom not found"),
            ("[vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2] broken", "broken"),
            ("[a] b", "[a] b"),
            ("file:x.mp4: Invalid data", "file:x.mp4: Invalid data"),
        ];
        for (line, expected) in cases {
            assert_eq!(without_address(line), expected);
        }
    }
}
