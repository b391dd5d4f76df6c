//! Unchecked annotation files. Every reader produces a [`Draft`]; [`Draft::check`] resolves its ids and validates it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Display};

use super::{Annotation, Dataset, Image, OnProblem, Problem, ProblemKind, Rectangle, Report};
use crate::spec::Class;

/// A box that extends beyond its image by more pixels than this is a serious problem.
const MAX_OVERSHOOT: f64 = 1.0;

/// Overshoot in pixels that is not reported: `x + width` has a rounding error for decimal fractions.
const ROUNDING_ERROR: f64 = 1e-3;

/// The unchecked contents of annotation files.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// In any order.
    pub(crate) classes: Vec<Class>,
    /// In any order.
    pub(crate) images: Vec<DraftImage>,
    /// In the order in which evaluation processes them.
    pub(crate) boxes: Vec<DraftBox>,
    /// Problems found by the reader.
    pub(crate) problems: Vec<Problem>,
}

/// An unchecked image.
#[derive(Debug, Default)]
pub(crate) struct DraftImage {
    pub(crate) id: i64,
    pub(crate) file_name: Option<String>,
    pub(crate) width: Option<u32>,
    pub(crate) height: Option<u32>,
    /// Why the size could not be read from the image file, if the annotations do not contain it.
    pub(crate) unreadable: Option<String>,
}

/// An unchecked box.
#[derive(Debug)]
pub(crate) struct DraftBox {
    pub(crate) id: i64,
    pub(crate) image_id: i64,
    pub(crate) class: ClassKey,
    pub(crate) rectangle: Rectangle,
    /// None: the area of the rectangle.
    pub(crate) area: Option<f64>,
    pub(crate) crowd: bool,
}

/// How a file refers to the class of a box.
#[derive(Debug)]
pub(crate) enum ClassKey {
    Id(i64),
    Name(String),
}

impl Draft {
    /// Resolves ids to indices and validates all entries.
    ///
    /// # Errors
    /// The problems, if one of them is serious and `on_problem` is [`OnProblem::Refuse`].
    pub(crate) fn check(self, on_problem: OnProblem) -> Result<(Dataset, Report), Report> {
        let mut checker = Checker { on_problem, problems: self.problems };
        let classes = checker.classes(self.classes);
        let names: HashMap<_, _> = (0..).zip(&classes).map(|(index, class)| (class.name.as_str(), index)).collect();
        let class_index_of = |key: &ClassKey| match key {
            ClassKey::Id(id) => classes.binary_search_by_key(id, |class| class.id).ok(),
            ClassKey::Name(name) => names.get(name.as_str()).copied(),
        };
        let (images, image_indices) = checker.images(self.images);
        let mut annotations = Vec::with_capacity(self.boxes.len());
        for draft_box in self.boxes {
            let class_index = class_index_of(&draft_box.class);
            annotations.extend(checker.annotation(draft_box, class_index, &images, &image_indices));
        }
        annotations.sort_by_key(|annotation| annotation.image);

        let report = Report { on_problem, problems: checker.problems };
        if on_problem == OnProblem::Refuse && report.is_serious() {
            return Err(report);
        }
        Ok((Dataset { images, annotations, classes, ..Dataset::default() }, report))
    }
}

/// Index of each image in the data set by id; none for a dropped image.
type ImageIndices = HashMap<i64, Option<usize>>;

struct Checker {
    on_problem: OnProblem,
    problems: Vec<Problem>,
}

impl Checker {
    fn classes(&mut self, mut drafts: Vec<Class>) -> Vec<Class> {
        drafts.sort_by_key(|class| class.id);
        let mut classes: Vec<Class> = Vec::with_capacity(drafts.len());
        for class in drafts {
            if classes.last().is_some_and(|last| last.id == class.id) {
                let location = format!("class {} `{}`", class.id, class.name);
                self.report(ProblemKind::RepeatedClass, location, None, String::new());
            } else {
                classes.push(class);
            }
        }
        classes
    }

