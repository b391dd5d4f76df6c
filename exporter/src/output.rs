//! The output file: everything is written into a hidden folder next to it, and moved out when it is verified.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use models::AtomicFile;
use tempfile::TempDir;

/// An ONNX file that is not committed yet. If it is dropped before, nothing of it stays, and an existing file stays
/// unchanged.
#[derive(Debug)]
pub struct OutputFile {
    folder: TempDir,
    target: PathBuf,
}

impl OutputFile {
    /// Creates the hidden folder next to `target`. A symbolic link is followed.
    ///
    /// # Errors
    /// When the folder of `target` cannot be written, or `target` exists and is not a regular file.
    pub fn create(target: &Path) -> io::Result<Self> {
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        // Has the same rules for targets.
        drop(AtomicFile::create(&target)?);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let folder =
            tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".partial").tempdir_in(folder_of(&target))?;
        Ok(Self { folder, target })
    }

    /// The hidden folder, for all temporary files of the export.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Path of the ONNX file until it is committed.
    pub fn path(&self) -> PathBuf {
        self.folder().join("model.onnx")
    }

    /// Moves the ONNX file to its target, which it replaces, after the external data file called `data`, if there is one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn commit(self, data: Option<&str>) -> io::Result<()> {
        let folder = folder_of(&self.target);
        let data = data.map(|name| (self.folder().join(name), folder.join(name)));
        for (from, to) in data.into_iter().chain([(self.path(), self.target.clone())]) {
            File::open(&from)?.sync_all()?;
            fs::rename(from, to)?;
        }
        // Some file systems cannot sync a folder. The files are complete even so.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_get_their_names_only_when_they_are_committed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.onnx");
        fs::write(&target, "earlier").unwrap();
        let write = || {
            let file = OutputFile::create(&target).unwrap();
            fs::write(file.path(), "new").unwrap();
            fs::write(file.folder().join("model-1.bin"), "weights").unwrap();
            file
        };
        drop(write());
        assert_eq!(
            (names(folder.path()), fs::read(&target).unwrap()),
            (vec!["model.onnx".to_owned()], b"earlier".into())
        );
        write().commit(Some("model-1.bin")).unwrap();
        assert_eq!(names(folder.path()), ["model-1.bin", "model.onnx"]);
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert!(OutputFile::create(folder.path()).is_err(), "a folder is not replaced");
    }
}
