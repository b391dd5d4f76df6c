//! A data set as a file states it, by ids and unchecked: what every reader produces, and where all of them are checked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Display};

use super::{Annotation, Dataset, Image, OnProblem, Problem, ProblemKind, Rectangle, Report};
use crate::spec::Class;

/// By how many pixels a box may exceed its image before that is a problem.
const TOLERANCE: f64 = 1.0;

/// By how many pixels `x + width` may exceed the image without mention: sums of decimal fractions do that.
const ROUNDING: f64 = 1e-3;

/// What a file says.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// In any order.
    pub(crate) classes: Vec<Class>,
    /// In any order.
    pub(crate) images: Vec<DraftImage>,
    /// In the order in which evaluation shall meet them.
    pub(crate) boxes: Vec<DraftBox>,
    /// What the reader itself noticed.
    pub(crate) problems: Vec<Problem>,
}

/// What a file says about an image.
#[derive(Debug, Default)]
pub(crate) struct DraftImage {
    pub(crate) id: i64,
    pub(crate) file_name: Option<String>,
    pub(crate) width: Option<u32>,
    pub(crate) height: Option<u32>,
    /// Why the size is not known, where the image's own file had to say it.
    pub(crate) unreadable: Option<String>,
}

/// What a file says about a box.
#[derive(Debug)]
pub(crate) struct DraftBox {
    pub(crate) id: i64,
    pub(crate) image_id: i64,
    pub(crate) class: ClassKey,
    pub(crate) rectangle: Rectangle,
    /// The rectangle's if absent.
    pub(crate) area: Option<f64>,
    pub(crate) crowd: bool,
}

/// How a file says which class a box is of.
#[derive(Debug)]
pub(crate) enum ClassKey {
    Id(i64),
    Name(String),
}

impl Draft {
    /// Resolves the ids and checks everything.
    ///
    /// # Errors
    /// The problems, when there are serious ones and they shall be refused.
    pub(crate) fn check(self, on_problem: OnProblem) -> Result<(Dataset, Report), Report> {
        let mut check = Check { on_problem, problems: self.problems };
        let classes = check.classes(self.classes);
        let names: HashMap<_, _> = (0..).zip(&classes).map(|(place, class)| (class.name.as_str(), place)).collect();
        let place_of = |key: &ClassKey| match key {
            ClassKey::Id(id) => classes.binary_search_by_key(id, |class| class.id).ok(),
            ClassKey::Name(name) => names.get(name.as_str()).copied(),
        };
        let (images, places) = check.images(self.images);
        let mut annotations = Vec::with_capacity(self.boxes.len());
        for drawn in self.boxes {
            let class_index = place_of(&drawn.class);
            annotations.extend(check.annotation(drawn, class_index, &images, &places));
        }
        annotations.sort_by_key(|annotation| annotation.image);

        let report = Report { on_problem, problems: check.problems };
        if on_problem == OnProblem::Refuse && report.is_serious() {
            return Err(report);
        }
        Ok((Dataset { images, annotations, classes, ..Dataset::default() }, report))
    }
}

/// Where the image of an id is in the data set; none for a dropped one.
type Places = HashMap<i64, Option<usize>>;

struct Check {
    on_problem: OnProblem,
    problems: Vec<Problem>,
}

impl Check {
    fn classes(&mut self, mut drafts: Vec<Class>) -> Vec<Class> {
        drafts.sort_by_key(|class| class.id);
        let mut classes: Vec<Class> = Vec::with_capacity(drafts.len());
        for class in drafts {
            if classes.last().is_some_and(|last| last.id == class.id) {
                let place = format!("category {} `{}`", class.id, class.name);
                self.report(ProblemKind::RepeatedClass, place, None, String::new());
            } else {
                classes.push(class);
            }
        }
        classes
    }

