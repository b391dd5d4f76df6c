//! Inputs: from what a user names to the images that are meant.

mod lines;

use std::io;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use crate::image_file;
pub use lines::{BadLine, Lines};

/// Why a name stands for no images.
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
    /// A folder holds no images.
    #[error("folder `{}` has no images; files that end in {} count, those in folders below {}",
        .folder.display(), image_file::EXTENSIONS.join(", "), if *.recursive { "too" } else { "only with --recursive" })]
    Empty {
        /// The folder.
        folder: PathBuf,
        /// Whether folders below were looked into.
        recursive: bool,
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

/// The images that `names` stand for, in the order of the names. A folder stands for the images in it, told by their
/// extension and sorted by name, hidden ones excepted, and with `recursive` those in folders below; a pattern with `*`, `?` or `[`
/// for the files that fit it, sorted; anything else for itself, whether there is such a file or not, so that one missing image
/// fails by itself. What is named twice comes twice.
///
/// # Errors
/// When a folder cannot be listed or has no images, and when a pattern is malformed or fits no file.
pub fn expand<P: AsRef<Path>>(names: &[P], recursive: bool) -> Result<Vec<PathBuf>, InputError> {
    let mut files = Vec::new();
    for name in names {
        let name = name.as_ref();
        if name.is_dir() {
            files.extend(in_folder(name, recursive)?);
        } else if let Some(pattern) = pattern(name) {
            files.extend(matches(pattern)?);
        } else {
            files.push(name.to_owned());
        }
    }
    Ok(files)
}

fn in_folder(folder: &Path, recursive: bool) -> Result<Vec<PathBuf>, InputError> {
    let depth = if recursive { usize::MAX } else { 1 };
    // Links are followed; one that leads back up is an error of its own, and nothing is missed without it.
    let walk = WalkDir::new(folder).min_depth(1).max_depth(depth).follow_links(true).sort_by_file_name();
    let mut files = Vec::new();
    for entry in walk.into_iter().filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry)) {
        match entry {
            Ok(entry) if !entry.file_type().is_dir() && is_image(entry.path()) => files.push(entry.into_path()),
            Ok(_) => {}
            Err(error) if error.loop_ancestor().is_some() => {}
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                // A link that leads nowhere is an image that is missing, if its name says that it is one.
                if path.is_symlink() {
                    files.extend(Some(path).filter(|path| is_image(path)));
                    continue;
                }
                let reason = error.into_io_error().unwrap_or_else(|| io::ErrorKind::Other.into());
                return Err(InputError::Folder { folder: path, reason });
            }
        }
    }
    match files.is_empty() {
        true => Err(InputError::Empty { folder: folder.to_owned(), recursive }),
        false => Ok(files),
    }
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

/// Told by the name, so that a folder of images may hold their annotations too.
fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    image_file::EXTENSIONS.iter().any(|known| extension == *known)
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
    use std::fs;

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
    fn a_folder_gives_its_images_sorted() {
        let folder = folder(&["b.PNG", "a.jpg", "labels.json", ".hidden.jpg", "below/c.jpg", "d.tif"]);
        assert_eq!(names(&folder, &expand(&[folder.path()], false).unwrap()), ["a.jpg", "b.PNG", "d.tif"]);
    }

    #[test]
    fn a_folder_without_images_is_an_error_that_names_it() {
        let folder = folder(&["labels.json", "below/c.jpg"]);
        let error = expand(&[folder.path()], false).unwrap_err();
        assert!(matches!(error, InputError::Empty { .. }));
        assert!(error.to_string().contains(&folder.path().display().to_string()));
    }

    #[test]
    fn a_pattern_gives_the_files_that_fit_sorted() {
        let folder = folder(&["2.jpg", "1.jpg", "1.png", "3.jpg/inside.txt"]);
        assert_eq!(names(&folder, &expand(&[folder.path().join("*.jpg")], false).unwrap()), ["1.jpg", "2.jpg"]);
        assert!(matches!(expand(&[folder.path().join("*.gif")], false), Err(InputError::NoMatch { .. })));
        assert!(matches!(expand(&[folder.path().join("a***")], false), Err(InputError::Pattern { .. })));
    }

    #[test]
    fn a_file_whose_name_looks_like_a_pattern_is_taken_as_it_is() {
        let folder = folder(&["a[1].jpg", "a1.jpg"]);
        assert_eq!(names(&folder, &expand(&[folder.path().join("a[1].jpg")], false).unwrap()), ["a[1].jpg"]);
    }

    #[test]
    fn names_keep_their_order_and_missing_files_their_place() {
        let folder = folder(&["a.jpg", "b.jpg"]);
        let given = ["b.jpg", "missing.jpg", "a.jpg", "b.jpg"].map(|name| folder.path().join(name));
        assert_eq!(expand(&given, false).unwrap(), given);
    }

    #[test]
    fn folders_below_count_on_request_and_hidden_ones_never_do() {
        let folder = folder(&["b.jpg", "a/z.jpg", "a/.b/c.jpg", ".d/e.jpg", "a/notes.txt", "c/d/e/f.png"]);
        let found = expand(&[folder.path()], true).unwrap();
        assert_eq!(names(&folder, &found), ["a/z.jpg", "b.jpg", "c/d/e/f.png"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_loops_end() {
        use std::os::unix::fs::symlink;
        let folder = folder(&["a/b.jpg"]);
        symlink(folder.path(), folder.path().join("a/up")).unwrap();
        symlink(folder.path().join("a"), folder.path().join("same")).unwrap();
        symlink("nowhere.jpg", folder.path().join("lost.jpg")).unwrap();
        let found = expand(&[folder.path()], true).unwrap();
        assert_eq!(names(&folder, &found), ["a/b.jpg", "lost.jpg", "same/b.jpg"]);
    }
}
