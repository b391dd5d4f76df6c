//! Many images through one detector: order, unreadable images, batches, tiles and flips, early stops and panics.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use image::{Rgb, RgbImage, imageops};
use models::ModelSpec;
use models::spec::NormKind;
use runtime::image_file::DecodeError;
use runtime::output::{Failure, Report};
use runtime::pipeline::{Content, Finished, Item, Ordered, PipelineOptions, pipeline};
use runtime::{Detection, Detector, DetectorOptions, Tiling, ViewOptions};
use tempfile::TempDir;

/// Maximum difference of box coordinates from a different order of summation, as a fraction of the image side.
const MAX_CORNER_DIFFERENCE: f32 = 1e-3;

/// Maximum difference of scores from a different order of summation.
const MAX_SCORE_DIFFERENCE: f32 = 1e-5;

fn spec() -> ModelSpec {
    let mut spec = tests::spec("resnet18", NormKind::Batch, 4);
    spec.preprocessing.shorter_side = 64;
    spec.preprocessing.longer_side = 96;
    // The random weights give high scores to many anchors; a high threshold limits the number of detections.
    spec.postprocessing.score_threshold = 0.6;
    spec
}

/// A folder with an ONNX file, and images of three alternating sizes.
fn folder(images: usize) -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = tests::checkpoint(&spec(), 3);
    let onnx = exporter::to_onnx(&checkpoint.spec, checkpoint.tensors, &checkpoint.provenance).unwrap();
    std::fs::write(folder.path().join("model.onnx"), onnx).unwrap();
    let save = |number: usize| {
        let (width, height) = [(64, 64), (96, 64), (60, 90)][number % 3];
        let path = folder.path().join(format!("{number}.png"));
        image(width, height, number as u32).save(&path).unwrap();
        path
    };
    let files = (0..images).map(save).collect();
    (folder, files)
}

fn image(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let inside = (10 + seed..40 + seed).contains(&x) && (15..45).contains(&y);
        if inside { Rgb([220, 40, 30]) } else { Rgb([(5 * x % 256) as u8, (3 * y % 256) as u8, seed as u8]) }
    })
}

fn open(folder: &Path, views: ViewOptions) -> Detector {
    Detector::open(folder.join("model.onnx"), DetectorOptions { views, ..DetectorOptions::default() }).unwrap()
}

fn items(files: &[PathBuf]) -> impl Iterator<Item = Item<usize>> + Send {
    files.iter().cloned().enumerate().map(|(tag, file)| Item { file, frame: None, content: Content::File, tag })
}

fn reports(detector: &Detector, options: &PipelineOptions, files: &[PathBuf]) -> Vec<Report> {
    let finish = |finished: Finished<usize>| {
        // Later images finish earlier.
        thread::sleep(Duration::from_millis(10 - finished.tag as u64 % 10));
        finished.report
    };
    pipeline(detector, options, items(files), finish, |reports| reports.collect()).1
}

fn detections(report: &Report) -> &[Detection] {
    &report.outcome.as_ref().unwrap().detections
}

/// Asserts that two lists of detections are equal up to rounding, except for some close to the score threshold.
fn assert_same(found: &[Detection], expected: &[Detection]) {
    assert!(expected.len() > 5, "only {} detections", expected.len());
    assert!(found.len().abs_diff(expected.len()) <= 1 + expected.len() / 50, "{} != {}", found.len(), expected.len());
    let near = |a: &Detection, b: &Detection| {
        let (p, q): ([f32; 4], [f32; 4]) = (a.bounding_box.into(), b.bounding_box.into());
        a.class_index == b.class_index
            && (a.score - b.score).abs() <= MAX_SCORE_DIFFERENCE
            && p.iter().zip(q).all(|(p, q)| (p - q).abs() <= 100.0 * MAX_CORNER_DIFFERENCE)
    };
    let matched = expected.iter().filter(|a| found.iter().any(|b| near(a, b))).count();
    assert!(matched * 50 >= expected.len() * 49, "{matched} of {} detections have a counterpart", expected.len());
}

#[test]
fn results_keep_the_input_order_and_do_not_depend_on_the_batch_size() {
    let (folder, files) = folder(13);
    let detector = open(folder.path(), ViewOptions::default());
    let images: Vec<_> = files.iter().map(|file| runtime::image_file::read(file).unwrap()).collect();
    let expected: Vec<_> = images.iter().map(|image| detector.detect(image).unwrap()).collect();
    for (batch, workers) in [(1, 1), (1, 3), (4, 2), (50, 2)] {
        let found = reports(&detector, &PipelineOptions { batch, workers, ..PipelineOptions::default() }, &files);
        assert!(found.iter().map(|report| &report.file).eq(&files));
        for (report, expected) in found.iter().zip(&expected) {
            assert_same(detections(report), expected);
        }
    }
    for (found, expected) in detector.detect_batch(&images, 4).unwrap().iter().zip(&expected) {
        assert_same(found, expected);
    }
}

