//! What there is to know of one part of a data set: every image read, every box held against the anchors.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use models::coverage::{ObjectMatch, match_objects};
use models::dataset::{Annotation, Dataset, Report};
use models::{Matcher, ModelSpec};
use rayon::prelude::*;
use runtime::data::has_image;
use serde::Serialize;

use crate::config::BadAnnotations;
use crate::progress::Count;

/// One part of a data set.
#[derive(Debug, Serialize)]
pub(super) struct Survey {
    /// Images that training would use if all could be read.
    pub(super) images: usize,
    /// Boxes, crowds apart.
    pub(super) boxes: usize,
    /// Boxes of crowds, which are not trained on.
    pub(super) crowds: usize,
    /// Images without boxes, from which only background is learned.
    pub(super) images_without_boxes: usize,
    /// By class, in the order of the data set.
    pub(super) classes: Vec<ClassSurvey>,
    /// What is wrong with the annotations, a line for each kind.
    pub(super) problems: Vec<String>,
    /// Whether training refuses these annotations unless it may drop some.
    pub(super) refused: bool,
    /// Images that training would refuse or stop at.
    pub(super) bad_images: Vec<BadImage>,
    /// Groups of images that have the same pixels.
    pub(super) duplicate_images: Vec<Vec<String>>,
    /// Boxes that another box of the same class and place precedes.
    pub(super) duplicate_boxes: Vec<BoxPlace>,
    /// Boxes by the square root of their area in pixels of the image, in steps of a factor of two.
    pub(super) sides: Vec<SideBin>,
    /// Images by width and height, the most frequent first.
    pub(super) image_sizes: Vec<ImageSize>,
    /// Boxes that no anchor is matched to.
    pub(super) unmatched: Vec<Unmatched>,
    /// Of the pixels of each image that could be read.
    #[serde(skip)]
    pub(super) hashes: HashMap<u64, String>,
}

/// One class of one part. Images whose size nobody says are left out.
#[derive(Debug, Serialize)]
pub(super) struct ClassSurvey {
    pub(super) id: i64,
    pub(super) name: String,
    /// Images that show it.
    pub(super) images: usize,
    /// Boxes, crowds apart, and those of them that an anchor is matched to.
    pub(super) all: MatchedBoxes,
    /// The same of boxes of less than 32² pixels of the network's input.
    pub(super) small: MatchedBoxes,
    /// The same of boxes between the two.
    pub(super) medium: MatchedBoxes,
    /// The same of boxes of 96² pixels and more.
    pub(super) large: MatchedBoxes,
}

/// Some boxes, and how many of them an anchor is matched to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct MatchedBoxes {
    pub(super) boxes: usize,
    pub(super) matched: usize,
}

/// An image that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct BadImage {
    pub(super) file: String,
    pub(super) reason: String,
    /// Whether that shows without decoding it, so that training could leave it out.
    pub(super) missing: bool,
}

/// A box, as people find it again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct BoxPlace {
    pub(super) file: String,
    pub(super) annotation: i64,
    pub(super) class: String,
}

/// Boxes of like size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct SideBin {
    /// Smallest side, included.
    pub(super) from: u32,
    /// Largest side, excluded.
    pub(super) to: u32,
    pub(super) boxes: usize,
}

/// Images of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ImageSize {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) images: usize,
}

/// A box that no anchor is matched to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Unmatched {
    #[serde(flatten)]
    pub(super) place: BoxPlace,
    /// In pixels of the network's input.
    pub(super) width: f32,
    /// In pixels of the network's input.
    pub(super) height: f32,
    /// With the anchor that fits it best.
    pub(super) max_iou: f32,
}

impl Survey {
    /// Reads everything, in parallel.
    pub(super) fn new(title: &str, dataset: &Dataset, report: &Report, spec: &ModelSpec, matcher: &Matcher) -> Self {
        let (hashes, bad_images) = read_images(title, dataset);
        let images: Vec<_> = (0..dataset.images.len()).collect();
        let matched = match_objects(dataset, &images, spec, matcher);
        let boxes = || dataset.annotations.iter().filter(|annotation| !annotation.crowd);
        let with_boxes: HashSet<_> = boxes().map(|annotation| annotation.image).collect();
        let mut same: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (index, hash) in &hashes {
            same.entry(*hash).or_default().push(dataset.images[*index].file_name.clone());
        }
        let mut duplicate_images: Vec<_> = same.into_values().filter(|files| files.len() > 1).collect();
        duplicate_images.sort();
        Self {
            images: dataset.images.len(),
            boxes: boxes().count(),
            crowds: dataset.annotations.len() - boxes().count(),
            images_without_boxes: dataset.images.len() - with_boxes.len(),
            classes: classes(dataset, &matched),
            problems: report.lines(),
            refused: report.is_serious(),
            bad_images,
            duplicate_images,
            duplicate_boxes: duplicate_boxes(dataset),
            sides: sides(boxes()),
            image_sizes: image_sizes(dataset),
            unmatched: matched.iter().filter(|object| object.anchors == 0).map(|o| unmatched(dataset, o)).collect(),
            hashes: hashes.into_iter().map(|(image, hash)| (hash, dataset.images[image].file_name.clone())).collect(),
        }
    }

