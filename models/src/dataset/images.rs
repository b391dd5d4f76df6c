//! The images of a folder, found by their names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{DataError, files};

/// Extensions that mark a file in a folder as an image, in lower case.
pub const IMAGE_EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// A name without the extension of an image, and that extension.
pub(super) fn split_extension(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('.') {
        Some((stem, extension)) if files::has_extension(name, &IMAGE_EXTENSIONS) => (stem, Some(extension)),
        _ => (name, None),
    }
}

/// The images of a folder, by their names without extension.
pub(super) struct Images {
    folder: PathBuf,
    by_stem: BTreeMap<String, Vec<String>>,
}

impl Images {
    /// `names` are those of the images in `folder`, in their order.
    pub(super) fn new(folder: &Path, names: Vec<String>) -> Self {
        let mut by_stem = BTreeMap::<String, Vec<String>>::new();
        for name in names {
            by_stem.entry(split_extension(&name).0.to_owned()).or_default().push(name);
        }
        Self { folder: folder.to_owned(), by_stem }
    }

    /// The image that has this name without extension.
    pub(super) fn find(&self, stem: &str) -> Result<Option<&str>, DataError> {
        match self.by_stem.get(stem).map_or(&[][..], Vec::as_slice) {
            [] => Ok(None),
            [name] => Ok(Some(name)),
            [first, second, ..] => {
                let reason = format!("has `{first}` and `{second}`, and `{stem}` may be either; take one away");
                Err(DataError::unfit(&self.folder, reason))
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
    fn only_extensions_of_images_are_split_off() {
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
    fn an_image_is_found_by_its_stem_unless_there_are_two() {
        let names = ["a.jpg", "b.jpg", "b.png", "sub/a.png"].map(str::to_owned).to_vec();
        let images = Images::new(Path::new("folder"), names);
        assert_eq!(images.find("a").unwrap(), Some("a.jpg"));
        assert_eq!(images.find("sub/a").unwrap(), Some("sub/a.png"));
        assert_eq!(images.find("c").unwrap(), None);
        let error = images.find("b").unwrap_err().to_string();
        assert!(error.contains("`folder` has `b.jpg` and `b.png`"), "{error}");
    }
}
