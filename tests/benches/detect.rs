//! Time of `runtime detect` compared with its time in the network, and with Python: ResNet-50, 90 classes, 100 JPEG
//! files of several sizes that become inputs of 640x832 or 832x640. `PEER_PYTHON` names a Python with torch 2.11,
//! torchvision 0.26, onnxruntime and Pillow. It makes torchvision's weights, which are imported and exported here, so
//! that all programs detect the same; all take turns. Without it the weights are random.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::ensure;
use exporter::ExportOptions;
use image::{Rgb, RgbImage};
use models::Checkpoint;
use models::spec::NormKind;
use serde::Deserialize;
use tests::Peer;

/// Width and height of the images, repeated in this order.
const SIZES: [(u32, u32); 5] = [(640, 480), (1280, 960), (960, 1280), (2048, 1536), (800, 600)];

const IMAGES: usize = 100;

/// Images that a program processes before the next program's turn.
const TURN: usize = 25;

/// torchvision resizes 4:3 images to 624x832 and pads them to 640x832.
const SHORTER_SIDE: u32 = 624;

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let images = draw(folder)?;
    // For this image, the peer chooses the bias of the scores.
    std::fs::copy(&images[1], folder.join("image.jpg"))?;
    let python = std::env::var("PEER_PYTHON").ok();
    let checkpoint = match &python {
        Some(python) => import(python, folder)?,
        None => tests::checkpoint(&tests::spec("resnet50", NormKind::FrozenBatch, 90), 0),
    };
    let mut spec = checkpoint.spec;
    spec.preprocessing.shorter_side = SHORTER_SIDE;
    // The probe does not depend on the preprocessing.
    let checkpoint = Checkpoint { spec, ..checkpoint };
    tests::export_to(checkpoint, &folder.join("model.onnx"), &ExportOptions::default())?;

    let mut peers = Vec::new();
    for name in ["onnxruntime", "torchvision"] {
        if let Some(python) = &python {
            let mut peer = Peer::start(python, "detect.py", &[Path::new(name), folder])?;
            detect_with_peer(&mut peer, &images[..2])?;
            peers.push((name, peer, Times::default()));
        }
    }
    let program = tests::release_runtime()?;
    let mut ours = Times::default();
    detect_with_runtime(&program, folder, &images[..2])?;
    for turn in images.chunks(TURN) {
        ours.add(detect_with_runtime(&program, folder, turn)?);
        for (_, peer, times) in &mut peers {
            times.add(detect_with_peer(peer, turn)?);
        }
    }
    print(&ours, &peers);
    Ok(())
}

/// Prints the times of `runtime detect`, and those of each peer beside them.
fn print(ours: &Times, peers: &[(&str, Peer, Times)]) {
    println!(
        "ResNet-50, 640x832 and 832x640, {IMAGES} JPEG files, in turns of {TURN}: seconds, of which in the network"
    );
    println!(
        "  runtime detect      {:>7.2} {:>7.2}  {:.3} times the network",
        ours.seconds,
        ours.network,
        ours.seconds / ours.network
    );
    println!(
        "    with startup      {:>7.2}          {:.3} times the network",
        ours.program,
        ours.program / ours.network
    );
    for (name, _, times) in peers {
        println!(
            "  Python, {name:<11} {:>7.2} {:>7.2}  {:.2} times runtime detect",
            times.seconds,
            times.network,
            times.seconds / ours.seconds
        );
        let differing = times.detections.iter().zip(&ours.detections).filter(|(a, b)| a != b).count();
        println!("    {differing} of {IMAGES} images have a different number of detections");
    }
    let count: usize = ours.detections.iter().sum();
    println!("  detections per image: {}", count / IMAGES);
}

/// Times for some images, in seconds.
#[derive(Default, Deserialize)]
struct Times {
    /// From reading the files to their detections.
    seconds: f64,
    /// The part in the network; for torchvision, the part in the model, which is everything except reading.
    network: f64,
    /// Number of detections of each image.
    detections: Vec<usize>,
    /// From starting the program to its exit; 0 for peers.
    #[serde(default)]
    program: f64,
}

impl Times {
    fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.network += other.network;
        self.program += other.program;
        self.detections.extend(other.detections);
    }
}

fn detect_with_runtime(program: &Path, folder: &Path, images: &[PathBuf]) -> anyhow::Result<Times> {
    let json = folder.join("ours.json");
    let started = Instant::now();
    let mut command = Command::new(program);
    command.arg("detect").arg("--model").arg(folder.join("model.onnx")).arg("--json").arg(&json).args(images);
    if std::env::var_os("ORT_DYLIB_PATH").is_none() {
        let library = "../.deps/onnxruntime/lib/libonnxruntime.so";
        command.env("ORT_DYLIB_PATH", Path::new(env!("CARGO_MANIFEST_DIR")).join(library));
    }
    let output = command.output()?;
    let elapsed = started.elapsed().as_secs_f64();
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "`runtime detect` failed with {}: {stderr}", output.status);
    // `...; 71.003 s, 70.001 s of it in ONNX Runtime on cpu`
    let numbers = stderr.rsplit(';').next().unwrap_or_default().split(" s").map(|text| text.trim_matches([',', ' ']));
    let numbers: Vec<f64> = numbers.filter_map(|text| text.parse().ok()).collect();
    let [seconds, network] = numbers[..] else { anyhow::bail!("found no times in `{stderr}`") };
    let found: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(json)?)?;
    let detections = found.iter().map(|image| image["detections"].as_array().map_or(0, Vec::len)).collect();
    Ok(Times { seconds, network, detections, program: elapsed })
}

fn detect_with_peer(peer: &mut Peer, images: &[PathBuf]) -> anyhow::Result<Times> {
    Ok(serde_json::from_value(peer.request(&serde_json::json!(images))?)?)
}

/// Imports torchvision's RetinaNet with weights that the peer makes.
fn import(python: &str, folder: &Path) -> anyhow::Result<Checkpoint> {
    #[derive(clap::Parser)]
    struct Import {
        #[command(flatten)]
        args: trainer::import::ImportArgs,
    }
    let status = Command::new(python).arg(Peer::script("detect.py")).arg("make").arg(folder).status()?;
    ensure!(status.success(), "the peer failed with {status}");
    let [weights, checkpoint] = ["weights.pth", "imported.safetensors"].map(|name| folder.join(name));
    let Import { args } = clap::Parser::parse_from([Path::new("import"), &weights, Path::new("--out"), &checkpoint]);
    trainer::import::run(&args)?;
    Ok(Checkpoint::open(&checkpoint)?)
}

/// Draws images with details of many sizes and returns their paths.
fn draw(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (number, (width, height)) in SIZES.into_iter().cycle().take(IMAGES).enumerate() {
        let drawn = RgbImage::from_fn(width, height, |x, y| {
            let (x, y) = (x as f32 + 37.0 * number as f32, y as f32);
            let wave = |period: f32, tilt: f32| ((x + tilt * y) / period).sin() + ((y - tilt * x) / period).cos();
            Rgb([0.0, 0.2, 0.4].map(|shift: f32| {
                let sum = wave(90.0, 0.3 + shift) + 0.5 * wave(17.0, 0.7 - shift) + 0.3 * wave(3.0, shift);
                (128.0 + 30.0 * sum).clamp(0.0, 255.0) as u8
            }))
        });
        let path = folder.join(format!("{number:03}.jpg"));
        drawn.save(&path)?;
        files.push(path);
    }
    Ok(files)
}
