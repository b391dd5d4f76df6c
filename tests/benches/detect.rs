//! What a picture costs beyond the network: ResNet-50, 80 classes, a JPEG of 1280x960 that becomes 640x832.

use std::time::Instant;

use image::{Rgb, RgbImage};
use models::spec::NormKind;
use ndarray::ArrayD;
use runtime::{Detector, DetectorOptions, picture};

const WARM_UP: usize = 2;
const RUNS: usize = 15;

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("retinanet.onnx");
    std::fs::write(&model, onnx()?)?;
    let jpeg = folder.path().join("picture.jpg");
    plasma(1280, 960).save(&jpeg)?;

    let detector = Detector::open(&model, DetectorOptions::default())?;
    let mut times = [const { Vec::new() }; 4];
    let mut detections = 0;
    let mut size = (0, 0);
    for run in 0..WARM_UP + RUNS {
        let start = Instant::now();
        let pixels = picture::read(&jpeg)?;
        let read = start.elapsed();
        let input = detector.preprocess(&pixels)?;
        let preprocessed = start.elapsed();
        let outputs = detector.run(&input)?;
        let inferred = start.elapsed();
        detections = detector.postprocess(&input, &outputs)?.len();
        let finished = start.elapsed();
        size = (input.placement.padded_height, input.placement.padded_width);
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

/// A random network that finds something, but not everywhere.
fn onnx() -> anyhow::Result<Vec<u8>> {
    let mut spec = tests::spec("resnet50", NormKind::FrozenBatch, 80);
    spec.preprocessing.shorter_side = 624;
    let checkpoint = tests::checkpoint(&spec, 0);
    let mut tensors = checkpoint.tensors;
    let bias = tensors.get_mut("classificationModel.output.bias").expect("every network has this tensor");
    *bias = ArrayD::from_elem(bias.shape(), BIAS);
    Ok(exporter::to_onnx(&spec, tensors, &checkpoint.provenance)?)
}

/// Lets some thousand of the 8 million scores of the random network exceed the threshold.
const BIAS: f32 = -7.0;

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
