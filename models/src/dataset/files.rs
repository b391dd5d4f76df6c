//! Reads files and lists folders of data sets; copes with huge files, other encodings than UTF-8 and symlink cycles.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use rayon::prelude::*;

use super::DataError;

/// Larger files are refused.
const MAX_BYTES: u64 = 1 << 32;

/// The UTF-8 byte order mark, which some editors write.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Reads the bytes of a file, without byte order mark.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| {
        let expected = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_BYTES);
        bytes.reserve(expected as usize + 1);
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)
    });
    read.map_err(cannot_read(path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(DataError::invalid(path, format!("is larger than {} MiB", MAX_BYTES >> 20)));
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(bytes)
}

/// Reads the text of a UTF-8 file, without byte order mark.
pub(super) fn read_text(path: &Path) -> Result<String, DataError> {
    String::from_utf8(read_bytes(path)?).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count() as u64;
        DataError::line(path, line, "not UTF-8 text; save the file as UTF-8")
    })
}

/// Whether `name` has one of `extensions`, ignoring case. `extensions` are in lower case.
pub(super) fn has_extension(name: &str, extensions: &[&str]) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| extensions.contains(&extension.as_str()))
}

/// Names of the files in a folder with one of these extensions, sorted. Hidden files are skipped.
pub(super) fn list_files(folder: &Path, extensions: &[&str]) -> Result<Vec<String>, DataError> {
    let entries = entries(folder, extensions)?.into_iter();
    Ok(entries.filter(|(_, is_folder)| !is_folder).map(|(name, _)| name).collect())
}

/// Like [`list_files`], with subfolders: paths relative to `folder`. Follows symlinks, but enters no folder twice.
pub(super) fn list_files_recursively(folder: &Path, extensions: &[&str]) -> Result<Vec<String>, DataError> {
    let mut found = Vec::new();
    let mut entered = HashSet::new();
    let mut pending = vec![String::new()];
    while let Some(prefix) = pending.pop() {
        let path = folder.join(&prefix);
        if !entered.insert(path.canonicalize().map_err(cannot_read(&path))?) {
            continue;
        }
        // In reverse, so that a folder with two paths is entered by the first one in order of names.
        for (name, is_folder) in entries(&path, extensions)?.into_iter().rev() {
            let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if is_folder { pending.push(name) } else { found.push(name) }
        }
    }
    found.sort();
    Ok(found)
}

/// The subfolders of a folder and its files with one of these extensions, sorted: name, and whether it is a folder.
fn entries(folder: &Path, extensions: &[&str]) -> Result<Vec<(String, bool)>, DataError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot_read(folder))? {
        let entry = entry.map_err(cannot_read(folder))?;
        let file_name = entry.file_name();
        let name = file_name.to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        let file_type = entry.file_type().and_then(|found| match found.is_symlink() {
            true => Ok(fs::metadata(entry.path())?.file_type()),
            false => Ok(found),
        });
        let is_folder = file_type.as_ref().is_ok_and(|found| found.is_dir());
        // A broken symlink counts as a file; reading it reports the error.
        let is_file = file_type.map_or(true, |found| found.is_file()) && has_extension(&name, extensions);
        if (is_folder || is_file) && file_name.to_str().is_none() {
            return Err(DataError::invalid(&entry.path(), "has a name that is not UTF-8; rename it"));
        }
        if is_folder || is_file {
            found.push((name.into_owned(), is_folder));
        }
    }
    found.sort();
    Ok(found)
}

/// Applies `read` to all items in parallel. Returns the results, or the first error in the order of the items.
pub(super) fn read_in_parallel<T: Sync, R: Send>(
    items: &[T],
    read: impl Fn(&T) -> Result<R, DataError> + Send + Sync,
) -> Result<Vec<R>, DataError> {
    let results: Vec<_> = items.par_iter().map(read).collect();
    results.into_iter().collect()
}

/// Parses a number.
pub(super) fn parse_number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| format!("{} is not a number", quoted(text)))
}

/// Parses a non-negative integer. It may have decimals, which some tools write: `3.0`.
pub(super) fn parse_integer(text: &str) -> Result<u32, String> {
    let number = parse_number(text)?;
    let valid = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
    if valid { Ok(number as u32) } else { Err(format!("{} is not a non-negative integer", quoted(text))) }
}

/// The text in backticks, truncated for messages.
fn quoted(text: &str) -> String {
    const MAX_CHARS: usize = 40;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("`{}...`", &text[..end]),
        None => format!("`{text}`"),
    }
}

/// Converts an error of the file system.
pub(super) fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |reason| DataError::Read { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    #[test]
    fn byte_order_mark_is_removed_and_invalid_utf8_is_reported_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, b"\xEF\xBB\xBFdog").unwrap();
        assert_eq!(read_text(&path).unwrap(), "dog");
        fs::write(&path, b"dog\ncaf\xE9").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("a.txt` line 2: not UTF-8 text"), "{error}");
        let error = read_text(folder.path()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read `"), "{error}");
    }

    #[test]
    fn files_are_listed_by_extension_and_sorted() {
        let folder = folder(&["b.TXT", "a.txt", "c.jpg", ".d.txt", "e", "sub/f.txt", "sub/deep/g.txt", "txt"]);
        assert_eq!(list_files(folder.path(), &["txt"]).unwrap(), ["a.txt", "b.TXT"]);
        assert_eq!(
            list_files_recursively(folder.path(), &["txt"]).unwrap(),
            ["a.txt", "b.TXT", "sub/deep/g.txt", "sub/f.txt"]
        );
    }

    #[test]
    fn symlink_cycles_terminate() {
        let folder = folder(&["b/a.txt"]);
        for (target, name) in [("..", "b/up"), ("b", "a"), ("nowhere", "lost.txt"), ("self", "self")] {
            symlink(target, folder.path().join(name)).unwrap();
        }
        assert_eq!(list_files_recursively(folder.path(), &["txt"]).unwrap(), ["a/a.txt", "lost.txt"]);
    }

    #[test]
    fn file_name_that_is_not_utf8_is_an_error() {
        let folder = folder(&["a.txt"]);
        fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"\xE9.txt")), "").unwrap();
        assert!(list_files(folder.path(), &["txt"]).unwrap_err().to_string().contains("rename it"));
        assert_eq!(list_files(folder.path(), &["jpg"]).unwrap(), [""; 0]);
    }

    #[test]
    fn first_error_in_the_order_of_items_is_returned() {
        let items: Vec<u64> = (0..1000).collect();
        let read = |item: &u64| match item % 7 {
            5 => Err(DataError::line(Path::new("a"), *item, "")),
            _ => Ok(*item),
        };
        assert!(matches!(read_in_parallel(&items, read), Err(DataError::Line { line: 5, .. })));
        assert_eq!(read_in_parallel(&items, |item| Ok(*item)).unwrap(), items);
    }

    #[test]
    fn numbers_are_parsed_and_other_text_is_quoted_in_the_error() {
        for (text, expected) in [("12", Ok(12)), ("3.0", Ok(3)), ("2e1", Ok(20))] {
            assert_eq!(parse_integer(text), expected);
        }
        for text in ["", "x", "-1", "1.5", "nan", "inf", "4294967296", "1 2"] {
            let error = parse_integer(text).unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
        assert_eq!(parse_number("1.25"), Ok(1.25));
        assert!(parse_number(&"ä".repeat(1000)).unwrap_err().ends_with("ä...` is not a number"));
    }
}
