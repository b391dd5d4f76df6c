//! A file that has no name yet: it lies beside its target, and takes the target's name only when all is well.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file beside its target. It goes away with this value unless it is kept; until then the target is untouched.
#[derive(Debug)]
pub struct Draft {
    file: NamedTempFile,
    target: PathBuf,
}

impl Draft {
    /// An empty file beside `target`.
    ///
    /// # Errors
    /// When the folder can't be written, or `target` is a folder.
    pub fn create(target: &Path) -> io::Result<Self> {
        if target.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // Readable for others, as far as the user's umask has it; the default is for secrets.
        let permissions = Permissions::from_mode(0o666);
        let mut builder = tempfile::Builder::new();
        let file =
            builder.prefix(&format!(".{name}.")).suffix(".partial").permissions(permissions).tempfile_in(folder)?;
        Ok(Self { file, target: target.to_owned() })
    }

    /// Where the file lies for now.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Appends `bytes` and waits until they are on the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.as_file().sync_all()
    }

    /// Gives the file its name; what had it before is replaced.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep(self) -> io::Result<()> {
        self.file.persist(&self.target)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_draft_that_is_not_kept_leaves_the_earlier_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.onnx");
        fs::write(&target, "first").unwrap();
        let mut draft = Draft::create(&target).unwrap();
        draft.write(b"second").unwrap();
        assert_eq!(fs::read(draft.path()).unwrap(), b"second");
        assert_eq!(fs::read(&target).unwrap(), b"first");
        drop(draft);
        assert_eq!(fs::read(&target).unwrap(), b"first");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_kept_draft_has_the_name_and_others_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.onnx");
        let mut draft = Draft::create(&target).unwrap();
        draft.write(b"model").unwrap();
        draft.keep().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"model");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        let plain = folder.path().join("plain");
        fs::write(&plain, "").unwrap();
        assert_eq!(target.metadata().unwrap().permissions(), plain.metadata().unwrap().permissions());
    }

    #[test]
    fn a_target_in_no_folder_or_that_is_one_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Draft::create(folder.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        let missing = folder.path().join("missing/model.onnx");
        assert_eq!(Draft::create(&missing).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
