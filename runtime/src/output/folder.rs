//! Folders of files that are made of images: each image's name there.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

/// Names in a folder, for one image after the other: each has its own, with a number where images from several folders share
/// one (`a.jpg`, `a-2.jpg`).
#[derive(Debug)]
pub struct Names {
    folder: PathBuf,
    /// Hashes of the names, so that the names of endless images take little memory.
    taken: HashSet<u64>,
    hasher: RandomState,
}

impl Names {
    /// Names in `folder`, which is made if it is not there, and shown to be one that can be written to.
    ///
    /// # Errors
    /// When it cannot be made or written to.
    pub fn open(folder: &Path) -> io::Result<Self> {
        if fs::metadata(folder).is_ok_and(|metadata| !metadata.is_dir()) {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is there already, and no folder"));
        }
        fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder)).map_err(|error| {
            // The message of the second would name a hidden file.
            io::Error::from(error.kind())
        })?;
        Ok(Self { folder: folder.canonicalize()?, taken: HashSet::new(), hasher: RandomState::new() })
    }

    /// The path for what is made of `image`, with this extension or with none.
    pub fn next(&mut self, image: &Path, extension: Option<&str>) -> PathBuf {
        let stem = image.file_stem().unwrap_or("image".as_ref());
        let numbered = |number: usize| {
            let mut name = OsString::from(stem);
            if number > 1 {
                name.push(format!("-{number}"));
            }
            if let Some(extension) = extension {
                name.push(".");
                name.push(extension);
            }
            name
        };
        let free = |name: &OsString| self.taken.insert(self.hasher.hash_one(name));
        let name = (1..).map(numbered).find(free).expect("there are more numbers than images");
        self.folder.join(name)
    }

    /// Whether the image lies in the folder itself, where it could be overwritten.
    pub fn holds(&self, image: &Path) -> bool {
        image.canonicalize().is_ok_and(|image| image.parent() == Some(&self.folder))
    }
}

/// A class's name as that of a folder: what is more than letters, digits, spaces, dots, `-` and `_` becomes `_`.
pub fn folder_name(class: &str) -> String {
    let kept = |letter: char| letter.is_alphanumeric() || " -_.".contains(letter);
    let name: String = class.chars().map(|letter| if kept(letter) { letter } else { '_' }).collect();
    match name.trim_matches([' ', '.']) {
        "" => "_".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(images: &[&str], extension: Option<&str>) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let mut names = Names::open(folder.path()).unwrap();
        let file = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        images.iter().map(|image| file(names.next(Path::new(image), extension))).collect()
    }

    #[test]
    fn no_two_images_share_a_file() {
        let images = ["x/a.jpg", "y/a.jpg", "x/a-2.jpg", "x/a.png", "x/.."];
        assert_eq!(names(&images, Some("txt")), ["a.txt", "a-2.txt", "a-2-2.txt", "a-3.txt", "image.txt"]);
        assert_eq!(names(&["x/a.b.jpg", "y/a.b.jpg"], None), ["a.b", "a.b-2"]);
    }

    #[test]
    fn a_folder_that_is_a_file_is_refused_and_one_that_is_missing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Names::open(&file).is_err() && Names::open(&file.join("below")).is_err());
        Names::open(&folder.path().join("a/b")).unwrap();
        assert!(folder.path().join("a/b").is_dir());
    }

    #[test]
    fn an_image_in_the_folder_is_known_however_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        for name in ["a.jpg", "below/b.jpg"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let names = Names::open(&folder.path().join("below/..")).unwrap();
        assert!(names.holds(&folder.path().join("a.jpg")) && names.holds(&folder.path().join("below/../a.jpg")));
        assert!(!names.holds(&folder.path().join("below/b.jpg")) && !names.holds(&folder.path().join("missing.jpg")));
    }

    #[test]
    fn class_names_are_safe_as_folders() {
        let cases =
            [("traffic light", "traffic light"), ("a/b", "a_b"), ("..", "_"), ("", "_"), ("кот", "кот"), (".x", "x")];
        for (class, expected) in cases {
            assert_eq!(folder_name(class), expected);
        }
    }
}
