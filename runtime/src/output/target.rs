//! Where results go: stdout, or a file that appears whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Stdout, Write};
use std::path::Path;

use models::{AtomicFile, is_device};

/// Where results go. A reader that goes away, as behind `| head`, is no error: the target is closed from then on.
#[derive(Debug)]
pub enum Target {
    /// Shown as they come.
    Stdout(Stdout),
    /// Kept until the commit.
    File(AtomicFile),
    /// A device or a pipe, which must not be replaced.
    Device(BufWriter<File>),
    /// A stdout or a pipe that nobody reads anymore. What is written goes nowhere.
    Closed,
}

impl Target {
    /// Opens `path` for writing, where `-` is stdout.
    ///
    /// # Errors
    /// When nothing can be written there; no earlier file has been touched then.
    pub fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Target::Stdout(io::stdout()));
        }
        if is_device(path) {
            return Ok(Target::Device(BufWriter::new(File::options().write(true).open(path)?)));
        }
        AtomicFile::create(path).map(Target::File)
    }

    /// What messages call `path`, where `-` is stdout.
    pub fn name(path: &Path) -> String {
        if path.as_os_str() == "-" { "stdout".to_owned() } else { format!("`{}`", path.display()) }
    }

    /// Makes what was written visible where someone may be reading along.
    pub(super) fn show(&mut self) -> io::Result<()> {
        if matches!(self, Target::File(_)) { Ok(()) } else { self.flush() }
    }

    /// Turns the error of a reader that has gone away into a closed target.
    fn unless_closed<T>(&mut self, result: io::Result<T>, done: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                *self = Target::Closed;
                Ok(done)
            }
            other => other,
        }
    }

    /// Ends it, and gives a file its name.
    ///
    /// # Errors
    /// Those of the file system.
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
        self.unless_closed(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = match self {
            Target::Stdout(stdout) => stdout.flush(),
            Target::File(file) => file.flush(),
            Target::Device(device) => device.flush(),
            Target::Closed => Ok(()),
        };
        self.unless_closed(flushed, ())
    }
}

/// Writes a line to stdout.
///
/// # Errors
/// When stdout can't be written to for another reason than that nobody reads it anymore.
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
    fn a_file_appears_at_the_commit_and_nothing_is_left_without() {
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
