//! How long post-processing takes on one thread, at 640x832 with 80 classes: `cargo bench -p tests --bench postprocess`. When
//! `PEER_PYTHON` names a Python with torch 2.11 and torchvision 0.26, also how long torchvision's `postprocess_detections` takes
//! on the same tensors by the same rules, which then has to find the same, and its `nms` on the same boxes.
//!
//! In a crowd, most candidates lie on a few objects and are suppressed, as after training. Scattered ones lie anywhere
//! and most of them remain, the worst that can happen.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use models::spec::{Class, Source};
use models::{Anchors, BoundingBox, ModelSpec, Placement};
use ndarray::Array2;
use runtime::{Detection, postprocess, suppress};
use serde_json::{Value, json};
use tests::Peer;

const HEIGHT: usize = 640;
const WIDTH: usize = 832;
/// The part of the input that shows the image.
const SHOWN: [u32; 2] = [624, 832];
const CLASSES: usize = 80;
const OBJECTS_PER_CLASS: usize = 3;
const REPETITIONS: usize = 21;
const PEER_REPETITIONS: usize = 7;

fn main() -> anyhow::Result<()> {
    let classes = (0..CLASSES as i64).map(|id| Class { id, name: format!("class {id}") }).collect();
    let theirs = ModelSpec { classes, ..Source::TorchvisionV1.spec()? };
    let mut seed = theirs.clone();
    seed.postprocessing.top_k = None;
    seed.postprocessing.max_detections = None;

    let folder = tempfile::tempdir()?;
    let python = std::env::var("PEER_PYTHON").ok();
    let mut peer = python.map(|python| Peer::start(&python, "postprocess.py", &[folder.path()])).transpose()?;
    let anchors = Anchors::new(&theirs.anchors, HEIGHT, WIDTH);
    println!(
        "{} anchors, {CLASSES} classes, one thread, medians of {REPETITIONS} runs, torchvision's of {PEER_REPETITIONS}",
        anchors.boxes().len()
    );
    println!("candidates  kind       rules            detections       ms  torchvision ms  ratio");
    for count in [0, 1_000, 10_000, 100_000] {
        for (kind, crowded) in [("crowd", true), ("scattered", false)] {
            let mut outputs = Outputs::new(&anchors, &theirs, count, crowded);
            let peers = match &mut peer {
                Some(peer) => Some(outputs.hand_to(peer, folder.path(), &anchors)?),
                None => None,
            };
            for (rules, spec) in [("torchvision's", &theirs), ("no caps", &seed)] {
                let (found, ms) = timed(REPETITIONS, || outputs.postprocess(&anchors, spec));
                print!("{count:>10}  {kind:<9}  {rules:<15}  {:>10}  {ms:>7.2}", found.len());
                match peers.as_ref().filter(|_| rules == "torchvision's") {
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
    println!("\nsuppression of 100,000 boxes of one class at 0.5, one thread");
    for (kind, boxes) in [("most go", crowd(100_000)), ("all remain", apart(100_000))] {
        let (kept, ms) = timed(5, || suppress(&boxes, 0.5).len());
        print!("  {kind:<11} {kept:>7} remain  {ms:>8.1} ms");
        if let Some(peer) = &mut peer {
            let numbers = boxes.iter().flat_map(|(score, b)| [*score, b.x1, b.y1, b.x2, b.y2]);
            write(&folder.path().join("boxes"), numbers)?;
            let answer = peer.ask(&json!({ "suppress": 0.5, "runs": 3 }))?;
            ensure!(answer["kept"] == kept, "torchvision keeps {}", answer["kept"]);
            print!("  torchvision {:>8.1} ms", answer["ms"].as_f64().unwrap_or(f64::NAN));
        }
        println!();
    }
    Ok(())
}

/// What `work` gives, and its median time in milliseconds.
fn timed<T>(repetitions: usize, mut work: impl FnMut() -> T) -> (T, f64) {
    let mut times = Vec::new();
    let mut result = work();
    for _ in 0..repetitions {
        let start = Instant::now();
        result = work();
        times.push(1e3 * start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (result, times[repetitions / 2])
}

/// That torchvision found the same.
fn compare(found: &[Detection], peers: &Value) -> anyhow::Result<()> {
    let list = |name: &str| peers[name].as_array().cloned().unwrap_or_default();
    let (scores, labels, boxes) = (list("scores"), list("labels"), list("boxes"));
    ensure!(found.len() == scores.len(), "{} detections, torchvision {}", found.len(), scores.len());
    for (place, detection) in found.iter().enumerate() {
        let corners: [f32; 4] = detection.bounding_box.into();
        let same_box = |other: &Value| {
            let other = other.as_array().map(Vec::as_slice).unwrap_or_default();
            corners.iter().zip(other).all(|(a, b)| b.as_f64().is_some_and(|b| (f64::from(*a) - b).abs() < 1e-3))
        };
        // Equal scores may come in another order.
        let same = (0..found.len()).any(|other| {
            scores[other].as_f64() == Some(f64::from(detection.score))
                && labels[other] == detection.class_index
                && same_box(&boxes[other])
        });
        ensure!(same, "torchvision has not found number {place}: {detection:?}");
    }
    Ok(())
}

fn write(path: &Path, numbers: impl Iterator<Item = f32>) -> anyhow::Result<()> {
    Ok(fs::write(path, numbers.flat_map(f32::to_le_bytes).collect::<Vec<_>>())?)
}

/// What a network could have said.
struct Outputs {
    scores: Array2<f32>,
    offsets: Array2<f32>,
}

impl Outputs {
    /// Outputs with `count` scores above the threshold, on objects or anywhere.
    fn new(anchors: &Anchors, spec: &ModelSpec, count: usize, crowded: bool) -> Self {
        let mut random = Random(1);
        let objects: Vec<_> = (0..CLASSES * OBJECTS_PER_CLASS).map(|_| random.object()).collect();
        let rows = anchors.boxes().len();
        let mut scores = Array2::from_shape_simple_fn((rows, CLASSES), || 0.049 * random.unit());
        let mut offsets = Array2::from_shape_simple_fn((rows, 4), || 0.1 * (random.unit() - 0.5));
        for i in 0..count {
            // A prime that shares no factor with the number of scores, so that no place comes twice.
            let place = i * 1_000_003 % (rows * CLASSES);
            let (anchor, label) = (place / CLASSES, place % CLASSES);
            scores[[anchor, label]] = 0.051 + 0.948 * random.unit();
            if crowded {
                let object = objects[label * OBJECTS_PER_CLASS + i % OBJECTS_PER_CLASS];
                let shake = [(); 4].map(|()| 0.05 * object.width() * (random.unit() - 0.5));
                let [x1, y1, x2, y2] = <[f32; 4]>::from(object);
                let target = [x1 + shake[0], y1 + shake[1], x2 + shake[2], y2 + shake[3]].into();
                let encoded = spec.box_coder.encode(&anchors.boxes()[anchor], &target);
                offsets.row_mut(anchor).assign(&ndarray::arr1(&encoded));
            }
        }
        Self { scores, offsets }
    }

    /// Has the peer find detections in the same; the scores become those that it makes of logits.
    fn hand_to(&mut self, peer: &mut Peer, folder: &Path, anchors: &Anchors) -> anyhow::Result<Value> {
        let logit = |score: &f32| {
            let score = f64::from(score.max(1e-7));
            (score / (1.0 - score)).ln() as f32
        };
        write(&folder.join("logits"), self.scores.iter().map(logit))?;
        write(&folder.join("offsets"), self.offsets.iter().copied())?;
        write(&folder.join("anchors"), anchors.boxes().iter().flat_map(|anchor| <[f32; 4]>::from(*anchor)))?;
        let levels: Vec<_> = anchors.levels().iter().map(ExactSizeIterator::len).collect();
        peer.ask(&json!({ "scores": true, "levels": levels }))?;
        let scores = fs::read(folder.join("scores"))?;
        let scores = scores.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        self.scores = Array2::from_shape_vec(self.scores.dim(), scores.collect())?;
        peer.ask(&json!({ "detect": SHOWN, "levels": levels, "runs": PEER_REPETITIONS }))
    }

    fn postprocess(&self, anchors: &Anchors, spec: &ModelSpec) -> Vec<Detection> {
        let [height, width] = SHOWN;
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

/// Boxes on 300 objects.
fn crowd(count: usize) -> Vec<(f32, BoundingBox)> {
    let mut random = Random(2);
    let objects: Vec<_> = (0..300).map(|_| random.object()).collect();
    let mut shaken = |i: usize| {
        let [x1, y1, x2, y2] = <[f32; 4]>::from(objects[i % objects.len()]);
        let shake = [(); 4].map(|()| 0.05 * (x2 - x1) * (random.unit() - 0.5));
        let [a, b, c, d] = shake;
        (random.unit(), BoundingBox::new(x1 + a, y1 + b, x2 + c, y2 + d))
    };
    (0..count).map(&mut shaken).collect()
}

/// Boxes side by side.
fn apart(count: usize) -> Vec<(f32, BoundingBox)> {
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

    /// A box inside the input, with sides of 40 to 300 pixels.
    fn object(&mut self) -> BoundingBox {
        let (width, height) = (40.0 + 260.0 * self.unit(), 40.0 + 260.0 * self.unit());
        let x = self.unit() * (WIDTH as f32 - width);
        let y = self.unit() * (HEIGHT as f32 - height);
        BoundingBox::new(x, y, x + width, y + height)
    }
}
