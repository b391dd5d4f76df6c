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
mod join;
mod report;
mod error;
#[cfg(test)]
mod testing;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::spec::Class;

pub use crate::rectangle::Rectangle;
pub use classes::read as read_classes;
pub use error::DataError;
pub use folder::IMAGE_EXTENSIONS;
pub use format::{Format, ParseFormatError};
pub use parsed::ImageSize;
pub use report::{OnProblem, Problem, ProblemKind, Report, format_list};
pub use source::Source;

/// Images with their ground truth. Every index in it is valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    folder: PathBuf,
    images: Vec<Image>,
    annotations: Vec<Annotation>,
    classes: Vec<Class>,
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
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Whether the object is marked as hard to recognize (VOC's `difficult`). VOC's AP leaves it out; training and COCO's metrics
    /// do not.
    pub difficult: bool,
}

/// Why images, annotations and classes are not a [`Dataset`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDataset {
    /// Ids of images do not ascend.
    #[error("image {id} follows image {before}, expected ascending ids")]
    ImageOrder {
        /// The id.
        id: i64,
        /// That of the image before.
        before: i64,
    },
    /// An annotation is on an image before that of the annotation before it.
    #[error("annotation {id} is not in the order of the images")]
    AnnotationOrder {
        /// Id of the annotation.
        id: i64,
    },
    /// An annotation is on an image that does not exist.
    #[error("annotation {id} has the image index {image}, expected less than {images}")]
    NoImage {
        /// Id of the annotation.
        id: i64,
        /// Its image index.
        image: usize,
        /// Number of images.
        images: usize,
    },
    /// An annotation has a class that does not exist.
    #[error("annotation {id} has the class index {class_index}, expected less than {classes}")]
    NoClass {
        /// Id of the annotation.
        id: i64,
        /// Its class index.
        class_index: usize,
        /// Number of classes.
        classes: usize,
    },
    /// Two classes have one id.
    #[error("two classes have the id {id}")]
    RepeatedClass {
        /// The id.
        id: i64,
    },
    /// New classes lack some of the data set's classes.
    #[error("unknown classes: {}", format_list(.names))]
    UnknownClasses {
        /// Names of the data set's classes that are not among the new ones.
        names: Vec<String>,
    },
}

impl Dataset {
    /// A data set of these images in `folder`, in ascending order of id; annotations, in the order of the images; and
    /// classes. Ids of annotations may repeat, as in COCO files.
    ///
    /// # Errors
    /// When an index or the order is wrong, or an id of an image or a class repeats.
    pub fn new(
        folder: impl Into<PathBuf>,
        images: Vec<Image>,
        annotations: Vec<Annotation>,
        classes: Vec<Class>,
    ) -> Result<Self, InvalidDataset> {
        if let Some([before, image]) = images.array_windows().find(|[before, image]| before.id >= image.id) {
            return Err(InvalidDataset::ImageOrder { id: image.id, before: before.id });
        }
        if let Some([_, late]) = annotations.array_windows().find(|[before, late]| before.image > late.image) {
            return Err(InvalidDataset::AnnotationOrder { id: late.id });
        }
        for &Annotation { id, image, class_index, .. } in &annotations {
            if image >= images.len() {
                return Err(InvalidDataset::NoImage { id, image, images: images.len() });
            }
            if class_index >= classes.len() {
                return Err(InvalidDataset::NoClass { id, class_index, classes: classes.len() });
            }
        }
        check_ids(&classes)?;
        Ok(Self { folder: folder.into(), images, annotations, classes })
    }

