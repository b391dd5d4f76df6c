//! Atomic writes: a file is written completely, or not changed at all.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

/// Paths of the temporary files that exist.
static PARTIAL: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn partial() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    PARTIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deletes the temporary file of every [`AtomicFile`], for a program that is about to exit without dropping them. Blocks
/// threads that create, commit or drop one from then on.
pub fn remove_partial_files() {
    let files = partial();
    for file in &*files {
        // What cannot be deleted stays.
        let _ = fs::remove_file(file);
    }
    std::mem::forget(files);
}

/// A temporary file next to its target, which it replaces on [`commit`](Self::commit). If it is dropped before, it is
/// deleted, and the target stays unchanged.
#[derive(Debug)]
pub struct AtomicFile {
    file: BufWriter<NamedTempFile>,
    target: PathBuf,
    _listed: Listed,
}

/// Keeps the path of a temporary file in [`PARTIAL`].
#[derive(Debug)]
struct Listed(PathBuf);

impl Drop for Listed {
    fn drop(&mut self) {
        partial().remove(&self.0);
    }
}

impl AtomicFile {
    /// Creates an empty hidden file next to `target`. A symbolic link is followed.
    ///
    /// # Errors
    /// When the folder cannot be written, or `target` exists and is not a regular file (a folder, a device, a pipe).
    pub fn create(target: &Path) -> io::Result<Self> {
        let target = resolve_target(target)?;
        let folder = folder_of(&target);
        // Creates the file under the lock, so that a program that exits misses none.
        let mut partial = partial();
        let file = tempfile::Builder::new()
            .prefix(&hidden_prefix(&target))
            .suffix(".partial")
            // Like any new file, minus the user's umask. The default of `tempfile` is private to the user.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(without_path)?;
        let path = std::path::absolute(file.path())?;
        partial.insert(path.clone());
        Ok(Self { file: BufWriter::new(file), target, _listed: Listed(path) })
    }

    /// Path of the temporary file. Bytes that are not flushed yet may be missing from it.
    pub fn path(&self) -> &Path {
        self.file.get_ref().path()
    }

    /// Waits until all bytes are on the disk, renames the file to its target, which it replaces, and waits until the new name
    /// is on the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn commit(mut self) -> io::Result<()> {
        self.flush()?;
        self.file.get_ref().as_file().sync_all()?;
        let folder = folder_of(&self.target).to_owned();
        self.publish()?;
        sync_folder(&folder)
    }

    /// Renames the file to its target, which it replaces, without waiting for the disk: after a power failure it may be
    /// incomplete. Returns the file, to which more can be written.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn publish(self) -> io::Result<File> {
        let file = self.file.into_inner().map_err(|error| without_path(error.into_error()))?;
        file.persist(&self.target).map_err(|error| without_path(error.error))
    }
}

/// The file that is written for a target: the target itself, or what a symbolic link leads to, which need not exist.
///
/// # Errors
/// When its folder does not exist, or it exists and is not a regular file (a folder, a device, a pipe).
pub fn resolve_target(target: &Path) -> io::Result<PathBuf> {
    /// As many links as Linux follows.
    const MAX_LINKS: usize = 40;
    let mut target = target.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = fs::read_link(&target) else { break };
        target = folder_of(&target).join(link);
    }
    if target.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if is_device(&target) {
        return Err(io::Error::other("it is a device or a pipe, which a file cannot replace"));
    }
    fs::metadata(folder_of(&target))?;
    Ok(target)
}

/// The beginning of the name of a hidden file for `target`. It leaves room for what is added: file systems allow 255 bytes.
pub fn hidden_prefix(target: &Path) -> String {
    const MAX_BYTES: usize = 200;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    format!(".{}.", &name[..name.floor_char_boundary(MAX_BYTES)])
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(without_path)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(without_path)
    }
}

/// The folder that a file is in; `.` for a name alone.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until the names in a folder are on the disk, so that a rename survives a power failure. Does nothing where the
/// file system cannot do that, or the user may write to the folder but not read it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => Ok(()),
        result => result,
    }
}

/// The system's error without the path of the temporary file, which means nothing to users.
fn without_path(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|named| named.source()?.downcast_ref::<io::Error>()?.raw_os_error());
    inner.map_or(error, io::Error::from_raw_os_error)
}

/// Whether `path` exists and is neither a regular file nor a folder, such as `/dev/null` or a pipe.
pub fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Writes a whole file through an [`AtomicFile`]. Devices and pipes are written directly.
///
/// # Errors
/// Those of `write` and of the file system. The file at `path` is then unchanged.
pub fn write_atomically<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    write_and(AtomicFile::commit, path, write)
}

/// As [`write_atomically`], without waiting for the disk. For many files that can be made again after a power failure.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_unsynced<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    write_and(|file| file.publish().map(drop), path, write)
}

fn write_and<E: From<io::Error>>(
    finish: impl FnOnce(AtomicFile) -> io::Result<()>,
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
    Ok(finish(file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_write_keeps_the_old_file_and_leaves_no_temporary_file() {
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
    fn commit_replaces_the_target_and_sets_default_permissions() {
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
    fn links_are_followed_and_devices_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [link, file] = ["link", "file"].map(|name| folder.path().join(name));
        fs::write(&file, b"first").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [link.as_path(), Path::new("/dev/null")] {
            write_atomically::<io::Error>(path, |file| file.write_all(b"second")).unwrap();
        }
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        // What a relative link leads to need not exist yet.
        fs::create_dir(folder.path().join("disk")).unwrap();
        let best = folder.path().join("best");
        std::os::unix::fs::symlink("disk/best", &best).unwrap();
        write_atomically::<io::Error>(&best, |file| file.write_all(b"third")).unwrap();
        assert!(fs::symlink_metadata(&best).unwrap().is_symlink());
        assert_eq!(fs::read(folder.path().join("disk/best")).unwrap(), b"third");
        assert!(AtomicFile::create(Path::new("/dev/null")).is_err());
        assert!(is_device(Path::new("/dev/null")));
    }

    #[test]
    fn folders_are_synced() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(folder_of(&folder.path().join("model.onnx")), folder.path());
        assert_eq!(folder_of(Path::new("model.onnx")), Path::new("."));
        sync_folder(folder.path()).unwrap();
        // The system cannot sync the folders of `/proc`.
        sync_folder(Path::new("/proc/self")).unwrap();
        assert_eq!(sync_folder(&folder.path().join("missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn long_names_and_files_that_are_still_written_are_accepted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x".repeat(255), "\u{e9}".repeat(127)] {
            let path = folder.path().join(name);
            let mut file = AtomicFile::create(&path).unwrap();
            file.write_all(b"first").unwrap();
            let mut file = file.publish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"first");
            file.write_all(b", second").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"first, second");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn create_rejects_folders_and_missing_parent_folders() {
        let folder = tempfile::tempdir().unwrap();
        let error_kind = |path: &Path| AtomicFile::create(path).unwrap_err().kind();
        assert_eq!(error_kind(folder.path()), io::ErrorKind::IsADirectory);
        assert_eq!(error_kind(&folder.path().join("missing/model.onnx")), io::ErrorKind::NotFound);
    }
}
