//! The folder of the images, in which annotations find theirs.

use std::path::Path;

use super::error::DataError;
use super::folder::{IMAGE_EXTENSIONS, below};
use super::names::Names;

/// The image files in a folder and below.
pub(super) struct ImageFolder {
    /// Paths from the folder.
    pub(super) files: Vec<String>,
    names: Names,
}

impl ImageFolder {
    /// Lists the images in `folder` and below.
    pub(super) fn read(folder: &Path) -> Result<Self, DataError> {
        let files = below(folder, &IMAGE_EXTENSIONS)?;
        let names = Names::new(files.iter().map(String::as_str));
        Ok(Self { files, names })
    }

    /// The image that annotations mean by their name of it, or by the name of their own file, since names inside go out of
    /// date when files are renamed.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn find(&self, file_name: &str, stem: &str) -> Result<&str, String> {
        let found = [file_name, stem].map(|name| self.names.find(name));
        // Folders may have images of the same name, which the name of the annotations' own file tells apart.
        match (found[0], found[1]) {
            (&[index], _) | (_, &[index]) => Ok(&self.files[index]),
            ([one, other, ..], _) | (_, [one, other, ..]) => {
                let (one, other) = (&self.files[*one], &self.files[*other]);
                Err(format!("it may be `{one}` or `{other}`; remove or rename one of them"))
            }
            ([], []) => Err("not found in the image folder".to_owned()),
        }
    }

    /// The file whose name is most similar, if any is.
    pub(super) fn nearest(&self, name: &str) -> Option<&str> {
        const SIMILAR: f64 = 0.7;
        /// Longer names are no names of files; the time grows with the length.
        const MAX_BYTES: usize = 255;
        if name.len() > MAX_BYTES {
            return None;
        }
        let similarity = |file: &str| strsim::normalized_levenshtein(file, name);
        let scored = self.files.iter().map(|file| (similarity(file), file.as_str()));
        scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(similarity, _)| *similarity >= SIMILAR).map(|(_, file)| file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::testing::folder;

    #[test]
    fn an_image_is_found_by_its_name_or_that_of_its_annotations_unless_there_are_two() {
        let folder = folder(&["a.jpg", "b.jpg", "b.png", "sub/c.png", "more/c.png"].map(|name| (name, "")));
        let images = ImageFolder::read(folder.path()).unwrap();
        for (file_name, stem, found) in [
            ("", "a", Ok("a.jpg")),
            ("images\\b.png", "a", Ok("b.png")),
            ("a.tif", "b", Ok("a.jpg")),
            ("renamed.tif", "sub/c", Ok("sub/c.png")),
            ("d.jpg", "d", Err("not found in the image folder")),
            ("b", "sub/b", Err("it may be `b.jpg` or `b.png`; remove or rename one of them")),
            ("c.png", "more/c", Ok("more/c.png")),
            ("", "b", Err("it may be `b.jpg` or `b.png`; remove or rename one of them")),
        ] {
            assert_eq!(images.find(file_name, stem), found.map_err(str::to_owned));
        }
        assert_eq!([images.nearest("sub/d.png"), images.nearest("something.else")], [Some("sub/c.png"), None]);
    }
}
