//! A data set: images, the boxes on them and their classes, whatever format of file they came from.

mod source;
mod format;
pub mod coco;
mod voc;
mod csv;
mod yolo;
mod classes;
mod list;
mod images;
mod labeled;
mod files;
mod draft;
mod report;
mod error;
#[cfg(test)]
mod testing;

use std::path::{Path, PathBuf};

use crate::{BoundingBox, spec::Class};

pub use error::DataError;
pub use format::{Format, ParseFormatError};
pub use images::IMAGE_EXTENSIONS;
pub use labeled::ImageSize;
pub use report::{OnProblem, Problem, ProblemKind, Report, named};
pub use source::Source;

/// Reads a class file: CSV `name,id`, one name per line, or the `names` of YOLO's `data.yaml`.
///
/// # Errors
/// When the file can't be read, is none of these, or has an id or a name twice.
pub fn read_classes(path: &Path) -> Result<Vec<Class>, DataError> {
    classes::read(path)
}

/// Images with their boxes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// Folder that the file names of the images start from.
    pub folder: PathBuf,
    /// The images, by ascending id.
    pub images: Vec<Image>,
    /// The boxes: those of the first image, then those of the second; within an image in the order of the file.
    pub annotations: Vec<Annotation>,
    /// The classes, by ascending id. Their places in this list are the network's outputs.
    pub classes: Vec<Class>,
}

/// One image.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Id in the data set.
    pub id: i64,
    /// Path from [`Dataset::folder`]; may be empty under [`OnProblem::Keep`].
    pub file_name: String,
    /// Pixels per row, as the data set says; may be zero under [`OnProblem::Keep`].
    pub width: u32,
    /// Rows, as the data set says; may be zero under [`OnProblem::Keep`].
    pub height: u32,
}

/// One box that a person drew.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// Id in the data set.
    pub id: i64,
    /// Place in [`Dataset::images`].
    pub image: usize,
    /// Place in [`Dataset::classes`].
    pub class_index: usize,
    /// Where it is, in pixels of the image.
    pub rectangle: Rectangle,
    /// Area of the object in square pixels, which makes it small, medium or large in evaluation. Often that of its mask.
    pub area: f64,
    /// Whether the box stands for a crowd of objects. Such boxes are not trained on; evaluation forgives detections in
    /// them.
    pub crowd: bool,
}

/// A box by its corner and sides, in double precision. This is how COCO has it, and corners and back would move the last
/// bit, which decides whether an IoU reaches a threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rectangle {
    /// Left.
    pub x: f64,
    /// Top.
    pub y: f64,
    /// To the right.
    pub width: f64,
    /// Downwards.
    pub height: f64,
}

impl Dataset {
    /// Where the image at place `image` of [`Dataset::images`] is.
    pub fn path_of(&self, image: usize) -> PathBuf {
        self.folder.join(&self.images[image].file_name)
    }

    /// The boxes of the image at place `image` of [`Dataset::images`].
    pub fn annotations_of(&self, image: usize) -> &[Annotation] {
        let start = self.annotations.partition_point(|annotation| annotation.image < image);
        let end = self.annotations.partition_point(|annotation| annotation.image <= image);
        &self.annotations[start..end]
    }

    /// Leaves out the images that `keep` has `false` for, by their places, and the boxes on them. Returns these images.
    pub fn drop_images(&mut self, keep: &[bool]) -> Vec<Image> {
        let mut dropped = Vec::new();
        let mut kept = Vec::new();
        // Where each image is afterwards.
        let mut places = Vec::new();
        for (image, &keep) in self.images.drain(..).zip(keep) {
            places.push(keep.then_some(kept.len()));
            if keep { kept.push(image) } else { dropped.push(image) }
        }
        self.images = kept;
        self.annotations.retain_mut(|annotation| {
            let place = places[annotation.image];
            annotation.image = place.unwrap_or_default();
            place.is_some()
        });
        dropped
    }
}

impl Rectangle {
    /// The box between two corners.
    pub(crate) fn between([x1, y1, x2, y2]: [f64; 4]) -> Self {
        Self { x: x1, y: y1, width: x2 - x1, height: y2 - y1 }
    }

    /// Width times height.
    pub fn area(&self) -> f64 {
        self.width * self.height
    }

    /// Area of the intersection over area of the union, in [0, 1]; 0 when the union has no area.
    pub fn iou(&self, other: &Self) -> f64 {
        let intersection = self.intersection(other);
        let union = self.area() + other.area() - intersection;
        if union > 0.0 { intersection / union } else { 0.0 }
    }

