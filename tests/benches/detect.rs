//! What `runtime detect` takes beyond the network, and against Python: ResNet-50 with 90 classes, 100 JPEG files of mixed sizes that
//! become 640x832 or 832x640. The network is torchvision's, imported and exported, so that all find the same. When `PEER_PYTHON`
//! names a Python with torch 2.11, torchvision 0.26, onnxruntime and Pillow, it makes the weights and detects in turns with us;
//! otherwise weights are random.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use exporter::{ExportOptions, export};
use image::{Rgb, RgbImage};
use models::spec::NormKind;
use models::{AtomicFile, Checkpoint};
use runtime::EngineOptions;
use serde::Deserialize;
use tests::Peer;

/// Sizes of the images, which take turns.
const SIZES: [(u32, u32); 5] = [(640, 480), (1280, 960), (960, 1280), (2048, 1536), (800, 600)];

const IMAGES: usize = 100;

/// Images that one takes before it is another's turn.
const TURN: usize = 25;

/// Torchvision's transform for 4:3 gives 624x832, which is padded.
const SHORTER_SIDE: u32 = 624;

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let images = draw(folder)?;
    std::fs::copy(&images[1], folder.join("image.jpg"))?;
    let python = std::env::var("PEER_PYTHON").ok();
    let checkpoint = match &python {
        Some(python) => import(python, folder)?,
        None => tests::checkpoint(&tests::spec("resnet50", NormKind::FrozenBatch, 90), 0),
    };
    let mut spec = checkpoint.spec;
    spec.preprocessing.shorter_side = SHORTER_SIDE;
    // The probe is of the network, whatever the size of images.
    let checkpoint = Checkpoint { spec, ..checkpoint };
    let options = ExportOptions::default();
    export(checkpoint, AtomicFile::create(&folder.join("model.onnx"))?, &options, &EngineOptions::default())?;

    let mut peers = Vec::new();
    for name in ["onnxruntime", "torchvision"] {
        if let Some(python) = &python {
            let mut peer = Peer::start(python, "detect.py", &[Path::new(name), folder])?;
            detects(&mut peer, &images[..2])?;
            peers.push((name, peer, Times::default()));
        }
    }
    let program = program()?;
    let mut ours = Times::default();
    ours_detects(&program, folder, &images[..2])?;
    for turn in images.chunks(TURN) {
        ours.add(ours_detects(&program, folder, turn)?);
        for (_, peer, times) in &mut peers {
            times.add(detects(peer, turn)?);
        }
    }
    println!(
        "ResNet-50, 640x832 and 832x640, {IMAGES} JPEG files, in turns of {TURN}; s in all, of which network; ratio"
    );
    println!(
        "  runtime detect      {:>7.2} {:>7.2}  {:.3} times the network",
        ours.seconds,
        ours.network,
        ours.seconds / ours.network
    );
    println!(
        "    with its start    {:>7.2}          {:.3} times the network",
        ours.program,
        ours.program / ours.network
    );
    for (name, _, times) in &peers {
        println!(
            "  Python, {name:<11} {:>7.2} {:>7.2}  {:.2} times runtime detect",
            times.seconds,
            times.network,
            times.seconds / ours.seconds
        );
        let differing = times.detections.iter().zip(&ours.detections).filter(|(a, b)| a != b).count();
        println!("    {differing} of {IMAGES} images have another number of detections than with us");
    }
    let count: usize = ours.detections.iter().sum();
    println!("  detections in an image: {}", count / IMAGES);
    Ok(())
}

/// What images took, in seconds.
#[derive(Default, Deserialize)]
struct Times {
    /// Reading to detections.
    seconds: f64,
    /// Of it in the network; of torchvision in the model, which does all but read.
    network: f64,
    /// Numbers of detections of the images.
    detections: Vec<usize>,
    /// From the start of the program to its end.
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

/// The program, built as users have it.
fn program() -> anyhow::Result<PathBuf> {
    let status =
        Command::new(env!("CARGO")).args(["build", "--release", "--quiet", "--package", "runtime"]).status()?;
    ensure!(status.success(), "cannot build runtime");
    let bench = std::env::current_exe()?;
    let folder = bench.ancestors().nth(2).context("a benchmark lies in `deps`")?;
    Ok(folder.join("runtime"))
}

fn ours_detects(program: &Path, folder: &Path, images: &[PathBuf]) -> anyhow::Result<Times> {
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
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "runtime detect ends with {}: {said}", output.status);
    // `...; 71.003 s, 70.001 s of it in ONNX Runtime on cpu`
    let numbers = said.rsplit(';').next().unwrap_or_default().split(" s").map(|text| text.trim_matches([',', ' ']));
    let numbers: Vec<f64> = numbers.filter_map(|text| text.parse().ok()).collect();
    let [seconds, network] = numbers[..] else { anyhow::bail!("no times in: {said}") };
    let found: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(json)?)?;
    let detections = found.iter().map(|image| image["detections"].as_array().map_or(0, Vec::len)).collect();
    Ok(Times { seconds, network, detections, program: elapsed })
}

fn detects(peer: &mut Peer, images: &[PathBuf]) -> anyhow::Result<Times> {
    Ok(serde_json::from_value(peer.ask(&serde_json::json!(images))?)?)
}

/// Torchvision's network, with weights that the peer makes.
fn import(python: &str, folder: &Path) -> anyhow::Result<Checkpoint> {
    #[derive(clap::Parser)]
    struct Import {
        #[command(flatten)]
        args: trainer::import::ImportArgs,
    }
    let status = Command::new(python).arg(Peer::script("detect.py")).arg("make").arg(folder).status()?;
    ensure!(status.success(), "the peer ends with {status}");
    let [weights, checkpoint] = ["weights.pth", "imported.safetensors"].map(|name| folder.join(name));
    let Import { args } = clap::Parser::parse_from([Path::new("import"), &weights, Path::new("--out"), &checkpoint]);
    trainer::import::run(&args)?;
    Ok(Checkpoint::open(&checkpoint)?)
}

/// Images with details of many sizes.
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
