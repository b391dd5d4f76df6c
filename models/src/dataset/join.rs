//! Several data sets as one.

use std::path::{Path, PathBuf, absolute};

use super::{Annotation, DataError, Dataset, Image};
use crate::spec::Class;

impl Dataset {
    /// Joins data sets, in their order; their formats and folders may differ. The folder of the result is the innermost that
    /// contains all of theirs, and file names start from it, so that they stay different.
    ///
    /// Classes are those of the first data set, then the new ones of each further one, matched by name. A new class keeps its id
    /// unless another class has it; then it gets the next one after the highest. Images keep their ids if all of them together
    /// ascend; otherwise they are numbered from 1. Annotations keep their ids, which may repeat.
    ///
    /// # Errors
    /// When the name of a folder is not UTF-8.
    pub fn join(datasets: Vec<Self>) -> Result<Self, DataError> {
        if datasets.len() == 1 {
            return Ok(datasets.into_iter().next().unwrap_or_default());
        }
        let folders: Vec<_> = datasets.iter().map(|dataset| absolute_folder(&dataset.folder)).collect();
        let mut joined = Self { folder: common_folder(&folders), ..Self::default() };
        for (dataset, folder) in datasets.into_iter().zip(&folders) {
            let first = joined.images.len();
            let class_indices: Vec<_> =
                dataset.classes.into_iter().map(|class| add_class(&mut joined.classes, class)).collect();
            for image in dataset.images {
                let file_name = file_name(&joined.folder, folder, &image.file_name)?;
                joined.images.push(Image { file_name, ..image });
            }
            joined.annotations.extend(dataset.annotations.into_iter().map(|annotation| Annotation {
                image: first + annotation.image,
                class_index: class_indices[annotation.class_index],
                ..annotation
            }));
        }
        if !joined.images.array_windows().all(|[one, next]| one.id < next.id) {
            (1..).zip(&mut joined.images).for_each(|(id, image)| image.id = id);
        }
        Ok(joined)
    }
}

/// The index of a class, which is added if there is none of its name.
fn add_class(classes: &mut Vec<Class>, class: Class) -> usize {
    class.index_in(classes).unwrap_or_else(|| {
        let is_free = |id: &i64| classes.iter().all(|other| other.id != *id);
        let max = classes.iter().map(|class| class.id).max();
        let next = max.and_then(|id| id.checked_add(1));
        let id = [Some(class.id), next].into_iter().flatten().find(is_free);
        let id = id.or_else(|| (0..).find(is_free)).unwrap_or_default();
        classes.push(Class { id, ..class });
        classes.len() - 1
    })
}

/// The path of an image from the folder `common`.
fn file_name(common: &Path, folder: &Path, name: &str) -> Result<String, DataError> {
    let inner = folder.strip_prefix(common).unwrap_or(folder);
    if name.is_empty() {
        return Ok(String::new());
    }
    let path = inner.join(name).into_os_string().into_string();
    path.map_err(|_| DataError::invalid(folder, "has a name that is not UTF-8; rename it"))
}

fn absolute_folder(folder: &Path) -> PathBuf {
    // No path is refused for being empty.
    absolute(Path::new(".").join(folder)).unwrap_or_else(|_| folder.to_owned())
}

