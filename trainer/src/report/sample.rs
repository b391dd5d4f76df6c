//! A synthetic run for tests: generated images, a log with made-up numbers, and detections derived from the ground truth.

use std::f64::consts::PI;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use models::dataset::{Dataset, Rectangle};
use models::evaluation::{ScoredBox, Summary};
use models::{Matcher, ModelSpec};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use super::material::Material;
use crate::augmentation::AugmentationConfig;
use crate::loader::Recipe;
use crate::run::log::{EpochRecord, Record, StepRecord, ValidationRecord};
use crate::step::{StageSeconds, Step};
use crate::synth::{Size, draw_images};
use crate::targets::Normalizer;

/// A run in a temporary folder.
pub(super) struct Sample {
    folder: TempDir,
    pub(super) recipe: Recipe,
    pub(super) scored: Vec<ScoredBox>,
    pub(super) command: String,
}

impl Sample {
    /// A run on this number of generated images.
    pub(super) fn new(images: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let drawn = folder.path().join("val");
        fs::create_dir(&drawn).unwrap();
        let size = Size { width: 240, height: 180 };
        let generator = |index| ChaCha8Rng::seed_from_u64(u64::from(index));
        let dataset = draw_images(&drawn, "jpg", images, size, generator).unwrap();
        Self::of(folder, dataset)
    }

    /// A run on this data set.
    pub(super) fn of(folder: TempDir, dataset: Dataset) -> Self {
        fs::create_dir_all(folder.path().join("shapes-1")).unwrap();
        let recipe = Recipe {
            spec: ModelSpec { classes: dataset.classes().to_vec(), ..ModelSpec::default() },
            dataset,
            matcher: Matcher::default(),
            normalizer: Normalizer::default(),
            augmentation: AugmentationConfig::none(),
            cache: Arc::default(),
        };
        let scored = jittered(&recipe.dataset);
        Self { folder, recipe, scored, command: "trainer fit --config shapes.yaml".to_owned() }
    }

    /// Writes a log of this number of epochs.
    pub(super) fn logged(self, epochs: u32, steps_per_epoch: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut log = String::new();
        let mut add = |record: &Record| writeln!(log, "{}", serde_json::to_string(record).unwrap()).unwrap();
        let all = (u64::from(epochs) * steps_per_epoch) as f64;
        for epoch in 1..=epochs {
            for step in u64::from(epoch - 1) * steps_per_epoch + 1..=u64::from(epoch) * steps_per_epoch {
                let (done, mut noise) = (step as f64 / all, || random.random_range(0.6..1.5));
                let results = Step {
                    classification_loss: (0.08 + 1.1 * (-9.0 * done).exp()) * noise(),
                    box_loss: (0.05 + 0.5 * (-5.0 * done).exp()) * noise(),
                    gradient_norm: (0.8 + 6.0 * (-20.0 * done).exp()) * noise() * noise(),
                    learning_rate: 0.01 * (done * 20.0).min(1.0) * 0.5 * (1.0 + (done * PI).cos()),
                    seconds: StageSeconds::default(),
                };
                add(&Record::Step(StepRecord { step, epoch, results }));
            }
            let done = f64::from(epoch) / f64::from(epochs);
            let mut seconds = |mean: f64| mean * random.random_range(0.9..1.1);
            let [data, forward, backward, optimizer] = [0.9, 5.0, 8.1, 0.7].map(&mut seconds);
            let spent = StageSeconds { data, forward, backward, optimizer };
            let seconds = data + forward + backward + optimizer;
            let ap = 0.75 * (1.0 - (-4.0 * done).exp()) * random.random_range(0.95..1.0);
            let (ap50, ap75) = ((1.5 * ap).min(0.97), 1.1 * ap);
            let [ap_medium, ap_large, ar1, ar10, ar100, ar_medium, ar_large] = [ap; 7];
            let (ap_small, ar_small) = (-1.0, -1.0);
            let summary = Summary {
                ap,
                ap50,
                ap75,
                ap_small,
                ap_medium,
                ap_large,
                ar1,
                ar10,
                ar100,
                ar_small,
                ar_medium,
                ar_large,
            };
            add(&Record::Epoch(EpochRecord {
                epoch,
                steps: u64::from(epoch) * steps_per_epoch,
                classification_loss: 0.1,
                box_loss: 0.1,
                seconds: seconds + 0.4,
                images_per_second: 1000.0 / seconds,
                spent,
                validation: Some(ValidationRecord { classification_loss: 0.12, box_loss: 0.11, summary }),
            }));
        }
        self.with_file("log.jsonl", &log)
    }

    /// Writes a file into the run folder.
    pub(super) fn with_file(self, name: &str, text: &str) -> Self {
        fs::write(self.run().join(name), text).unwrap();
        self
    }

    /// The run folder.
    pub(super) fn run(&self) -> PathBuf {
        self.folder.path().join("shapes-1")
    }

    /// Writes and returns the report. Also copies it into the folder `REPORT_OUT`, if that environment variable is set.
    pub(super) fn report(&self, name: &str, best_epoch: Option<u32>) -> String {
        let folder = self.run();
        let Self { recipe, scored, command, .. } = self;
        let path = super::write(&Material { folder: &folder, recipe, scored, best_epoch, command }).unwrap();
        assert_eq!(path, folder.join("report.html"));
        if let Some(out) = std::env::var_os("REPORT_OUT") {
            fs::copy(&path, PathBuf::from(out).join(format!("{name}.html"))).unwrap();
        }
        fs::read_to_string(path).unwrap()
    }
}

/// Detections of most objects, with jittered boxes. Some have a wrong class, some objects are missed, and some detections
/// have no object.
fn jittered(dataset: &Dataset) -> Vec<ScoredBox> {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut scored = Vec::new();
    let classes = dataset.classes().len().max(1);
    for object in dataset.annotations() {
        let Rectangle { x, y, width, height } = object.rectangle;
        let mut moved = |from: f64, side: f64| from + side * random.random_range(-0.09..0.09);
        let rectangle = Rectangle {
            x: moved(x, width),
            y: moved(y, height),
            width: moved(width, width),
            height: moved(height, height),
        };
        let (fate, mut score) = (random.random_range(0.0..1.0), random.random_range(0.35f64..1.0).powf(0.7));
        let mut class_index = object.class_index;
        match fate {
            ..0.08 => continue,
            ..0.15 => (class_index, score) = (random.random_range(0..classes), 0.8 * score),
            _ => {}
        }
        scored.push(ScoredBox { image: object.image, class_index, score, rectangle });
        if random.random_bool(0.4) {
            let rectangle = Rectangle { x: y, y: x, width: height, height: width };
            let score = random.random_range(0.05f64..0.75);
            scored.push(ScoredBox {
                image: object.image,
                class_index: random.random_range(0..classes),
                score,
                rectangle,
            });
        }
    }
    scored
}
