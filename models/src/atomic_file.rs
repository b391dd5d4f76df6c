//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a file beside `path`, syncs it and gives it its name. When anything fails, what `path` held before is untouched
/// and nothing is left beside it. A link is followed; what is no regular file, such as `/dev/null`, is written to as it is.
///
/// # Errors
/// Those of `write` and of the file system.
pub fn write_atomically<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let path = target.as_path();
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let mut device = BufWriter::new(File::create(path)?);
        write(&mut device)?;
        return Ok(device.flush()?);
    }
    let partial = Partial(beside(path));
    let mut file = BufWriter::new(File::create(&partial.0)?);
    write(&mut file)?;
    file.flush()?;
    file.get_ref().sync_all()?;
    fs::rename(&partial.0, path)?;
    Ok(())
}

/// A hidden name in the same folder, so that the rename stays within one file system. It holds the process id, so that
/// two programs that write one file do not write into each other's.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

/// A file that goes away with this value; after the rename there is none to go.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
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
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn a_second_write_replaces_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        for text in ["first", "second"] {
            write_atomically::<io::Error>(&path, |file| file.write_all(text.as_bytes())).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
