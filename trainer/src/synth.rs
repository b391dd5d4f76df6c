//! `trainer synth`: generates a data set of colored shapes, to try the programs without data of your own.

mod scene;
mod shape;
mod texture;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, value_parser};
use models::dataset::{Annotation, Dataset, Image};
use models::spec::Class;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::progress::print;

pub use scene::{Object, Scene, Size, draw};
pub use shape::Kind;

/// The splits of the data set: the names of their folders and JSON files.
const SPLITS: [&str; 3] = ["train", "val", "test"];

/// Generate a data set of colored shapes, with annotations as COCO JSON.
#[derive(Args, Clone, Debug)]
pub struct SynthArgs {
    /// Folder to write, new or empty.
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
/// When the output folder is not empty, or when a file cannot be written.
pub fn run(args: &SynthArgs) -> anyhow::Result<()> {
    let out = args.out.display();
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create `{out}`"))?;
    let mut entries = fs::read_dir(&args.out).with_context(|| format!("cannot read `{out}`"))?;
    ensure!(entries.next().is_none(), "`{out}` is not empty; remove it, or choose another --out");
    let size = Size { width: args.width, height: args.height };
    for (split, (name, count)) in (0..).zip(SPLITS.into_iter().zip([args.train, args.val, args.test])) {
        let folder = args.out.join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        let dataset = draw_images(&folder, "png", count, size, |image| generator(args.seed, split, image))?;
        let path = folder.with_extension("json");
        dataset.write_coco(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
        print(&format!("wrote `{}`: {count} images, {} shapes", path.display(), dataset.annotations().len()))?;
    }
    Ok(())
}

/// Draws `count` images into a folder, in the file format of `extension`; returns them with their annotations.
pub(crate) fn draw_images(
    folder: &Path,
    extension: &str,
    count: u32,
    size: Size,
    generator: impl Fn(u32) -> ChaCha8Rng + Sync,
) -> anyhow::Result<Dataset> {
    let file_name = |index: u32| format!("{index:05}.{extension}");
    let draw_image = |index| {
        let (scene, path) = (draw(size, &mut generator(index)), folder.join(file_name(index)));
        scene.image.save(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(scene.objects)
    };
    let objects: Vec<_> = (0..count).into_par_iter().map(draw_image).collect::<anyhow::Result<_>>()?;
    let Size { width, height } = size;
    let image = |index| Image { id: i64::from(index) + 1, file_name: file_name(index), width, height };
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
    Ok(Dataset::new(folder, (0..count).map(image).collect(), annotations.collect(), classes.collect())?)
}

/// A random number generator whose stream is unique to this image of this seed.
fn generator(seed: u64, split: u64, image: u32) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(split << 32 | u64::from(image));
    rng
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
    fn the_same_seed_writes_the_same_bytes_and_all_images_differ() {
        let folder = tempfile::tempdir().unwrap();
        let drawn = |name: &str, seed| {
            let out = folder.path().join(name);
            run(&SynthArgs { seed, ..args(&out) }).unwrap();
            files(&out).into_iter().map(|(path, bytes)| (path.strip_prefix(&out).unwrap().to_owned(), bytes)).collect()
        };
        let [first, again, other]: [BTreeMap<_, _>; 3] = [drawn("first", 3), drawn("again", 3), drawn("other", 4)];
        assert_eq!(first.len(), 6 + 4 + 3);
        assert_eq!(again, first);
        let images = first.values().chain(other.values()).filter(|bytes| bytes.starts_with(b"\x89PNG"));
        assert_eq!(images.collect::<BTreeSet<_>>().len(), 20);
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
    fn a_folder_that_is_not_empty_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "years").unwrap();
        let error = run(&args(folder.path())).unwrap_err().to_string();
        assert!(error.contains("is not empty") && error.contains("--out"), "{error}");
        assert_eq!(files(folder.path()).len(), 1);
    }
}
