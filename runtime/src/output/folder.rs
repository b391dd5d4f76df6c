//! File names in output folders.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

/// Assigns each image a unique name in an output folder. Repeated names are numbered: `a.jpg`, `a-2.jpg`.
#[derive(Clone, Debug)]
pub struct UniqueNames {
    folder: PathBuf,
    /// Hashes of the assigned names, which take less memory than the names, and the number that the next image of this
    /// name is to get, unless it is taken, too.
    taken: HashMap<u64, u32>,
    hasher: RandomState,
}

impl UniqueNames {
    /// Creates `folder` if it does not exist, and checks that it is writable.
    ///
    /// # Errors
    /// When the folder cannot be created or is not writable.
    pub fn open(folder: &Path) -> io::Result<Self> {
        if fs::metadata(folder).is_ok_and(|metadata| !metadata.is_dir()) {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it exists and is not a folder"));
        }
        fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder)).map_err(|error| {
            // The message of `tempfile_in` would name a hidden file.
            io::Error::from(error.kind())
        })?;
        Ok(Self { folder: folder.canonicalize()?, taken: HashMap::new(), hasher: RandomState::new() })
    }

    /// The path of an output of `image`, with this extension or none.
    pub fn next(&mut self, image: &Path, extension: Option<&str>) -> PathBuf {
        let stem = shortened(image.file_stem().unwrap_or("image".as_ref()));
        let numbered = |number: u32| {
            let mut name = stem.clone().into_owned();
            if number > 1 {
                name.push(format!("-{number}"));
            }
            if let Some(extension) = extension {
                name.push(".");
                name.push(extension);
            }
            name
        };
        let plain = self.hasher.hash_one(numbered(1));
        let mut number = self.taken.get(&plain).copied().unwrap_or(1);
        let name = loop {
            let name = numbered(number);
            number += 1;
            if let Entry::Vacant(entry) = self.taken.entry(self.hasher.hash_one(&name)) {
                entry.insert(2);
                break name;
            }
        };
        self.taken.insert(plain, number);
        self.folder.join(name)
    }

    /// Whether the image is in this folder itself, where it could be overwritten.
    pub fn contains(&self, image: &Path) -> bool {
        image.canonicalize().is_ok_and(|image| image.parent() == Some(&self.folder))
    }
}

/// Maximum bytes of a name without number and extension. File systems allow 255 bytes.
const MAX_BYTES: usize = 220;

/// The name, or as much of it as leaves room for a number and an extension.
fn shortened(stem: &OsStr) -> Cow<'_, OsStr> {
    if stem.len() <= MAX_BYTES {
        return stem.into();
    }
    let text = stem.to_string_lossy();
    OsString::from(&text[..text.floor_char_boundary(MAX_BYTES)]).into()
}

/// A class name as a folder name: characters other than letters, digits, spaces, dots, `-` and `_` become `_`.
pub fn folder_name(class: &str) -> String {
    let is_safe = |letter: char| letter.is_alphanumeric() || " -_.".contains(letter);
    let name: String = class.chars().map(|letter| if is_safe(letter) { letter } else { '_' }).collect();
    match name[..name.floor_char_boundary(MAX_BYTES)].trim_matches([' ', '.']) {
        "" => "_".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(images: &[&str], extension: Option<&str>) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let mut names = UniqueNames::open(folder.path()).unwrap();
        let file = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        images.iter().map(|image| file(names.next(Path::new(image), extension))).collect()
    }

    #[test]
    fn every_image_gets_a_unique_name() {
        let images = ["x/a.jpg", "y/a.jpg", "x/a-2.jpg", "x/a.png", "x/.."];
        assert_eq!(names(&images, Some("txt")), ["a.txt", "a-2.txt", "a-2-2.txt", "a-3.txt", "image.txt"]);
        assert_eq!(names(&["x/a.b.jpg", "y/a.b.jpg"], None), ["a.b", "a.b-2"]);
        let long = ["\u{e9}", "x"].map(|letter| letter.repeat(250 / letter.len()) + ".jpg");
        let found = names(&[&long[0], &long[1], &long[1]], Some("txt"));
        assert_eq!(found.iter().map(String::len).collect::<Vec<_>>(), [224, 224, 226]);
    }

    #[test]
    fn a_missing_folder_is_created_and_a_file_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(UniqueNames::open(&file).is_err() && UniqueNames::open(&file.join("below")).is_err());
        UniqueNames::open(&folder.path().join("a/b")).unwrap();
        assert!(folder.path().join("a/b").is_dir());
    }

    #[test]
    fn an_image_in_the_folder_is_recognized_under_any_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        for name in ["a.jpg", "below/b.jpg"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let names = UniqueNames::open(&folder.path().join("below/..")).unwrap();
        assert!(names.contains(&folder.path().join("a.jpg")) && names.contains(&folder.path().join("below/../a.jpg")));
        assert!(
            !names.contains(&folder.path().join("below/b.jpg")) && !names.contains(&folder.path().join("missing.jpg"))
        );
    }

    #[test]
    fn folder_names_of_classes_are_safe() {
        let cases =
            [("traffic light", "traffic light"), ("a/b", "a_b"), ("..", "_"), ("", "_"), ("кот", "кот"), (".x", "x")];
        for (class, expected) in cases {
            assert_eq!(folder_name(class), expected);
        }
    }
}
