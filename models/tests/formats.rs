//! The same real annotations in four formats give the same data set.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::{Path, PathBuf};

use models::dataset::{Dataset, Format, OnProblem, ProblemKind, Report, Source};

/// YOLO's fractions have eight decimals: half of the last one, for the center and half a side, of 640 pixels.
const YOLO_TOLERANCE: f64 = 1.5 * 0.5e-8 * 640.0;

/// Reads an image's size, which not all formats contain; all images of this data set have the same.
fn size_of(path: &Path) -> Result<(u32, u32), String> {
    if path.is_file() { Ok((640, 480)) } else { Err("it does not exist".to_owned()) }
}

fn read(source: &Source, on_problem: OnProblem) -> (Dataset, Report) {
    let (dataset, report) = source.read(on_problem, &size_of).unwrap();
    assert!((0..dataset.images().len()).all(|image| dataset.path_of(image).is_file()));
    (dataset, report)
}

/// The name of the file without its folder.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn assert_same_data(one: &Dataset, other: &Dataset, tolerance: f64) {
    let images = |dataset: &Dataset| {
        let images =
            dataset.images().iter().map(|image| (file_name(&image.file_name).to_owned(), image.width, image.height));
        images.collect::<Vec<_>>()
    };
    assert_eq!(images(one), images(other));
    assert_eq!(one.annotations().len(), other.annotations().len());
    for (a, b) in one.annotations().iter().zip(other.annotations()) {
        assert_eq!((a.image, a.crowd), (b.image, b.crowd));
        assert_eq!(one.classes()[a.class_index].name, other.classes()[b.class_index].name);
        let rectangles = [a, b].map(|annotation| annotation.rectangle);
        let [a, b] = rectangles.map(|rectangle| [rectangle.x, rectangle.y, rectangle.width, rectangle.height]);
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance), "{a:?} {b:?}");
    }
}

/// Kind and image of each problem.
fn problems(report: &Report) -> Vec<(ProblemKind, String)> {
    report.problems.iter().map(|problem| (problem.kind, file_name(&problem.location).to_owned())).collect()
}

#[test]
fn all_formats_of_real_data_give_the_same_data_set() {
    let Some(data) = std::env::var_os("RETINANET_DATA") else {
        eprintln!("skipped: RETINANET_DATA is not set to the folder of the shared data");
        return;
    };
    let folder = Path::new(&data).join("bccd");
    let at = |path: &str| -> PathBuf { folder.join(path) };
    let classes = Some(at("derived/classes.csv"));
    let empty = |name: &str| vec![(ProblemKind::NoArea, format!("{name}.jpg"))];
    let splits = [("train", empty("BloodImage_00343")), ("val", empty("BloodImage_00338")), ("test", vec![])];
    for (split, expected) in splits {
        let images = Some(at("JPEGImages"));
        let coco = Source { images: images.clone(), ..Source::new(at(&format!("derived/instances_{split}.json"))) };
        let csv = Source { classes: classes.clone(), ..Source::new(at(&format!("derived/{split}.csv"))) };
        let list = Some(at(&format!("ImageSets/Main/{split}.txt")));
        let voc = Source { list: list.clone(), ..Source::new(at("Annotations")) };
        let labels = Source::new(at(&format!("derived/yolo/labels/{split}")));
        let yolo = Source { images: images.clone(), classes: classes.clone(), ..labels };
        let format = Some(Format::Yolo);
        let all_labels = Source { annotations: at("derived/yolo/labels"), format, ..yolo.clone() };
        for on_problem in [OnProblem::Drop, OnProblem::Keep] {
            let (truth, report) = read(&coco, on_problem);
            assert_eq!(problems(&report), expected);
            for (source, tolerance) in [(&csv, 0.0), (&voc, 0.0), (&yolo, YOLO_TOLERANCE)] {
                let (dataset, report) = read(source, on_problem);
                assert_same_data(&dataset, &truth, tolerance);
                assert_eq!(problems(&report), expected);
            }
        }
        // The labels of all splits are in folders of their own, and their images in one folder: names match as far as both go.
        let (dataset, _) = read(&all_labels, OnProblem::Drop);
        assert_eq!((dataset.images().len(), dataset.annotations().len()), (364, 4886));
        // A list takes the same part from COCO as from VOC, and nothing from a file of another part.
        let coco = Source { list: list.clone(), ..coco };
        assert_same_data(&read(&coco, OnProblem::Drop).0, &read(&voc, OnProblem::Drop).0, 0.0);
    }
    let names = |source: &Source| {
        read(source, OnProblem::Drop).0.classes().iter().map(|class| class.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&Source::new(at("Annotations"))), ["Platelets", "RBC", "WBC"]);
}
