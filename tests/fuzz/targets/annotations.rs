//! Arbitrary bytes as annotations in each of the four formats give a valid data set or an error.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use models::dataset::{Dataset, Format, OnProblem, Report, Source};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let scratch = Scratch::new();
    for folder in ["coco", "csv", "voc/JPEGImages", "yolo/images"] {
        scratch.file(&format!("{folder}/a.jpg"), b"an image");
    }
    scratch
});

/// Width and height in pixels: the same for every existing file.
fn size_of(path: &Path) -> Result<(u32, u32), String> {
    if path.is_file() { Ok((200, 100)) } else { Err("file not found".to_owned()) }
}

// The first byte selects the format and the handling of problems.
fuzz_target!(|bytes: &[u8]| {
    let Some((choice, content)) = bytes.split_first() else { return };
    let format = Format::ALL[usize::from(choice % 4)];
    let on_problem = [OnProblem::Keep, OnProblem::Drop, OnProblem::Refuse][usize::from(choice / 4 % 3)];
    let annotations = match format {
        Format::Coco => SCRATCH.file("coco/truth.json", content),
        Format::Csv => SCRATCH.file("csv/truth.csv", content),
        Format::Voc => SCRATCH.file("voc/Annotations/a.xml", content).with_file_name(""),
        Format::Yolo => SCRATCH.file("yolo/labels/a.txt", content).with_file_name(""),
    };
    let source = Source { format: Some(format), ..Source::new(annotations) };
    let Ok((dataset, report)) = source.read(on_problem, &size_of) else { return };
    check(&dataset, &report, on_problem);
});

fn check(dataset: &Dataset, report: &Report, on_problem: OnProblem) {
    assert!(!report.lines().iter().any(String::is_empty));
    assert!(dataset.annotations().iter().all(|annotation| annotation.class_index < dataset.classes().len()));
    // Evaluation needs memory per class, so many classes would exceed the memory limit.
    if dataset.classes().len() < 1024 {
        models::evaluation::evaluate(dataset.annotations(), &[], dataset.classes().len());
    }
    if matches!(on_problem, OnProblem::Drop) {
        let path = SCRATCH.path("coco/again.json");
        dataset.write_coco(&path).expect("/dev/shm has room");
        let (again, _) = Dataset::read_coco(&path, OnProblem::Refuse).expect("a checked data set is valid");
        assert_eq!((again.images(), again.annotations()), (dataset.images(), dataset.annotations()));
    }
}