    fn images(&mut self, drafts: Vec<DraftImage>) -> (Vec<Image>, Places) {
        let mut images: BTreeMap<i64, Option<Image>> = BTreeMap::new();
        let mut file_names = HashSet::new();
        for draft in drafts {
            let (width, height) = (draft.width.unwrap_or(0), draft.height.unwrap_or(0));
            let named = draft.file_name.is_some();
            let image = Image { id: draft.id, file_name: draft.file_name.unwrap_or_default(), width, height };
            if images.contains_key(&image.id) {
                self.report(ProblemKind::RepeatedImage, place(&image), None, format!("id {}", image.id));
                continue;
            }
            let mut keep = true;
            if !named {
                keep &= self.report(ProblemKind::NoFileName, place(&image), None, String::new());
            } else if !file_names.insert(image.file_name.clone()) {
                keep &= self.report(ProblemKind::RepeatedFileName, place(&image), None, format!("id {}", image.id));
            }
            if let Some(reason) = draft.unreadable {
                keep &= self.report(ProblemKind::Unreadable, place(&image), None, reason);
            } else if width == 0 || height == 0 {
                keep &= self.report(ProblemKind::NoSize, place(&image), None, format!("{width} x {height}"));
            }
            images.insert(image.id, keep.then_some(image));
        }
        let mut kept = 0..;
        let places = images.iter().map(|(id, image)| (*id, image.as_ref().and_then(|_| kept.next()))).collect();
        (images.into_values().flatten().collect(), places)
    }

    fn annotation(
        &mut self,
        drawn: DraftBox,
        class_index: Option<usize>,
        images: &[Image],
        places: &Places,
    ) -> Option<Annotation> {
        let DraftBox { id, image_id, class: key, rectangle, area, crowd } = drawn;
        let area = area.unwrap_or_else(|| rectangle.area());
        let image = match places.get(&image_id) {
            Some(Some(image)) => *image,
            found => {
                let kind = if found.is_some() { ProblemKind::DroppedImage } else { ProblemKind::UnknownImage };
                self.report(kind, format!("image {image_id}"), Some(id), String::new());
                return None;
            }
        };
        let Some(class_index) = class_index else {
            self.report(ProblemKind::UnknownClass, place(&images[image]), Some(id), key.to_string());
            return None;
        };
        let rectangle = self.rectangle(id, rectangle, area, &images[image])?;
        Some(Annotation { id, image, class_index, rectangle, area, crowd })
    }

    /// The box to go on with: clipped or unchanged, none when it is dropped.
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
            // Kept although its size is unknown: there is nothing to compare with.
            return Some(rectangle);
        } else if clipped.width <= 0.0 || clipped.height <= 0.0 {
            ProblemKind::Outside
        } else if overshoot > TOLERANCE {
            ProblemKind::PartlyOutside
        } else if overshoot > ROUNDING {
            ProblemKind::Overshoot
        } else {
            let keep = overshoot <= 0.0 || self.on_problem == OnProblem::Keep;
            return Some(if keep { rectangle } else { clipped });
        };
        let found = format!("x {x}, y {y}, width {width}, height {height} in {image_width} x {image_height}");
        if self.report(kind, place(image), Some(id), found) {
            return Some(rectangle);
        }
        matches!(kind, ProblemKind::PartlyOutside | ProblemKind::Overshoot).then_some(clipped)
    }

    /// Notes a problem, and says whether its entry stays as it is.
    fn report(&mut self, kind: ProblemKind, place: String, annotation: Option<i64>, found: String) -> bool {
        self.problems.push(Problem { kind, place, annotation, found });
        self.on_problem == OnProblem::Keep
    }
}

impl Display for ClassKey {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Id(id) => write!(formatter, "category {id}"),
            Self::Name(name) => write!(formatter, "class `{name}`"),
        }
    }
}

