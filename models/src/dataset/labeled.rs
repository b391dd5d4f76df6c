//! Images with boxes from formats without ids and possibly without image sizes.

use std::path::Path;

use rayon::prelude::*;

use super::draft::{ClassKey, Draft, DraftBox, DraftImage};
use super::{Problem, Rectangle};
use crate::spec::Class;

/// Returns width and height of an image file (upright, after EXIF rotation) or an error. Called from many threads.
pub type ImageSize<'a> = dyn Fn(&Path) -> Result<(u32, u32), String> + Sync + 'a;

/// An image and its boxes, without ids.
#[derive(Debug)]
pub(super) struct LabeledImage {
    pub(super) file_name: String,
    /// Width and height in pixels, if known.
    pub(super) size: Option<(u32, u32)>,
    /// Why the size could not be read from the image file.
    pub(super) unreadable: Option<String>,
    pub(super) boxes: Vec<LabeledBox>,
}

/// A box without id.
#[derive(Debug)]
pub(super) struct LabeledBox {
    pub(super) class: ClassKey,
    pub(super) rectangle: Rectangle,
}

impl LabeledImage {
    pub(super) fn new(file_name: String) -> Self {
        Self { file_name, size: None, unreadable: None, boxes: Vec::new() }
    }
}

/// Reads the sizes that the annotations do not contain from the image files.
pub(super) fn fill_sizes(images: &mut [LabeledImage], folder: &Path, size_of: &ImageSize) {
    let unknown = images.par_iter_mut().filter(|image| image.size.is_none() && image.unreadable.is_none());
    unknown.for_each(|image| match size_of(&folder.join(&image.file_name)) {
        Ok(size) => image.size = Some(size),
        Err(reason) => image.unreadable = Some(reason),
    });
}

impl Draft {
    /// Creates a draft and assigns ids: to images from 0, in the order of their file names, and to boxes from 1, in the
    /// order of their images. pycocotools never counts a box with id 0 as found.
    pub(super) fn from_labeled(mut images: Vec<LabeledImage>, classes: Vec<Class>, problems: Vec<Problem>) -> Self {
        images.sort_by(|a, b| a.file_name.cmp(&b.file_name));
        let mut draft = Self { classes, problems, ..Self::default() };
        for (image_id, image) in (0..).zip(images) {
            let LabeledImage { file_name, size, unreadable, boxes } = image;
            let (width, height) = size.unzip();
            draft.images.push(DraftImage { id: image_id, file_name: Some(file_name), width, height, unreadable });
            let first = 1 + draft.boxes.len() as i64;
            draft.boxes.extend((first..).zip(boxes).map(|(id, LabeledBox { class, rectangle })| DraftBox {
                id,
                image_id,
                class,
                rectangle,
                area: None,
                crowd: false,
            }));
        }
        draft
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::OnProblem;

    #[test]
    fn ids_follow_the_file_names_in_any_input_order() {
        let image = |file_name: &str, count: usize| LabeledImage {
            size: Some((10, 10)),
            boxes: (0..count)
                .map(|_| LabeledBox { class: ClassKey::Id(0), rectangle: Rectangle::between([1.0, 2.0, 3.0, 5.0]) })
                .collect(),
            ..LabeledImage::new(file_name.to_owned())
        };
        let class = Class { id: 0, name: "dog".to_owned() };
        let read = |images| {
            let draft = Draft::from_labeled(images, vec![class.clone()], vec![]);
            draft.check(OnProblem::Refuse).unwrap().0
        };
        let dataset = read(vec![image("b", 2), image("a", 1), image("c", 0)]);
        assert_eq!(dataset, read(vec![image("c", 0), image("a", 1), image("b", 2)]));
        assert_eq!(dataset.images.iter().map(|image| image.id).collect::<Vec<_>>(), [0, 1, 2]);
        let boxes: Vec<_> = dataset.annotations.iter().map(|annotation| (annotation.id, annotation.image)).collect();
        assert_eq!(boxes, [(1, 0), (2, 1), (3, 1)]);
    }

    #[test]
    fn only_missing_sizes_are_read() {
        let known = LabeledImage { size: Some((1, 2)), ..LabeledImage::new("known".to_owned()) };
        let mut images = [known, LabeledImage::new("new".to_owned()), LabeledImage::new("bad".to_owned())];
        fill_sizes(&mut images, Path::new("folder"), &|path| match path.to_str() {
            Some("folder/new") => Ok((3, 4)),
            _ => Err("gone".to_owned()),
        });
        assert_eq!(images.each_ref().map(|image| image.size), [Some((1, 2)), Some((3, 4)), None]);
        assert_eq!(images[2].unreadable.as_deref(), Some("gone"));
    }
}