#[test]
fn unreadable_images_keep_their_position_and_do_not_stop_the_others() {
    let (folder, mut files) = folder(6);
    let detector = open(folder.path(), ViewOptions::default());
    std::fs::write(&files[2], "no image").unwrap();
    files.insert(4, folder.path().join("missing.png"));
    let found = reports(&detector, &PipelineOptions { batch: 2, ..PipelineOptions::default() }, &files);
    let failed: Vec<_> = (0..7).filter(|index| found[*index].outcome.is_err()).collect();
    assert_eq!(failed, [2, 4]);
    assert!(matches!(found[2].outcome, Err(Failure::Image(DecodeError::Unknown))));
    assert!(matches!(found[4].outcome, Err(Failure::Image(DecodeError::Io(_)))));
}

#[test]
fn images_in_memory_and_missing_images_are_accepted_and_images_are_returned_on_request() {
    let (folder, _) = folder(0);
    let detector = open(folder.path(), ViewOptions::default());
    let item = |tag: u32, content| Item { file: "frame".into(), frame: None, content, tag };
    let items = vec![
        item(7, Content::Image(image(70, 50, 3))),
        item(8, Content::Missing("it is gone".to_owned())),
        item(9, Content::Image(RgbImage::new(0, 0))),
    ];
    let options = PipelineOptions { keep: true, ..PipelineOptions::default() };
    let (_, finished) =
        pipeline(&detector, &options, items.into_iter(), |finished| finished, |all| all.collect::<Vec<_>>());
    assert_eq!(finished.iter().map(|finished| finished.tag).collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!(finished[0].image, Some(image(70, 50, 3)));
    assert!(matches!(&finished[1].report.outcome, Err(Failure::Missing(reason)) if reason == "it is gone"));
    assert!(
        matches!(&finished[2].report.outcome, Err(Failure::Detector(error)) if error.to_string().contains("empty"))
    );
}

#[test]
fn no_more_images_are_started_once_the_consumer_stops() {
    let (folder, files) = folder(3);
    let detector = open(folder.path(), ViewOptions::default());
    let started = AtomicUsize::new(0);
    let endless = files.iter().cycle().map(|file| {
        started.fetch_add(1, Relaxed);
        Item { file: file.clone(), frame: None, content: Content::File, tag: () }
    });
    let options = PipelineOptions::default();
    let (_, first) = pipeline(&detector, &options, endless, |finished| finished.report, |mut reports| reports.next());
    assert_eq!(first.map(|report| report.file), Some(files[0].clone()));
    assert!(started.into_inner() < 20);
}

#[test]
fn a_slow_consumer_limits_the_number_of_images_in_flight() {
    let (folder, files) = folder(3);
    let detector = open(folder.path(), ViewOptions::default());
    let started = AtomicUsize::new(0);
    let many = files.iter().cycle().take(40).map(|file| {
        started.fetch_add(1, Relaxed);
        Item { file: file.clone(), frame: None, content: Content::File, tag: () }
    });
    let sink = |mut reports: Ordered<Report>| {
        for done in 0.. {
            thread::sleep(Duration::from_millis(5));
            assert!(started.load(Relaxed) <= done + 16);
            if reports.next().is_none() {
                return done;
            }
        }
        0
    };
    let (_, done) = pipeline(&detector, &PipelineOptions::default(), many, |finished| finished.report, sink);
    assert_eq!(done, 40);
}

#[test]
fn a_panic_while_finishing_ends_the_pipeline() {
    let (folder, files) = folder(9);
    let detector = open(folder.path(), ViewOptions::default());
    let finish = |finished: Finished<usize>| assert_ne!(finished.tag, 4, "on purpose");
    let run = || pipeline(&detector, &PipelineOptions::default(), items(&files), finish, |all| all.count());
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
}

#[test]
fn with_flips_a_mirrored_image_has_mirrored_detections() {
    let (folder, _) = folder(0);
    let detector = open(folder.path(), ViewOptions { tiling: None, flip: true });
    let image = image(96, 64, 9);
    let mut expected = detector.detect(&image).unwrap();
    for detection in &mut expected {
        let corners = &mut detection.bounding_box;
        (corners.x1, corners.x2) = (96.0 - corners.x2, 96.0 - corners.x1);
    }
    assert_same(&detector.detect(&imageops::flip_horizontal(&image)).unwrap(), &expected);
}

#[test]
fn tiles_add_smaller_detections() {
    let (folder, _) = folder(0);
    let tiling = Some(Tiling { width: 96, height: 64, overlap: 0.25 });
    let [plain, tiled] =
        [ViewOptions::default(), ViewOptions { tiling, flip: false }].map(|views| open(folder.path(), views));
    // The image fits into one tile, so nothing changes.
    let small = image(96, 64, 5);
    assert_eq!(tiled.detect(&small).unwrap(), plain.detect(&small).unwrap());

    let large = image(400, 300, 5);
    let found = tiled.detect(&large).unwrap();
    let min_area = |found: &[Detection]| found.iter().map(|d| d.bounding_box.area()).fold(f32::INFINITY, f32::min);
    assert!(min_area(&found) < min_area(&plain.detect(&large).unwrap()) / 2.0);
    assert!(found.iter().all(|d| d.bounding_box.x2 <= 400.01 && d.bounding_box.y2 <= 300.01));
    assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
}
