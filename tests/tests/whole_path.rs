//! From checkpoint to detections: the exported file and libtorch detect the same.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::Path;

use exporter::ExportOptions;
use image::{Rgb, RgbImage};
use models::dataset::{Annotation, Dataset, Image, Rectangle};
use models::spec::{Class, NormKind};
use models::{Anchors, ModelSpec, RetinaNet, RgbView, parameters, preprocess};
use ndarray::{Axis, Ix3};
use runtime::{Detection, Detector, DetectorOptions, postprocess};
use tch::{Device, Tensor};
use trainer::parameters::{Layout, Parameters, to_array};
use trainer::torch::{Inference, Torch};

/// Maximum difference of scores between the two.
const MAX_SCORE_DIFFERENCE: f32 = 1e-4;

/// Minimum IoU of matching boxes.
const MIN_IOU: f32 = 0.99;

/// Maximum difference of AP and AR: an IoU close to a threshold may fall on either side of it.
const MAX_AP_DIFFERENCE: f64 = 0.02;

fn spec() -> ModelSpec {
    let mut spec = tests::spec("resnet18", NormKind::Batch, 4);
    spec.preprocessing.shorter_side = 96;
    spec.preprocessing.longer_side = 160;
    // The random weights give high scores to many anchors; a high threshold limits the number of detections.
    spec.postprocessing.score_threshold = 0.6;
    spec
}

fn image(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let inside =
            |left: u32, top: u32, side: u32| (left..left + side).contains(&x) && (top..top + side).contains(&y);
        if inside(20, 30, 70) {
            Rgb([220, 40, 30])
        } else if inside(width / 2, height / 3, 50) {
            Rgb([30, 60, 200])
        } else {
            Rgb([(x % 256) as u8, (y % 256) as u8, ((x + y) % 97) as u8])
        }
    })
}

/// Boxes are in pixels of `image`.
fn detect_with_libtorch(network: &RetinaNet<Inference>, image: &RgbImage, spec: &ModelSpec) -> Vec<Detection> {
    let view = RgbView::new(image.width(), image.height(), image.as_raw()).unwrap();
    let input = preprocess(view, &spec.preprocessing);
    let (_, height, width) = input.pixels.dim();
    let pixels = Tensor::from_slice(input.pixels.as_slice().unwrap()).view([1, 3, height as i64, width as i64]);
    let predictions = tch::no_grad(|| network.forward(&Torch(pixels)));
    let [scores, offsets] = [predictions.scores(), predictions.offsets]
        .map(|tensor| to_array(&tensor.0).into_dimensionality::<Ix3>().unwrap().index_axis_move(Axis(0), 0));
    let anchors = Anchors::new(&spec.anchors, height, width);
    postprocess(scores.view(), offsets.view(), &anchors, &input.placement, spec)
}

#[test]
fn the_exported_file_and_libtorch_detect_the_same() {
    let spec = spec();
    let checkpoint = tests::checkpoint(&spec, 3);
    let weights =
        Parameters::from_tensors(&parameters(&spec).unwrap(), Layout::default(), Device::Cpu, &checkpoint.tensors);
    let network = RetinaNet::new(&spec, &weights).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("retinanet.onnx");
    tests::export_to(checkpoint, &path, &ExportOptions::default()).unwrap();
    let detector = Detector::open(&path, DetectorOptions::default()).unwrap();
    assert_eq!(detector.spec(), &spec, "the file contains the spec");

    for (width, height) in [(200, 130), (120, 333), (96, 96)] {
        let image = image(width, height);
        let expected = detect_with_libtorch(&network, &image, &spec);
        let found = detector.detect(&image).unwrap();
        assert!(expected.len() > 5, "{width}x{height}: only {} detections", expected.len());
        // Rounding adds or drops detections with scores close to the threshold or to that of an overlapping box.
        assert!(found.len().abs_diff(expected.len()) <= expected.len() / 50, "{} != {}", found.len(), expected.len());
        let has_counterpart = |detection: &&Detection| {
            found.iter().any(|other| {
                other.class_index == detection.class_index
                    && (other.score - detection.score).abs() <= MAX_SCORE_DIFFERENCE
                    && other.bounding_box.iou(&detection.bounding_box) >= MIN_IOU
            })
        };
        let matched = expected.iter().filter(has_counterpart).count();
        assert!(matched * 50 >= expected.len() * 49, "{matched} of {} detections have a counterpart", expected.len());
        for detection in &found {
            let b = detection.bounding_box;
            assert!(b.x1 >= 0.0 && b.y1 >= 0.0 && b.x2 <= width as f32 + 1e-3 && b.y2 <= height as f32 + 1e-3, "{b:?}");
        }
    }
}

