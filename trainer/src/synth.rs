//! `trainer synth`: a data set of drawn shapes, to try the programs on without data of one's own.

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

pub use scene::{Object, Scene, Size, VISIBLE, draw};
pub use shape::Kind;

/// The file by which a folder is known as one that this program has made.
const MARK: &str = "synth.txt";

/// How it begins; the number of images of each part follows.
const MARK_TITLE: &str =
    "Drawn by `trainer synth`, which replaces these images and their JSON files when it draws here again.";

/// Of the drawn images' files.
const EXTENSION: &str = "png";

/// The parts of the data set: names of their folders and files.
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

/// Draws `train`, `val` and `test` below the folder, each with a JSON file beside it.
///
/// # Errors
/// When the folder holds anything that this program has not made, or can't be written.
pub fn run(args: &SynthArgs) -> anyhow::Result<()> {
    prepare(&args.out, [args.train, args.val, args.test])?;
    for (split, count) in [args.train, args.val, args.test].into_iter().enumerate() {
        let name = SPLITS[split];
        let dataset = draw_split(split, count, args)?;
        let path = args.out.join(format!("{name}.json"));
        dataset.write_coco(&path).with_context(|| format!("can't write {}", path.display()))?;
        let (images, shapes) = (dataset.images.len(), dataset.annotations.len());
        print(&format!("{}: {images} images with {shapes} shapes", path.display()))?;
    }
    Ok(())
}

/// Makes a folder with nothing but the mark in it. What an earlier run has drawn, by what its mark says, goes; anything else stays,
/// and is an error.
fn prepare(folder: &Path, counts: [u32; 3]) -> anyhow::Result<()> {
    let shown = folder.display();
    fs::create_dir_all(folder).with_context(|| format!("can't make {shown}"))?;
    let mark = folder.join(MARK);
    let drawn = drawn_files(folder, &fs::read_to_string(&mark).unwrap_or_default());
    let splits = SPLITS.map(|name| folder.join(name));
    for place in splits.iter().map(PathBuf::as_path).filter(|split| split.is_dir()).chain([folder]) {
        for entry in fs::read_dir(place).with_context(|| format!("can't read {}", place.display()))? {
            let path = entry.with_context(|| format!("can't read {}", place.display()))?.path();
            if path != mark && !splits.contains(&path) && !drawn.contains(&path) {
                bail!("{} is not of `trainer synth`; empty its folder, or give another --out", path.display());
            }
        }
    }
    let there = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    for path in &drawn {
        fs::remove_file(path).or_else(there).with_context(|| format!("can't replace {}", path.display()))?;
    }
    for path in &splits {
        // Only an empty one.
        fs::remove_dir(path).or_else(there).with_context(|| format!("can't replace {}", path.display()))?;
    }
    let counts = SPLITS.iter().zip(counts).map(|(name, count)| format!("{name}: {count}\n")).collect::<String>();
    let text = format!("{MARK_TITLE}\n{counts}");
    fs::write(&mark, text).with_context(|| format!("can't write {}", mark.display()))
}

/// The files that `trainer synth` has written into `folder`, by its mark.
fn drawn_files(folder: &Path, mark: &str) -> BTreeSet<PathBuf> {
    let Some(lines) = mark.strip_prefix(MARK_TITLE) else { return BTreeSet::new() };
    let mut files = BTreeSet::new();
    for (name, count) in lines.lines().filter_map(|line| line.split_once(": ")) {
        if let (true, Ok(count)) = (SPLITS.contains(&name), count.parse::<u32>()) {
            files.insert(folder.join(format!("{name}.json")));
            files.extend((0..count).map(|index| folder.join(name).join(file_name(index, EXTENSION))));
        }
    }
    files
}

