//! The folder of annotated pictures: which file each one becomes.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use runtime::picture;

/// Makes the folder, shows that it can be written to, and chooses the annotated file of each picture.
///
/// # Errors
/// When the folder cannot be written to, and when a picture would be drawn over itself.
pub(crate) fn prepare(folder: &Path, pictures: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let names = names(pictures, folder)?;
    fs::create_dir_all(folder)
        .and_then(|()| tempfile::tempfile_in(folder))
        .with_context(|| format!("cannot write annotated pictures to `{}`", folder.display()))?;
    Ok(names)
}

/// The annotated file of each picture: its own name, with a number where pictures from several folders share one
/// (`a.jpg`, `a-2.jpg`), and `.png` in place of any extension but JPEG's.
///
/// # Errors
/// When one of these files is itself among the pictures.
fn names(pictures: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>> {
    let originals: HashSet<PathBuf> = pictures.iter().filter_map(|picture| picture.canonicalize().ok()).collect();
    let mut taken = HashSet::new();
    pictures
        .iter()
        .map(|picture| {
            let extension = picture.extension().filter(|_| picture::is_jpeg(picture)).unwrap_or("png".as_ref());
            let stem = picture.file_stem().unwrap_or("picture".as_ref());
            let numbered = (1..).map(|number| {
                let mut name = stem.to_owned();
                if number > 1 {
                    name.push(format!("-{number}"));
                }
                name.push(".");
                name.push(extension);
                folder.join(name)
            });
            let free = numbered.into_iter().find(|name| taken.insert(name.clone()));
            let path = free.expect("there are more numbers than pictures");
            if path.canonicalize().is_ok_and(|path| originals.contains(&path)) {
                bail!("`{}` is one of the pictures and would be overwritten; draw into another folder", path.display());
            }
            Ok(path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(pictures: &[&str]) -> Vec<String> {
        let pictures: Vec<PathBuf> = pictures.iter().map(PathBuf::from).collect();
        let names = names(&pictures, Path::new("/drawn")).unwrap();
        names.iter().map(|name| name.strip_prefix("/drawn").unwrap().display().to_string()).collect()
    }

    #[test]
    fn pictures_keep_their_names_and_others_than_jpeg_become_png() {
        assert_eq!(drawn(&["x/a.jpg", "x/b.JPEG", "x/c.webp", "x/d"]), ["a.jpg", "b.JPEG", "c.png", "d.png"]);
    }

    #[test]
    fn no_two_pictures_share_a_file() {
        let names = drawn(&["x/a.jpg", "y/a.jpg", "x/a-2.jpg", "x/a.png", "x/a.gif", "x/a.jpg"]);
        assert_eq!(names, ["a.jpg", "a-2.jpg", "a-2-2.jpg", "a.png", "a-2.png", "a-3.jpg"]);
    }

    #[test]
    fn a_picture_is_never_drawn_over_itself() {
        let folder = tempfile::tempdir().unwrap();
        let picture = folder.path().join("a.jpg");
        fs::write(&picture, "").unwrap();
        assert!(names(&[picture], &folder.path().join(".")).unwrap_err().to_string().contains("overwritten"));
    }
}
