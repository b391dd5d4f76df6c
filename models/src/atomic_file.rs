//! Files that appear whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file beside its target, whose name it takes when it is committed. Dropped before, it goes away; the target is
/// untouched until then.
#[derive(Debug)]
pub struct AtomicFile {
    file: BufWriter<NamedTempFile>,
    target: PathBuf,
}

impl AtomicFile {
    /// An empty file beside `target`, hidden. A link is followed.
    ///
    /// # Errors
    /// When the folder can't be written, or `target` is something other than a file: a folder, a device, a pipe.
    pub fn create(target: &Path) -> io::Result<Self> {
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        if target.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if is_device(&target) {
            return Err(io::Error::other("it is a device or a pipe, which a file can't replace"));
        }
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::metadata(folder)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let file = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".partial")
            // As for any new file, the user's umask takes from it; the default is for secrets.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(plain)?;
        Ok(Self { file: BufWriter::new(file), target })
    }

    /// Where the file lies until it is committed. What was not flushed may be missing from it.
    pub fn path(&self) -> &Path {
        self.file.get_ref().path()
    }

    /// Waits until all is on the disk, and gives the file its name; what had it before is replaced.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn commit(self) -> io::Result<()> {
        let file = self.file.into_inner().map_err(|error| plain(error.into_error()))?;
        file.as_file().sync_all()?;
        file.persist(&self.target).map_err(|error| plain(error.error))?;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(plain)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(plain)
    }
}

/// The system's error without the name of the hidden file, which says nothing to anyone.
fn plain(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|named| named.source()?.downcast_ref::<io::Error>()?.raw_os_error());
    inner.map_or(error, io::Error::from_raw_os_error)
}

/// Whether `path` is there and neither a file nor a folder, such as `/dev/null`.
pub fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Writes a whole file by way of an [`AtomicFile`]; a device or a pipe is written to as it is.
///
/// # Errors
/// Those of `write` and of the file system. What `path` held before is then untouched.
pub fn write_atomically<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    if is_device(path) {
        let mut device = BufWriter::new(File::options().write(true).open(path)?);
        write(&mut device)?;
        return Ok(device.flush()?);
    }
    let mut file = AtomicFile::create(path)?;
    write(&mut file)?;
    Ok(file.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_earlier_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        write_atomically::<io::Error>(&path, |file| file.write_all(b"first")).unwrap();
        let failed = write_atomically::<io::Error>(&path, |file| {
            file.write_all(b"second")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "disk full");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_beside_its_target_until_it_is_committed_and_has_the_permissions_of_any_other() {
        let folder = tempfile::tempdir().unwrap();
        let [path, plain] = ["model.onnx", "plain"].map(|name| folder.path().join(name));
        fs::write(&path, "first").unwrap();
        fs::write(&plain, "").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"second").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), b"second");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        let permissions = |path: &Path| fs::metadata(path).unwrap().permissions();
        assert_eq!(permissions(&path), permissions(&plain));
    }

    #[test]
    fn a_link_is_followed_and_a_device_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let [link, file] = ["link", "file"].map(|name| folder.path().join(name));
        fs::write(&file, b"first").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [link.as_path(), Path::new("/dev/null")] {
            write_atomically::<io::Error>(path, |file| file.write_all(b"second")).unwrap();
        }
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(AtomicFile::create(Path::new("/dev/null")).is_err());
        assert!(is_device(Path::new("/dev/null")));
    }

    #[test]
    fn a_folder_and_a_target_in_no_folder_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| AtomicFile::create(path).unwrap_err().kind();
        assert_eq!(refused(folder.path()), io::ErrorKind::IsADirectory);
        assert_eq!(refused(&folder.path().join("missing/model.onnx")), io::ErrorKind::NotFound);
    }
}
