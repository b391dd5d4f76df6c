//! Survey of one split of the data: reads every image and matches every box to the anchors.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use models::coverage::{ObjectMatch, match_objects};
use models::dataset::{Annotation, Dataset};
use models::{Matcher, ModelSpec};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use crate::progress::Count;
use crate::splits::{SourceSummary, Split, Unreadable};

/// Statistics and problems of one split. The field names are JSON keys.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Survey {
    /// The data sets of the split.
    pub(super) sources: Vec<SourceSummary>,
    /// Number of images, without those that are missing or no image files.
    pub(super) images: usize,
    /// Number of boxes, without crowd regions.
    pub(super) boxes: usize,
    /// Number of crowd regions, which are not trained on.
    pub(super) crowds: usize,
    /// Number of images without boxes: all their anchors are background.
    pub(super) images_without_boxes: usize,
    /// Statistics of each class, in the order of the data set.
    pub(super) classes: Vec<ClassSurvey>,
    /// Problems of the annotations, one sentence per data set and kind.
    pub(super) problems: Vec<String>,
    /// Whether training refuses these annotations unless `bad_annotations` is `drop`.
    pub(super) refused: bool,
    /// Images that training would refuse or fail to read.
    pub(super) bad_images: Vec<BadImage>,
    /// Groups of images with identical pixels.
    pub(super) duplicate_images: Vec<Vec<String>>,
    /// Boxes with the same class and coordinates as an earlier box of their image.
    pub(super) duplicate_boxes: Vec<BoxLocation>,
    /// Histogram of the square root of the box area, in pixels of the original image. Each bin is twice as wide as the one
    /// before.
    pub(super) sides: Vec<SideBin>,
    /// Number of images of each size, most frequent first.
    pub(super) image_sizes: Vec<ImageSize>,
    /// Boxes without a matched anchor.
    pub(super) unmatched: Vec<Unmatched>,
    /// File name of each readable image, by the hash of its pixels.
    #[serde(skip)]
    pub(super) hashes: HashMap<u64, String>,
}

/// Statistics of one class. Images of unknown size are left out.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ClassSurvey {
    pub(super) id: i64,
    pub(super) name: String,
    /// Number of images with objects of this class.
    pub(super) images: usize,
    /// All boxes, without crowd regions.
    pub(super) all: MatchedBoxes,
    /// Boxes with an area below 32² pixels of the padded input.
    pub(super) small: MatchedBoxes,
    /// Boxes with an area from 32² to below 96² pixels of the padded input.
    pub(super) medium: MatchedBoxes,
    /// Boxes with an area of 96² pixels of the padded input or more.
    pub(super) large: MatchedBoxes,
}

/// Number of boxes, and how many of them have a matched anchor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct MatchedBoxes {
    pub(super) boxes: usize,
    pub(super) matched: usize,
}

/// An image that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct BadImage {
    pub(super) file: String,
    pub(super) reason: String,
    /// Whether the file is missing or not an image file, which training finds out before decoding, so that it can drop the
    /// image.
    pub(super) missing: bool,
}

/// Identifies a box in the annotations.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct BoxLocation {
    pub(super) file: String,
    pub(super) annotation: i64,
    pub(super) class: String,
}

/// A bin of the box size histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct SideBin {
    /// Lower bound, inclusive.
    pub(super) from: u32,
    /// Upper bound, exclusive.
    pub(super) to: u32,
    pub(super) boxes: usize,
}

/// Number of images of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct ImageSize {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) images: usize,
}

/// A box without a matched anchor.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct Unmatched {
    #[serde(flatten)]
    pub(super) location: BoxLocation,
    /// Width, in pixels of the padded input.
    pub(super) width: f32,
    /// Height, in pixels of the padded input.
    pub(super) height: f32,
    /// Maximum IoU with any anchor.
    pub(super) max_iou: f32,
}

impl Survey {
    /// Surveys a split. Images are read in parallel.
    pub(super) fn new(title: &str, split: &Split, spec: &ModelSpec, matcher: &Matcher) -> Self {
        let dataset = &split.dataset;
        let (hashes, undecodable) = read_images(title, dataset);
        let missing = split.unreadable.iter().map(|Unreadable { file, reason }| BadImage {
            file: file.clone(),
            reason: reason.clone(),
            missing: true,
        });
        let images: Vec<_> = (0..dataset.images().len()).collect();
        let matched = match_objects(dataset, &images, spec, matcher);
        let boxes = || dataset.annotations().iter().filter(|annotation| !annotation.crowd);
        let with_boxes: HashSet<_> = boxes().map(|annotation| annotation.image).collect();
        let mut files_by_hash: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (index, hash) in &hashes {
            files_by_hash.entry(*hash).or_default().push(dataset.images()[*index].file_name.clone());
        }
        let mut duplicate_images: Vec<_> = files_by_hash.into_values().filter(|files| files.len() > 1).collect();
        duplicate_images.sort();
        Self {
            sources: split.sources.clone(),
            images: dataset.images().len(),
            boxes: boxes().count(),
            crowds: dataset.annotations().len() - boxes().count(),
            images_without_boxes: dataset.images().len() - with_boxes.len(),
            classes: classes(dataset, &matched),
            problems: split.problems.clone(),
            refused: split.has_serious_problems,
            bad_images: missing.chain(undecodable).collect(),
            duplicate_images,
            duplicate_boxes: duplicate_boxes(dataset),
            sides: sides(boxes()),
            image_sizes: image_sizes(dataset),
            unmatched: matched.iter().filter(|object| object.anchors == 0).map(|o| unmatched(dataset, o)).collect(),
            hashes: hashes.into_iter().map(|(image, hash)| (hash, dataset.images()[image].file_name.clone())).collect(),
        }
    }

