//! Folders of annotation and image files.

use std::io;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::error::DataError;

/// Extensions that mark a file in a folder as an image, in lower case.
pub const IMAGE_EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// Paths of the files in a folder and below that have one of these extensions, relative to it, sorted. Hidden ones are skipped.
pub(super) fn below(folder: &Path, extensions: &[&str]) -> Result<Vec<String>, DataError> {
    let walk = WalkDir::new(folder).min_depth(1).follow_links(true).sort_by_file_name().into_iter();
    let mut found = Vec::new();
    for entry in walk.filter_entry(|entry| !entry.file_name().to_string_lossy().starts_with('.')) {
        let path = match entry {
            Ok(entry) if entry.file_type().is_dir() => continue,
            Ok(entry) => entry.into_path(),
            Err(error) => match error.path().filter(|_| is_bad_link(&error)) {
                Some(path) => path.to_owned(),
                None => return Err(unreadable(folder, error)),
            },
        };
        if !has_extension(&path.to_string_lossy(), extensions) {
            continue;
        }
        let name = path.strip_prefix(folder).unwrap_or(&path);
        let name = name.to_str().ok_or_else(|| DataError::invalid(&path, "has a name that is not UTF-8; rename it"))?;
        found.push(name.to_owned());
    }
    found.sort();
    Ok(found)
}

/// Names of the folders in a folder, sorted. Hidden ones are skipped.
pub(super) fn folders(folder: &Path) -> Result<Vec<String>, DataError> {
    let walk = WalkDir::new(folder).min_depth(1).max_depth(1).follow_links(true).sort_by_file_name().into_iter();
    let mut names = Vec::new();
    for entry in walk {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => names.push(entry.file_name().to_string_lossy().into_owned()),
            Ok(_) => {}
            Err(error) if is_bad_link(&error) => {}
            Err(error) => return Err(unreadable(folder, error)),
        }
    }
    names.retain(|name| !name.starts_with('.'));
    Ok(names)
}

/// Whether it is a link in a circle, which adds nothing, or one to a missing file, which is reported when that is read.
fn is_bad_link(error: &walkdir::Error) -> bool {
    let is_link = error.depth() > 0 && error.path().is_some_and(Path::is_symlink);
    is_link && error.io_error().is_none_or(|error| error.kind() != io::ErrorKind::PermissionDenied)
}

fn unreadable(folder: &Path, error: walkdir::Error) -> DataError {
    DataError::Read { path: error.path().unwrap_or(folder).to_owned(), reason: error.into() }
}

/// Whether `name` has one of these extensions, which are in lower case.
pub(super) fn has_extension(name: &str, extensions: &[&str]) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| extensions.contains(&extension.as_str()))
}

/// A name without the extension of an image, and that extension.
pub(super) fn split_extension(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('.') {
        Some((stem, extension)) if has_extension(name, &IMAGE_EXTENSIONS) => (stem, Some(extension)),
        _ => (name, None),
    }
}

/// A name without extension.
pub(super) fn stem(name: &str) -> String {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned()
}

/// The folder that a file is in.
pub(super) fn folder_of(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).to_owned()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::dataset::testing;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        testing::folder(&names.iter().map(|name| (*name, "")).collect::<Vec<_>>())
    }

    #[test]
    fn only_image_extensions_are_split_off() {
        let cases = [
            ("a.jpg", ("a", Some("jpg"))),
            ("sub.d/a.b.PNG", ("sub.d/a.b", Some("PNG"))),
            ("a.xml", ("a.xml", None)),
            ("a", ("a", None)),
        ];
        for (name, expected) in cases {
            assert_eq!(split_extension(name), expected);
        }
    }

    #[test]
    fn files_are_found_by_extension_and_sorted() {
        let folder = folder(&["b.TXT", "a.txt", "c.jpg", ".d.txt", "e", "sub/f.txt", "sub/deep/g.txt", "txt"]);
        assert_eq!(below(folder.path(), &["txt"]).unwrap(), ["a.txt", "b.TXT", "sub/deep/g.txt", "sub/f.txt"]);
        assert!(below(&folder.path().join("none"), &["txt"]).unwrap_err().to_string().starts_with("cannot read `"));
    }

    #[test]
    fn circular_links_end_and_dangling_ones_are_listed() {
        let folder = folder(&["b/a.txt"]);
        for (target, name) in [("..", "b/up"), ("nowhere", "lost.txt"), ("self", "self")] {
            symlink(target, folder.path().join(name)).unwrap();
        }
        assert_eq!(below(folder.path(), &["txt"]).unwrap(), ["b/a.txt", "lost.txt"]);
    }

    #[test]
    fn a_name_that_is_not_utf8_is_an_error() {
        let folder = folder(&["a.txt"]);
        std::fs::write(folder.path().join(OsStr::from_bytes(b"\xE9.txt")), "").unwrap();
        assert!(below(folder.path(), &["txt"]).unwrap_err().to_string().contains("rename it"));
        assert_eq!(below(folder.path(), &["jpg"]).unwrap(), [""; 0]);
    }
}
