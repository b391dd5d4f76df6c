//! Drawn training images: ground truth with matched anchors, and network inputs.

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

/// Maximum number of anchors drawn per object. Its tag shows how many are matched.
const MAX_DRAWN_ANCHORS: usize = 5;

/// Draws images with their ground truth boxes, and as hairlines the matched anchors with the highest IoU.
pub(super) fn draw_ground_truth(recipe: &Recipe, images: &[usize], folder: &Path) -> anyhow::Result<()> {
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

/// Draws images as network inputs, augmented with `seed`, with their boxes and anchors.
pub(super) fn draw_inputs(recipe: &Recipe, images: &[usize], seed: u64, folder: &Path) -> anyhow::Result<()> {
    draw_each(recipe, images, folder, |index| {
        let (prepared, objects) = recipe.input(index, seed)?;
        let (_, height, width) = prepared.pixels.dim();
        let mut image = input_image(&prepared, &recipe.spec.preprocessing);
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
    fs::create_dir_all(folder).with_context(|| format!("cannot create the folder `{}`", folder.display()))?;
    let count = Count::new("drawing", images.len() as u64);
    let draw_one = |&index: &usize| {
        let path = folder.join(file_name(index, &recipe.dataset.images()[index].file_name));
        let drawn = draw(index);
        count.advance();
        match drawn {
            Ok(image) => {
                runtime::image_file::write(&path, &image).with_context(|| format!("cannot write `{}`", path.display()))
            }
            // The table has reported this image already.
            Err(error) => {
                say(format_args!("not drawn: {error:#}"));
                Ok(())
            }
        }
    };
    images.par_iter().try_for_each(draw_one)
}

/// A file name that is unique in the data set.
fn file_name(index: usize, name: &str) -> PathBuf {
    let stem = Path::new(name).file_stem().map_or_else(|| "image".into(), |stem| stem.to_string_lossy());
    format!("{index:06}-{stem}.jpg").into()
}

/// Marks for the objects, with tags, and for the matched anchors with the highest IoU. All boxes are in pixels of the padded
/// input, whose size is `[height, width]`.
fn marks(recipe: &Recipe, objects: &[Object], [height, width]: [usize; 2]) -> Vec<Mark> {
    let anchors = Anchors::new(&recipe.spec.anchors, height, width);
    let boxes: Vec<_> = objects.iter().map(|object| object.bounding_box).collect();
    let mut matched = vec![Vec::new(); objects.len()];
    for (anchor, assignment) in anchors.boxes().iter().zip(recipe.matcher.assign(anchors.boxes(), &boxes)) {
        if let Assignment::Object(object) = assignment {
            matched[object].push(*anchor);
        }
    }
    let mut tagged = Vec::new();
    let mut hairlines = Vec::new();
    for (object, mut anchors) in objects.iter().zip(matched) {
        let bounding_box = object.bounding_box;
        let name = &recipe.spec.classes[object.class_index].name;
        let (color, tag) = match anchors.len() {
            0 => (Rgb([0, 0, 0]), format!("{name}: no anchor")),
            1 => (color(object.class_index), format!("{name}: 1 anchor")),
            count => (color(object.class_index), format!("{name}: {count} anchors")),
        };
        anchors.sort_by(|a, b| b.iou(&bounding_box).total_cmp(&a.iou(&bounding_box)));
        anchors.truncate(MAX_DRAWN_ANCHORS);
        hairlines.extend(anchors.into_iter().map(|anchor| Mark { bounding_box: anchor, color, tag: None }));
        tagged.push(Mark { bounding_box, color, tag: Some(tag) });
    }
    tagged.extend(hairlines);
    tagged
}

/// Converts a network input to an image.
fn input_image(prepared: &Preprocessed, spec: &PreprocessingSpec) -> RgbImage {
    let (_, height, width) = prepared.pixels.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        Rgb([0, 1, 2].map(|channel| {
            let value = prepared.pixels[[channel, y as usize, x as usize]] * spec.std[channel] + spec.mean[channel];
            (255.0 * value).round().clamp(0.0, 255.0) as u8
        }))
    })
}
