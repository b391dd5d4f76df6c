//! Inputs: from what a user names to the pictures that are meant.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::picture;

/// Why a name stands for no pictures.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A folder cannot be listed.
    #[error("cannot list folder `{}`: {reason}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// A folder holds no pictures.
    #[error("folder `{}` has no pictures; files that end in {} count, those in folders below do not", .folder.display(), picture::EXTENSIONS.join(", "))]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
    /// A pattern is malformed.
    #[error("pattern `{pattern}` is malformed: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A pattern fits no file.
    #[error("pattern `{pattern}` fits no file")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
}

/// The pictures that `names` stand for, in the order of the names. A folder stands for the pictures in it, told by their
/// extension and sorted by name, those in folders below and hidden ones excepted; a pattern with `*`, `?` or `[` for the
/// files that fit it, sorted; anything else for itself, whether there is such a file or not, so that one missing picture
/// fails by itself. What is named twice comes twice.
///
/// # Errors
/// When a folder cannot be listed or has no pictures, and when a pattern is malformed or fits no file.
pub fn expand<P: AsRef<Path>>(names: &[P]) -> Result<Vec<PathBuf>, InputError> {
    let mut files = Vec::new();
    for name in names {
        let name = name.as_ref();
        if name.is_dir() {
            files.extend(in_folder(name)?);
        } else if let Some(pattern) = pattern(name) {
            files.extend(matches(pattern)?);
        } else {
            files.push(name.to_owned());
        }
    }
    Ok(files)
}

fn in_folder(folder: &Path) -> Result<Vec<PathBuf>, InputError> {
    let error = |reason| InputError::Folder { folder: folder.to_owned(), reason };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if is_picture(&path) && !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(InputError::Empty { folder: folder.to_owned() });
    }
    files.sort();
    Ok(files)
}

/// Told by the name, so that a folder of pictures may hold their annotations too.
fn is_picture(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    !hidden && picture::EXTENSIONS.iter().any(|known| extension == *known)
}

/// The name as a pattern, unless it has no wildcards or a file bears that very name.
fn pattern(name: &Path) -> Option<&str> {
    name.to_str().filter(|text| text.contains(['*', '?', '[']) && !name.exists())
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>, InputError> {
    let error = |reason: String| InputError::Pattern { pattern: pattern.to_owned(), reason };
    let mut files = Vec::new();
    for path in glob::glob(pattern).map_err(|reason| error(reason.to_string()))? {
        let path = path.map_err(|reason| error(reason.to_string()))?;
        if !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(InputError::NoMatch { pattern: pattern.to_owned() });
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these empty files.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn names(folder: &tempfile::TempDir, files: &[PathBuf]) -> Vec<String> {
        files.iter().map(|file| file.strip_prefix(folder.path()).unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_folder_gives_its_pictures_sorted() {
        let folder = folder(&["b.PNG", "a.jpg", "labels.json", ".hidden.jpg", "below/c.jpg", "d.tif"]);
        assert_eq!(names(&folder, &expand(&[folder.path()]).unwrap()), ["a.jpg", "b.PNG", "d.tif"]);
    }

    #[test]
    fn a_folder_without_pictures_is_an_error_that_names_it() {
        let folder = folder(&["labels.json", "below/c.jpg"]);
        let error = expand(&[folder.path()]).unwrap_err();
        assert!(matches!(error, InputError::Empty { .. }));
        assert!(error.to_string().contains(&folder.path().display().to_string()));
    }

    #[test]
    fn a_pattern_gives_the_files_that_fit_sorted() {
        let folder = folder(&["2.jpg", "1.jpg", "1.png", "3.jpg/inside.txt"]);
        assert_eq!(names(&folder, &expand(&[folder.path().join("*.jpg")]).unwrap()), ["1.jpg", "2.jpg"]);
        assert!(matches!(expand(&[folder.path().join("*.gif")]), Err(InputError::NoMatch { .. })));
        assert!(matches!(expand(&[folder.path().join("a***")]), Err(InputError::Pattern { .. })));
    }

    #[test]
    fn a_file_whose_name_looks_like_a_pattern_is_taken_as_it_is() {
        let folder = folder(&["a[1].jpg", "a1.jpg"]);
        assert_eq!(names(&folder, &expand(&[folder.path().join("a[1].jpg")]).unwrap()), ["a[1].jpg"]);
    }

    #[test]
    fn names_keep_their_order_and_missing_files_their_place() {
        let folder = folder(&["a.jpg", "b.jpg"]);
        let given = ["b.jpg", "missing.jpg", "a.jpg", "b.jpg"].map(|name| folder.path().join(name));
        assert_eq!(expand(&given).unwrap(), given);
    }
}
