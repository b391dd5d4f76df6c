//! Finds the images of a folder by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{DataError, files};

/// Extensions of the files in a folder that are treated as images, in lower case.
pub const IMAGE_EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// Splits the extension off the name of an image; any other extension stays part of the name.
pub(super) fn split_extension(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('.') {
        Some((stem, extension)) if files::has_extension(name, &IMAGE_EXTENSIONS) => (stem, Some(extension)),
        _ => (name, None),
    }
}

/// The images of a folder, by name without extension.
pub(super) struct ImageIndex {
    folder: PathBuf,
    by_stem: BTreeMap<String, Vec<String>>,
}

impl ImageIndex {
    /// `names` are the paths of the images, relative to `folder`.
    pub(super) fn new(folder: &Path, names: Vec<String>) -> Self {
        let mut by_stem = BTreeMap::<String, Vec<String>>::new();
        for name in names {
            by_stem.entry(split_extension(&name).0.to_owned()).or_default().push(name);
        }
        Self { folder: folder.to_owned(), by_stem }
    }

    /// The image with this name without extension; an error if there are several.
    pub(super) fn find(&self, stem: &str) -> Result<Option<&str>, DataError> {
        match self.by_stem.get(stem).map_or(&[][..], Vec::as_slice) {
            [] => Ok(None),
            [name] => Ok(Some(name)),
            [first, second, ..] => {
                let reason = format!("has both `{first}` and `{second}`, so `{stem}` is ambiguous; remove one");
                Err(DataError::invalid(&self.folder, reason))
            }
        }
    }

    /// The names of all images.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_stem.values().flatten().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn images_are_found_by_stem_and_ambiguous_stems_are_errors() {
        let names = ["a.jpg", "b.jpg", "b.png", "sub/a.png"].map(str::to_owned).to_vec();
        let images = ImageIndex::new(Path::new("folder"), names);
        assert_eq!(images.find("a").unwrap(), Some("a.jpg"));
        assert_eq!(images.find("sub/a").unwrap(), Some("sub/a.png"));
        assert_eq!(images.find("c").unwrap(), None);
        let error = images.find("b").unwrap_err().to_string();
        assert!(error.contains("`folder` has both `b.jpg` and `b.png`"), "{error}");
    }
}