/// The command line of `trainer eval`.
#[derive(clap::Parser)]
struct Evaluation {
    #[command(flatten)]
    args: trainer::eval::EvalArgs,
}

/// The JSON that `trainer eval` writes.
fn evaluate(folder: &Path, network: &[&str]) -> serde_json::Value {
    let json = folder.join("numbers.json");
    let data = folder.join("truth.json");
    let fixed = ["eval", "--data", data.to_str().unwrap(), "--json", json.to_str().unwrap(), "--batch-size", "3"];
    let details = ["--voc-iou", "0.5", "--confusion", "0"];
    let Evaluation { args } = clap::Parser::parse_from(fixed.iter().chain(&details).chain(network));
    trainer::eval::run(&args).unwrap();
    serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap()
}

/// The ground truth is a part of the network's own detections, with other category ids, so that AP is not zero.
#[test]
fn a_checkpoint_and_its_exported_file_have_the_same_ap() {
    let spec = spec();
    // Smaller weights, since scores close to 1 could not be distinguished.
    let mut tensors = tests::tensors(&spec, 3);
    tensors.get_mut("classificationModel.output.weight").unwrap().mapv_inplace(|weight| 0.1 * weight);
    let checkpoint = tests::checkpoint_of(&spec, tensors);
    let folder = tempfile::tempdir().unwrap();
    let [onnx, weights] = ["retinanet.onnx", "best.safetensors"].map(|name| folder.path().join(name));
    checkpoint.write(&weights).unwrap();
    tests::export_to(checkpoint, &onnx, &ExportOptions::default()).unwrap();
    let detector = Detector::open(&onnx, DetectorOptions::default()).unwrap();

    let classes = spec.classes.iter().rev().zip((10..).step_by(7));
    let classes: Vec<_> = classes.map(|(class, id)| Class { id, ..class.clone() }).collect();
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    // Several sizes: images of a batch must not change each other's padding.
    for (index, (width, height)) in [(200, 130), (120, 333), (96, 96), (208, 130), (120, 300)].into_iter().enumerate() {
        let image = image(width, height);
        let file_name = format!("{index}.png");
        image.save(folder.path().join(&file_name)).unwrap();
        images.push(Image { id: index as i64, file_name, width, height });
        for detection in detector.detect(&image).unwrap().iter().step_by(3).take(4) {
            let class_index = classes.iter().position(|c| c.name == spec.classes[detection.class_index].name).unwrap();
            let rectangle = Rectangle::from(detection.bounding_box);
            let (id, area) = (1 + annotations.len() as i64, rectangle.area());
            annotations.push(Annotation {
                id,
                image: index,
                class_index,
                rectangle,
                area,
                crowd: false,
                difficult: false,
            });
        }
    }
    let truth = Dataset::new("", images, annotations, classes).unwrap();
    truth.write_coco(&folder.path().join("truth.json")).unwrap();

    let torch = evaluate(folder.path(), &["--checkpoint", weights.to_str().unwrap()]);
    let onnx = evaluate(folder.path(), &["--model", onnx.to_str().unwrap()]);
    assert!(torch["AR100"].as_f64().unwrap() > 0.8, "the network detects its own detections again");
    for name in ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"] {
        let [torch, onnx] = [&torch, &onnx].map(|numbers| numbers[name].as_f64().unwrap());
        assert!((torch - onnx).abs() < MAX_AP_DIFFERENCE, "{name}: {torch} != {onnx}");
    }
    assert_eq!(torch["classes"].as_array().unwrap().len(), 4);
    let confusion_total = |numbers: &serde_json::Value| -> u64 {
        let rows = numbers["confusion"]["counts"].as_array().unwrap().iter();
        rows.flat_map(|row| row.as_array().unwrap()).map(|count| count.as_u64().unwrap()).sum()
    };
    let [torch, onnx] = [&torch, &onnx].map(confusion_total);
    // More than the 100 detections per class and image that COCO's AP uses, so that a limit would be noticed.
    assert!(torch > 2 * 100 * 4 * truth.images().len() as u64, "{torch}");
    assert!(torch.abs_diff(onnx) <= torch / 50, "{torch} != {onnx}");
}