    /// Whether training could use this part as it is, when it does with bad annotations what `bad` says.
    pub(super) fn is_sound(&self, bad: BadAnnotations) -> bool {
        let drops = bad == BadAnnotations::Drop;
        // Where all are missing it is the folder that is wrong, which dropping does not mend.
        let some_are_left = self.bad_images.len() < self.images;
        (drops || !self.refused) && some_are_left && self.bad_images.iter().all(|image| drops && image.missing)
    }

    /// Pairs of images, one of this part and one of the other, that have the same pixels.
    pub(super) fn shared_images(&self, other: &Self) -> Vec<[String; 2]> {
        let shared =
            self.hashes.iter().filter_map(|(hash, file)| Some([file.clone(), other.hashes.get(hash)?.clone()]));
        let mut shared: Vec<_> = shared.collect();
        shared.sort();
        shared
    }
}

/// The hash of each image's pixels, by its place; and the images that have none.
fn read_images(title: &str, dataset: &Dataset) -> (Vec<(usize, u64)>, Vec<BadImage>) {
    let count = Count::new(title, dataset.images.len() as u64);
    let read = dataset.images.par_iter().enumerate().map(|(index, image)| {
        let read = runtime::image_file::read(dataset.path_of(index));
        count.advance();
        let bad = |reason| BadImage { file: image.file_name.clone(), reason, missing: !has_image(dataset, index) };
        let pixels = read.map_err(|error| bad(error.reason.to_string()))?;
        let (width, height) = pixels.dimensions();
        if (width, height) != (image.width, image.height) {
            let (said_width, said_height) = (image.width, image.height);
            let text = format!("is {width}x{height} upright, but the annotations say {said_width}x{said_height}");
            return Err(bad(text));
        }
        let mut hasher = DefaultHasher::new();
        (width, height, pixels.as_raw()).hash(&mut hasher);
        Ok(hasher.finish())
    });
    let read: Vec<Result<u64, BadImage>> = read.collect();
    let (mut hashes, mut bad) = (Vec::new(), Vec::new());
    for (index, read) in read.into_iter().enumerate() {
        match read {
            Ok(hash) => hashes.push((index, hash)),
            Err(image) => bad.push(image),
        }
    }
    (hashes, bad)
}

fn classes(dataset: &Dataset, matched: &[ObjectMatch]) -> Vec<ClassSurvey> {
    let mut images = vec![HashSet::new(); dataset.classes.len()];
    // By class: all, small, medium, large.
    let mut counts = vec![[MatchedBoxes::default(); 4]; dataset.classes.len()];
    for object in matched {
        let Annotation { class_index, image, .. } = dataset.annotations[object.annotation];
        images[class_index].insert(image);
        let size = match object.bounding_box.area() {
            area if area < 32.0 * 32.0 => 1,
            area if area < 96.0 * 96.0 => 2,
            _ => 3,
        };
        for place in [0, size] {
            counts[class_index][place].boxes += 1;
            counts[class_index][place].matched += usize::from(object.anchors > 0);
        }
    }
    let of_class = dataset.classes.iter().zip(images).zip(counts);
    let of_class = of_class.map(|((class, images), [all, small, medium, large])| ClassSurvey {
        id: class.id,
        name: class.name.clone(),
        images: images.len(),
        all,
        small,
        medium,
        large,
    });
    of_class.collect()
}

fn duplicate_boxes(dataset: &Dataset) -> Vec<BoxPlace> {
    let mut known = HashSet::new();
    let again = dataset.annotations.iter().filter(|annotation| {
        let rectangle = annotation.rectangle;
        let corner_and_sides = [rectangle.x, rectangle.y, rectangle.width, rectangle.height].map(f64::to_bits);
        !known.insert((annotation.image, annotation.class_index, corner_and_sides))
    });
    again.map(|annotation| place(dataset, annotation)).collect()
}

fn unmatched(dataset: &Dataset, object: &ObjectMatch) -> Unmatched {
    Unmatched {
        place: place(dataset, &dataset.annotations[object.annotation]),
        width: object.bounding_box.width(),
        height: object.bounding_box.height(),
        max_iou: object.max_iou,
    }
}

fn place(dataset: &Dataset, annotation: &Annotation) -> BoxPlace {
    BoxPlace {
        file: dataset.images[annotation.image].file_name.clone(),
        annotation: annotation.id,
        class: dataset.classes[annotation.class_index].name.clone(),
    }
}

fn sides<'a>(boxes: impl Iterator<Item = &'a Annotation>) -> Vec<SideBin> {
    let mut bins: BTreeMap<u32, usize> = BTreeMap::new();
    for annotation in boxes {
        let side = annotation.rectangle.area().max(0.0).sqrt();
        // Sides below 1 and beyond any image go with their neighbors.
        *bins.entry(side.clamp(1.0, 1e6).log2() as u32).or_default() += 1;
    }
    bins.into_iter().map(|(power, boxes)| SideBin { from: 1 << power, to: 2 << power, boxes }).collect()
}

fn image_sizes(dataset: &Dataset) -> Vec<ImageSize> {
    let mut counts: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for image in &dataset.images {
        *counts.entry((image.width, image.height)).or_default() += 1;
    }
    let mut sizes: Vec<_> =
        counts.into_iter().map(|((width, height), images)| ImageSize { width, height, images }).collect();
    sizes.sort_by_key(|size| std::cmp::Reverse(size.images));
    sizes
}