/// How messages name an image.
fn place(image: &Image) -> String {
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

    fn drawn(id: i64, image_id: i64, [x, y, width, height]: [f64; 4]) -> DraftBox {
        let rectangle = Rectangle { x, y, width, height };
        DraftBox { id, image_id, class: ClassKey::Id(1), rectangle, area: None, crowd: false }
    }

    fn kinds(report: &Report) -> Vec<ProblemKind> {
        report.problems.iter().map(|problem| problem.kind).collect()
    }

    #[test]
    fn ids_in_any_order_and_with_gaps_become_places() {
        let draft = Draft {
            classes: [90, 1, 7].map(class).to_vec(),
            images: vec![image(12, "b"), image(3, "a")],
            boxes: vec![
                DraftBox { class: ClassKey::Id(90), ..drawn(5, 12, [0.0, 0.0, 10.0, 10.0]) },
                DraftBox { class: ClassKey::Id(7), area: Some(3.0), crowd: true, ..drawn(9, 3, [1.0, 2.0, 3.0, 4.0]) },
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
    fn bad_boxes_are_refused_dropped_or_kept() {
        use ProblemKind::*;
        // The box, its problem, and what is left of it when boxes are dropped.
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
        for (corner_and_sides, kind, left) in cases {
            let check = |on_problem| {
                let boxes = vec![drawn(1, 1, corner_and_sides)];
                Draft { classes: vec![class(1)], images: vec![image(1, "a")], boxes, ..Draft::default() }
                    .check(on_problem)
            };
            match check(OnProblem::Refuse) {
                Ok((_, report)) => assert_eq!(kinds(&report), [Overshoot]),
                Err(report) => assert_eq!(kinds(&report), [kind]),
            }
            let (dataset, report) = check(OnProblem::Drop).unwrap();
            assert_eq!(kinds(&report), [kind]);
            let expected = left.map(|[x, y, width, height]| Rectangle { x, y, width, height });
            assert_eq!(dataset.annotations.first().map(|annotation| annotation.rectangle), expected);

            let (dataset, report) = check(OnProblem::Keep).unwrap();
            assert_eq!(kinds(&report), [kind]);
            let kept = dataset.annotations[0].rectangle;
            assert_eq!(format!("{:?}", [kept.x, kept.y, kept.width, kept.height]), format!("{corner_and_sides:?}"));
        }
    }

    #[test]
    fn a_sum_of_fractions_at_the_edge_is_no_problem() {
        let edge = [33.1, 0.0, 66.9 + 1e-9, 50.0];
        let boxes = vec![drawn(1, 1, edge)];
        let draft = Draft { classes: vec![class(1)], images: vec![image(1, "a")], boxes, ..Draft::default() };
        let (dataset, report) = draft.check(OnProblem::Drop).unwrap();
        assert_eq!(report.problems, []);
        assert!(dataset.annotations[0].rectangle.bounding_box().x2 <= 100.0);
    }

    #[test]
    fn entries_that_contradict_each_other_are_named() {
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
                drawn(1, 2, [0.0, 0.0, 1.0, 1.0]),
                drawn(2, 9, [0.0, 0.0, 1.0, 1.0]),
                DraftBox { class: ClassKey::Id(9), ..drawn(3, 1, [0.0, 0.0, 1.0, 1.0]) },
                drawn(4, 4, [0.0, 0.0, 1.0, 1.0]),
                DraftBox { class: ClassKey::Name("dog".to_owned()), ..drawn(5, 1, [0.0, 0.0, 1.0, 1.0]) },
            ],
            problems: vec![],
        };
        let (dataset, report) = draft().check(OnProblem::Drop).unwrap();
        let classes_and_images = [RepeatedClass, RepeatedImage, RepeatedFileName, NoFileName, NoSize, Unreadable];
        assert_eq!(kinds(&report)[..6], classes_and_images);
        assert_eq!(kinds(&report)[6..], [DroppedImage, UnknownImage, UnknownClass, DroppedImage, UnknownClass]);
        assert_eq!(report.problems[7].to_string(), "image 9 annotation 2");
        assert_eq!(report.problems[8].to_string(), "a annotation 3 (category 9)");
        assert_eq!((dataset.images.len(), dataset.annotations.len()), (1, 0));

        let (dataset, report) = draft().check(OnProblem::Keep).unwrap();
        assert_eq!(kinds(&report)[..6], classes_and_images);
        assert_eq!(kinds(&report)[6..], [UnknownImage, UnknownClass, UnknownClass]);
        assert_eq!((dataset.images.len(), dataset.annotations.len()), (5, 2));
    }

    #[test]
    fn a_data_set_without_boxes_is_valid() {
        let (dataset, report) =
            Draft { images: vec![image(1, "a")], ..Draft::default() }.check(OnProblem::Refuse).unwrap();
        assert_eq!((dataset.images.len(), report.problems.len()), (1, 0));
    }
}
