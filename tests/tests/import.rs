//! Imported weights of other projects: after import and export, the detections match those of the original project.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};

use exporter::ExportOptions;
use image::RgbImage;
use models::{BoundingBox, Checkpoint, ModelSpec};
use runtime::{Detection, Detector, DetectorOptions, image_file};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;

/// Maximum difference of scores.
const MAX_SCORE_DIFFERENCE: f32 = 1e-3;

/// Minimum IoU of matching boxes.
const MIN_IOU: f32 = 0.99;

/// Outputs of torchvision's models that are not COCO classes: the background (0) and unused category ids.
const UNUSED: [usize; 11] = [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83];

/// Parts of the names of the last classification and regression layers.
const SCORES: [&str; 5] = ["cls_logits", "classificationModel.output", "cls_score", "retina_cls", "cls_head.8"];
const BOXES: [&str; 5] = ["bbox_reg", "regressionModel.output", "bbox_pred", "retina_reg", "box_head.8"];

/// Prefixes of the names of the first layers.
const BODIES: [&str; 3] = ["backbone.body.", "backbone.bottom_up.stem.", "backbone."];

/// A network of another project and its detections: an entry of `golden/import.json` or `golden/import-projects.json`.
#[derive(Deserialize)]
struct Case {
    kind: String,
    /// Scale of the weights of the last classification layer.
    scores: f64,
    /// Scale of the weights of the last regression layer.
    boxes: f64,
    /// Mean of the biases of the last classification layer.
    bias: f32,
    /// Scale of the weights of the first convolution; 0.01 if absent.
    stem: Option<f64>,
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    file: String,
    /// Crop: left, top, right, bottom in pixels; `None` is the whole image.
    part: Option<[u32; 4]>,
    /// Number of all detections.
    count: usize,
    /// The highest-scoring detections.
    detections: Vec<Original>,
}

/// Label, score, and the box x1, y1, x2, y2 in pixels of the image or crop.
#[derive(Deserialize)]
struct Original(usize, f32, f32, f32, f32, f32);

fn golden(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)).unwrap()
}

fn case(kind: &str) -> Case {
    let cases = ["import.json", "import-projects.json"].into_iter();
    let mut cases = cases.flat_map(|file| serde_json::from_str::<Vec<Case>>(&golden(file)).unwrap());
    cases.find(|case| case.kind == kind).unwrap()
}

/// Pseudorandom numbers, a function of the tensor's name and the element's index. `golden/import_weights.py`: uniform
fn uniform(name: &str, count: usize, low: f32, high: f32) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    let number = |index: u64| {
        let x = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let x = x ^ (x >> 31);
        low + (x >> 40) as f32 / 16_777_216.0 * (high - low)
    };
    (1..=count as u64).map(number).collect()
}

impl Case {
    /// Values of the tensor `name`. `golden/import_weights.py`: weight
    fn weight(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        let scores = SCORES.iter().any(|part| name.contains(part));
        let boxes = BOXES.iter().any(|part| name.contains(part));
        let local = name.split_once(".features.").map_or(name, |(_, local)| local);
        let local = BODIES.iter().find_map(|body| local.strip_prefix(body)).unwrap_or(local);
        let stem = local.starts_with("conv1.") || local.starts_with("bn1.");
        if shape.len() == 4 {
            let gain = match (scores, boxes, stem) {
                (true, ..) => self.scores,
                (_, true, _) => self.boxes,
                (.., true) => self.stem.unwrap_or(0.01),
                _ => 1.0,
            };
            let bound = ((6.0 / shape[1..].iter().product::<usize>() as f64).sqrt() * gain) as f32;
            uniform(name, count, -bound, bound)
        } else if name.ends_with("running_var") {
            if stem { uniform(name, count, 0.5e-4, 1.5e-4) } else { uniform(name, count, 0.5, 1.5) }
        } else if scores {
            let mut values = uniform(name, count, self.bias - 0.5, self.bias + 0.5);
            if ["torchvision-v1-coco", "torchvision-v2"].contains(&self.kind.as_str()) {
                for row in values.chunks_mut(91) {
                    UNUSED.iter().for_each(|output| row[*output] = -30.0);
                }
            }
            values
        } else if name.ends_with("running_mean") && stem {
            uniform(name, count, -0.001, 0.001)
        } else if name.ends_with("bias") || name.ends_with("running_mean") {
            uniform(name, count, -0.1, 0.1)
        } else if name.contains(".bn3.") || name.contains(".conv3.norm.") {
            uniform(name, count, 0.1, 0.3)
        } else {
            uniform(name, count, 0.7, 1.3)
        }
    }

