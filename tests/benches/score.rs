//! `runtime score` on a large data set, from the files to AP: `cargo bench -p tests --bench score`. `PEER_PYTHON` names a
//! Python; whatever it has of ultrafast-pycocotools 0.1.14, hotcoco 1.3.0, faster-coco-eval 1.8.0 and pycocotools 2.0.11 scores
//! the same files in turns and must give the same metrics.
//!
//! The data set is generated and resembles COCO's validation set: 5,000 images with 100 detections each, 80 classes of
//! which few are frequent, boxes of all sizes, one percent crowd regions.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use models::dataset::Rectangle;
use models::evaluation::{CocoResult, Summary, write_results};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::{Value, json};
use tests::Peer;

const IMAGES: usize = 5000;
const CLASSES: usize = 80;
const DETECTIONS_PER_IMAGE: usize = 100;
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 480.0;

/// Runs of each program.
const ROUNDS: usize = 7;
/// Runs of a peer that takes longer than [`SLOW`].
const SLOW_ROUNDS: usize = 1;
/// In seconds.
const SLOW: f64 = 3.0;

/// Metrics may differ only by the order of summation, in the last digits.
const TOLERANCE: f64 = 1e-12;

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let [truth, results] = ["truth.json", "results.json"].map(|name| folder.path().join(name));
    let (ground_truth, detections) = Generator(ChaCha8Rng::seed_from_u64(0)).generate();
    std::fs::write(&truth, ground_truth.to_string())?;
    write_results(&results, &detections)?;
    println!("{IMAGES} images, {CLASSES} classes, {} detections", detections.len());

    let mut programs = vec![Program::ours(&truth, &results)?];
    if let Ok(python) = std::env::var("PEER_PYTHON") {
        programs.extend(Program::peers(&python, &truth, &results)?);
    }
    for round in 0..ROUNDS {
        for program in &mut programs {
            if round < SLOW_ROUNDS || program.median(|run| run.process) < SLOW {
                program.run()?;
            }
        }
    }
    let [ours, peers @ ..] = &programs[..] else { unreachable!("ours is the first program") };
    let (seconds, summary) = (ours.median(|run| run.process), &ours.runs[0].summary);
    println!("runtime score: {seconds:.3} s, AP {:.6}", summary.ap);
    for peer in peers {
        let (process, inside) = (peer.median(|run| run.process), peer.median(|run| run.seconds));
        let difference = peer.runs.iter().map(|run| difference(summary, &run.summary)).fold(0.0, f64::max);
        println!(
            "{}: {process:.3} s, {:.2} times runtime score; without starting Python {inside:.3} s, {:.2} times; max \
             difference {difference:.1e}",
            peer.name,
            process / seconds,
            inside / seconds
        );
        ensure!(difference <= TOLERANCE, "{} gives different metrics", peer.name);
    }
    Ok(())
}

/// A program that scores the files and prints its metrics.
struct Program {
    name: String,
    command: Command,
    runs: Vec<Run>,
}

/// One run of a program.
#[derive(Deserialize)]
struct Run {
    /// Seconds from its start to its exit.
    #[serde(skip)]
    process: f64,
    /// Seconds from the files to the metrics, without the start of Python.
    #[serde(default)]
    seconds: f64,
    #[serde(flatten)]
    summary: Summary,
}

impl Program {
    /// `runtime`, built in release mode.
    fn ours(truth: &Path, results: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(tests::release_runtime()?);
        command.arg("score").arg("--truth").arg(truth).arg("--detections").arg(results).args(["--json", "-"]);
        Ok(Self { name: "runtime score".to_owned(), command, runs: Vec::new() })
    }

    /// The peers that are installed.
    fn peers(python: &str, truth: &Path, results: &Path) -> anyhow::Result<Vec<Self>> {
        let script: PathBuf = Peer::script("evaluation.py");
        let installed = Command::new(python).arg(&script).output().with_context(|| format!("cannot run `{python}`"))?;
        ensure!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
        let peer = |name: &str| {
            let mut command = Command::new(python);
            command.args([&script, Path::new(name), truth, results]);
            Self { name: name.to_owned(), command, runs: Vec::new() }
        };
        Ok(String::from_utf8(installed.stdout)?.lines().map(peer).collect())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        let output = self.command.output()?;
        let process = start.elapsed().as_secs_f64();
        ensure!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        let run: Run = serde_json::from_slice(&output.stdout).with_context(|| format!("{} printed", self.name))?;
        self.runs.push(Run { process, ..run });
        Ok(())
    }

    fn median(&self, seconds: fn(&Run) -> f64) -> f64 {
        tests::median(self.runs.iter().map(seconds).collect())
    }
}

fn difference(ours: &Summary, theirs: &Summary) -> f64 {
    let numbers = |summary: &Summary| {
        let s = summary;
        let precisions = [s.ap, s.ap50, s.ap75, s.ap_small, s.ap_medium, s.ap_large];
        let recalls = [s.ar1, s.ar10, s.ar100, s.ar_small, s.ar_medium, s.ar_large];
        precisions.into_iter().chain(recalls)
    };
    numbers(ours).zip(numbers(theirs)).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f64::max)
}