/// Draws the `count` images of a part and says what is on them.
fn draw_split(split: usize, count: u32, args: &SynthArgs) -> anyhow::Result<Dataset> {
    let folder = args.out.join(SPLITS[split]);
    fs::create_dir(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let size = Size { width: args.width, height: args.height };
    draw_images(&folder, EXTENSION, count, size, |index| generator(args.seed, split, index))
}

/// Draws `count` images into a folder, in the format of that extension, and says what is on them.
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
        scene.image.save(&path).with_context(|| format!("can't write {}", path.display()))?;
        Ok(scene.objects)
    };
    let objects: Vec<_> = (0..count).into_par_iter().map(draw_image).collect::<anyhow::Result<_>>()?;
    Ok(Dataset { folder: folder.to_owned(), ..dataset(&objects, extension, size) })
}

/// Random numbers that no other image of the same seed gets.
fn generator(seed: u64, split: usize, image: u32) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((split as u64) << 32 | u64::from(image));
    rng
}

fn file_name(index: u32, extension: &str) -> String {
    format!("{index:05}.{extension}")
}

/// The data set of these objects, which are listed by image, but for its folder.
fn dataset(objects: &[Vec<Object>], extension: &str, Size { width, height }: Size) -> Dataset {
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
    });
    let classes = (1..).zip(Kind::ALL).map(|(id, kind)| Class { id, name: kind.name().to_owned() });
    Dataset {
        images: images.collect(),
        annotations: annotations.collect(),
        classes: classes.collect(),
        ..Dataset::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use models::dataset::OnProblem;

    use super::*;

    fn args(out: &Path) -> SynthArgs {
        SynthArgs { out: out.to_owned(), train: 6, val: 4, test: 0, seed: 3, width: 64, height: 48 }
    }

    /// Every file below a folder, with what it holds.
    fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let below = |path: PathBuf| match fs::read(&path) {
            Ok(bytes) => BTreeMap::from([(path, bytes)]),
            Err(_) => files(&path),
        };
        entries.flat_map(below).collect()
    }

    #[test]
    fn drawing_again_gives_the_same_bytes_and_another_seed_others() {
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
    fn no_image_is_drawn_twice() {
        let folder = tempfile::tempdir().unwrap();
        run(&args(folder.path())).unwrap();
        let images = files(folder.path()).into_values().filter(|bytes| bytes.starts_with(b"\x89PNG"));
        assert_eq!(images.collect::<BTreeSet<_>>().len(), 10);
    }

    #[test]
    fn the_annotations_are_sound_and_belong_to_the_images() {
        let folder = tempfile::tempdir().unwrap();
        run(&args(folder.path())).unwrap();
        for (name, count) in [("train", 6), ("val", 4), ("test", 0)] {
            let (mut dataset, _) =
                Dataset::read_coco(&folder.path().join(format!("{name}.json")), OnProblem::Refuse).unwrap();
            assert_eq!(dataset.images.len(), count);
            dataset.folder = folder.path().join(name);
            assert!((0..count).all(|image| runtime::data::has_image(&dataset, image)));
            let classes: Vec<_> = dataset.classes.iter().map(|class| class.name.as_str()).collect();
            assert_eq!(classes, Kind::ALL.map(Kind::name));
        }
    }

    #[test]
    fn a_folder_with_files_of_others_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "years").unwrap();
        let error = run(&args(folder.path())).unwrap_err().to_string();
        assert!(error.contains("thesis.txt") && error.contains("--out"), "{error}");
        assert_eq!(files(folder.path()).len(), 1);
    }

    #[test]
    fn a_folder_with_files_put_beside_drawn_ones_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        run(&args(folder.path())).unwrap();
        // Names that look like ours among them: an archive, a table, an image beyond those drawn, one in a folder below.
        let foreign = ["thesis.txt", "train.zip", "val.csv", "train/00006.png", "train/cat.png", "val/more/00000.png"];
        for name in foreign {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "years").unwrap();
            let before = files(folder.path());
            let error = run(&args(folder.path())).unwrap_err().to_string();
            let shown = name.strip_suffix("/00000.png").unwrap_or(name);
            assert!(error.contains(shown) && error.contains("--out"), "{name}: {error}");
            assert_eq!(files(folder.path()), before, "{name}");
            fs::remove_file(&path).unwrap();
            let _ = fs::remove_dir(folder.path().join("val/more"));
        }
        run(&args(folder.path())).unwrap();
    }
}