fn common_folder(folders: &[PathBuf]) -> PathBuf {
    let Some((first, others)) = folders.split_first() else { return PathBuf::new() };
    let contains_all = |folder: &&Path| others.iter().all(|other| other.starts_with(folder));
    first.ancestors().find(contains_all).unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rectangle::Rectangle;

    /// A data set of images with these ids and names, each with one object of each class.
    fn dataset(folder: &str, images: &[(i64, &str)], classes: &[(i64, &str)]) -> Dataset {
        let image = |&(id, name): &(i64, &str)| Image { id, file_name: name.to_owned(), width: 9, height: 9 };
        let object = |image, class_index| Annotation {
            id: 1 + class_index as i64,
            image,
            class_index,
            rectangle: Rectangle { x: 1.0, y: 2.0, width: 3.0, height: 4.0 },
            area: 12.0,
            crowd: class_index == 1,
            difficult: false,
        };
        let annotations = (0..images.len()).flat_map(|image| (0..classes.len()).map(move |class| object(image, class)));
        let classes = classes.iter().map(|&(id, name)| Class { id, name: name.to_owned() }).collect();
        Dataset::new(folder, images.iter().map(image).collect(), annotations.collect(), classes).unwrap()
    }

    fn classes(dataset: &Dataset) -> Vec<(i64, &str)> {
        dataset.classes().iter().map(|class| (class.id, class.name.as_str())).collect()
    }

    #[test]
    fn equal_file_names_of_two_folders_stay_different() {
        let one = dataset("/data/one/images", &[(0, "a.jpg"), (1, "b.jpg")], &[(0, "dog")]);
        let other = dataset("/data/other", &[(0, "a.jpg"), (7, "")], &[(0, "dog")]);
        let joined = Dataset::join(vec![one, other]).unwrap();
        let names: Vec<_> = joined.images().iter().map(|image| image.file_name.as_str()).collect();
        assert_eq!(names, ["one/images/a.jpg", "one/images/b.jpg", "other/a.jpg", ""]);
        assert_eq!(joined.path_of(2), Path::new("/data/other/a.jpg"));
        assert_eq!(joined.images().iter().map(|image| image.id).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(joined.annotations().iter().map(|one| one.image).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn classes_are_matched_by_name_and_new_ones_get_free_ids() {
        let one = dataset("/x", &[(3, "a.jpg")], &[(0, "dog"), (1, "cat")]);
        let other = dataset("/x", &[(4, "b.jpg")], &[(0, "cow"), (1, "dog"), (9, "pig")]);
        let joined = Dataset::join(vec![one, other]).unwrap();
        assert_eq!(classes(&joined), [(0, "dog"), (1, "cat"), (2, "cow"), (9, "pig")]);
        let indices: Vec<_> = joined.annotations().iter().map(|one| (one.image, one.class_index, one.crowd)).collect();
        assert_eq!(indices, [(0, 0, false), (0, 1, true), (1, 2, false), (1, 0, true), (1, 3, false)]);
        assert_eq!((joined.folder(), joined.images()[1].file_name.as_str()), (Path::new("/x"), "b.jpg"));
        assert_eq!(joined.images().iter().map(|image| image.id).collect::<Vec<_>>(), [3, 4], "they ascend");
    }

    #[test]
    fn the_highest_id_does_not_overflow() {
        let one = dataset("/x", &[], &[(i64::MAX, "dog"), (0, "cat")]);
        let joined = Dataset::join(vec![one, dataset("/x", &[], &[(0, "cow")])]).unwrap();
        assert_eq!(classes(&joined), [(i64::MAX, "dog"), (0, "cat"), (1, "cow")]);
    }

    #[test]
    fn a_joined_data_set_is_valid_and_one_alone_is_unchanged() {
        let sets = [(2, "/a"), (1, "/a/b"), (1, "relative")].map(|(id, folder)| {
            dataset(folder, &[(id, "a.jpg"), (id + 1, "/elsewhere/b.jpg")], &[(id, folder), (id + 1, "dog")])
        });
        let joined = Dataset::join(sets.to_vec()).unwrap();
        let Dataset { folder, images, annotations, classes } = joined.clone();
        assert_eq!(Dataset::new(folder, images, annotations, classes).unwrap(), joined);
        assert_eq!(joined.path_of(1), Path::new("/elsewhere/b.jpg"));
        assert_eq!(joined.path_of(4), absolute("relative/a.jpg").unwrap());
        assert_eq!(Dataset::join(sets[..1].to_vec()).unwrap(), sets[0]);
        assert_eq!(Dataset::join(vec![]).unwrap(), Dataset::default());
    }
}
