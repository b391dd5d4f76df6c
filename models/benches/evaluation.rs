//! COCO evaluation of a large data set: `cargo bench -p models --bench evaluation`. If `PEER_PYTHON` is a Python with
//! pycocotools 2.0.11 and optionally faster-coco-eval 1.8.0, these evaluate the same files, alternating with this
//! crate, and must give the same metrics.
//!
//! The data set is generated and resembles COCO's validation set: 5,000 images with 100 detections each, 80 classes of
//! which few are frequent, boxes of all sizes, one percent crowd regions.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use models::dataset::{Annotation, Dataset, Image, Rectangle};
use models::evaluation::{CocoResult, Summary, evaluate, locate, write_results};
use models::spec::Class;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

const IMAGES: usize = 5000;
const CLASSES: usize = 80;
const DETECTIONS_PER_IMAGE: usize = 100;
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 480.0;

/// Rounds. Each runs this crate, then the peers.
const ROUNDS: usize = 3;
/// Runs of this crate per round.
const RUNS: usize = 5;

/// Metrics may differ only by the order of summation, in the last digits.
const TOLERANCE: f64 = 1e-9;

fn main() -> anyhow::Result<()> {
    let (truth, results) = Generator(ChaCha8Rng::seed_from_u64(0)).generate();
    let detections = locate(&truth, &results).boxes;
    println!("{IMAGES} images, {CLASSES} classes, {} boxes, {} detections", truth.annotations().len(), results.len());
    let folder = tempfile::tempdir()?;
    let mut peers = match std::env::var("PEER_PYTHON") {
        Ok(python) => peers(&python, folder.path(), &truth, &results)?,
        Err(_) => Vec::new(),
    };
    let (mut ours, mut theirs) = (Vec::new(), BTreeMap::new());
    let mut summary = None;
    for _ in 0..ROUNDS {
        for _ in 0..RUNS {
            let start = Instant::now();
            summary = Some(evaluate(truth.annotations(), &detections, CLASSES).summary);
            ours.push(start.elapsed().as_secs_f64());
        }
        for peer in &mut peers {
            let result = peer()?;
            theirs.entry(result.name.clone()).or_insert_with(Vec::new).push(result);
        }
    }
    let summary = summary.context("no round was run")?;
    let ours = median(ours);
    println!("evaluate: {:.1} ms, AP {:.6}", 1e3 * ours, summary.ap);
    for (name, results) in theirs {
        let difference = results.iter().map(|result| difference(&summary, &result.summary)).fold(0.0, f64::max);
        let seconds = median(results.into_iter().map(|result| result.seconds).collect());
        println!("{name}: {seconds:.2} s, ratio {:.1}, max difference {difference:.1e}", seconds / ours);
        ensure!(difference <= TOLERANCE, "{name} gives different metrics");
    }
    Ok(())
}

/// The result of a peer's run.
#[derive(Deserialize)]
struct PeerResult {
    name: String,
    seconds: f64,
    #[serde(flatten)]
    summary: Summary,
}

/// Starts every installed peer. Each returned function runs one evaluation.
fn peers(
    python: &str,
    folder: &Path,
    truth: &Dataset,
    results: &[CocoResult],
) -> anyhow::Result<Vec<impl FnMut() -> anyhow::Result<PeerResult> + use<>>> {
    let [truth_path, results_path] = ["truth.json", "results.json"].map(|name| folder.join(name));
    truth.write_coco(&truth_path)?;
    write_results(&results_path, results)?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/peer/evaluation.py");
    let installed = Command::new(python).arg(script).output().with_context(|| format!("cannot start `{python}`"))?;
    ensure!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let names: Vec<_> = String::from_utf8(installed.stdout)?.lines().map(str::to_owned).collect();
    let peers = names.into_iter().map(|name| {
        let mut process = Command::new(python)
            .args([Path::new(script), Path::new(&name), &truth_path, &results_path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = process.stdin.take().context("the peer has no stdin")?;
        let mut output = BufReader::new(process.stdout.take().context("the peer has no stdout")?);
        Ok(move || {
            writeln!(input)?;
            let mut line = String::new();
            output.read_line(&mut line)?;
            serde_json::from_str(&line).context("the peer ended early")
        })
    });
    peers.collect()
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

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Generates images, objects and detections.
struct Generator(ChaCha8Rng);

impl Generator {
    fn generate(mut self) -> (Dataset, Vec<CocoResult>) {
        let images = (0..IMAGES).map(|index| Image {
            id: index as i64,
            file_name: format!("{index}.jpg"),
            width: WIDTH as u32,
            height: HEIGHT as u32,
        });
        let classes = (0..CLASSES).map(|index| Class { id: index as i64, name: format!("class {index}") }).collect();
        let (mut annotations, mut results) = (Vec::new(), Vec::new());
        for image in 0..IMAGES {
            let first = annotations.len();
            self.objects(image, &mut annotations);
            self.detections(&annotations[first..], image, &mut results);
        }
        let truth = Dataset::new("", images.collect(), annotations, classes);
        (truth.expect("images and annotations are generated in order"), results)
    }

    /// One to five classes per image, each with one to twenty objects.
    fn objects(&mut self, image: usize, annotations: &mut Vec<Annotation>) {
        for _ in 0..self.count(0.55, 5) {
            let class_index = self.class();
            for _ in 0..self.count(0.7, 20) {
                let rectangle = self.rectangle();
                annotations.push(Annotation {
                    // pycocotools never counts an annotation with id 0 as found.
                    id: annotations.len() as i64 + 1,
                    image,
                    class_index,
                    rectangle,
                    // Like the area of a mask.
                    area: rectangle.area() * self.0.random_range(0.4..0.9),
                    crowd: self.0.random_bool(0.01),
                    difficult: false,
                });
            }
        }
    }

    /// Detects most objects, some twice, some as another class. The rest is noise, half of it in the image's classes.
    fn detections(&mut self, objects: &[Annotation], image: usize, results: &mut Vec<CocoResult>) {
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
                push(object.class_index, confidence, self.near(&object.rectangle, 0.12 * (1.1 - confidence)));
            }
            for _ in 0..self.count(0.6, 5) - 1 {
                push(object.class_index, confidence * self.0.random::<f64>(), self.near(&object.rectangle, 0.3));
            }
            if self.0.random_bool(0.3) {
                push(self.class(), 0.5 * confidence * self.0.random::<f64>(), self.near(&object.rectangle, 0.1));
            }
        }
        for _ in 0..DETECTIONS_PER_IMAGE {
            let object = objects.get(self.0.random_range(0..objects.len().max(1)));
            let class = object.map(|object| object.class_index).filter(|_| self.0.random_bool(0.5));
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
