//! Weights of other projects find here what they find there: import, export, detection.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};

use exporter::{ExportOptions, export};
use image::RgbImage;
use models::{AtomicFile, BoundingBox, Checkpoint, ModelSpec};
use runtime::{Detection, Detector, DetectorOptions, EngineOptions, image_file};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;

/// Largest difference of a score.
const SCORE: f32 = 1e-3;

/// Smallest overlap of a box with its counterpart.
const OVERLAP: f32 = 0.99;

/// Outputs that torchvision has and that are no class of COCO, background first.
const UNUSED: [usize; 11] = [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83];

/// A network of another project, and what it finds in images: an entry of `golden/import.json`.
#[derive(Deserialize)]
struct Case {
    kind: String,
    /// Scale of the weights that say scores.
    scores: f64,
    /// Scale of those that say boxes.
    boxes: f64,
    /// Middle of the scores' biases.
    bias: f32,
    images: Vec<Image>,
}

#[derive(Deserialize)]
struct Image {
    file: String,
    /// Left, top, right, bottom; all of it if absent.
    part: Option<[u32; 4]>,
    /// How many detections there are.
    count: usize,
    /// The best of them.
    detections: Vec<Original>,
}

/// Label, score, and the box's edges.
#[derive(Deserialize)]
struct Original(usize, f32, f32, f32, f32, f32);

fn golden(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)).unwrap()
}

fn case(kind: &str) -> Case {
    let cases: Vec<Case> = serde_json::from_str(&golden("import.json")).unwrap();
    cases.into_iter().find(|case| case.kind == kind).unwrap()
}

/// Numbers that follow from name and place. `golden/import.py`: uniform
fn uniform(name: &str, count: usize, low: f32, high: f32) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    let number = |place: u64| {
        let x = seed.wrapping_add(place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let x = x ^ (x >> 31);
        low + (x >> 40) as f32 / 16_777_216.0 * (high - low)
    };
    (1..=count as u64).map(number).collect()
}

impl Case {
    /// The tensor of that name. `golden/import.py`: weight
    fn weight(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        let scores = name.contains("cls_logits") || name.contains("classificationModel.output");
        let boxes = name.contains("bbox_reg") || name.contains("regressionModel.output");
        let stem = name.strip_prefix("backbone.body.").unwrap_or(name);
        let stem = stem.starts_with("conv1.") || stem.starts_with("bn1.");
        if shape.len() == 4 {
            let gain = match (scores, boxes, stem) {
                (true, ..) => self.scores,
                (_, true, _) => self.boxes,
                (.., true) => 0.01,
                _ => 1.0,
            };
            let bound = ((6.0 / shape[1..].iter().product::<usize>() as f64).sqrt() * gain) as f32;
            uniform(name, count, -bound, bound)
        } else if name.ends_with("running_var") {
            if stem { uniform(name, count, 0.5e-4, 1.5e-4) } else { uniform(name, count, 0.5, 1.5) }
        } else if scores {
            let mut values = uniform(name, count, self.bias - 0.5, self.bias + 0.5);
            if self.kind.starts_with("torchvision") {
                for row in values.chunks_mut(91) {
                    UNUSED.iter().for_each(|output| row[*output] = -30.0);
                }
            }
            values
        } else if name.ends_with("running_mean") && stem {
            uniform(name, count, -0.001, 0.001)
        } else if name.ends_with("bias") || name.ends_with("running_mean") {
            uniform(name, count, -0.1, 0.1)
        } else if name.contains(".bn3.") {
            uniform(name, count, 0.1, 0.3)
        } else {
            uniform(name, count, 0.7, 1.3)
        }
    }

    /// Writes the weights as the other project has them, `rename` aside.
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
            let number = if name.ends_with("num_batches_tracked") { Dtype::I64 } else { Dtype::F32 };
            (rename(name), TensorView::new(number, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, path).unwrap();
    }
}

/// `trainer import` as the command line has it.
#[derive(clap::Parser)]
struct Import {
    #[command(flatten)]
    args: trainer::import::ImportArgs,
}

fn import(file: &Path, out: &Path) {
    let Import { args } = clap::Parser::parse_from([Path::new("import"), file, Path::new("--out"), out]);
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

/// Imports the weights of `kind`, exports them, and looks for every detection of the original.
fn finds_what_the_original_finds(kind: &str, file_name: &str, rename: impl Fn(&str) -> String) {
    let Some(data) = std::env::var_os("RETINANET_DATA").map(PathBuf::from) else {
        eprintln!("skipped: RETINANET_DATA is not set");
        return;
    };
    let case = case(kind);
    let folder = tempfile::tempdir().unwrap();
    let [source, checkpoint, onnx] =
        [file_name, "imported.safetensors", "retinanet.onnx"].map(|name| folder.path().join(name));
    case.write(&source, rename);
    import(&source, &checkpoint);
    std::fs::remove_file(&source).unwrap();
    let checkpoint = Checkpoint::open(&checkpoint).unwrap();
    let origin = checkpoint.provenance.origin.clone().unwrap();
    assert_eq!((origin.kind.as_str(), origin.file.as_str(), origin.sha256.len()), (kind, file_name, 64));
    export(checkpoint, AtomicFile::create(&onnx).unwrap(), &ExportOptions::default(), &EngineOptions::default())
        .unwrap();
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
            && (detection.score - score).abs() <= SCORE
            && detection.bounding_box.iou(&bounding_box) >= OVERLAP
    };
    let lost = image.detections.iter().filter(|original| !found.iter().any(|detection| same(original, detection)));
    let lost: Vec<_> = lost.map(|Original(label, score, ..)| (label, score)).collect();
    let Image { file, part, count, detections } = image;
    println!("{kind} {file} {part:?}: {count} detections, here {}", found.len());
    assert!(detections.len() >= 40, "{kind} {file}: so few detections prove little");
    assert!(lost.is_empty(), "{kind} {file} {part:?}: lost {lost:?}");
    assert!(found.len().abs_diff(*count) * 50 <= *count, "{kind} {file} {part:?}: {} for {count}", found.len());
}

/// Under the names of torchvision before 0.13, which the published file has.
#[test]
fn torchvision_v1() {
    let old = |name: &str| {
        let name = ["inner_blocks.", "layer_blocks."].iter().fold(name.to_owned(), |name, part| {
            (0..3).fold(name, |name, i| name.replace(&format!("{part}{i}.0."), &format!("{part}{i}.")))
        });
        (0..4).fold(name, |name, i| name.replace(&format!("_head.conv.{i}.0."), &format!("_head.conv.{}.", 2 * i)))
    };
    finds_what_the_original_finds("torchvision-v1-coco", "retinanet_resnet50_fpn_coco-eeacb38b.safetensors", old);
}

#[test]
fn torchvision_v2() {
    finds_what_the_original_finds("torchvision-v2", "weights.safetensors", str::to_owned);
}

/// Within a network that trained on several devices.
#[test]
fn yhenon() {
    finds_what_the_original_finds("yhenon", "weights.safetensors", |name| format!("module.{name}"));
}

#[test]
fn mlperf() {
    finds_what_the_original_finds("mlperf", "weights.safetensors", str::to_owned);
}
