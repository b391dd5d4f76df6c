//! Where the models are: one file, or a folder in Triton's layout, `NAME/VERSION/model.onnx`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

/// Where the models are.
#[derive(Clone, Debug)]
pub(super) enum Repository {
    /// One file, with the name of its model. Its version is 1.
    File { path: PathBuf, name: String },
    /// A folder in Triton's layout.
    Folder(PathBuf),
}

/// The file of a version, and what tells whether it has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelFile {
    pub(super) path: PathBuf,
    length: u64,
    modified: Option<SystemTime>,
}

/// The versions of each model, by number.
pub(super) type ModelFiles = BTreeMap<String, BTreeMap<u64, ModelFile>>;

/// Name of a model's file in its version's folder.
const FILE_NAME: &str = "model.onnx";

impl Repository {
    /// The models that are there now. Folders that are not versions are ignored, as Triton does.
    pub(super) fn scan(&self) -> Result<ModelFiles> {
        let mut found = ModelFiles::new();
        match self {
            Self::File { path, name } => {
                // A missing file is reported when it is opened.
                let file = ModelFile::new(path.clone()).unwrap_or_else(|| ModelFile::missing(path.clone()));
                found.insert(name.clone(), BTreeMap::from([(1, file)]));
            }
            Self::Folder(folder) => {
                // Every ext4 volume has a folder `lost+found`, which only root can read.
                for (name, path) in folders(folder)?.into_iter().filter(|(name, _)| name != "lost+found") {
                    let versions = folders(&path)?.into_iter().filter_map(|(version, path)| {
                        // `01` and `1` would be one version.
                        let number = version.parse().ok().filter(|number: &u64| number.to_string() == version)?;
                        Some((number, ModelFile::new(path.join(FILE_NAME))?))
                    });
                    let versions: BTreeMap<_, _> = versions.collect();
                    if !versions.is_empty() {
                        found.insert(name, versions);
                    }
                }
                let folder = folder.display();
                ensure!(!found.is_empty(), "there is no model in `{folder}`; expected NAME/VERSION/{FILE_NAME}");
            }
        }
        Ok(found)
    }
}

impl ModelFile {
    /// `None` if there is no such file.
    fn new(path: PathBuf) -> Option<Self> {
        let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        Some(Self { path, length: metadata.len(), modified: metadata.modified().ok() })
    }

    fn missing(path: PathBuf) -> Self {
        Self { path, length: 0, modified: None }
    }
}

/// Names and paths of the folders in a folder.
fn folders(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let context = || format!("cannot read the folder of models `{}`", folder.display());
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        // Kubernetes mounts through symbolic links.
        if let (true, Ok(name)) = (entry.path().is_dir(), entry.file_name().into_string()) {
            folders.push((name, entry.path()));
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_folders_with_a_number_and_a_model() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "a/1/model.onnx",
            "a/10/model.onnx",
            "a/02/model.onnx",
            "a/x/model.onnx",
            "a/3/other.onnx",
            "b/readme",
            "lost+found/1/model.onnx",
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "a model").unwrap();
        }
        let found = Repository::Folder(folder.path().to_owned()).scan().unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(found["a"].keys().collect::<Vec<_>>(), [&1, &10]);
        fs::write(folder.path().join("a/10/model.onnx"), "another model").unwrap();
        let changed = Repository::Folder(folder.path().to_owned()).scan().unwrap();
        assert_eq!(changed["a"][&1], found["a"][&1]);
        assert_ne!(changed["a"][&10], found["a"][&10]);
    }

    #[test]
    fn a_folder_without_models_is_an_error_that_says_what_is_expected() {
        let folder = tempfile::tempdir().unwrap();
        let error = Repository::Folder(folder.path().to_owned()).scan().unwrap_err().to_string();
        assert!(error.contains("NAME/VERSION/model.onnx"), "{error}");
        let missing = Repository::Folder(folder.path().join("none")).scan().unwrap_err();
        assert!(format!("{missing:#}").contains("none"), "{missing:#}");
    }
}
