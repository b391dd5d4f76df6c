//! `trainer synth`: generates a data set of colored shapes, to try the programs without data of your own.

mod scene;
mod shape;
mod texture;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, value_parser};
use models::dataset::{Annotation, Dataset, Image};
use models::spec::Class;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::progress::print;

pub use scene::{MIN_VISIBLE_FRACTION, Object, Scene, Size, draw};
pub use shape::Kind;

/// File that marks a folder as written by `synth`.
const MARKER: &str = "synth.txt";

/// First line of the marker file. The number of images of each split follows.
const MARKER_TITLE: &str =
    "Drawn by `trainer synth`, which replaces these images and their JSON files when it draws here again.";

/// Extension of the image files.
const EXTENSION: &str = "png";

/// The splits of the data set: the names of their folders and JSON files.
const SPLITS: [&str; 3] = ["train", "val", "test"];

/// Generate a data set of colored shapes, with annotations as COCO JSON.
#[derive(Args, Clone, Debug)]
pub struct SynthArgs {
    /// Folder to write; one written by an earlier `synth` is replaced.
    #[arg(long, short)]
    out: PathBuf,
    /// Number of training images.
    #[arg(long, default_value_t = 1000)]
    train: u32,
    /// Number of validation images.
    #[arg(long, default_value_t = 50)]
    val: u32,
    /// Number of test images.
    #[arg(long, default_value_t = 50)]
    test: u32,
    /// Random seed; the same seed generates the same images.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Width of the images, in pixels, from 40 to 2048.
    #[arg(long, default_value_t = 192, value_parser = value_parser!(u32).range(40..=2048))]
    width: u32,
    /// Height of the images, in pixels, from 40 to 2048.
    #[arg(long, default_value_t = 192, value_parser = value_parser!(u32).range(40..=2048))]
    height: u32,
}

/// Writes the folders `train`, `val` and `test`, each with a JSON file next to it.
///
/// # Errors
/// When the output folder contains a file that `synth` has not written, or when a file cannot be written.
pub fn run(args: &SynthArgs) -> anyhow::Result<()> {
    prepare(&args.out, [args.train, args.val, args.test])?;
    for (split, count) in [args.train, args.val, args.test].into_iter().enumerate() {
        let name = SPLITS[split];
        let dataset = draw_split(split, count, args)?;
        let path = args.out.join(format!("{name}.json"));
        dataset.write_coco(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
        let (images, shapes) = (dataset.images().len(), dataset.annotations().len());
        print(&format!("wrote `{}`: {images} images, {shapes} shapes", path.display()))?;
    }
    Ok(())
}

/// Creates the folder, or empties one that an earlier `synth` has written, as listed in its marker file; then writes the
/// marker file. Any other file is an error, and then nothing is removed.
fn prepare(folder: &Path, counts: [u32; 3]) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let marker = folder.join(MARKER);
    let generated = generated_files(folder, &fs::read_to_string(&marker).unwrap_or_default());
    let splits = SPLITS.map(|name| folder.join(name));
    for folder in splits.iter().map(PathBuf::as_path).filter(|split| split.is_dir()).chain([folder]) {
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
            let path = entry.with_context(|| format!("cannot read `{}`", folder.display()))?.path();
            if path != marker && !splits.contains(&path) && !generated.contains(&path) {
                bail!(
                    "`{}` was not written by `trainer synth`; move it out of the folder, or choose another --out",
                    path.display()
                );
            }
        }
    }
    let ignore_missing = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    for path in &generated {
        fs::remove_file(path)
            .or_else(ignore_missing)
            .with_context(|| format!("cannot replace `{}`", path.display()))?;
    }
    for path in &splits {
        // `remove_dir` removes empty folders only.
        fs::remove_dir(path).or_else(ignore_missing).with_context(|| format!("cannot replace `{}`", path.display()))?;
    }
    let counts = SPLITS.iter().zip(counts).map(|(name, count)| format!("{name}: {count}\n")).collect::<String>();
    let text = format!("{MARKER_TITLE}\n{counts}");
    fs::write(&marker, text).with_context(|| format!("cannot write `{}`", marker.display()))
}

/// The files that `trainer synth` has written into `folder`, by the text of its marker file.
fn generated_files(folder: &Path, marker: &str) -> BTreeSet<PathBuf> {
    let Some(lines) = marker.strip_prefix(MARKER_TITLE) else { return BTreeSet::new() };
    let mut files = BTreeSet::new();
    for (name, count) in lines.lines().filter_map(|line| line.split_once(": ")) {
        if let (true, Ok(count)) = (SPLITS.contains(&name), count.parse::<u32>()) {
            files.insert(folder.join(format!("{name}.json")));
            files.extend((0..count).map(|index| folder.join(name).join(file_name(index, EXTENSION))));
        }
    }
    files
}

