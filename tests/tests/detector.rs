//! One detector for many images and threads: batches, errors, tiles and flips.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Barrier, LazyLock};
use std::thread;

use image::{Rgb, RgbImage, imageops};
use models::spec::NormKind;
use models::{ModelSpec, Provenance};
use runtime::{Detection, Detector, DetectorOptions, Statistics, Tiling, ViewOptions, image_file, map_ordered};
use tempfile::TempDir;

/// Maximum difference of box coordinates from a different order of summation, in pixels.
const MAX_CORNER_DIFFERENCE: f32 = 0.01;

/// Maximum difference of scores from a different order of summation.
const MAX_SCORE_DIFFERENCE: f32 = 1e-5;

fn spec() -> ModelSpec {
    let mut spec = tests::spec("resnet50", NormKind::Batch, 4);
    // A small network: a fifth of the weights of a ResNet-18 with 256 channels.
    (spec.backbone.width_per_group, spec.pyramid.width, spec.heads.width) = (4, 32, 32);
    spec.preprocessing.shorter_side = 64;
    spec.preprocessing.longer_side = 96;
    // The random weights give high scores to many anchors; a high threshold limits the number of detections.
    spec.postprocessing.score_threshold = 0.6;
    spec
}

/// A folder with an ONNX file, and images of three alternating sizes.
fn folder(images: usize) -> (TempDir, Vec<PathBuf>) {
    static MODEL: LazyLock<Vec<u8>> =
        LazyLock::new(|| exporter::to_onnx(&spec(), tests::tensors(&spec(), 3), &Provenance::default()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.onnx"), &*MODEL).unwrap();
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
    open_with(folder, |options| options.views = views)
}

fn open_with(folder: &Path, change: impl FnOnce(&mut DetectorOptions)) -> Detector {
    let mut options = DetectorOptions::default();
    change(&mut options);
    Detector::open(folder.join("model.onnx"), options).unwrap()
}

/// Asserts that two lists of detections are equal up to rounding, except for some close to the score threshold.
fn assert_same(found: &[Detection], expected: &[Detection]) {
    assert!(expected.len() > 5, "only {} detections", expected.len());
    assert!(found.len().abs_diff(expected.len()) <= 1 + expected.len() / 50, "{} != {}", found.len(), expected.len());
    let near = |a: &Detection, b: &Detection| {
        let (p, q): ([f32; 4], [f32; 4]) = (a.bounding_box.into(), b.bounding_box.into());
        a.class_index == b.class_index
            && (a.score - b.score).abs() <= MAX_SCORE_DIFFERENCE
            && p.iter().zip(q).all(|(p, q)| (p - q).abs() <= MAX_CORNER_DIFFERENCE)
    };
    let matched = expected.iter().filter(|a| found.iter().any(|b| near(a, b))).count();
    assert!(matched * 50 >= expected.len() * 49, "{matched} of {} detections have a counterpart", expected.len());
}

#[test]
fn eight_threads_share_a_detector_and_get_the_results_of_single_calls() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 3;
    let (folder, files) = folder(13);
    let images: Vec<_> = files.iter().map(|file| image_file::read(file).unwrap()).collect();
    let single = open(folder.path(), ViewOptions::default());
    let expected: Vec<_> = images.iter().map(|image| single.detect(image).unwrap()).collect();
    assert_eq!(single.statistics().batches, 13);
    for instances in [1, 2] {
        let shared = open_with(folder.path(), |options| {
            (options.max_batch, options.instances) = (NonZeroUsize::new(4), instances.try_into().unwrap());
        });
        let barrier = Barrier::new(THREADS);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (shared, barrier, images, expected) = (&shared, &barrier, &images, &expected);
                scope.spawn(move || {
                    barrier.wait();
                    for index in (0..ROUNDS * images.len()).map(|number| (number + thread) % images.len()) {
                        assert_same(&shared.detect(&images[index]).unwrap(), &expected[index]);
                    }
                });
            }
        });
        // All calls have returned, so no thread has starved.
        let Statistics { inputs, batches, network, .. } = shared.statistics();
        assert_eq!(inputs as usize, THREADS * ROUNDS * images.len());
        assert!(batches < inputs * 2 / 3 && !network.is_zero(), "{batches} batches of {inputs} inputs");
    }
}

#[test]
fn an_image_without_pixels_and_a_panic_harm_no_other_call() {
    let (folder, files) = folder(3);
    let detector = open_with(folder.path(), |options| options.max_batch = NonZeroUsize::new(3));
    let images: Vec<_> = files.iter().map(|file| image_file::read(file).unwrap()).collect();
    let expected: Vec<_> = images.iter().map(|image| detector.detect(image).unwrap()).collect();
    let outcome = |number: usize| match number % 5 {
        3 => Err(detector.detect(&RgbImage::new(0, 0)).unwrap_err().to_string()),
        // The thread panics while the others wait for their batches.
        4 => Err(thread::scope(|scope| scope.spawn(|| panic!("on purpose")).join().unwrap_err().downcast::<&str>())
            .unwrap()
            .to_string()),
        image => Ok((image, detector.detect(&images[image]).unwrap())),
    };
    map_ordered(0..40, 8, outcome, |outcomes| {
        for (number, outcome) in outcomes.enumerate() {
            match outcome {
                Ok((image, found)) => assert_same(&found, &expected[image]),
                Err(error) => assert!(error.contains(if number % 5 == 3 { "empty" } else { "on purpose" }), "{error}"),
            }
        }
    });
}

#[test]
fn many_tiles_share_batches_and_give_the_same_detections() {
    let (folder, _) = folder(0);
    let tiling = Some(Tiling { width: 96, height: 64, overlap: 0.25 });
    let detect = |max_batch| {
        let detector = open_with(folder.path(), |options| {
            (options.max_batch, options.views.tiling) = (NonZeroUsize::new(max_batch), tiling);
        });
        let found = detector.detect(&image(300, 200, 5)).unwrap();
        (found, detector.statistics())
    };
    let ((expected, single), (found, shared)) = (detect(1), detect(4));
    assert_same(&found, &expected);
    assert_eq!((single.inputs, shared.inputs), (single.batches, single.inputs));
    assert!(shared.batches < single.batches, "{shared:?}");
}

#[test]
fn a_batch_larger_than_the_models_is_an_error() {
    let (folder, _) = folder(0);
    let mut options = DetectorOptions::default();
    options.max_batch = NonZeroUsize::new(3);
    let path = folder.path().join("fixed.onnx");
    let checkpoint = tests::checkpoint(&spec(), 3);
    let variant = exporter::VariantOptions { batch: Some(2), ..exporter::VariantOptions::default() };
    let export = exporter::ExportOptions { variant, ..exporter::ExportOptions::default() };
    tests::export_to(checkpoint, &path, &export).unwrap();
    let error = Detector::open(&path, options.clone()).unwrap_err().to_string();
    assert!(error.contains("batch size of 3 exceeds the model's of 2"), "{error}");
    options.max_batch = None;
    assert_eq!(Detector::open(&path, options).unwrap().suggested_threads(), 5);
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