/// A generated object.
struct Object {
    class: usize,
    rectangle: Rectangle,
    area: f64,
    crowd: bool,
}

/// Generates images, objects and detections.
struct Generator(ChaCha8Rng);

impl Generator {
    /// Ground truth in COCO's format, and results.
    fn generate(mut self) -> (Value, Vec<CocoResult>) {
        let images = (0..IMAGES)
            .map(|id| json!({ "id": id, "file_name": format!("{id}.jpg"), "width": WIDTH, "height": HEIGHT }));
        let categories = (0..CLASSES).map(|id| json!({ "id": id, "name": format!("class {id}") }));
        let (mut annotations, mut results) = (Vec::new(), Vec::new());
        for image in 0..IMAGES {
            let objects = self.objects();
            self.detections(&objects, image, &mut results);
            for Object { class, rectangle, area, crowd } in objects {
                let Rectangle { x, y, width, height } = rectangle;
                annotations.push(json!({
                    // pycocotools never counts an annotation with id 0 as found.
                    "id": annotations.len() + 1,
                    "image_id": image,
                    "category_id": class,
                    "bbox": [x, y, width, height],
                    "area": area,
                    "iscrowd": u8::from(crowd),
                }));
            }
        }
        let truth = json!({
            "info": {},
            "images": images.collect::<Vec<_>>(),
            "categories": categories.collect::<Vec<_>>(),
            "annotations": annotations,
        });
        (truth, results)
    }

    /// One to five classes per image, each with one to twenty objects.
    fn objects(&mut self) -> Vec<Object> {
        let mut objects = Vec::new();
        for _ in 0..self.count(0.55, 5) {
            let class = self.class();
            for _ in 0..self.count(0.7, 20) {
                let rectangle = self.rectangle();
                // Like the area of a mask.
                let area = rectangle.area() * self.0.random_range(0.4..0.9);
                objects.push(Object { class, rectangle, area, crowd: self.0.random_bool(0.01) });
            }
        }
        objects
    }

    /// Detects most objects, some twice, some as another class. The rest is noise, half of it in the image's classes.
    fn detections(&mut self, objects: &[Object], image: usize, results: &mut Vec<CocoResult>) {
        let end = results.len() + DETECTIONS_PER_IMAGE;
        let mut push = |class: usize, score: f64, rectangle: Rectangle| {
            let Rectangle { x, y, width, height } = rectangle;
            let bbox = [x, y, width, height].map(|number| (number * 100.0).round() / 100.0);
            if results.len() < end {
                results.push(CocoResult { image_id: image as i64, category_id: class as i64, bbox, score });
            }
        };
        for object in objects.iter().filter(|object| !object.crowd) {
            let confidence = self.0.random_range(0.1_f64..1.0);
            if self.0.random_bool(0.85) {
                push(object.class, confidence, self.near(&object.rectangle, 0.12 * (1.1 - confidence)));
            }
            for _ in 0..self.count(0.6, 5) - 1 {
                push(object.class, confidence * self.0.random::<f64>(), self.near(&object.rectangle, 0.3));
            }
            if self.0.random_bool(0.3) {
                push(self.class(), 0.5 * confidence * self.0.random::<f64>(), self.near(&object.rectangle, 0.1));
            }
        }
        for _ in 0..DETECTIONS_PER_IMAGE {
            let object = objects.get(self.0.random_range(0..objects.len().max(1)));
            let class = object.map(|object| object.class).filter(|_| self.0.random_bool(0.5));
            let class = class.unwrap_or_else(|| self.class());
            push(class, 0.5 * self.0.random::<f64>().powi(3), self.rectangle());
        }
    }

    /// A random count from 1 to `max`; each further one has the probability `more`.
    fn count(&mut self, more: f64, max: usize) -> usize {
        let mut count = 1;
        while count < max && self.0.random_bool(more) {
            count += 1;
        }
        count
    }

    /// A random class: in almost a third of all cases the first, like `person` in COCO; the others get rarer and rarer.
    fn class(&mut self) -> usize {
        if self.0.random_bool(0.28) { 0 } else { (self.0.random::<f64>().powf(1.8) * CLASSES as f64) as usize }
    }

    /// A random box, from a few pixels to most of the image. The log of the size is uniform, so two fifths are small.
    fn rectangle(&mut self) -> Rectangle {
        let side = 2_f64.powf(self.0.random_range(3.0..8.5));
        let shape = 2_f64.powf(self.0.random_range(-0.8..0.8));
        let (width, height) = ((side * shape).min(WIDTH), (side / shape).min(HEIGHT));
        let (x, y) = (self.0.random::<f64>() * (WIDTH - width), self.0.random::<f64>() * (HEIGHT - height));
        Rectangle { x, y, width, height }
    }

    /// The rectangle with its corner and sides shifted by up to `fraction` of its sides.
    fn near(&mut self, rectangle: &Rectangle, fraction: f64) -> Rectangle {
        let mut shift = |side: f64| side * fraction * self.0.random_range(-1.0..1.0);
        let Rectangle { x, y, width, height } = *rectangle;
        Rectangle {
            x: x + shift(width),
            y: y + shift(height),
            width: width + shift(width),
            height: height + shift(height),
        }
    }
}