    /// The share of this box's area that lies in the other, in [0, 1]; 0 when this box has no area.
    pub fn intersection_over_area(&self, other: &Self) -> f64 {
        let area = self.area();
        if area > 0.0 { self.intersection(other) / area } else { 0.0 }
    }

    fn intersection(&self, other: &Self) -> f64 {
        let width = (self.width + self.x).min(other.width + other.x) - self.x.max(other.x);
        let height = (self.height + self.y).min(other.height + other.y) - self.y.max(other.y);
        if width <= 0.0 || height <= 0.0 { 0.0 } else { width * height }
    }

    /// The corners, in single precision.
    pub fn bounding_box(&self) -> BoundingBox {
        let (x2, y2) = (self.x + self.width, self.y + self.height);
        BoundingBox { x1: self.x as f32, y1: self.y as f32, x2: x2 as f32, y2: y2 as f32 }
    }

    /// The part inside an image; a side is zero or negative where nothing is.
    fn clip(&self, width: f64, height: f64) -> Self {
        let (x, y) = (self.x.max(0.0), self.y.max(0.0));
        let (x2, y2) = ((self.x + self.width).min(width), (self.y + self.height).min(height));
        Self { x, y, width: x2 - x, height: y2 - y }
    }

    /// By how many pixels the box exceeds an image; not positive when it is inside.
    fn overshoot(&self, width: f64, height: f64) -> f64 {
        let right = self.x + self.width - width;
        let bottom = self.y + self.height - height;
        right.max(bottom).max(-self.x).max(-self.y)
    }
}

impl From<BoundingBox> for Rectangle {
    fn from(corners: BoundingBox) -> Self {
        Self::between(<[f32; 4]>::from(corners).map(f64::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotation(id: i64, image: usize) -> Annotation {
        Annotation { id, image, class_index: 0, rectangle: Rectangle::default(), area: 0.0, crowd: false }
    }

    fn image(id: i64, file_name: &str) -> Image {
        Image { id, file_name: file_name.to_owned(), width: 10, height: 10 }
    }

    #[test]
    fn boxes_are_found_by_image() {
        let annotations = [(7, 0), (3, 2), (4, 2)].map(|(id, image)| annotation(id, image)).to_vec();
        let dataset = Dataset { annotations, ..Dataset::default() };
        let ids = |image| dataset.annotations_of(image).iter().map(|annotation| annotation.id).collect::<Vec<_>>();
        assert_eq!([ids(0), ids(1), ids(2), ids(3)], [vec![7], vec![], vec![3, 4], vec![]]);
    }

    #[test]
    fn dropped_images_go_with_their_boxes() {
        let images = vec![image(1, "gone.png"), image(2, "here.png"), image(3, "lost.png")];
        let annotations = [(7, 0), (8, 1), (9, 2)].map(|(id, image)| annotation(id, image)).to_vec();
        let mut dataset = Dataset { folder: "folder".into(), images, annotations, ..Dataset::default() };
        assert_eq!(dataset.drop_images(&[false, true, false]), [image(1, "gone.png"), image(3, "lost.png")]);
        assert_eq!(dataset.images, [image(2, "here.png")]);
        assert_eq!(dataset.annotations, [annotation(8, 0)]);
        assert_eq!(dataset.path_of(0), PathBuf::from("folder/here.png"));
    }

    #[test]
    fn overlap_is_a_share_of_both_or_of_one() {
        let square = Rectangle { x: 0.0, y: 0.0, width: 10.0, height: 10.0 };
        let cases = [
            ("itself", square, 1.0, 1.0),
            ("its right half", Rectangle { x: 5.0, width: 5.0, ..square }, 0.5, 0.5),
            ("twice as wide", Rectangle { width: 20.0, ..square }, 0.5, 1.0),
            ("a neighbor", Rectangle { x: 10.0, ..square }, 0.0, 0.0),
            ("without area", Rectangle { width: 0.0, ..square }, 0.0, 0.0),
            ("apart in both directions", Rectangle { x: 20.0, y: 20.0, ..square }, 0.0, 0.0),
        ];
        for (name, other, iou, share) in cases {
            assert_eq!((square.iou(&other), square.intersection_over_area(&other)), (iou, share), "{name}");
            assert_eq!(other.iou(&square), iou, "{name}");
        }
        let endless = Rectangle { width: f64::NAN, ..square };
        assert_eq!((square.iou(&endless), endless.intersection_over_area(&square)), (0.0, 0.0));
    }

    #[test]
    fn a_bounding_box_survives_the_way_there_and_back() {
        let corners = BoundingBox::new(0.1, 0.7, 100.3, 33.33);
        assert_eq!(Rectangle::from(corners).bounding_box(), corners);
    }
}
