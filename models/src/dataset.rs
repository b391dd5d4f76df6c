//! A data set: images, the boxes on them and their classes, whatever format of file they came from.

mod source;
mod format;
mod coco;
mod voc;
mod csv;
mod yolo;
mod parsed;
mod classes;
mod list;
mod names;
mod folder;
mod text;
pub(crate) mod json;
mod check;
mod report;
mod error;
#[cfg(test)]
mod testing;

use std::path::PathBuf;

use crate::spec::Class;

pub use crate::rectangle::Rectangle;
pub use classes::read as read_classes;
pub use error::DataError;
pub use folder::IMAGE_EXTENSIONS;
pub use format::{Format, ParseFormatError};
pub use parsed::ImageSize;
pub use report::{OnProblem, Problem, ProblemKind, Report, named};
pub use source::Source;

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
}
