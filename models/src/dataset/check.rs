//! The one place that decides what is a bad entry of a data set.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{HashMap, HashSet};

use super::parsed::{ClassKey, Parsed, ParsedBox, ParsedImage};
use super::report::{OnProblem, Problem, ProblemKind, Report};
use super::{Annotation, Dataset, Image};
use crate::rectangle::Rectangle;
use crate::spec::Class;

/// Pixels by which a box may exceed its image before that is a problem.
const TOLERANCE: f64 = 1.0;

/// Pixels by which `x + width` may exceed the image without mention: sums of decimal fractions do.
const ROUNDING: f64 = 1e-3;

struct Check {
    on_problem: OnProblem,
    problems: Vec<Problem>,
}

impl Parsed {
    /// Numbers images and boxes that have no ids, resolves classes, and checks everything. With `order`, the classes are
    /// these, matched by name.
    ///
    /// # Errors
    /// The problems, if there are serious ones and they are to be refused.
    pub(super) fn check(
        mut self,
        order: Option<Vec<Class>>,
        on_problem: OnProblem,
    ) -> Result<(Dataset, Report), Report> {
        let mut check = Check { on_problem, problems: self.problems };
        number(&mut self.images);
        let declared = check.classes(self.classes.unwrap_or_default());
        let classes = order.unwrap_or_else(|| declared.clone());
        let index_of = class_lookup(&classes, &declared);

        let mut images = BTreeMap::new();
        let mut file_names = HashSet::new();
        for image in self.images {
            let id = image.id.unwrap_or_default();
            match images.entry(id) {
                Entry::Occupied(_) => {
                    check.report(ProblemKind::RepeatedImage, location(&image), None, format!("id {id}"));
                }
                Entry::Vacant(slot) => {
                    let keep = check.image(&image, &mut file_names);
                    slot.insert((image, keep));
                }
            }
        }
        let mut dataset = Dataset { classes, ..Dataset::default() };
        let mut ids = HashSet::new();
        for (id, (image, keep)) in images {
            for object in &image.boxes {
                if object.id.is_some_and(|id| !ids.insert(id)) {
                    check.report(ProblemKind::RepeatedAnnotation, location(&image), object.id, String::new());
                }
                let annotation = check.annotation(object, &image, keep, dataset.images.len(), &index_of);
                dataset.annotations.extend(annotation);
            }
            if keep {
                let (width, height) = image.size.unwrap_or_default();
                dataset.images.push(Image { id, file_name: image.file_name, width, height });
            }
        }
        let report = Report { on_problem, problems: check.problems };
        if on_problem == OnProblem::Refuse && report.is_serious() { Err(report) } else { Ok((dataset, report)) }
    }
}

/// Gives ids where there are none: to images by file name from 0, to boxes in this order from 1, because pycocotools never
/// counts a box with id 0 as found.
fn number(images: &mut [ParsedImage]) {
    if images.iter().all(|image| image.id.is_none()) {
        images.sort_by(|a, b| a.file_name.cmp(&b.file_name));
        (0..).zip(&mut *images).for_each(|(id, image)| image.id = Some(id));
    }
    let boxes = || images.iter().flat_map(|image| &image.boxes);
    let used: HashSet<_> = boxes().filter_map(|object| object.id).collect();
    let max = used.iter().max().copied().unwrap_or(0).max(0);
    // Above all others, unless the numbers end before.
    let first = if max.checked_add(boxes().count() as i64).is_some() { max + 1 } else { 1 };
    let mut free = (first..).filter(|id| !used.contains(id));
    let unnumbered = images.iter_mut().flat_map(|image| &mut image.boxes).filter(|object| object.id.is_none());
    unnumbered.for_each(|object| object.id = free.next());
}

/// Maps the class of a box to its index in `classes`. Ids are those of the declared classes, which have the same names.
fn class_lookup(classes: &[Class], declared: &[Class]) -> impl Fn(&ClassKey) -> Option<usize> + use<> {
    let names: HashMap<_, _> = (0..).zip(classes).map(|(index, class)| (class.name.clone(), index)).collect();
    let ids: HashMap<_, _> = if declared == classes {
        (0..).zip(classes).map(|(index, class)| (class.id, index)).collect()
    } else {
        declared.iter().filter_map(|class| Some((class.id, *names.get(&class.name)?))).collect()
    };
    move |key| match key {
        ClassKey::Id(id) => ids.get(id).copied(),
        ClassKey::Name(name) => names.get(name).copied(),
    }
}

