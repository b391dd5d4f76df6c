//! Inputs: expands folders and patterns to image files, and reads file names from a stream.

mod lines;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::image_file;
pub use lines::{BadLine, Lines};

/// Why an input does not give any images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// A folder cannot be listed.
    #[error("cannot list folder `{}`: {reason}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The error of the operating system.
        reason: io::Error,
    },
    /// A folder contains no images.
    #[error("no images in folder `{}`{}; known extensions: {}",
        .folder.display(), if *.recursive { " or its subfolders" } else { "; --recursive also searches its subfolders" },
        image_file::EXTENSIONS.join(", "))]
    Empty {
        /// The folder.
        folder: PathBuf,
        /// Whether its subfolders were searched.
        recursive: bool,
    },
    /// A pattern has a syntax error.
    #[error("invalid pattern `{pattern}`: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A pattern matches no file.
    #[error("no file matches pattern `{pattern}`")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
}

/// Expands `names` to image files, in the order of the names:
/// * a folder to the files in it that have an image extension, sorted by name, without hidden ones; with `recursive`
///   also those in its subfolders;
/// * a pattern with `*`, `?` or `[` to the files that match it, sorted;
/// * any other name to itself, even if the file does not exist: its own result then is an error, and the others are not
///   affected.
///
/// Duplicates are kept.
///
/// # Errors
/// When a folder cannot be listed or contains no images, and when a pattern is invalid or matches no file.
pub fn expand<P: AsRef<Path>>(names: &[P], recursive: bool) -> Result<Vec<PathBuf>, InputError> {
    let mut files = Vec::new();
    for name in names {
        let name = name.as_ref();
        if name.is_dir() {
            files.extend(images_in(name, recursive)?);
        } else if let Some(pattern) = pattern(name) {
            files.extend(matches(pattern)?);
        } else {
            files.push(name.to_owned());
        }
    }
    Ok(files)
}

fn images_in(folder: &Path, recursive: bool) -> Result<Vec<PathBuf>, InputError> {
    let depth = if recursive { usize::MAX } else { 1 };
    // Symbolic links are followed. Loops are reported as errors, which are ignored since they hide no files.
    let walk = WalkDir::new(folder).min_depth(1).max_depth(depth).follow_links(true).sort_by_file_name();
    let mut files = Vec::new();
    for entry in walk.into_iter().filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.file_name())) {
        match entry {
            Ok(entry) if !entry.file_type().is_dir() && is_image(entry.path()) => files.push(entry.into_path()),
            Ok(_) => {}
            Err(error) if error.loop_ancestor().is_some() => {}
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                // A broken link with an image extension is kept: it becomes a missing image. Hidden ones are editors' locks.
                if path.is_symlink() {
                    let is_hidden = path.file_name().is_some_and(is_hidden);
                    files.extend(Some(path).filter(|path| is_image(path) && !is_hidden));
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

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Decides by the extension, so that a folder may contain other files, such as annotations.
fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    image_file::EXTENSIONS.iter().any(|known| extension == *known)
}

/// The name, if it contains wildcards and no file has exactly this name.
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
    fn a_folder_expands_to_its_images_sorted_by_name() {
        let folder = folder(&["b.PNG", "a.jpg", "labels.json", ".hidden.jpg", "below/c.jpg", "d.tif"]);
        assert_eq!(names(&folder, &expand(&[folder.path()], false).unwrap()), ["a.jpg", "b.PNG", "d.tif"]);
    }

    #[test]
    fn the_error_of_a_folder_without_images_names_it() {
        let folder = folder(&["labels.json", "below/c.jpg"]);
        let error = expand(&[folder.path()], false).unwrap_err();
        assert!(matches!(error, InputError::Empty { .. }));
        assert!(error.to_string().contains(&folder.path().display().to_string()));
    }

    #[test]
    fn a_pattern_expands_to_the_matching_files_sorted() {
        let folder = folder(&["2.jpg", "1.jpg", "1.png", "3.jpg/inside.txt"]);
        assert_eq!(names(&folder, &expand(&[folder.path().join("*.jpg")], false).unwrap()), ["1.jpg", "2.jpg"]);
        assert!(matches!(expand(&[folder.path().join("*.gif")], false), Err(InputError::NoMatch { .. })));
        assert!(matches!(expand(&[folder.path().join("a***")], false), Err(InputError::Pattern { .. })));
    }

    #[test]
    fn an_existing_file_name_with_wildcards_is_not_a_pattern() {
        let folder = folder(&["a[1].jpg", "a1.jpg"]);
        assert_eq!(names(&folder, &expand(&[folder.path().join("a[1].jpg")], false).unwrap()), ["a[1].jpg"]);
    }

    #[test]
    fn names_keep_their_order_missing_files_included() {
        let folder = folder(&["a.jpg", "b.jpg"]);
        let given = ["b.jpg", "missing.jpg", "a.jpg", "b.jpg"].map(|name| folder.path().join(name));
        assert_eq!(expand(&given, false).unwrap(), given);
    }

    #[test]
    fn recursion_skips_hidden_files_and_folders() {
        let folder = folder(&["b.jpg", "a/z.jpg", "a/.b/c.jpg", ".d/e.jpg", "a/notes.txt", "c/d/e/f.png"]);
        let found = expand(&[folder.path()], true).unwrap();
        assert_eq!(names(&folder, &found), ["a/z.jpg", "b.jpg", "c/d/e/f.png"]);
    }

    #[test]
    fn symbolic_links_are_followed_and_loops_end() {
        use std::os::unix::fs::symlink;
        let folder = folder(&["a/b.jpg"]);
        symlink(folder.path(), folder.path().join("a/up")).unwrap();
        symlink(folder.path().join("a"), folder.path().join("same")).unwrap();
        symlink("nowhere.jpg", folder.path().join("lost.jpg")).unwrap();
        // As Emacs locks a file that is being edited.
        symlink("user@host.123:456", folder.path().join(".#b.jpg")).unwrap();
        let found = expand(&[folder.path()], true).unwrap();
        assert_eq!(names(&folder, &found), ["a/b.jpg", "lost.jpg", "same/b.jpg"]);
    }
}