    fn images(&mut self, drafts: Vec<DraftImage>) -> (Vec<Image>, ImageIndices) {
        let mut images: BTreeMap<i64, Option<Image>> = BTreeMap::new();
        let mut file_names = HashSet::new();
        for draft in drafts {
            let (width, height) = (draft.width.unwrap_or(0), draft.height.unwrap_or(0));
            let has_file_name = draft.file_name.is_some();
            let image = Image { id: draft.id, file_name: draft.file_name.unwrap_or_default(), width, height };
            if images.contains_key(&image.id) {
                self.report(ProblemKind::RepeatedImage, name_of(&image), None, format!("id {}", image.id));
                continue;
            }
            let mut keep = true;
            if !has_file_name {
                keep &= self.report(ProblemKind::NoFileName, name_of(&image), None, String::new());
            } else if !file_names.insert(image.file_name.clone()) {
                keep &= self.report(ProblemKind::RepeatedFileName, name_of(&image), None, format!("id {}", image.id));
            }
            if let Some(reason) = draft.unreadable {
                keep &= self.report(ProblemKind::Unreadable, name_of(&image), None, reason);
            } else if width == 0 || height == 0 {
                keep &= self.report(ProblemKind::NoSize, name_of(&image), None, format!("{width} x {height}"));
            }
            images.insert(image.id, keep.then_some(image));
        }
        let mut next_index = 0..;
        let indices = images.iter().map(|(id, image)| (*id, image.as_ref().and_then(|_| next_index.next()))).collect();
        (images.into_values().flatten().collect(), indices)
    }

    fn annotation(
        &mut self,
        draft_box: DraftBox,
        class_index: Option<usize>,
        images: &[Image],
        image_indices: &ImageIndices,
    ) -> Option<Annotation> {
        let DraftBox { id, image_id, class: key, rectangle, area, crowd } = draft_box;
        let area = area.unwrap_or_else(|| rectangle.area());
        let image = match image_indices.get(&image_id) {
            Some(Some(image)) => *image,
            found => {
                let kind = if found.is_some() { ProblemKind::DroppedImage } else { ProblemKind::UnknownImage };
                self.report(kind, format!("image {image_id}"), Some(id), String::new());
                return None;
            }
        };
        let Some(class_index) = class_index else {
            self.report(ProblemKind::UnknownClass, name_of(&images[image]), Some(id), key.to_string());
            return None;
        };
        let rectangle = self.rectangle(id, rectangle, area, &images[image])?;
        Some(Annotation { id, image, class_index, rectangle, area, crowd })
    }

    /// The box, unchanged or clipped; none if it is dropped.
    fn rectangle(&mut self, id: i64, rectangle: Rectangle, area: f64, image: &Image) -> Option<Rectangle> {
        let Rectangle { x, y, width, height } = rectangle;
        let (image_width, image_height) = (f64::from(image.width), f64::from(image.height));
        let clipped = rectangle.clip(image_width, image_height);
        let overshoot = rectangle.overshoot(image_width, image_height);
        let kind = if ![x, y, width, height, area].into_iter().all(f64::is_finite) {
            ProblemKind::NotFinite
        } else if width <= 0.0 || height <= 0.0 {
            ProblemKind::NoArea
        } else if image.width == 0 || image.height == 0 {
            // The image was kept although its size is unknown, so the box cannot be checked against it.
            return Some(rectangle);
        } else if clipped.width <= 0.0 || clipped.height <= 0.0 {
            ProblemKind::Outside
        } else if overshoot > MAX_OVERSHOOT {
            ProblemKind::PartlyOutside
        } else if overshoot > ROUNDING_ERROR {
            ProblemKind::Overshoot
        } else {
            let keep = overshoot <= 0.0 || self.on_problem == OnProblem::Keep;
            return Some(if keep { rectangle } else { clipped });
        };
        let found = format!("x {x}, y {y}, width {width}, height {height} in {image_width} x {image_height}");
        if self.report(kind, name_of(image), Some(id), found) {
            return Some(rectangle);
        }
        matches!(kind, ProblemKind::PartlyOutside | ProblemKind::Overshoot).then_some(clipped)
    }