/// Draws the `count` images of a split; returns them with their annotations.
fn draw_split(split: usize, count: u32, args: &SynthArgs) -> anyhow::Result<Dataset> {
    let folder = args.out.join(SPLITS[split]);
    fs::create_dir(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let size = Size { width: args.width, height: args.height };
    draw_images(&folder, EXTENSION, count, size, |index| generator(args.seed, split, index))
}

/// Draws `count` images into a folder, in the file format of `extension`; returns them with their annotations.
pub(crate) fn draw_images(
    folder: &Path,
    extension: &str,
    count: u32,
    size: Size,
    generator: impl Fn(u32) -> ChaCha8Rng + Sync,
) -> anyhow::Result<Dataset> {
    let draw_image = |index| {
        let scene = draw(size, &mut generator(index));
        let path = folder.join(file_name(index, extension));
        scene.image.save(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(scene.objects)
    };
    let objects: Vec<_> = (0..count).into_par_iter().map(draw_image).collect::<anyhow::Result<_>>()?;
    Ok(dataset(folder, &objects, extension, size))
}

/// A random number generator whose stream is unique to this image of this seed.
fn generator(seed: u64, split: usize, image: u32) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((split as u64) << 32 | u64::from(image));
    rng
}

fn file_name(index: u32, extension: &str) -> String {
    format!("{index:05}.{extension}")
}

/// The data set of these objects, which are grouped by image.
fn dataset(folder: &Path, objects: &[Vec<Object>], extension: &str, Size { width, height }: Size) -> Dataset {
    let images = (0..).zip(objects).map(|(index, _)| Image {
        id: i64::from(index) + 1,
        file_name: file_name(index, extension),
        width,
        height,
    });
    let annotations = objects.iter().enumerate().flat_map(|(image, objects)| objects.iter().map(move |o| (image, o)));
    let annotations = (1..).zip(annotations).map(|(id, (image, object))| Annotation {
        id,
        image,
        class_index: object.kind as usize,
        rectangle: object.bounding_box.into(),
        area: object.area as f64,
        crowd: false,
        difficult: false,
    });
    let classes = (1..).zip(Kind::ALL).map(|(id, kind)| Class { id, name: kind.name().to_owned() });
    Dataset::new(folder, images.collect(), annotations.collect(), classes.collect())
        .expect("images and annotations are numbered in order")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use models::dataset::OnProblem;

    use super::*;

    fn args(out: &Path) -> SynthArgs {
        SynthArgs { out: out.to_owned(), train: 6, val: 4, test: 0, seed: 3, width: 64, height: 48 }
    }

    /// All files below a folder, with their content.
    fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let below = |path: PathBuf| match fs::read(&path) {
            Ok(bytes) => BTreeMap::from([(path, bytes)]),
            Err(_) => files(&path),
        };
        entries.flat_map(below).collect()
    }

    #[test]
    fn the_same_seed_writes_the_same_bytes_and_another_seed_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        run(&args).unwrap();
        let first = files(folder.path());
        assert_eq!(first.len(), 6 + 4 + 3 + 1);
        run(&args).unwrap();
        assert_eq!(files(folder.path()), first);
        run(&SynthArgs { seed: 4, ..args }).unwrap();
        let other = files(folder.path());
        assert!(first.iter().all(|(path, bytes)| path.extension() != Some("png".as_ref()) || other[path] != *bytes));
    }

    #[test]
    fn all_images_are_different() {
        let folder = tempfile::tempdir().unwrap();
        run(&args(folder.path())).unwrap();
        let images = files(folder.path()).into_values().filter(|bytes| bytes.starts_with(b"\x89PNG"));
        assert_eq!(images.collect::<BTreeSet<_>>().len(), 10);
    }

    #[test]
    fn annotations_are_valid_and_match_the_images() {
        let folder = tempfile::tempdir().unwrap();
        run(&args(folder.path())).unwrap();
        for (name, count) in [("train", 6), ("val", 4), ("test", 0)] {
            let (dataset, _) =
                Dataset::read_coco(&folder.path().join(format!("{name}.json")), OnProblem::Refuse).unwrap();
            assert_eq!(dataset.images().len(), count);
            let dataset = dataset.with_folder(folder.path().join(name));
            assert!((0..count).all(|image| runtime::image_file::size(dataset.path_of(image)).is_ok()));
            let classes: Vec<_> = dataset.classes().iter().map(|class| class.name.as_str()).collect();
            assert_eq!(classes, Kind::ALL.map(Kind::name));
        }
    }

    #[test]
    fn a_folder_with_other_files_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "years").unwrap();
        let error = run(&args(folder.path())).unwrap_err().to_string();
        assert!(error.contains("thesis.txt") && error.contains("--out"), "{error}");
        assert_eq!(files(folder.path()).len(), 1);
    }

    #[test]
    fn a_folder_with_files_added_to_generated_ones_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        run(&args(folder.path())).unwrap();
        // Some names resemble generated ones: an archive, a table, an image beyond the count, one in a subfolder.
        let added = ["thesis.txt", "train.zip", "val.csv", "train/00006.png", "train/cat.png", "val/more/00000.png"];
        for name in added {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "years").unwrap();
            let before = files(folder.path());
            let error = run(&args(folder.path())).unwrap_err().to_string();
            let named = name.strip_suffix("/00000.png").unwrap_or(name);
            assert!(error.contains(named) && error.contains("--out"), "{name}: {error}");
            assert_eq!(files(folder.path()), before, "{name}");
            fs::remove_file(&path).unwrap();
            let _ = fs::remove_dir(folder.path().join("val/more"));
        }
        run(&args(folder.path())).unwrap();
    }
}
