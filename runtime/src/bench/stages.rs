//! Times of the stages, for single images one after the other.

use std::path::{Path, PathBuf};

use anyhow::Result;
use runtime::{Detector, Timing, image_file};
use schemars::JsonSchema;
use serde::Serialize;

use super::table::{milliseconds, tabulate, timed};

/// Times from the start of the program to the first detection, in milliseconds.
#[derive(Serialize, JsonSchema)]
pub(super) struct Start {
    /// Finding and starting ONNX Runtime.
    pub(super) library_ms: f64,
    /// Reading and optimizing the model.
    pub(super) session_ms: f64,
    /// The stages of the first image.
    pub(super) first: Times<f64>,
    /// All of these.
    pub(super) total_ms: f64,
}

/// A value for every stage.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
pub(super) struct Times<T> {
    /// Reading and decoding the file.
    read: T,
    /// Resizing, normalizing and padding.
    preprocess: T,
    /// ONNX Runtime, and passing images to its thread.
    network: T,
    /// Selecting, decoding and suppressing boxes.
    postprocess: T,
}

impl<T> Times<T> {
    const NAMES: [&str; 4] = ["read", "preprocess", "network", "postprocess"];

    fn as_array(&self) -> [&T; 4] {
        [&self.read, &self.preprocess, &self.network, &self.postprocess]
    }
}

impl Start {
    pub(super) fn measure(open: impl FnOnce() -> Result<Detector>, file: &Path) -> Result<(Detector, Self)> {
        let (open_ms, detector) = timed(open);
        let detector = detector?;
        let (first, _) = detect(&detector, file)?;
        let library_ms = milliseconds(detector.engine().library_time());
        let total_ms = open_ms + first.as_array().into_iter().sum::<f64>();
        Ok((detector, Self { library_ms, session_ms: open_ms - library_ms, first, total_ms }))
    }

    pub(super) fn table(&self) -> String {
        let first = Times::<f64>::NAMES.into_iter().zip(self.first.as_array().map(|ms| *ms));
        let rows = [("start ONNX Runtime", self.library_ms), ("open the model", self.session_ms)];
        let rows = rows.into_iter().chain(first).chain([("first detection after", self.total_ms)]);
        tabulate(["startup", "ms"], rows.map(|(name, ms)| [name.to_owned(), format!("{ms:.1}")]))
    }
}

/// Times of single images, in milliseconds.
#[derive(Serialize, JsonSchema)]
pub(super) struct Stages {
    #[serde(flatten)]
    stages: Times<Distribution>,
    /// The whole image.
    total: Distribution,
    /// Mean number of detections.
    detections_per_image: f64,
}

/// Mean and percentiles of times, in milliseconds.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
struct Distribution {
    /// Mean.
    mean: f64,
    /// Median.
    p50: f64,
    /// 90th percentile.
    p90: f64,
    /// 99th percentile.
    p99: f64,
}

impl Distribution {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        // Nearest rank: the smallest time that this fraction of the times does not exceed.
        let percentile = |fraction: f64| {
            let rank = (fraction * times.len() as f64).ceil() as usize;
            times.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
        };
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        Self { mean, p50: percentile(0.5), p90: percentile(0.9), p99: percentile(0.99) }
    }
}

impl Stages {
    pub(super) fn measure(detector: &Detector, files: &[PathBuf], warm_up: usize, runs: usize) -> Result<Self> {
        let mut times = Vec::with_capacity(runs);
        let mut found = 0;
        for (run, file) in files.iter().cycle().take(warm_up + runs).enumerate() {
            let (stages, detections) = detect(detector, file)?;
            if run >= warm_up {
                times.push(stages);
                found += detections;
            }
        }
        let distribution = |stage: fn(&Times<f64>) -> f64| Distribution::of(times.iter().map(stage).collect());
        let stages = Times {
            read: distribution(|times| times.read),
            preprocess: distribution(|times| times.preprocess),
            network: distribution(|times| times.network),
            postprocess: distribution(|times| times.postprocess),
        };
        let total = distribution(|times| times.as_array().into_iter().sum());
        Ok(Self { stages, total, detections_per_image: found as f64 / runs as f64 })
    }

    pub(super) fn table(&self) -> String {
        let names = Times::<f64>::NAMES.into_iter().chain(["total"]);
        let rows = names.zip(self.stages.as_array().into_iter().chain([&self.total])).map(|(name, times)| {
            let percent = 100.0 * times.mean / self.total.mean;
            let [mean, p50, p90, p99] = [times.mean, times.p50, times.p90, times.p99].map(|ms| format!("{ms:.2}"));
            [name.to_owned(), mean, p50, p90, p99, format!("{percent:.1} %")]
        });
        let head = ["one image at a time", "mean ms", "p50", "p90", "p99", "of total"];
        format!("{}\n{:.0} detections per image", tabulate(head, rows), self.detections_per_image)
    }
}

/// Detects in one image. Returns the times in milliseconds, and the number of detections.
fn detect(detector: &Detector, file: &Path) -> Result<(Times<f64>, usize)> {
    let (read, image) = timed(|| image_file::read(file));
    let (detections, Timing { prepare, queue, network, postprocess, .. }) = detector.detect_timed(&image?)?;
    let times = Times {
        read,
        preprocess: milliseconds(prepare),
        network: milliseconds(queue + network),
        postprocess: milliseconds(postprocess),
    };
    Ok((times, detections.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_times() {
        let found = Distribution::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((found.mean, found.p50, found.p90, found.p99), (100.5, 100.0, 180.0, 198.0));
        let one = Distribution::of(vec![7.0]);
        assert_eq!((one.mean, one.p50, one.p90, one.p99), (7.0, 7.0, 7.0, 7.0));
    }
}