    /// The same data set with its images in another folder.
    #[must_use]
    pub fn with_folder(self, folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), ..self }
    }

    /// Folder that [`Image::file_name`] is relative to.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The images, in ascending order of id.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// The annotations, in the order of the images; those of one image in the order of the file.
    pub fn annotations(&self) -> &[Annotation] {
        &self.annotations
    }

    /// The classes. An index in this list is a class index of the network's outputs.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

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
    /// When classes of the data set are not among them, or an id repeats; nothing is changed then.
    pub fn set_classes(&mut self, classes: &[Class]) -> Result<(), InvalidDataset> {
        check_ids(classes)?;
        let mut indices = Vec::new();
        let mut unknown = Vec::new();
        for class in &self.classes {
            match class.index_in(classes) {
                Some(index) => indices.push(index),
                None => unknown.push(class.name.clone()),
            }
        }
        if !unknown.is_empty() {
            return Err(InvalidDataset::UnknownClasses { names: unknown });
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

fn check_ids(classes: &[Class]) -> Result<(), InvalidDataset> {
    let mut ids = HashSet::new();
    match classes.iter().find(|class| !ids.insert(class.id)) {
        Some(class) => Err(InvalidDataset::RepeatedClass { id: class.id }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotation(id: i64, image: usize) -> Annotation {
        Annotation {
            id,
            image,
            class_index: 0,
            rectangle: Rectangle::default(),
            area: 0.0,
            crowd: false,
            difficult: false,
        }
    }

    fn image(id: i64, file_name: &str) -> Image {
        Image { id, file_name: file_name.to_owned(), width: 10, height: 10 }
    }

    fn class(id: i64, name: &str) -> Class {
        Class { id, name: name.to_owned() }
    }

    /// Three images, and annotations given by id and image index.
    fn dataset(annotations: &[(i64, usize)]) -> Result<Dataset, InvalidDataset> {
        let images = vec![image(1, "gone.png"), image(2, "here.png"), image(3, "lost.png")];
        let annotations = annotations.iter().map(|&(id, image)| annotation(id, image)).collect();
        Dataset::new("folder", images, annotations, vec![class(1, "dog")])
    }

    #[test]
    fn annotations_are_found_by_image() {
        let dataset = dataset(&[(7, 0), (3, 2), (4, 2)]).unwrap();
        let ids = |image| dataset.annotations_of(image).iter().map(|annotation| annotation.id).collect::<Vec<_>>();
        assert_eq!([ids(0), ids(1), ids(2), ids(3)], [vec![7], vec![], vec![3, 4], vec![]]);
    }

    #[test]
    fn wrong_orders_and_indices_and_repeated_ids_are_refused() {
        assert_eq!(dataset(&[(7, 1), (8, 0)]), Err(InvalidDataset::AnnotationOrder { id: 8 }));
        assert_eq!(dataset(&[(7, 3)]), Err(InvalidDataset::NoImage { id: 7, image: 3, images: 3 }));
        assert!(dataset(&[(7, 0), (7, 1)]).is_ok(), "ids of annotations may repeat");
        let new = |images: &[i64], classes: &[i64]| {
            let images = images.iter().map(|id| image(*id, "a.png")).collect();
            let classes = classes.iter().map(|id| class(*id, "dog")).collect();
            Dataset::new("", images, vec![annotation(4, 0)], classes)
        };
        assert!(new(&[1, 5], &[3, 2]).is_ok());
        assert_eq!(new(&[5, 1], &[1]), Err(InvalidDataset::ImageOrder { id: 1, before: 5 }));
        assert_eq!(new(&[5, 5], &[1]), Err(InvalidDataset::ImageOrder { id: 5, before: 5 }));
        assert_eq!(new(&[1], &[]), Err(InvalidDataset::NoClass { id: 4, class_index: 0, classes: 0 }));
        assert_eq!(new(&[1], &[2, 3, 2]), Err(InvalidDataset::RepeatedClass { id: 2 }));
    }

    #[test]
    fn classes_are_replaced_by_name_unless_one_is_unknown() {
        let annotations = vec![annotation(1, 0), Annotation { class_index: 1, ..annotation(2, 0) }];
        let classes = vec![class(1, "dog"), class(2, "cat")];
        let mut dataset = Dataset::new("", vec![image(1, "a.png")], annotations, classes).unwrap();
        let before = dataset.clone();
        let unknown = InvalidDataset::UnknownClasses { names: vec!["cat".to_owned()] };
        assert_eq!(dataset.set_classes(&[class(1, "dog"), class(2, "cow")]), Err(unknown));
        let repeated = [class(1, "dog"), class(1, "cat")];
        assert_eq!(dataset.set_classes(&repeated), Err(InvalidDataset::RepeatedClass { id: 1 }));
        assert_eq!(dataset, before);
        let classes = [class(5, "cow"), class(6, "cat"), class(7, "dog")];
        assert_eq!(dataset.set_classes(&classes), Ok(()));
        assert_eq!(dataset.classes(), classes);
        assert_eq!(dataset.annotations().iter().map(|one| one.class_index).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn drop_images_removes_their_annotations() {
        let mut dataset = dataset(&[(7, 0), (8, 1), (9, 2)]).unwrap();
        assert_eq!(dataset.drop_images(&[false, true, false]), [image(1, "gone.png"), image(3, "lost.png")]);
        assert_eq!(dataset.images(), [image(2, "here.png")]);
        assert_eq!(dataset.annotations(), [annotation(8, 0)]);
        assert_eq!(dataset.path_of(0), PathBuf::from("folder/here.png"));
    }
}
