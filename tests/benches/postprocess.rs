//! How long post-processing takes on one thread, at 640x832 with 80 classes: `cargo bench -p tests --bench postprocess`.
//!
//! In a crowd, most candidates lie on a few objects and are suppressed, as after training. Scattered ones lie anywhere
//! and most of them remain, the worst that can happen. Target: 5,000 candidates in at most 5 ms.

use std::time::Instant;

use models::spec::Class;
use models::{Anchors, BoundingBox, ModelSpec, Placement};
use ndarray::Array2;
use runtime::postprocess;

const HEIGHT: usize = 640;
const WIDTH: usize = 832;
const CLASSES: usize = 80;
const OBJECTS_PER_CLASS: usize = 3;
const REPETITIONS: usize = 21;

fn main() {
    let classes = (0..CLASSES as i64).map(|id| Class { id, name: format!("class {id}") }).collect();
    let uncapped = ModelSpec { classes, ..ModelSpec::default() };
    let mut capped = uncapped.clone();
    capped.postprocessing.top_k = Some(1000);
    capped.postprocessing.max_detections = Some(100);

    let anchors = Anchors::new(&uncapped.anchors, HEIGHT, WIDTH);
    println!("{} anchors, {CLASSES} classes, one thread, {REPETITIONS} runs", anchors.boxes().len());
    println!("candidates  kind       rules        detections   min ms  median ms");
    for count in [0, 1_000, 5_000, 10_000, 100_000] {
        for (kind, crowded) in [("crowd", true), ("scattered", false)] {
            let outputs = Outputs::new(&anchors, &uncapped, count, crowded);
            for (rules, spec) in [("seed's", &uncapped), ("1000, 100", &capped)] {
                let mut milliseconds = Vec::new();
                let mut detections = 0;
                for _ in 0..REPETITIONS {
                    let start = Instant::now();
                    let found = outputs.postprocess(&anchors, spec);
                    milliseconds.push(1e3 * start.elapsed().as_secs_f64());
                    detections = found;
                }
                milliseconds.sort_by(f64::total_cmp);
                let (min, median) = (milliseconds[0], milliseconds[REPETITIONS / 2]);
                println!("{count:>10}  {kind:<9}  {rules:<11}  {detections:>10}  {min:>7.2}  {median:>9.2}");
            }
        }
    }
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
        let mut offsets = Array2::from_shape_simple_fn((rows, 4), || random.unit() - 0.5);
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

    /// The number of detections.
    fn postprocess(&self, anchors: &Anchors, spec: &ModelSpec) -> usize {
        let placement = Placement {
            original_width: 1280,
            original_height: 960,
            resized_width: 811,
            resized_height: 608,
            padded_width: WIDTH as u32,
            padded_height: HEIGHT as u32,
            common_scale: None,
        };
        postprocess(self.scores.view(), self.offsets.view(), anchors, &placement, spec).len()
    }
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
