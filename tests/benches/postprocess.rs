//! Time of post-processing on one thread, at 640x832 with 80 classes: `cargo bench -p tests --bench postprocess`. When
//! `PEER_PYTHON` names a Python with torch 2.11 and torchvision 0.26, also measures torchvision's
//! `postprocess_detections` with the same tensors and settings, which must give the same detections, and its `nms`.
//!
//! `crowd`: most candidates are on a few objects and are suppressed, as after training. `scattered`: candidates are
//! anywhere and most remain, the worst case.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use models::import::Kind;
use models::spec::Class;
use models::{Anchors, BoundingBox, ModelSpec, Placement};
use ndarray::Array2;
use runtime::{Detection, postprocess, suppress};
use serde_json::{Value, json};
use tests::Peer;

const HEIGHT: usize = 640;
const WIDTH: usize = 832;
/// Height and width of the image in the padded input.
const RESIZED: [u32; 2] = [624, 832];
const CLASSES: usize = 80;
const OBJECTS_PER_CLASS: usize = 3;
const REPETITIONS: usize = 21;
const PEER_REPETITIONS: usize = 7;

fn main() -> anyhow::Result<()> {
    let classes = (0..CLASSES as i64).map(|id| Class { id, name: format!("class {id}") }).collect();
    let theirs = ModelSpec { classes, ..Kind::TorchvisionV1.spec()? };
    let mut unlimited = theirs.clone();
    unlimited.postprocessing.top_k = None;
    unlimited.postprocessing.max_detections = None;

    let folder = tempfile::tempdir()?;
    let python = std::env::var("PEER_PYTHON").ok();
    let mut peer = python.map(|python| Peer::start(&python, "postprocess.py", &[folder.path()])).transpose()?;
    let anchors = Anchors::new(&theirs.anchors, HEIGHT, WIDTH);
    println!(
        "{} anchors, {CLASSES} classes, one thread, medians of {REPETITIONS} runs, torchvision's of {PEER_REPETITIONS}",
        anchors.boxes().len()
    );
    let scores = Outputs::new(&anchors, &theirs, 0, false).scores;
    // Nothing that looks at every score takes less.
    let (_, ms) = timed(REPETITIONS, || black_box(scores.iter().fold(0, |bits, score| bits | score.to_bits())));
    println!("reading the {} MB of scores once: {ms:.2} ms", scores.len() * size_of::<f32>() / 1_000_000);
    println!("candidates  kind       settings         detections       ms  torchvision ms  ratio");
    for count in [0, 1_000, 10_000, 100_000] {
        for (kind, crowded) in [("crowd", true), ("scattered", false)] {
            let mut outputs = Outputs::new(&anchors, &theirs, count, crowded);
            let peers = match &mut peer {
                Some(peer) => Some(outputs.detect_with_peer(peer, folder.path(), &anchors)?),
                None => None,
            };
            for (settings, spec) in [("torchvision's", &theirs), ("no limits", &unlimited)] {
                let (found, ms) = timed(REPETITIONS, || outputs.postprocess(&anchors, spec));
                print!("{count:>10}  {kind:<9}  {settings:<15}  {:>10}  {ms:>7.2}", found.len());
                match peers.as_ref().filter(|_| settings == "torchvision's") {
                    Some(peers) => {
                        compare(&found, peers)?;
                        let theirs = peers["ms"].as_f64().unwrap_or(f64::NAN);
                        println!("  {theirs:>14.1}  {:>5.1}", theirs / ms);
                    }
                    None => println!(),
                }
            }
        }
    }
    println!("\nNMS of 100,000 boxes of one class with threshold 0.5, one thread");
    for (kind, boxes) in [("crowd", crowd(100_000)), ("no overlap", disjoint(100_000))] {
        let (kept, ms) = timed(5, || suppress(&boxes, 0.5).len());
        print!("  {kind:<11} {kept:>7} kept  {ms:>8.1} ms");
        if let Some(peer) = &mut peer {
            let numbers = boxes.iter().flat_map(|(score, b)| [*score, b.x1, b.y1, b.x2, b.y2]);
            write(&folder.path().join("boxes"), numbers)?;
            let response = peer.request(&json!({ "suppress": 0.5, "runs": 3 }))?;
            ensure!(response["kept"] == kept, "torchvision keeps {}", response["kept"]);
            print!("  torchvision {:>8.1} ms", response["ms"].as_f64().unwrap_or(f64::NAN));
        }
        println!();
    }
    Ok(())
}

/// Result of `work` and its median time in milliseconds.
fn timed<T>(repetitions: usize, mut work: impl FnMut() -> T) -> (T, f64) {
    let mut times = Vec::new();
    let mut result = work();
    for _ in 0..repetitions {
        let start = Instant::now();
        result = work();
        times.push(1e3 * start.elapsed().as_secs_f64());
    }
    (result, tests::median(times))
}

/// Fails unless torchvision's detections are the same.
fn compare(found: &[Detection], peers: &Value) -> anyhow::Result<()> {
    let list = |name: &str| peers[name].as_array().cloned().unwrap_or_default();
    let (scores, labels, boxes) = (list("scores"), list("labels"), list("boxes"));
    ensure!(found.len() == scores.len(), "{} detections, torchvision has {}", found.len(), scores.len());
    for (index, detection) in found.iter().enumerate() {
        let corners: [f32; 4] = detection.bounding_box.into();
        let same_box = |other: &Value| {
            let other = other.as_array().map(Vec::as_slice).unwrap_or_default();
            corners.iter().zip(other).all(|(a, b)| b.as_f64().is_some_and(|b| (f64::from(*a) - b).abs() < 1e-3))
        };
        // Detections with equal scores may be in a different order.
        let same = (0..found.len()).any(|other| {
            scores[other].as_f64() == Some(f64::from(detection.score))
                && labels[other] == detection.class_index
                && same_box(&boxes[other])
        });
        ensure!(same, "torchvision lacks detection {index}: {detection:?}");
    }
    Ok(())
}

