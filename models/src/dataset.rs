//! Data sets: images with ground truth boxes and classes, independent of the file format they were read from.

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
mod image_folder;
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
pub use report::{OnProblem, Problem, ProblemKind, Report, format_list};
pub use source::Source;

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

    /// Replaces the classes by these, matched by id and name, or else by name alone, because ids differ between files. A data set
    /// may lack some of them.
    ///
    /// # Errors
    /// The names of classes of the data set that are not among them; nothing is changed then.
    pub fn set_classes(&mut self, classes: &[Class]) -> Result<(), Vec<String>> {
        let mut indices = Vec::new();
        let mut unknown = Vec::new();
        for class in &self.classes {
            match class.index_in(classes) {
                Some(index) => indices.push(index),
                None => unknown.push(class.name.clone()),
            }
        }
        if !unknown.is_empty() {
            return Err(unknown);
        }
        self.annotations.iter_mut().for_each(|annotation| annotation.class_index = indices[annotation.class_index]);
        self.classes = classes.to_vec();
        Ok(())
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
    fn classes_are_replaced_by_name_unless_one_is_unknown() {
        let class = |id, name: &str| Class { id, name: name.to_owned() };
        let mut dataset = Dataset {
            classes: vec![class(1, "dog"), class(2, "cat")],
            annotations: vec![annotation(1, 0), Annotation { class_index: 1, ..annotation(2, 0) }],
            ..Dataset::default()
        };
        let before = dataset.clone();
        assert_eq!(dataset.set_classes(&[class(1, "dog"), class(2, "cow")]), Err(vec!["cat".to_owned()]));
        assert_eq!(dataset, before);
        let classes = [class(5, "cow"), class(6, "cat"), class(7, "dog")];
        assert_eq!(dataset.set_classes(&classes), Ok(()));
        assert_eq!(dataset.classes, classes);
        assert_eq!(dataset.annotations.iter().map(|one| one.class_index).collect::<Vec<_>>(), [2, 1]);
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
}