    /// Whether training would stop at an image, which it finds out when it decodes it.
    pub(super) fn stops_training(&self) -> bool {
        self.bad_images.iter().any(|image| !image.missing)
    }

    /// Pairs of an image of this split and an image of the other with identical pixels.
    pub(super) fn shared_images(&self, other: &Self) -> Vec<[String; 2]> {
        let shared =
            self.hashes.iter().filter_map(|(hash, file)| Some([file.clone(), other.hashes.get(hash)?.clone()]));
        let mut shared: Vec<_> = shared.collect();
        shared.sort();
        shared
    }
}

/// Index and pixel hash of each readable image, and the bad images.
fn read_images(title: &str, dataset: &Dataset) -> (Vec<(usize, u64)>, Vec<BadImage>) {
    let count = Count::new(title, dataset.images().len() as u64);
    let read = dataset.images().par_iter().enumerate().map(|(index, image)| {
        let read = runtime::image_file::read(dataset.path_of(index));
        count.advance();
        let bad = |reason| BadImage { file: image.file_name.clone(), reason, missing: false };
        let pixels = read.map_err(|error| bad(error.reason.to_string()))?;
        let (width, height) = pixels.dimensions();
        if (width, height) != (image.width, image.height) {
            let declared = format!("{}x{}", image.width, image.height);
            let reason = format!("{width}x{height} pixels after EXIF rotation, but the annotations declare {declared}");
            return Err(bad(reason));
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
    let mut images = vec![HashSet::new(); dataset.classes().len()];
    // By class: all, small, medium, large.
    let mut counts = vec![[MatchedBoxes::default(); 4]; dataset.classes().len()];
    for object in matched {
        let Annotation { class_index, image, .. } = dataset.annotations()[object.annotation];
        images[class_index].insert(image);
        let size = match object.bounding_box.area() {
            area if area < 32.0 * 32.0 => 1,
            area if area < 96.0 * 96.0 => 2,
            _ => 3,
        };
        for index in [0, size] {
            counts[class_index][index].boxes += 1;
            counts[class_index][index].matched += usize::from(object.anchors > 0);
        }
    }
    let of_class = dataset.classes().iter().zip(images).zip(counts);
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

fn duplicate_boxes(dataset: &Dataset) -> Vec<BoxLocation> {
    let mut seen = HashSet::new();
    let duplicates = dataset.annotations().iter().filter(|annotation| {
        let rectangle = annotation.rectangle;
        let corner_and_sides = [rectangle.x, rectangle.y, rectangle.width, rectangle.height].map(f64::to_bits);
        !seen.insert((annotation.image, annotation.class_index, corner_and_sides))
    });
    duplicates.map(|annotation| location(dataset, annotation)).collect()
}

fn unmatched(dataset: &Dataset, object: &ObjectMatch) -> Unmatched {
    Unmatched {
        location: location(dataset, &dataset.annotations()[object.annotation]),
        width: object.bounding_box.width(),
        height: object.bounding_box.height(),
        max_iou: object.max_iou,
    }
}

fn location(dataset: &Dataset, annotation: &Annotation) -> BoxLocation {
    BoxLocation {
        file: dataset.images()[annotation.image].file_name.clone(),
        annotation: annotation.id,
        class: dataset.classes()[annotation.class_index].name.clone(),
    }
}

fn sides<'a>(boxes: impl Iterator<Item = &'a Annotation>) -> Vec<SideBin> {
    let mut bins: BTreeMap<u32, usize> = BTreeMap::new();
    for annotation in boxes {
        let side = annotation.rectangle.area().max(0.0).sqrt();
        // Clamped, so that sides below 1 and absurdly large ones fall into the outer bins.
        *bins.entry(side.clamp(1.0, 1e6).log2() as u32).or_default() += 1;
    }
    bins.into_iter().map(|(power, boxes)| SideBin { from: 1 << power, to: 2 << power, boxes }).collect()
}

fn image_sizes(dataset: &Dataset) -> Vec<ImageSize> {
    let mut counts: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for image in dataset.images() {
        *counts.entry((image.width, image.height)).or_default() += 1;
    }
    let mut sizes: Vec<_> =
        counts.into_iter().map(|((width, height), images)| ImageSize { width, height, images }).collect();
    sizes.sort_by_key(|size| std::cmp::Reverse(size.images));
    sizes
}
