//! A data set as its files declare it: images with their boxes, unchecked. Every format is parsed to this.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::path::Path;

use rayon::prelude::*;

use super::error::DataError;
use super::image_folder::ImageFolder;
use super::list::List;
use super::report::{Problem, Report};
use crate::rectangle::Rectangle;
use crate::spec::Class;

/// Returns width and height of an image file in pixels, after EXIF rotation, or why they are unknown. Called from
/// several threads.
pub type ImageSize<'a> = dyn Fn(&Path) -> Result<(u32, u32), String> + Sync + 'a;

/// What the annotation files declare.
#[derive(Default)]
pub(super) struct Parsed {
    /// If absent, the classes are those that the boxes name.
    pub(super) classes: Option<Vec<Class>>,
    pub(super) images: Vec<ParsedImage>,
    /// Entries that belong to no image.
    pub(super) problems: Vec<Problem>,
}

/// An image and its boxes.
#[derive(Debug, Default)]
pub(super) struct ParsedImage {
    /// If absent, images are numbered by file name.
    pub(super) id: Option<i64>,
    /// Empty if the files give none.
    pub(super) file_name: String,
    /// Name of the annotation file without extension, for formats with one file per image.
    pub(super) stem: Option<String>,
    /// Width and height in pixels.
    pub(super) size: Option<(u32, u32)>,
    /// Why the image file cannot be used.
    pub(super) unreadable: Option<String>,
    /// In the order of the file, which decides between equal overlaps in the evaluation.
    pub(super) boxes: Vec<ParsedBox>,
}

/// A box.
#[derive(Debug)]
pub(super) struct ParsedBox {
    /// If absent, boxes are numbered in their order.
    pub(super) id: Option<i64>,
    pub(super) class: ClassKey,
    pub(super) geometry: Geometry,
    /// That of the rectangle if absent.
    pub(super) area: Option<f64>,
    pub(super) crowd: bool,
    pub(super) difficult: bool,
}

/// A box's class, by id or by name.
#[derive(Debug)]
pub(super) enum ClassKey {
    Id(i64),
    Name(String),
}

/// Position and size of a box.
#[derive(Debug)]
pub(super) enum Geometry {
    /// In pixels of the image.
    Pixels(Rectangle),
    /// Center x and y, width and height, as fractions of the image's sides.
    Normalized([f64; 4]),
}

impl Parsed {
    /// Finds the image files. With `all`, images in the folder without annotations are added.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub(super) fn find_files(&mut self, folder: &Path, all: bool) -> Result<(), DataError> {
        let is_there = |image: &ParsedImage| !image.file_name.is_empty() && folder.join(&image.file_name).is_file();
        let mut missing: Vec<_> = self.images.par_iter_mut().filter(|image| !is_there(image)).collect();
        if missing.is_empty() && !all {
            return Ok(());
        }
        let files = ImageFolder::read(folder)?;
        for (count, image) in missing.iter_mut().enumerate() {
            match files.find(&image.file_name, image.stem.as_deref().unwrap_or_default()) {
                Ok(name) => name.clone_into(&mut image.file_name),
                Err(reason) => {
                    if let (true, Some(stem)) = (image.file_name.is_empty(), &image.stem) {
                        image.file_name.clone_from(stem);
                    }
                    // Reports show a few.
                    let nearest = if count < Report::MAX_SHOWN { files.nearest(&image.file_name) } else { None };
                    let nearest = nearest.map_or_else(String::new, |name| format!("; most similar: `{name}`"));
                    image.unreadable = Some(format!("{reason}{nearest}"));
                }
            }
        }
        if all {
            let known: HashSet<_> = self.images.iter().map(|image| image.file_name.clone()).collect();
            let others = files.files.into_iter().filter(|file| !known.contains(file));
            self.images.extend(others.map(|file_name| ParsedImage { file_name, ..ParsedImage::default() }));
        }
        Ok(())
    }

    /// The entry, unless it is a problem.
    pub(super) fn keep<T>(&mut self, entry: Result<T, Problem>) -> Option<T> {
        entry.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// Keeps the images in the list.
    pub(super) fn select(&mut self, list: &List) -> Result<(), DataError> {
        let images = std::mem::take(&mut self.images);
        let (images, problems) = list.select(images, |image| image.stem.as_deref().unwrap_or(&image.file_name))?;
        self.images = images;
        self.problems.extend(problems);
        Ok(())
    }

    /// Measures the images whose size the annotations do not give.
    pub(super) fn measure(&mut self, folder: &Path, size_of: &ImageSize) {
        let unknown = self.images.par_iter_mut().filter(|image| image.size.is_none() && image.unreadable.is_none());
        unknown.for_each(|image| match size_of(&folder.join(&image.file_name)) {
            Ok(size) => image.size = Some(size),
            Err(reason) => image.unreadable = Some(reason),
        });
    }
}

impl ParsedBox {
    /// An ordinary object without id.
    pub(super) fn new(class: ClassKey, geometry: Geometry) -> Self {
        Self { id: None, class, geometry, area: None, crowd: false, difficult: false }
    }
}

impl Geometry {
    /// The rectangle in pixels of an image. Every number is scaled before the numbers are added, so that whole pixels stay
    /// whole up to the rounding of the file.
    pub(super) fn in_pixels(&self, width: f64, height: f64) -> Rectangle {
        match *self {
            Self::Pixels(rectangle) => rectangle,
            Self::Normalized([x, y, w, h]) => {
                let [x, y, w, h] = [x * width, y * height, w * width, h * height];
                Rectangle { x: x - w / 2.0, y: y - h / 2.0, width: w, height: h }
            }
        }
    }
}

impl Display for ClassKey {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Id(id) => write!(formatter, "class id {id}"),
            Self::Name(name) => write!(formatter, "class `{name}`"),
        }
    }
}
