//! Processes of the program `ffmpeg`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::VideoError;

const PROGRAM: &str = "ffmpeg";

/// Maximum bytes of its stderr that are read.
const MAX_STDERR_BYTES: u64 = 4096;

/// Checks that `ffmpeg` works, so that a program can report its absence before it starts to work.
///
/// # Errors
/// When `ffmpeg` is not on the PATH, or does not start.
pub fn check() -> Result<(), VideoError> {
    let mut process = Process::start(["-version".into()], Stdio::null(), Stdio::null())?;
    process.finish()
}

/// A file as an argument of ffmpeg. The prefix keeps ffmpeg from treating a name as an option or a URL.
pub(super) fn file(path: &Path) -> OsString {
    let mut name = OsString::from("file:");
    name.push(path);
    name
}

/// A running `ffmpeg`. Dropping this value kills it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Its stderr. Unlike a pipe, a file never blocks the writer.
    stderr: File,
}

impl Process {
    pub(super) fn start(
        arguments: impl IntoIterator<Item = OsString>,
        input: Stdio,
        output: Stdio,
    ) -> Result<Self, VideoError> {
        let stderr = tempfile::tempfile().map_err(VideoError::Start)?;
        let errors = stderr.try_clone().map_err(VideoError::Start)?;
        let mut command = Command::new(PROGRAM);
        command.args(["-v", "error", "-nostdin"].map(OsStr::new)).args(arguments);
        command.stdin(input).stdout(output).stderr(errors);
        // A process group of its own: Ctrl-C must reach only this program, which finishes the images in progress.
        command.process_group(0);
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VideoError::NoFfmpeg,
            _ => VideoError::Start(error),
        })?;
        Ok(Self { child, stderr })
    }

    /// Its stdin. Call at most once, and only if it is a pipe.
    pub(super) fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("stdin is a pipe and is taken once")
    }

    /// Its stdout. Call at most once, and only if it is a pipe.
    pub(super) fn output(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("stdout is a pipe and is taken once")
    }

    /// Waits until it exits.
    pub(super) fn finish(&mut self) -> Result<(), VideoError> {
        let status = self.child.wait().map_err(VideoError::Start)?;
        if status.success() {
            return Ok(());
        }
        let message = self.messages().unwrap_or_else(|| format!("failed with {status}"));
        Err(VideoError::Failed { message })
    }

    /// The first lines of its stderr, joined to one line; `None` if there are none.
    pub(super) fn messages(&mut self) -> Option<String> {
        const MAX_LINES: usize = 2;
        let mut text = Vec::new();
        self.stderr.seek(SeekFrom::Start(0)).ok()?;
        self.stderr.by_ref().take(MAX_STDERR_BYTES).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> =
            text.lines().map(without_component).filter(|line| !line.is_empty()).take(MAX_LINES).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

/// A line without ffmpeg's component and its address, such as `[mov,mp4 @ 0x5581d0]`.
fn without_component(line: &str) -> &str {
    let mut rest = line.trim();
    while let Some((component, message)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        if !component.contains(" @ ") {
            break;
        }
        rest = message.trim();
    }
    rest
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_contain_no_addresses() {
        let cases = [
            ("[mov,mp4,m4a @ 0x55d0] moov atom not found", "moov atom not found"),
            ("[vist#0:0/h264 @ 0x1] [dec:h264 @ 0x2] broken", "broken"),
            ("[a] b", "[a] b"),
            ("file:x.mp4: Invalid data", "file:x.mp4: Invalid data"),
        ];
        for (line, expected) in cases {
            assert_eq!(without_component(line), expected);
        }
    }
}
