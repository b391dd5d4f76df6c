//! Data sets: images with ground truth boxes and classes, independent of the file format they were read from.

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
pub use report::{OnProblem, Problem, ProblemKind, Report, format_list};
pub use source::Source;

/// Reads a class file: CSV `name,id`, one name per line, or the `names` of YOLO's `data.yaml`.
///
/// # Errors
/// When the file cannot be read, is none of these, or contains an id or a name twice.
pub fn read_classes(path: &Path) -> Result<Vec<Class>, DataError> {
    classes::read(path)
}

/// Images with their ground truth.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// Folder that [`Image::file_name`] is relative to.
    pub folder: PathBuf,
    /// The images, in ascending order of id.
    pub images: Vec<Image>,
    /// The annotations, in the order of `images`; those of one image in the order of the file.
    pub annotations: Vec<Annotation>,
    /// The classes, in ascending order of id. An index in this list is a class index of the network's outputs.
    pub classes: Vec<Class>,
}

/// One image.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Id in the data set.
    pub id: i64,
    /// Path relative to [`Dataset::folder`]; may be empty with [`OnProblem::Keep`].
    pub file_name: String,
    /// Width in pixels, as declared by the data set; may be zero with [`OnProblem::Keep`].
    pub width: u32,
    /// Height in pixels, as declared by the data set; may be zero with [`OnProblem::Keep`].
    pub height: u32,
}

/// One ground truth box.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// Id in the data set.
    pub id: i64,
    /// Index in [`Dataset::images`].
    pub image: usize,
    /// Index in [`Dataset::classes`].
    pub class_index: usize,
    /// The box, in pixels of the original image (upright, after EXIF rotation).
    pub rectangle: Rectangle,
    /// Area of the object in square pixels, often of its mask. Evaluation derives small, medium, large from it.
    pub area: f64,
    /// Whether the box is a crowd region (COCO's `iscrowd`). Training skips it; evaluation ignores detections in it.
    pub crowd: bool,
}

/// A box in double precision, in pixels of the original image (upright, after EXIF rotation). As in COCO, it has sides:
/// converting to corners would change the last bit, which can decide whether an IoU reaches a threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rectangle {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width, to the right.
    pub width: f64,
    /// Height, downwards.
    pub height: f64,
}

impl Dataset {
    /// Path of the image at index `image` of [`Dataset::images`].
    pub fn path_of(&self, image: usize) -> PathBuf {
        self.folder.join(&self.images[image].file_name)
    }

    /// Annotations of the image at index `image` of [`Dataset::images`].
    pub fn annotations_of(&self, image: usize) -> &[Annotation] {
        let start = self.annotations.partition_point(|annotation| annotation.image < image);
        let end = self.annotations.partition_point(|annotation| annotation.image <= image);
        &self.annotations[start..end]
    }

    /// Removes the images whose entry in `keep` is `false`, and their annotations. Returns the removed images.
    pub fn drop_images(&mut self, keep: &[bool]) -> Vec<Image> {
        let mut dropped = Vec::new();
        let mut kept = Vec::new();
        // The new index of each image; none if it is dropped.
        let mut new_indices = Vec::new();
        for (image, &keep) in self.images.drain(..).zip(keep) {
            new_indices.push(keep.then_some(kept.len()));
            if keep { kept.push(image) } else { dropped.push(image) }
        }
        self.images = kept;
        self.annotations.retain_mut(|annotation| {
            let new_index = new_indices[annotation.image];
            annotation.image = new_index.unwrap_or_default();
            new_index.is_some()
        });
        dropped
    }
}

impl Rectangle {
    /// A box from its corners `x1, y1, x2, y2`.
    pub(crate) fn between([x1, y1, x2, y2]: [f64; 4]) -> Self {
        Self { x: x1, y: y1, width: x2 - x1, height: y2 - y1 }
    }

    /// Width times height.
    pub fn area(&self) -> f64 {
        self.width * self.height
    }

    /// Area of the intersection over area of the union, in [0, 1]; 0 if the union has no area.
    pub fn iou(&self, other: &Self) -> f64 {
        let intersection = self.intersection(other);
        let union = self.area() + other.area() - intersection;
        if union > 0.0 { intersection / union } else { 0.0 }
    }

