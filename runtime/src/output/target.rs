//! Where results go: stdout, or a file that appears whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Stdout, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Where results go.
#[derive(Debug)]
pub(super) enum Target {
    /// Shown as they come.
    Stdout(Stdout),
    /// Kept in a file beside the final one, which is removed when the target is dropped before its commit. The library's
    /// `write_atomically` would do if all results were at hand at once.
    File { partial: BufWriter<NamedTempFile>, path: PathBuf },
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
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Target::Stdout(io::stdout()));
        }
        // A link stays a link: the file that it points to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&path) {
            Ok(earlier) if earlier.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(earlier) if !earlier.is_file() => {
                return Ok(Target::Device(BufWriter::new(OpenOptions::new().write(true).open(path)?)));
            }
            _ => {}
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let partial = tempfile::Builder::new()
            .prefix(".runtime-")
            .suffix(".partial")
            // As for any new file; the caller's umask takes from it.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            // Its own message names the random file.
            .map_err(|error| io::Error::from(error.kind()))?;
        Ok(Target::File { partial: BufWriter::new(partial), path })
    }

    /// Makes what was written visible where someone may be reading along.
    pub(super) fn show(&mut self) -> io::Result<()> {
        match self {
            Target::Stdout(stdout) => stdout.flush(),
            Target::Device(device) => device.flush(),
            Target::File { .. } | Target::Closed => Ok(()),
        }
    }

    /// Gives a file its name.
    pub(super) fn commit(self) -> io::Result<()> {
        let Target::File { partial, path } = self else { return Ok(()) };
        let partial = partial.into_inner().map_err(|error| error.into_error())?;
        partial.as_file().sync_all()?;
        partial.persist(path).map(drop).map_err(|error| error.error)
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Stdout(stdout) => stdout.write(bytes),
            Target::File { partial, .. } => partial.write(bytes),
            Target::Device(device) => device.write(bytes),
            Target::Closed => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Target::Stdout(stdout) => stdout.flush(),
            Target::File { partial, .. } => partial.flush(),
            Target::Device(device) => device.flush(),
            Target::Closed => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut target = Target::open(&link).unwrap();
        target.write_all(b"after").unwrap();
        target.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"after");
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        assert!(matches!(Target::open(Path::new("/dev/null")).unwrap(), Target::Device(_)));
    }

    #[test]
    fn a_folder_and_a_missing_folder_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Target::open(folder.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        let missing = folder.path().join("missing/results.json");
        assert_eq!(Target::open(&missing).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