impl Check {
    fn classes(&mut self, mut declared: Vec<Class>) -> Vec<Class> {
        declared.sort_by_key(|class| class.id);
        let mut classes: Vec<Class> = Vec::with_capacity(declared.len());
        for class in declared {
            if classes.last().is_some_and(|last| last.id == class.id) {
                let location = format!("class id {} `{}`", class.id, class.name);
                self.report(ProblemKind::RepeatedClass, location, None, String::new());
            } else {
                classes.push(class);
            }
        }
        classes
    }

    /// Whether the image stays.
    fn image(&mut self, image: &ParsedImage, file_names: &mut HashSet<String>) -> bool {
        let id = image.id.unwrap_or_default();
        let (width, height) = image.size.unwrap_or_default();
        let mut keep = true;
        if image.file_name.is_empty() {
            keep &= self.report(ProblemKind::NoFileName, location(image), None, String::new());
        } else if !file_names.insert(image.file_name.clone()) {
            keep &= self.report(ProblemKind::RepeatedFileName, location(image), None, format!("id {id}"));
        }
        if let Some(reason) = &image.unreadable {
            keep &= self.report(ProblemKind::Unreadable, location(image), None, reason.clone());
        } else if width == 0 || height == 0 {
            keep &= self.report(ProblemKind::NoSize, location(image), None, format!("{width} x {height}"));
        }
        keep
    }

    fn annotation(
        &mut self,
        object: &ParsedBox,
        image: &ParsedImage,
        keep: bool,
        index: usize,
        index_of: &impl Fn(&ClassKey) -> Option<usize>,
    ) -> Option<Annotation> {
        let id = object.id.unwrap_or_default();
        if !keep {
            self.report(ProblemKind::DroppedImage, location(image), Some(id), String::new());
            return None;
        }
        let Some(class_index) = index_of(&object.class) else {
            self.report(ProblemKind::UnknownClass, location(image), Some(id), object.class.to_string());
            return None;
        };
        // Without a size, normalized boxes stay fractions of it; the image is reported.
        let (width, height) = image.size.unwrap_or((1, 1));
        let rectangle = object.geometry.in_pixels(width.into(), height.into());
        let area = object.area.unwrap_or_else(|| rectangle.area());
        let rectangle = self.rectangle(id, rectangle, area, image)?;
        Some(Annotation {
            id,
            image: index,
            class_index,
            rectangle,
            area,
            crowd: object.crowd,
            difficult: object.difficult,
        })
    }

