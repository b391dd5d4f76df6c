//! Output targets: stdout, files written atomically, devices.

use std::fs::File;
use std::io::{self, BufWriter, Stdout, Write};
use std::path::Path;

use models::{AtomicFile, is_device};

/// Where results are written. When the reader closes stdout or a pipe, as `| head` does, the target becomes
/// [`Target::Closed`], without an error.
#[derive(Debug)]
pub enum Target {
    /// Standard output.
    Stdout(Stdout),
    /// A file, which gets its name in [`Target::commit`].
    File(AtomicFile),
    /// A device or a pipe, which is written to and not replaced, or a file that has its name already.
    Device(BufWriter<File>),
    /// A stdout or a pipe that its reader has closed. What is written is discarded.
    Closed,
}

impl Target {
    /// Opens `path` for writing; `-` is stdout.
    ///
    /// # Errors
    /// When `path` cannot be written. An existing file is not changed.
    pub fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Target::Stdout(io::stdout()));
        }
        if is_device(path) {
            return Ok(Target::Device(BufWriter::new(File::options().write(true).open(path)?)));
        }
        AtomicFile::create(path).map(Target::File)
    }

    /// As [`Target::open`], but adds to a file that exists.
    ///
    /// # Errors
    /// When `path` cannot be written.
    pub fn append(path: &Path) -> io::Result<Self> {
        match File::options().append(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::open(path),
            file => Ok(Target::Device(BufWriter::new(file?))),
        }
    }

    /// The name of `path` in messages; `-` is stdout.
    pub fn name(path: &Path) -> String {
        if path.as_os_str() == "-" { "stdout".to_owned() } else { format!("`{}`", path.display()) }
    }

    /// Gives a file its name now instead of in [`Target::commit`], so that what is flushed can be read, and stays.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        if let Target::File(_) = self
            && let Target::File(file) = std::mem::replace(self, Target::Closed)
        {
            *self = Target::Device(BufWriter::new(file.publish()?));
        }
        Ok(())
    }

    /// Flushes what a reader may be waiting for; not files, which are invisible before the commit.
    pub(super) fn flush_unless_file(&mut self) -> io::Result<()> {
        if matches!(self, Target::File(_)) { Ok(()) } else { self.flush() }
    }

    /// Closes the target if the result is a broken pipe, and returns `done` instead of the error.
    fn close_if_broken_pipe<T>(&mut self, result: io::Result<T>, done: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                *self = Target::Closed;
                Ok(done)
            }
            other => other,
        }
    }

    /// Flushes, and gives a file its name.
    ///
    /// # Errors
    /// I/O errors.
    pub fn commit(mut self) -> io::Result<()> {
        self.flush()?;
        match self {
            Target::File(file) => file.commit(),
            _ => Ok(()),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self {
            Target::Stdout(stdout) => stdout.write(bytes),
            Target::File(file) => file.write(bytes),
            Target::Device(device) => device.write(bytes),
            Target::Closed => Ok(bytes.len()),
        };
        self.close_if_broken_pipe(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = match self {
            Target::Stdout(stdout) => stdout.flush(),
            Target::File(file) => file.flush(),
            Target::Device(device) => device.flush(),
            Target::Closed => Ok(()),
        };
        self.close_if_broken_pipe(flushed, ())
    }
}

/// Writes a line to stdout.
///
/// # Errors
/// I/O errors. A stdout that its reader has closed is not an error.
pub fn print(line: &str) -> io::Result<()> {
    let mut stdout = Target::Stdout(io::stdout());
    writeln!(stdout, "{line}")?;
    stdout.commit()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_appears_at_the_commit_and_nothing_remains_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let mut target = Target::open(&path).unwrap();
        target.write_all(b"half").unwrap();
        drop(target);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

        let mut target = Target::open(&path).unwrap();
        target.write_all(b"whole").unwrap();
        assert!(!path.exists());
        target.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        assert!(matches!(Target::open(Path::new("/dev/null")).unwrap(), Target::Device(_)));
    }
}