    /// Fraction of this box's area that is inside `other`, in [0, 1]; 0 if this box has no area.
    pub fn intersection_over_area(&self, other: &Self) -> f64 {
        let area = self.area();
        if area > 0.0 { self.intersection(other) / area } else { 0.0 }
    }

    fn intersection(&self, other: &Self) -> f64 {
        let width = (self.width + self.x).min(other.width + other.x) - self.x.max(other.x);
        let height = (self.height + self.y).min(other.height + other.y) - self.y.max(other.y);
        if width <= 0.0 || height <= 0.0 { 0.0 } else { width * height }
    }

    /// The box as corners in single precision, in the same frame.
    pub fn bounding_box(&self) -> BoundingBox {
        let (x2, y2) = (self.x + self.width, self.y + self.height);
        BoundingBox { x1: self.x as f32, y1: self.y as f32, x2: x2 as f32, y2: y2 as f32 }
    }

    /// The part inside an image of `width` by `height` pixels; has a zero or negative side if no part is inside.
    fn clip(&self, width: f64, height: f64) -> Self {
        let (x, y) = (self.x.max(0.0), self.y.max(0.0));
        let (x2, y2) = ((self.x + self.width).min(width), (self.y + self.height).min(height));
        Self { x, y, width: x2 - x, height: y2 - y }
    }

    /// How many pixels the box extends beyond an image of `width` by `height` pixels; zero or negative if it is inside.
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
    fn annotations_are_found_by_image() {
        let annotations = [(7, 0), (3, 2), (4, 2)].map(|(id, image)| annotation(id, image)).to_vec();
        let dataset = Dataset { annotations, ..Dataset::default() };
        let ids = |image| dataset.annotations_of(image).iter().map(|annotation| annotation.id).collect::<Vec<_>>();
        assert_eq!([ids(0), ids(1), ids(2), ids(3)], [vec![7], vec![], vec![3, 4], vec![]]);
    }

    #[test]
    fn drop_images_removes_their_annotations() {
        let images = vec![image(1, "gone.png"), image(2, "here.png"), image(3, "lost.png")];
        let annotations = [(7, 0), (8, 1), (9, 2)].map(|(id, image)| annotation(id, image)).to_vec();
        let mut dataset = Dataset { folder: "folder".into(), images, annotations, ..Dataset::default() };
        assert_eq!(dataset.drop_images(&[false, true, false]), [image(1, "gone.png"), image(3, "lost.png")]);
        assert_eq!(dataset.images, [image(2, "here.png")]);
        assert_eq!(dataset.annotations, [annotation(8, 0)]);
        assert_eq!(dataset.path_of(0), PathBuf::from("folder/here.png"));
    }

    #[test]
    fn iou_and_intersection_over_area_of_two_boxes() {
        let square = Rectangle { x: 0.0, y: 0.0, width: 10.0, height: 10.0 };
        let cases = [
            ("itself", square, 1.0, 1.0),
            ("its right half", Rectangle { x: 5.0, width: 5.0, ..square }, 0.5, 0.5),
            ("twice as wide", Rectangle { width: 20.0, ..square }, 0.5, 1.0),
            ("a neighbor", Rectangle { x: 10.0, ..square }, 0.0, 0.0),
            ("without area", Rectangle { width: 0.0, ..square }, 0.0, 0.0),
            ("apart in both directions", Rectangle { x: 20.0, y: 20.0, ..square }, 0.0, 0.0),
        ];
        for (name, other, iou, fraction) in cases {
            assert_eq!((square.iou(&other), square.intersection_over_area(&other)), (iou, fraction), "{name}");
            assert_eq!(other.iou(&square), iou, "{name}");
        }
        let nan = Rectangle { width: f64::NAN, ..square };
        assert_eq!((square.iou(&nan), nan.intersection_over_area(&square)), (0.0, 0.0));
    }

    #[test]
    fn bounding_box_round_trips_through_rectangle() {
        let corners = BoundingBox::new(0.1, 0.7, 100.3, 33.33);
        assert_eq!(Rectangle::from(corners).bounding_box(), corners);
    }
}
