//! A synthetic run for tests: generated images, a log with made-up numbers, and detections derived from the ground truth.

use std::f64::consts::PI;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use models::dataset::{Dataset, Rectangle};
use models::evaluation::ScoredBox;
use models::{Matcher, ModelSpec};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tempfile::TempDir;

use super::Material;
use crate::augmentation::AugmentationConfig;
use crate::loader::Recipe;
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
        let all = (u64::from(epochs) * steps_per_epoch) as f64;
        for epoch in 1..=epochs {
            for step in u64::from(epoch - 1) * steps_per_epoch + 1..=u64::from(epoch) * steps_per_epoch {
                let (done, mut noise) = (step as f64 / all, || random.random_range(0.6..1.5));
                let line = json!({
                    "step": step, "epoch": epoch,
                    "classification_loss": (0.08 + 1.1 * (-9.0 * done).exp()) * noise(),
                    "box_loss": (0.05 + 0.5 * (-5.0 * done).exp()) * noise(),
                    "gradient_norm": (0.8 + 6.0 * (-20.0 * done).exp()) * noise() * noise(),
                    "learning_rate": 0.01 * (done * 20.0).min(1.0) * 0.5 * (1.0 + (done * PI).cos()),
                });
                writeln!(log, "{line}").unwrap();
            }
            let done = f64::from(epoch) / f64::from(epochs);
            let mut seconds = |mean: f64| mean * random.random_range(0.9..1.1);
            let spent = [seconds(0.9), seconds(5.0), seconds(8.1), seconds(0.7)];
            let ap = 0.75 * (1.0 - (-4.0 * done).exp()) * random.random_range(0.95..1.0);
            let summary = json!({
                "classification_loss": 0.12, "box_loss": 0.11, "AP": ap, "AP50": (1.5 * ap).min(0.97), "AP75": 1.1 * ap, "APs": -1.0, "APm": ap, "APl": ap,
                "AR1": ap, "AR10": ap, "AR100": ap, "ARs": -1.0, "ARm": ap, "ARl": ap,
            });
            let line = json!({
                "epoch": epoch, "steps": u64::from(epoch) * steps_per_epoch, "classification_loss": 0.1, "box_loss": 0.1,
                "seconds": spent.iter().sum::<f64>() + 0.4,
                "images_per_second": 1000.0 / spent.iter().sum::<f64>(),
                "spent": {"data": spent[0], "forward": spent[1], "backward": spent[2], "optimizer": spent[3]},
                "validation": summary,
            });
            writeln!(log, "{line}").unwrap();
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
