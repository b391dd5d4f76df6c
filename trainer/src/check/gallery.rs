//! Images to look at: the truth with its anchors, and what the network sees.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use image::{Rgb, RgbImage};
use models::spec::PreprocessingSpec;
use models::{Anchors, Assignment, Preprocessed};
use rayon::prelude::*;
use runtime::draw::{Mark, color, draw_marks};

use crate::loader::Recipe;
use crate::progress::{Count, say};
use crate::targets::Object;

/// Anchors that are drawn for an object; its tag counts all of them.
const HAIRLINES: usize = 5;

/// Draws the boxes of images, and as hairlines the best of the anchors matched to them.
pub(super) fn draw_truth(recipe: &Recipe, images: &[usize], folder: &Path) -> anyhow::Result<()> {
    draw_each(recipe, images, folder, |index| {
        let mut image = runtime::image_file::read(recipe.dataset.path_of(index))?;
        let placement = recipe.spec.preprocessing.place(image.width(), image.height());
        let annotations = recipe.dataset.annotations_of(index).iter().filter(|annotation| !annotation.crowd);
        let objects: Vec<_> = annotations
            .map(|annotation| Object {
                class_index: annotation.class_index,
                bounding_box: placement.to_input(&annotation.rectangle.bounding_box()),
            })
            .collect();
        let size = [placement.padded_height, placement.padded_width].map(|side| side as usize);
        let marks = marks(recipe, &objects, size)
            .into_iter()
            .map(|mark| Mark { bounding_box: placement.to_original_image(&mark.bounding_box), ..mark });
        draw_marks(&mut image, &marks.collect::<Vec<_>>());
        Ok(image)
    })
}

/// Draws what the network will see of images, with boxes and anchors, as the epoch of random number `seed` varies them.
pub(super) fn draw_inputs(recipe: &Recipe, images: &[usize], seed: u64, folder: &Path) -> anyhow::Result<()> {
    draw_each(recipe, images, folder, |index| {
        let (prepared, objects) = recipe.input(index, seed)?;
        let (_, height, width) = prepared.pixels.dim();
        let mut image = visible(&prepared, &recipe.spec.preprocessing);
        draw_marks(&mut image, &marks(recipe, &objects, [height, width]));
        Ok(image)
    })
}

fn draw_each(
    recipe: &Recipe,
    images: &[usize],
    folder: &Path,
    draw: impl Fn(usize) -> anyhow::Result<RgbImage> + Sync,
) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("can't make the folder {}", folder.display()))?;
    let count = Count::new("drawing", images.len() as u64);
    let draw_one = |&index: &usize| {
        let path = folder.join(file_name(index, &recipe.dataset.images[index].file_name));
        let drawn = draw(index);
        count.advance();
        match drawn {
            Ok(image) => {
                runtime::image_file::write(&path, &image).with_context(|| format!("can't write {}", path.display()))
            }
            // The tables have named it already.
            Err(error) => {
                say(&format!("not drawn: {error:#}"));
                Ok(())
            }
        }
    };
    images.par_iter().try_for_each(draw_one)
}

/// A name that no other image of the data set gets.
fn file_name(index: usize, name: &str) -> PathBuf {
    let stem = Path::new(name).file_stem().map_or_else(|| "image".into(), |stem| stem.to_string_lossy());
    format!("{index:06}-{stem}.jpg").into()
}

/// The objects with their tags, and the best of the anchors matched to them in an input of `[height, width]`.
fn marks(recipe: &Recipe, objects: &[Object], [height, width]: [usize; 2]) -> Vec<Mark> {
    let anchors = Anchors::new(&recipe.spec.anchors, height, width);
    let boxes: Vec<_> = objects.iter().map(|object| object.bounding_box).collect();
    let mut standing = vec![Vec::new(); objects.len()];
    for (anchor, assignment) in anchors.boxes().iter().zip(recipe.matcher.assign(anchors.boxes(), &boxes)) {
        if let Assignment::Object(object) = assignment {
            standing[object].push(*anchor);
        }
    }
    let mut tagged = Vec::new();
    let mut hairlines = Vec::new();
    for (object, mut anchors) in objects.iter().zip(standing) {
        let bounding_box = object.bounding_box;
        let name = &recipe.spec.classes[object.class_index].name;
        let (color, tag) = match anchors.len() {
            0 => (Rgb([0, 0, 0]), format!("{name}: no anchor")),
            1 => (color(object.class_index), format!("{name}: 1 anchor")),
            count => (color(object.class_index), format!("{name}: {count} anchors")),
        };
        anchors.sort_by(|a, b| b.iou(&bounding_box).total_cmp(&a.iou(&bounding_box)));
        anchors.truncate(HAIRLINES);
        hairlines.extend(anchors.into_iter().map(|anchor| Mark { bounding_box: anchor, color, tag: None }));
        tagged.push(Mark { bounding_box, color, tag: Some(tag) });
    }
    tagged.extend(hairlines);
    tagged
}

/// The network's input as an image.
fn visible(prepared: &Preprocessed, spec: &PreprocessingSpec) -> RgbImage {
    let (_, height, width) = prepared.pixels.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        Rgb([0, 1, 2].map(|channel| {
            let value = prepared.pixels[[channel, y as usize, x as usize]] * spec.std[channel] + spec.mean[channel];
            (255.0 * value).round().clamp(0.0, 255.0) as u8
        }))
    })
}