fn write(path: &Path, numbers: impl Iterator<Item = f32>) -> anyhow::Result<()> {
    Ok(fs::write(path, numbers.flat_map(f32::to_le_bytes).collect::<Vec<_>>())?)
}

/// Synthetic network outputs: scores [anchors, classes] and offsets [anchors, 4].
struct Outputs {
    scores: Array2<f32>,
    offsets: Array2<f32>,
}

impl Outputs {
    /// Outputs with `count` scores above the threshold, on a few objects (`crowded`) or anywhere.
    fn new(anchors: &Anchors, spec: &ModelSpec, count: usize, crowded: bool) -> Self {
        let mut random = Random(1);
        let objects: Vec<_> = (0..CLASSES * OBJECTS_PER_CLASS).map(|_| random.object()).collect();
        let rows = anchors.boxes().len();
        let mut scores = Array2::from_shape_simple_fn((rows, CLASSES), || 0.049 * random.unit());
        let mut offsets = Array2::from_shape_simple_fn((rows, 4), || 0.1 * (random.unit() - 0.5));
        for i in 0..count {
            // The step is coprime to the number of scores, so no index repeats.
            let index = i * 1_000_003 % (rows * CLASSES);
            let (anchor, label) = (index / CLASSES, index % CLASSES);
            scores[[anchor, label]] = 0.051 + 0.948 * random.unit();
            if crowded {
                let object = objects[label * OBJECTS_PER_CLASS + i % OBJECTS_PER_CLASS];
                let jitter = [(); 4].map(|()| 0.05 * object.width() * (random.unit() - 0.5));
                let [x1, y1, x2, y2] = <[f32; 4]>::from(object);
                let target = [x1 + jitter[0], y1 + jitter[1], x2 + jitter[2], y2 + jitter[3]].into();
                let encoded = spec.box_coder.encode(&anchors.boxes()[anchor], &target);
                offsets.row_mut(anchor).assign(&ndarray::arr1(&encoded));
            }
        }
        Self { scores, offsets }
    }

    /// torchvision's detections for these outputs. Replaces the scores with the sigmoids that torchvision computes.
    fn detect_with_peer(&mut self, peer: &mut Peer, folder: &Path, anchors: &Anchors) -> anyhow::Result<Value> {
        let logit = |score: &f32| {
            let score = f64::from(score.max(1e-7));
            (score / (1.0 - score)).ln() as f32
        };
        write(&folder.join("logits"), self.scores.iter().map(logit))?;
        write(&folder.join("offsets"), self.offsets.iter().copied())?;
        write(&folder.join("anchors"), anchors.boxes().iter().flat_map(|anchor| <[f32; 4]>::from(*anchor)))?;
        let levels: Vec<_> = anchors.levels().iter().map(ExactSizeIterator::len).collect();
        peer.request(&json!({ "scores": true, "levels": levels }))?;
        let scores = fs::read(folder.join("scores"))?;
        let scores = scores.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        self.scores = Array2::from_shape_vec(self.scores.dim(), scores.collect())?;
        peer.request(&json!({ "detect": RESIZED, "levels": levels, "runs": PEER_REPETITIONS }))
    }

    fn postprocess(&self, anchors: &Anchors, spec: &ModelSpec) -> Vec<Detection> {
        let [height, width] = RESIZED;
        let placement = Placement {
            original_width: width,
            original_height: height,
            resized_width: width,
            resized_height: height,
            padded_width: WIDTH as u32,
            padded_height: HEIGHT as u32,
            common_scale: None,
        };
        postprocess(self.scores.view(), self.offsets.view(), anchors, &placement, spec)
    }
}

/// Scores and overlapping boxes on 300 objects, in pixels of the padded input.
fn crowd(count: usize) -> Vec<(f32, BoundingBox)> {
    let mut random = Random(2);
    let objects: Vec<_> = (0..300).map(|_| random.object()).collect();
    let mut jittered = |i: usize| {
        let [x1, y1, x2, y2] = <[f32; 4]>::from(objects[i % objects.len()]);
        let jitter = [(); 4].map(|()| 0.05 * (x2 - x1) * (random.unit() - 0.5));
        let [a, b, c, d] = jitter;
        (random.unit(), BoundingBox::new(x1 + a, y1 + b, x2 + c, y2 + d))
    };
    (0..count).map(&mut jittered).collect()
}

/// Scores and boxes that do not overlap.
fn disjoint(count: usize) -> Vec<(f32, BoundingBox)> {
    let mut random = Random(3);
    let mut single = |i: usize| {
        let (x, y) = ((i % 400) as f32 * 10.0, (i / 400) as f32 * 10.0);
        (random.unit(), BoundingBox::new(x, y, x + 9.0, y + 9.0))
    };
    (0..count).map(&mut single).collect()
}

/// A linear congruential generator, so that every run measures the same.
struct Random(u32);

impl Random {
    /// In [0, 1).
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 24) as f32
    }

    /// A box inside the padded input, with sides of 40 to 300 pixels.
    fn object(&mut self) -> BoundingBox {
        let (width, height) = (40.0 + 260.0 * self.unit(), 40.0 + 260.0 * self.unit());
        let x = self.unit() * (WIDTH as f32 - width);
        let y = self.unit() * (HEIGHT as f32 - height);
        BoundingBox::new(x, y, x + width, y + height)
    }
}
