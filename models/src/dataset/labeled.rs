//! Pictures with their boxes in a form that has no ids, and perhaps no sizes.

use std::path::Path;

use rayon::prelude::*;

use super::draft::{ClassKey, Draft, DraftBox, DraftImage};
use super::{Problem, Rectangle};
use crate::spec::Class;

/// Says how wide and high a picture file is when it is upright, or why it can't. It is asked about many pictures at once.
pub type PictureSize<'a> = dyn Fn(&Path) -> Result<(u32, u32), String> + Sync + 'a;

/// A picture and what is on it, in a form that has no ids.
#[derive(Debug)]
pub(super) struct LabeledPicture {
    pub(super) file_name: String,
    /// Width and height in pixels, as far as known.
    pub(super) size: Option<(u32, u32)>,
    /// Why it is not known.
    pub(super) unreadable: Option<String>,
    pub(super) boxes: Vec<LabeledBox>,
}

/// A box in a form that has no ids.
#[derive(Debug)]
pub(super) struct LabeledBox {
    pub(super) class: ClassKey,
    pub(super) rectangle: Rectangle,
}

impl LabeledPicture {
    pub(super) fn new(file_name: String) -> Self {
        Self { file_name, size: None, unreadable: None, boxes: Vec::new() }
    }
}

/// Finds the sizes that the files of annotations don't say.
pub(super) fn measure(pictures: &mut [LabeledPicture], folder: &Path, size_of: &PictureSize) {
    let unknown = pictures.par_iter_mut().filter(|picture| picture.size.is_none() && picture.unreadable.is_none());
    unknown.for_each(|picture| match size_of(&folder.join(&picture.file_name)) {
        Ok(size) => picture.size = Some(size),
        Err(reason) => picture.unreadable = Some(reason),
    });
}

impl Draft {
    /// Gives ids: to the pictures by file name from 0, and to their boxes in this order from 1, because pycocotools never
    /// counts a box with id 0 as found.
    pub(super) fn number(mut pictures: Vec<LabeledPicture>, classes: Vec<Class>, problems: Vec<Problem>) -> Self {
        pictures.sort_by(|a, b| a.file_name.cmp(&b.file_name));
        let mut draft = Self { classes, problems, ..Self::default() };
        for (image_id, picture) in (0..).zip(pictures) {
            let LabeledPicture { file_name, size, unreadable, boxes } = picture;
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
    fn ids_follow_the_names_whatever_the_order() {
        let picture = |file_name: &str, count: usize| LabeledPicture {
            size: Some((10, 10)),
            boxes: (0..count)
                .map(|_| LabeledBox { class: ClassKey::Id(0), rectangle: Rectangle::between([1.0, 2.0, 3.0, 5.0]) })
                .collect(),
            ..LabeledPicture::new(file_name.to_owned())
        };
        let class = Class { id: 0, name: "dog".to_owned() };
        let read = |pictures| {
            let draft = Draft::number(pictures, vec![class.clone()], vec![]);
            draft.check(OnProblem::Refuse).unwrap().0
        };
        let dataset = read(vec![picture("b", 2), picture("a", 1), picture("c", 0)]);
        assert_eq!(dataset, read(vec![picture("c", 0), picture("a", 1), picture("b", 2)]));
        assert_eq!(dataset.images.iter().map(|image| image.id).collect::<Vec<_>>(), [0, 1, 2]);
        let boxes: Vec<_> = dataset.annotations.iter().map(|annotation| (annotation.id, annotation.image)).collect();
        assert_eq!(boxes, [(1, 0), (2, 1), (3, 1)]);
    }

    #[test]
    fn only_unknown_sizes_are_measured() {
        let known = LabeledPicture { size: Some((1, 2)), ..LabeledPicture::new("known".to_owned()) };
        let mut pictures = [known, LabeledPicture::new("new".to_owned()), LabeledPicture::new("bad".to_owned())];
        measure(&mut pictures, Path::new("folder"), &|path| match path.to_str() {
            Some("folder/new") => Ok((3, 4)),
            _ => Err("gone".to_owned()),
        });
        assert_eq!(pictures.each_ref().map(|picture| picture.size), [Some((1, 2)), Some((3, 4)), None]);
        assert_eq!(pictures[2].unreadable.as_deref(), Some("gone"));
    }
}
