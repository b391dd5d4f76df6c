//! What a picture costs beyond the network: ResNet-50, 80 classes, a JPEG of 1280x960 that becomes 640x832.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use image::{Rgb, RgbImage};
use models::Checkpoint;
use models::spec::NormKind;
use ndarray::ArrayD;
use runtime::{Detector, DetectorOptions, View, picture};

const WARM_UP: usize = 2;
const RUNS: usize = 15;

/// Scores above the threshold, of the 8 million of a picture.
const CANDIDATES: usize = 2000;

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let jpeg = folder.path().join("picture.jpg");
    plasma(1280, 960).save(&jpeg)?;
    let detector = detector(&folder.path().join("retinanet.onnx"), &jpeg)?;
    let mut times = [const { Vec::new() }; 4];
    let mut detections = 0;
    let mut size = (0, 0);
    for run in 0..WARM_UP + RUNS {
        let start = Instant::now();
        let pixels = picture::read(&jpeg)?;
        let read = start.elapsed();
        let view = whole(&detector, &pixels)?;
        let preprocessed = start.elapsed();
        let outputs = detector.run(&[&view])?;
        let inferred = start.elapsed();
        detections = detector.postprocess(&view, &outputs, 0)?.len();
        let finished = start.elapsed();
        size = view.size().into();
        if run >= WARM_UP {
            let stages = [read, preprocessed - read, inferred - preprocessed, finished - inferred];
            for (times, stage) in times.iter_mut().zip(stages) {
                times.push(stage.as_secs_f64() * 1e3);
            }
        }
    }
    let [read, preprocess, run, postprocess] = times.map(median);
    println!("ResNet-50, {}x{}, 80 classes, {detections} detections; medians of {RUNS} runs in ms:", size.0, size.1);
    println!("  read {read:.1}, preprocess {preprocess:.1}, run {run:.1}, postprocess {postprocess:.1}");
    println!("  beyond run: {:.1} % of run", 100.0 * (read + preprocess + postprocess) / run);
    Ok(())
}

/// A random network, biased so that [`CANDIDATES`] of its scores of the picture exceed the threshold.
fn detector(model: &Path, jpeg: &Path) -> anyhow::Result<Detector> {
    let mut spec = tests::spec("resnet50", NormKind::FrozenBatch, 80);
    spec.preprocessing.shorter_side = 624;
    let checkpoint = tests::checkpoint(&spec, 0);
    let threshold = f64::from(spec.postprocessing.score_threshold);
    // So low that no score is rounded to 1, whence no logit could be told.
    let low = -40.0;
    let biased = open(model, &checkpoint, low)?;
    let outputs = biased.run(&[&whole(&biased, &picture::read(jpeg)?)?])?.into_dense()?;
    let mut scores: Vec<_> = outputs.scores().iter().copied().collect();
    let (_, last, _) = scores.select_nth_unstable_by(CANDIDATES, |a, b| b.total_cmp(a));
    open(model, &checkpoint, low + logit(threshold) - logit(f64::from(*last)))
}

fn whole(detector: &Detector, picture: &RgbImage) -> anyhow::Result<View> {
    Ok(detector.prepare(picture, detector.looks(picture)[0])?)
}

fn open(model: &Path, checkpoint: &Checkpoint, bias: f64) -> anyhow::Result<Detector> {
    let mut tensors = checkpoint.tensors.clone();
    let output = tensors.get_mut("classificationModel.output.bias").context("every network has this tensor")?;
    *output = ArrayD::from_elem(output.shape(), bias as f32);
    std::fs::write(model, exporter::to_onnx(&checkpoint.spec, tensors, &checkpoint.provenance)?)?;
    Ok(Detector::open(model, DetectorOptions::default())?)
}

fn logit(score: f64) -> f64 {
    (score / (1.0 - score)).ln()
}

/// A picture with details of many sizes.
fn plasma(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x as f32, y as f32);
        let wave = |period: f32, tilt: f32| ((x + tilt * y) / period).sin() + ((y - tilt * x) / period).cos();
        let level = |shift: f32| {
            let sum = wave(90.0, 0.3 + shift) + 0.5 * wave(17.0, 0.7 - shift) + 0.3 * wave(3.0, shift);
            (128.0 + 30.0 * sum).clamp(0.0, 255.0) as u8
        };
        Rgb([level(0.0), level(0.2), level(0.4)])
    })
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