    /// Records a problem. Returns whether its entry is kept unchanged.
    fn report(&mut self, kind: ProblemKind, location: String, annotation: Option<i64>, found: String) -> bool {
        self.problems.push(Problem { kind, location, annotation, found });
        self.on_problem == OnProblem::Keep
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

/// The image as messages show it: its file name, or its id if it has none.
fn name_of(image: &Image) -> String {
    if image.file_name.is_empty() { format!("image {}", image.id) } else { image.file_name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(id: i64) -> Class {
        Class { id, name: format!("class {id}") }
    }

    fn image(id: i64, file_name: &str) -> DraftImage {
        DraftImage { id, file_name: Some(file_name.to_owned()), width: Some(100), height: Some(50), unreadable: None }
    }

    fn draft_box(id: i64, image_id: i64, [x, y, width, height]: [f64; 4]) -> DraftBox {
        let rectangle = Rectangle { x, y, width, height };
        DraftBox { id, image_id, class: ClassKey::Id(1), rectangle, area: None, crowd: false }
    }

    fn kinds(report: &Report) -> Vec<ProblemKind> {
        report.problems.iter().map(|problem| problem.kind).collect()
    }

    #[test]
    fn unordered_ids_with_gaps_become_indices() {
        let draft = Draft {
            classes: [90, 1, 7].map(class).to_vec(),
            images: vec![image(12, "b"), image(3, "a")],
            boxes: vec![
                DraftBox { class: ClassKey::Id(90), ..draft_box(5, 12, [0.0, 0.0, 10.0, 10.0]) },
                DraftBox {
                    class: ClassKey::Id(7),
                    area: Some(3.0),
                    crowd: true,
                    ..draft_box(9, 3, [1.0, 2.0, 3.0, 4.0])
                },
            ],
            problems: vec![],
        };
        let (dataset, report) = draft.check(OnProblem::Refuse).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(dataset.classes.iter().map(|class| class.id).collect::<Vec<_>>(), [1, 7, 90]);
        assert_eq!(dataset.images.iter().map(|image| image.id).collect::<Vec<_>>(), [3, 12]);
        let rectangle = Rectangle { x: 1.0, y: 2.0, width: 3.0, height: 4.0 };
        let crowd = Annotation { id: 9, image: 0, class_index: 1, rectangle, area: 3.0, crowd: true };
        assert_eq!(dataset.annotations[0], crowd);
        assert_eq!((dataset.annotations[1].image, dataset.annotations[1].class_index), (1, 2));
        assert_eq!(dataset.annotations[1].area, 100.0);
    }

    #[test]
    fn invalid_boxes_are_refused_dropped_or_kept() {
        use ProblemKind::*;
        // The box, its problem, and the clipped box with `OnProblem::Drop`; none if it is dropped.
        let cases: [([f64; 4], ProblemKind, Option<[f64; 4]>); 8] = [
            ([10.0, 10.0, 0.0, 5.0], NoArea, None),
            ([10.0, 10.0, 5.0, -5.0], NoArea, None),
            ([f64::NAN, 10.0, 5.0, 5.0], NotFinite, None),
            ([10.0, 10.0, f64::INFINITY, 5.0], NotFinite, None),
            ([100.0, 10.0, 5.0, 5.0], Outside, None),
            ([-7.0, 10.0, 5.0, 5.0], Outside, None),
            ([90.0, -2.0, 30.0, 10.0], PartlyOutside, Some([90.0, 0.0, 10.0, 8.0])),
            ([-1.0, 40.0, 10.0, 10.5], Overshoot, Some([0.0, 40.0, 9.0, 10.0])),
        ];
        for (xywh, kind, clipped) in cases {
            let check = |on_problem| {
                let boxes = vec![draft_box(1, 1, xywh)];
                Draft { classes: vec![class(1)], images: vec![image(1, "a")], boxes, ..Draft::default() }
                    .check(on_problem)
            };
            match check(OnProblem::Refuse) {
                Ok((_, report)) => assert_eq!(kinds(&report), [Overshoot]),
                Err(report) => assert_eq!(kinds(&report), [kind]),
            }
            let (dataset, report) = check(OnProblem::Drop).unwrap();
            assert_eq!(kinds(&report), [kind]);
            let expected = clipped.map(|[x, y, width, height]| Rectangle { x, y, width, height });
            assert_eq!(dataset.annotations.first().map(|annotation| annotation.rectangle), expected);

            let (dataset, report) = check(OnProblem::Keep).unwrap();
            assert_eq!(kinds(&report), [kind]);
            let kept = dataset.annotations[0].rectangle;
            assert_eq!(format!("{:?}", [kept.x, kept.y, kept.width, kept.height]), format!("{xywh:?}"));
        }
    }

    #[test]
    fn rounding_error_at_the_edge_is_not_reported() {
        let edge = [33.1, 0.0, 66.9 + 1e-9, 50.0];
        let boxes = vec![draft_box(1, 1, edge)];
        let draft = Draft { classes: vec![class(1)], images: vec![image(1, "a")], boxes, ..Draft::default() };
        let (dataset, report) = draft.check(OnProblem::Drop).unwrap();
        assert_eq!(report.problems, []);
        assert!(dataset.annotations[0].rectangle.bounding_box().x2 <= 100.0);
    }

    #[test]
    fn inconsistent_entries_are_reported() {
        use ProblemKind::*;
        let draft = || Draft {
            classes: vec![class(1), class(1)],
            images: vec![
                image(1, "a"),
                image(1, "b"),
                image(2, "a"),
                DraftImage { file_name: None, ..image(3, "") },
                DraftImage { height: None, ..image(4, "d") },
                DraftImage { unreadable: Some("gone".to_owned()), ..image(5, "e") },
            ],
            boxes: vec![
                draft_box(1, 2, [0.0, 0.0, 1.0, 1.0]),
                draft_box(2, 9, [0.0, 0.0, 1.0, 1.0]),
                DraftBox { class: ClassKey::Id(9), ..draft_box(3, 1, [0.0, 0.0, 1.0, 1.0]) },
                draft_box(4, 4, [0.0, 0.0, 1.0, 1.0]),
                DraftBox { class: ClassKey::Name("dog".to_owned()), ..draft_box(5, 1, [0.0, 0.0, 1.0, 1.0]) },
            ],
            problems: vec![],
        };
        let (dataset, report) = draft().check(OnProblem::Drop).unwrap();
        let classes_and_images = [RepeatedClass, RepeatedImage, RepeatedFileName, NoFileName, NoSize, Unreadable];
        assert_eq!(kinds(&report)[..6], classes_and_images);
        assert_eq!(kinds(&report)[6..], [DroppedImage, UnknownImage, UnknownClass, DroppedImage, UnknownClass]);
        assert_eq!(report.problems[7].to_string(), "image 9 annotation 2");
        assert_eq!(report.problems[8].to_string(), "a annotation 3 (class id 9)");
        assert_eq!((dataset.images.len(), dataset.annotations.len()), (1, 0));

        let (dataset, report) = draft().check(OnProblem::Keep).unwrap();
        assert_eq!(kinds(&report)[..6], classes_and_images);
        assert_eq!(kinds(&report)[6..], [UnknownImage, UnknownClass, UnknownClass]);
        assert_eq!((dataset.images.len(), dataset.annotations.len()), (5, 2));
    }

    #[test]
    fn data_set_without_boxes_is_valid() {
        let (dataset, report) =
            Draft { images: vec![image(1, "a")], ..Draft::default() }.check(OnProblem::Refuse).unwrap();
        assert_eq!((dataset.images.len(), report.problems.len()), (1, 0));
    }
}