    /// The box to go on with: clipped or unchanged; none if it is dropped.
    fn rectangle(&mut self, id: i64, rectangle: Rectangle, area: f64, image: &ParsedImage) -> Option<Rectangle> {
        let Rectangle { x, y, width, height } = rectangle;
        let (image_width, image_height) = image.size.unwrap_or_default();
        let (image_width, image_height) = (f64::from(image_width), f64::from(image_height));
        let clipped = rectangle.clip(image_width, image_height);
        let overshoot = rectangle.overshoot(image_width, image_height);
        let kind = if ![x, y, width, height, area].into_iter().all(f64::is_finite) {
            ProblemKind::NotFinite
        } else if width <= 0.0 || height <= 0.0 {
            ProblemKind::NoArea
        } else if image_width == 0.0 || image_height == 0.0 {
            // The image is kept although its size is unknown: there is nothing to compare with.
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
        if self.report(kind, location(image), Some(id), found) {
            return Some(rectangle);
        }
        matches!(kind, ProblemKind::PartlyOutside | ProblemKind::Overshoot).then_some(clipped)
    }

    /// Reports a problem and returns whether its entry stays as it is.
    fn report(&mut self, kind: ProblemKind, location: String, annotation: Option<i64>, found: String) -> bool {
        self.problems.push(Problem { kind, location, annotation, found });
        self.on_problem == OnProblem::Keep
    }
}

/// How messages name an image.
fn location(image: &ParsedImage) -> String {
    if image.file_name.is_empty() { format!("image {}", image.id.unwrap_or_default()) } else { image.file_name.clone() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::dataset::parsed::Geometry;

    fn class(id: i64) -> Class {
        Class { id, name: format!("class {id}") }
    }

    fn image(id: i64, file_name: &str, boxes: Vec<ParsedBox>) -> ParsedImage {
        let size = Some((100, 50));
        ParsedImage { id: Some(id), file_name: file_name.to_owned(), size, boxes, ..ParsedImage::default() }
    }

    fn parsed_box(id: i64, [x, y, width, height]: [f64; 4]) -> ParsedBox {
        let geometry = Geometry::Pixels(Rectangle { x, y, width, height });
        ParsedBox { id: Some(id), ..ParsedBox::new(ClassKey::Id(1), geometry) }
    }

    fn parsed(classes: Vec<Class>, images: Vec<ParsedImage>) -> Parsed {
        Parsed { classes: Some(classes), images, ..Parsed::default() }
    }

    fn kinds(report: &Report) -> Vec<ProblemKind> {
        report.problems.iter().map(|problem| problem.kind).collect()
    }

    #[test]
    fn ids_in_any_order_and_with_gaps_become_indices() {
        let crowd =
            ParsedBox { class: ClassKey::Id(7), area: Some(3.0), crowd: true, ..parsed_box(9, [1.0, 2.0, 3.0, 4.0]) };
        let object = ParsedBox { class: ClassKey::Id(90), ..parsed_box(5, [0.0, 0.0, 10.0, 10.0]) };
        let parsed =
            parsed([90, 1, 7].map(class).to_vec(), vec![image(12, "b", vec![object]), image(3, "a", vec![crowd])]);
        let (dataset, report) = parsed.check(None, OnProblem::Refuse).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(dataset.classes.iter().map(|class| class.id).collect::<Vec<_>>(), [1, 7, 90]);
        assert_eq!(dataset.images.iter().map(|image| image.id).collect::<Vec<_>>(), [3, 12]);
        let rectangle = Rectangle { x: 1.0, y: 2.0, width: 3.0, height: 4.0 };
        let crowd = Annotation { id: 9, image: 0, class_index: 1, rectangle, area: 3.0, crowd: true, difficult: false };
        assert_eq!(dataset.annotations[0], crowd);
        assert_eq!((dataset.annotations[1].image, dataset.annotations[1].class_index), (1, 2));
        assert_eq!(dataset.annotations[1].area, 100.0);
    }

    #[test]
    fn images_and_boxes_without_ids_are_numbered_by_file_name() {
        let image = |file_name: &str, count: usize| ParsedImage {
            id: None,
            boxes: (0..count).map(|_| ParsedBox { id: None, ..parsed_box(0, [1.0, 2.0, 2.0, 3.0]) }).collect(),
            ..image(0, file_name, vec![])
        };
        let read = |images| parsed(vec![class(1)], images).check(None, OnProblem::Refuse).unwrap().0;
        let dataset = read(vec![image("b", 2), image("a", 1), image("c", 0)]);
        assert_eq!(dataset, read(vec![image("c", 0), image("a", 1), image("b", 2)]));
        assert_eq!(dataset.images.iter().map(|image| image.id).collect::<Vec<_>>(), [0, 1, 2]);
        let boxes: Vec<_> = dataset.annotations.iter().map(|annotation| (annotation.id, annotation.image)).collect();
        assert_eq!(boxes, [(1, 0), (2, 1), (3, 1)]);
    }

    #[test]
    fn ids_of_boxes_without_one_are_positive() {
        let square = [0.0, 0.0, 1.0, 1.0];
        let boxes = vec![parsed_box(-5, square), ParsedBox { id: None, ..parsed_box(0, square) }];
        let mut images = [image(1, "a", boxes)];
        number(&mut images);
        assert_eq!(images[0].boxes[1].id, Some(1));
        // The highest id has no next one, and none is needed.
        number(&mut [image(1, "a", vec![parsed_box(i64::MAX, square)])]);
        let without = || ParsedBox { id: None, ..parsed_box(0, square) };
        let boxes = vec![parsed_box(i64::MAX, square), without(), parsed_box(2, square), without()];
        let mut images = [image(1, "a", boxes)];
        number(&mut images);
        assert_eq!([1, 3].map(|index| images[0].boxes[index].id), [Some(1), Some(3)]);
    }

    #[test]
    fn only_unknown_sizes_are_measured() {
        let unknown = |name| ParsedImage { size: None, ..image(0, name, vec![]) };
        let mut parsed = parsed(vec![], vec![image(1, "known", vec![]), unknown("new"), unknown("bad")]);
        parsed.measure(Path::new("folder"), &|path| match path.to_str() {
            Some("folder/new") => Ok((3, 4)),
            _ => Err("gone".to_owned()),
        });
        let sizes: Vec<_> = parsed.images.iter().map(|image| image.size).collect();
        assert_eq!(sizes, [Some((100, 50)), Some((3, 4)), None]);
        assert_eq!(parsed.images[2].unreadable.as_deref(), Some("gone"));
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
                parsed(vec![class(1)], vec![image(1, "a", vec![parsed_box(1, corner_and_sides)])])
                    .check(None, on_problem)
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
    fn a_rounding_error_at_the_edge_is_not_a_problem() {
        let boxes = vec![parsed_box(1, [33.1, 0.0, 66.9 + 1e-9, 50.0])];
        let parsed = parsed(vec![class(1)], vec![image(1, "a", boxes)]);
        let (dataset, report) = parsed.check(None, OnProblem::Drop).unwrap();
        assert_eq!(report.problems, []);
        assert!(dataset.annotations[0].rectangle.bounding_box().x2 <= 100.0);
    }

    #[test]
    fn contradicting_entries_are_named() {
        use ProblemKind::*;
        let square = [0.0, 0.0, 1.0, 1.0];
        let parsed = || {
            let images = vec![
                image(
                    1,
                    "a",
                    vec![
                        ParsedBox { class: ClassKey::Id(9), ..parsed_box(3, square) },
                        ParsedBox { class: ClassKey::Name("dog".to_owned()), ..parsed_box(5, square) },
                    ],
                ),
                image(1, "b", vec![]),
                image(2, "a", vec![parsed_box(1, square)]),
                image(3, "", vec![]),
                ParsedImage { size: None, ..image(4, "d", vec![parsed_box(4, square)]) },
                ParsedImage { unreadable: Some("gone".to_owned()), ..image(5, "e", vec![]) },
            ];
            parsed(vec![class(1), class(1)], images)
        };
        let (dataset, report) = parsed().check(None, OnProblem::Drop).unwrap();
        let classes_and_images = [RepeatedClass, RepeatedImage, RepeatedFileName, NoFileName, NoSize, Unreadable];
        assert_eq!(kinds(&report)[..6], classes_and_images);
        assert_eq!(kinds(&report)[6..], [UnknownClass, UnknownClass, DroppedImage, DroppedImage]);
        assert_eq!(report.problems[6].to_string(), "a annotation 3 (class id 9)");
        assert_eq!(report.problems[8].to_string(), "a annotation 1");
        assert_eq!((dataset.images.len(), dataset.annotations.len()), (1, 0));

        let (dataset, report) = parsed().check(None, OnProblem::Keep).unwrap();
        assert_eq!(kinds(&report)[..6], classes_and_images);
        assert_eq!(kinds(&report)[6..], [UnknownClass, UnknownClass]);
        assert_eq!((dataset.images.len(), dataset.annotations.len()), (5, 2));
    }

    #[test]
    fn a_class_list_reorders_declared_classes_by_name() {
        let boxes = [7, 3, 5].map(|id| ParsedBox { class: ClassKey::Id(id), ..parsed_box(id, [0.0, 0.0, 1.0, 1.0]) });
        let parsed = parsed([3, 5, 7].map(class).to_vec(), vec![image(1, "a", boxes.into())]);
        let order = [(0, "class 7"), (1, "class 3")].map(|(id, name)| Class { id, name: name.to_owned() });
        let (dataset, report) = parsed.check(Some(order.to_vec()), OnProblem::Drop).unwrap();
        let classes: Vec<_> = dataset.annotations.iter().map(|annotation| annotation.class_index).collect();
        assert_eq!((classes, kinds(&report)), (vec![0, 1], vec![ProblemKind::UnknownClass]));
    }

    #[test]
    fn a_data_set_without_boxes_is_valid() {
        let (dataset, report) = parsed(vec![], vec![image(1, "a", vec![])]).check(None, OnProblem::Refuse).unwrap();
        assert_eq!((dataset.images.len(), report.problems.len()), (1, 0));
    }
}