    /// Writes the weights under the other project's names, each changed by `rename`.
    fn write(&self, path: &Path, rename: impl Fn(&str) -> String) {
        let names = golden(&format!("names-{}.txt", self.kind));
        let tensors = names.lines().map(|line| {
            let (name, shape) = line.split_once(' ').unwrap();
            let shape: Vec<usize> = serde_json::from_str(shape).unwrap();
            let bytes: Vec<u8> = if name.ends_with("num_batches_tracked") {
                7i64.to_le_bytes().to_vec()
            } else {
                self.weight(name, &shape).into_iter().flat_map(f32::to_le_bytes).collect()
            };
            (name, shape, bytes)
        });
        let tensors: Vec<_> = tensors.collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let dtype = if name.ends_with("num_batches_tracked") { Dtype::I64 } else { Dtype::F32 };
            (rename(name), TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, path).unwrap();
    }
}

/// The command line of `trainer import`.
#[derive(clap::Parser)]
struct Import {
    #[command(flatten)]
    args: trainer::import::ImportArgs,
}

fn import(file: &Path, out: &Path, kind: &str) {
    let fixed = [Path::new("import"), file, Path::new("--out"), out];
    // No name or shape tells these from others.
    let needed = ["detectron2-rgb", "mmdetection-caffe"].contains(&kind);
    let kind = [Path::new("--kind"), Path::new(kind)].into_iter().filter(|_| needed);
    let Import { args } = clap::Parser::parse_from(fixed.into_iter().chain(kind));
    trainer::import::run(&args).unwrap();
}

fn read(data: &Path, image: &Image) -> RgbImage {
    let whole = image_file::read(data.join(&image.file)).unwrap();
    match image.part {
        Some([left, top, right, bottom]) => {
            image::imageops::crop_imm(&whole, left, top, right - left, bottom - top).to_image()
        }
        None => whole,
    }
}

/// Imports and exports the weights of the case `kind`, and compares the detections with the original's.
fn assert_import_matches_original(kind: &str, file_name: &str, rename: impl Fn(&str) -> String) {
    let Some(data) = std::env::var_os("RETINANET_DATA").map(PathBuf::from) else {
        eprintln!("skipped: RETINANET_DATA is not set");
        return;
    };
    let case = case(kind);
    // Deeper networks are of the same kind.
    let kind = kind.strip_suffix("-r101").unwrap_or(kind);
    let folder = tempfile::tempdir().unwrap();
    let [source, checkpoint, onnx] =
        [file_name, "imported.safetensors", "retinanet.onnx"].map(|name| folder.path().join(name));
    case.write(&source, rename);
    if kind == "torchvision-v1" {
        let config =
            r#"{"num_classes": 2, "nms_thresh": 0.05, "score_thresh": 0.1, "label_dict": {"Alive": 0, "Dead": 1}}"#;
        fs::write(folder.path().join("config.json"), config).unwrap();
    }
    import(&source, &checkpoint, kind);
    std::fs::remove_file(&source).unwrap();
    let checkpoint = Checkpoint::open(&checkpoint).unwrap();
    let origin = checkpoint.provenance.origin.clone().unwrap();
    assert_eq!((origin.kind.as_str(), origin.file.as_str(), origin.sha256.len()), (kind, file_name, 64));
    tests::export_to(checkpoint, &onnx, &ExportOptions::default()).unwrap();
    let detector = Detector::open(&onnx, DetectorOptions::default()).unwrap();

    for image in &case.images {
        let found = detector.detect(&read(&data, image)).unwrap();
        compare(kind, image, &found, detector.spec());
    }
}

