//! The output file: everything is written into a hidden folder next to it, and moved out when it is verified.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use models::atomic_file::{folder_of, hidden_prefix, resolve_target};
use tempfile::TempDir;

/// An ONNX file that is not committed yet. If it is dropped before, nothing of it stays, and an existing file stays
/// unchanged.
#[derive(Debug)]
pub struct OutputFile {
    folder: TempDir,
    target: PathBuf,
    /// Name of the model in its repository, if it is in one.
    model_name: Option<String>,
}

/// Name of a model's configuration in a repository, next to the folders of its versions.
const CONFIG: &str = "config.pbtxt";

impl OutputFile {
    /// Creates the hidden folder next to `target`. A symbolic link is followed.
    ///
    /// # Errors
    /// When the folder of `target` cannot be written, or `target` exists and is not a regular file.
    pub fn create(target: &Path) -> io::Result<Self> {
        let target = resolve_target(target)?;
        let folder = hidden_folder(&target, folder_of(&target))?;
        Ok(Self { folder, target, model_name: None })
    }

    /// As [`OutputFile::create`], for version 1 of a model in a model repository of Triton. Folders that do not exist are created
    /// when the file is committed.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn in_repository(repository: &Path, model_name: &str) -> io::Result<Self> {
        let target = repository.join(model_name).join("1/model.onnx");
        let existing = target.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
        Ok(Self {
            folder: hidden_folder(Path::new(model_name), existing)?,
            target,
            model_name: Some(model_name.to_owned()),
        })
    }

    /// Path of the ONNX file once it is committed.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Name of the model in its repository, if it is in one.
    pub(crate) fn model_name(&self) -> Option<&str> {
        self.model_name.as_deref()
    }

    /// Path of the model's configuration until it is committed; used only in a repository.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder().join(CONFIG)
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
        let config = self.model_name.as_ref().map(|_| (self.config(), folder_of(folder).join(CONFIG)));
        if config.is_some() {
            fs::create_dir_all(folder)?;
        }
        for (from, to) in data.into_iter().chain([(self.path(), self.target.clone())]).chain(config) {
            File::open(&from)?.sync_all()?;
            fs::rename(from, to)?;
        }
        // Some file systems cannot sync a folder. The files are complete even so.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

fn hidden_folder(name: &Path, folder: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(&hidden_prefix(name)).suffix(".partial").tempdir_in(folder)
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
        OutputFile::create(&folder.path().join("x".repeat(255))).unwrap();
    }

    #[test]
    fn repositories_are_created_when_a_model_is_committed() {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("new/models");
        let create = || OutputFile::in_repository(&repository, "cells").unwrap();
        drop(create());
        assert!(names(folder.path()).is_empty());
        for text in ["first", "second"] {
            let file = create();
            assert_eq!(file.target(), repository.join("cells/1/model.onnx"));
            fs::write(file.path(), text).unwrap();
            fs::write(file.config(), "name: \"cells\"").unwrap();
            file.commit(None).unwrap();
            assert_eq!(fs::read_to_string(repository.join("cells/1/model.onnx")).unwrap(), text);
        }
        assert_eq!(names(&repository.join("cells")), ["1", "config.pbtxt"]);
        assert_eq!(names(&repository.join("cells/1")), ["model.onnx"]);
    }
}
