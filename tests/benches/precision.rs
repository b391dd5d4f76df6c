//! Time of a run in ONNX Runtime in each precision: ResNet-50, 80 classes, 640x832; the files take turns. When
//! `PEER_PYTHON` names a Python with torch 2.11, torchvision 0.26, onnx and onnxruntime, also measures PyTorch's
//! export of torchvision's RetinaNet and our float32 file quantized by ONNX Runtime's quantizer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use exporter::{ExportOptions, Precision, PrecisionOptions};
use image::{Rgb, RgbImage};
use models::Checkpoint;
use models::spec::{NormKind, P6From};
use ndarray::Array4;
use runtime::{ActivationReader, EngineOptions};
use tests::{Peer, median};

const WARM_UP: usize = 1;
const RUNS: usize = 9;
/// Height and width of the input.
const SIDES: [usize; 2] = [640, 832];

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut spec = tests::spec("resnet50", NormKind::FrozenBatch, 80);
    // As in torchvision.
    spec.pyramid.p6_from = P6From::P5;
    spec.preprocessing.shorter_side = 624;
    let checkpoint = tests::checkpoint(&spec, 0);
    let image = folder.path().join("image.png");
    let level = |x: u32, y: u32| (128.0 + 60.0 * (x as f32 / 17.0).sin() + 60.0 * (y as f32 / 23.0).cos()) as u8;
    RgbImage::from_fn(1280, 960, |x, y| Rgb([level(x, y), level(y, x), level(x + y, x)])).save(&image)?;

    let mut files = Vec::new();
    for precision in [Precision::Fp32, Precision::Int8, Precision::Fp16] {
        let path = folder.path().join(format!("{precision}.onnx"));
        write(checkpoint.clone(), &path, precision, &image)?;
        files.push((precision.to_string(), path));
    }
    if let Ok(python) = std::env::var("PEER_PYTHON") {
        files.extend(peers(&python, folder.path())?);
    }
    drop(checkpoint);
    let times = measure(&files)?;
    println!("ResNet-50, {}x{}, 80 classes; medians of {RUNS} runs:", SIDES[0], SIDES[1]);
    for ((name, path), time) in files.iter().zip(&times) {
        let megabytes = std::fs::metadata(path)?.len() as f64 / 1e6;
        println!("  {name:<24} {:>7.0} ms {megabytes:>6.1} MB   {:.2} times fp32's speed", 1e3 * time, times[0] / time);
    }
    Ok(())
}

fn write(checkpoint: Checkpoint, path: &Path, precision: Precision, image: &Path) -> anyhow::Result<()> {
    let precision = PrecisionOptions { precision, calibration: vec![image.to_owned()], ..PrecisionOptions::default() };
    let options = ExportOptions { precision, ..ExportOptions::default() };
    tests::export_to(checkpoint, path, &options)
}

/// Has the peer write its ONNX files next to ours, and returns their names and paths.
fn peers(python: &str, folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut command = Command::new(python);
    command.arg(Peer::script("onnx_files.py")).arg(folder);
    let status = command.status().with_context(|| format!("cannot run `{python}`"))?;
    ensure!(status.success(), "the peer failed with {status}");
    let file = |name: &str| (name.to_owned(), folder.join(format!("{}.onnx", name.split(' ').next().unwrap_or(name))));
    Ok(vec![file("torchvision export"), file("quantizer of onnxruntime")])
}

/// Median time of a run of each file, in seconds.
fn measure(files: &[(String, PathBuf)]) -> anyhow::Result<Vec<f64>> {
    let images = Array4::from_shape_fn((1, 3, SIDES[0], SIDES[1]), |(_, c, y, x)| {
        ((x as f32 / 9.0).sin() + (y as f32 / 7.0).cos()) * (1.0 + c as f32) / 2.0
    });
    let open = |(name, path): &(String, PathBuf)| -> anyhow::Result<ActivationReader> {
        Ok(ActivationReader::from_bytes(name, &std::fs::read(path)?, &EngineOptions::default())?)
    };
    let mut readers = files.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let mut times = vec![Vec::new(); readers.len()];
    for run in 0..WARM_UP + RUNS {
        for (reader, times) in readers.iter_mut().zip(&mut times) {
            let start = Instant::now();
            reader.read(images.view(), |_, _| {})?;
            if run >= WARM_UP {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(times.into_iter().map(median).collect())
}