fn compare(kind: &str, image: &Image, found: &[Detection], spec: &ModelSpec) {
    let label = |detection: &Detection| match kind.starts_with("torchvision") {
        true => spec.classes[detection.class_index].id as usize,
        false => detection.class_index,
    };
    let same = |Original(original, score, x1, y1, x2, y2): &Original, detection: &Detection| {
        let bounding_box = BoundingBox { x1: *x1, y1: *y1, x2: *x2, y2: *y2 };
        label(detection) == *original
            && (detection.score - score).abs() <= MAX_SCORE_DIFFERENCE
            && detection.bounding_box.iou(&bounding_box) >= MIN_IOU
    };
    let missing = image.detections.iter().filter(|original| !found.iter().any(|detection| same(original, detection)));
    let missing: Vec<_> = missing.map(|Original(label, score, ..)| (label, score)).collect();
    let Image { file, part, count, detections } = image;
    println!("{kind} {file} {part:?}: {count} detections expected, {} found", found.len());
    assert!(detections.len() >= 40, "{kind} {file}: too few detections to prove anything");
    assert!(missing.is_empty(), "{kind} {file} {part:?}: missing {missing:?}");
    assert!(found.len().abs_diff(*count) * 50 <= *count, "{kind} {file} {part:?}: {} != {count}", found.len());
}

/// With tensor names from before torchvision 0.13, as in the published file.
#[test]
fn torchvision_v1_detections_match() {
    let old_name = |name: &str| {
        let name = ["inner_blocks.", "layer_blocks."].iter().fold(name.to_owned(), |name, part| {
            (0..3).fold(name, |name, i| name.replace(&format!("{part}{i}.0."), &format!("{part}{i}.")))
        });
        (0..4).fold(name, |name, i| name.replace(&format!("_head.conv.{i}.0."), &format!("_head.conv.{}.", 2 * i)))
    };
    assert_import_matches_original("torchvision-v1-coco", "retinanet_resnet50_fpn_coco-eeacb38b.safetensors", old_name);
}

/// DeepForest's model: labels from 0, and a file that says the thresholds.
#[test]
fn deepforest_detections_match() {
    assert_import_matches_original("torchvision-v1", "model.safetensors", str::to_owned);
}

#[test]
fn torchvision_v2_detections_match() {
    assert_import_matches_original("torchvision-v2", "weights.safetensors", str::to_owned);
}

/// With the prefix `module.` of `DataParallel`.
#[test]
fn yhenon_detections_match() {
    assert_import_matches_original("yhenon", "weights.safetensors", |name| format!("module.{name}"));
}

#[test]
fn mlperf_detections_match() {
    assert_import_matches_original("mlperf", "weights.safetensors", str::to_owned);
}

#[test]
fn detectron2_detections_match() {
    assert_import_matches_original("detectron2", "weights.safetensors", |name| format!("model.{name}"));
}

/// Its other published backbone: 101 layers.
#[test]
fn detectron2_resnet101_detections_match() {
    assert_import_matches_original("detectron2-r101", "weights.safetensors", str::to_owned);
}

/// With a backbone of torchvision, which no name or shape tells.
#[test]
fn detectron2_rgb_detections_match() {
    assert_import_matches_original("detectron2-rgb", "weights.safetensors", str::to_owned);
}

#[test]
fn mmdetection_detections_match() {
    assert_import_matches_original("mmdetection", "weights.safetensors", |name| format!("state_dict.{name}"));
}

#[test]
fn mmdetection_caffe_detections_match() {
    assert_import_matches_original("mmdetection-caffe", "weights.safetensors", str::to_owned);
}

#[test]
fn odtk_detections_match() {
    assert_import_matches_original("odtk", "weights.safetensors", |name| format!("state_dict.{name}"));
}
