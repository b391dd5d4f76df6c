//! The stages of one detection after the other.

use std::path::{Path, PathBuf};

use anyhow::Result;
use runtime::{Detector, DetectorError, image_file};
use serde::Serialize;

use super::{tabulate, timed};

/// From the start of the program to the first detection, in milliseconds.
#[derive(Serialize)]
pub(super) struct Start {
    /// Finding and starting ONNX Runtime.
    pub(super) library_ms: f64,
    /// Reading and optimizing the model.
    pub(super) session_ms: f64,
    /// The first image.
    pub(super) first: Times<f64>,
    pub(super) total_ms: f64,
}

/// Something of every stage.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Times<T> {
    /// Reading and decoding the file.
    read: T,
    /// Resizing, normalizing and padding.
    prepare: T,
    /// ONNX Runtime.
    run: T,
    /// Selecting, decoding and suppressing boxes.
    postprocess: T,
}

impl<T> Times<T> {
    const NAMES: [&str; 4] = ["read", "prepare", "run", "postprocess"];

    fn as_array(&self) -> [&T; 4] {
        [&self.read, &self.prepare, &self.run, &self.postprocess]
    }
}

impl Start {
    pub(super) fn measure(
        open: impl FnOnce() -> Result<Detector, DetectorError>,
        file: &Path,
    ) -> Result<(Detector, Self)> {
        let (open_ms, detector) = timed(open);
        let detector = detector?;
        let (first, _, _) = detect(&detector, file)?;
        let library_ms = 1e3 * detector.engine().library_time().as_secs_f64();
        let total_ms = open_ms + first.as_array().into_iter().sum::<f64>();
        Ok((detector, Self { library_ms, session_ms: open_ms - library_ms, first, total_ms }))
    }

    pub(super) fn table(&self) -> String {
        let first = Times::<f64>::NAMES.into_iter().zip(self.first.as_array().map(|ms| *ms));
        let rows = [("start ONNX Runtime", self.library_ms), ("open the model", self.session_ms)];
        let rows = rows.into_iter().chain(first).chain([("first detection after", self.total_ms)]);
        tabulate(["from the start", "ms"], rows.map(|(name, ms)| [name.to_owned(), format!("{ms:.1}")]))
    }
}

/// Times of single images, in milliseconds.
#[derive(Serialize)]
pub(super) struct Stages {
    stages: Times<Distribution>,
    all: Distribution,
    /// Of an image, in the mean.
    detections: f64,
}

/// How times are distributed, in milliseconds.
#[derive(Clone, Copy, Default, Serialize)]
struct Distribution {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
}

impl Distribution {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        // The smallest time that so many of the times do not exceed.
        let percentile = |share: f64| {
            let rank = (share * times.len() as f64).ceil() as usize;
            times.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
        };
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        Self { mean, p50: percentile(0.5), p90: percentile(0.9), p99: percentile(0.99) }
    }
}

impl Stages {
    /// Also gives height and width of the first image's input.
    pub(super) fn measure(
        detector: &Detector,
        files: &[PathBuf],
        warm_up: usize,
        runs: usize,
    ) -> Result<(Self, [usize; 2])> {
        let mut times = Vec::with_capacity(runs);
        let (mut found, mut input) = (0, None);
        for (run, file) in files.iter().cycle().take(warm_up + runs).enumerate() {
            let (stages, detections, size) = detect(detector, file)?;
            input.get_or_insert(size);
            if run >= warm_up {
                times.push(stages);
                found += detections;
            }
        }
        let distribution = |stage: fn(&Times<f64>) -> f64| Distribution::of(times.iter().map(stage).collect());
        let stages = Times {
            read: distribution(|times| times.read),
            prepare: distribution(|times| times.prepare),
            run: distribution(|times| times.run),
            postprocess: distribution(|times| times.postprocess),
        };
        let all = distribution(|times| times.as_array().into_iter().sum());
        Ok((Self { stages, all, detections: found as f64 / runs as f64 }, input.unwrap_or_default()))
    }

    pub(super) fn table(&self) -> String {
        let names = Times::<f64>::NAMES.into_iter().chain(["all"]);
        let rows = names.zip(self.stages.as_array().into_iter().chain([&self.all])).map(|(name, times)| {
            let share = 100.0 * times.mean / self.all.mean;
            let [mean, p50, p90, p99] = [times.mean, times.p50, times.p90, times.p99].map(|ms| format!("{ms:.2}"));
            [name.to_owned(), mean, p50, p90, p99, format!("{share:.1} %")]
        });
        let head = ["one image at a time", "mean ms", "p50", "p90", "p99", "of all"];
        format!("{}\n{:.0} detections in an image", tabulate(head, rows), self.detections)
    }
}

/// One detection: its times in milliseconds, the number of detections, and the size of the input. Several views are one run
/// after the other.
fn detect(detector: &Detector, file: &Path) -> Result<(Times<f64>, usize, [usize; 2])> {
    let mut times = Times::default();
    let (ms, image) = timed(|| image_file::read(file));
    let image = image?;
    times.read = ms;
    let (mut seen, mut size) = (Vec::new(), None);
    for look in detector.looks(&image) {
        let (ms, view) = timed(|| detector.prepare(&image, look));
        let view = view?;
        times.prepare += ms;
        let (ms, outputs) = timed(|| detector.run(&[&view]));
        let outputs = outputs?;
        times.run += ms;
        let (ms, found) = timed(|| detector.postprocess(&view, &outputs, 0));
        times.postprocess += ms;
        seen.push((look, found?));
        size.get_or_insert(view.size());
    }
    let (ms, detections) = timed(|| detector.merge(image.dimensions(), seen));
    times.postprocess += ms;
    Ok((times, detections.len(), size.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let found = Distribution::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((found.mean, found.p50, found.p90, found.p99), (100.5, 100.0, 180.0, 198.0));
        let one = Distribution::of(vec![7.0]);
        assert_eq!((one.mean, one.p50, one.p90, one.p99), (7.0, 7.0, 7.0, 7.0));
    }
}
