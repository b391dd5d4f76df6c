//! Throughput of `runtime detect`, in images per second.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use runtime::image_file::Limits;
use runtime::{Detector, PixelBudget, detect_file, map_ordered};
use schemars::JsonSchema;
use serde::Serialize;

use super::table::tabulate;

/// Throughput with one number of threads and one batch size.
#[derive(Serialize, JsonSchema)]
pub(super) struct Throughput {
    /// Threads that compute the network.
    threads: usize,
    /// Maximum number of images per run of the network.
    batch: usize,
    /// Images per second.
    images_per_second: f64,
    /// Fraction of the time in which the network ran; with several instances up to their number.
    network_fraction: f64,
}

impl Throughput {
    /// Reads and detects as `runtime detect` does. `threads` compute the network, and `batch` is the detector's maximum.
    pub(super) fn measure(
        detector: &Detector,
        files: &[PathBuf],
        [warm_up, runs]: [usize; 2],
        workers: usize,
        [threads, batch]: [usize; 2],
    ) -> Result<Self> {
        // Whole batches; at least one to warm up and four to measure.
        let warm_up = warm_up.max(batch).next_multiple_of(batch);
        let count = runs.max(4 * batch).next_multiple_of(batch);
        let (limits, budget) = (Limits::DEFAULT, PixelBudget::new(Limits::DEFAULT.pixels));
        let detect = |file: &Path| {
            detect_file(detector, file, &limits, &budget).with_context(|| format!("`{}`", file.display()))
        };
        let items = files.iter().map(PathBuf::as_path).cycle().take(warm_up + count);
        // The time starts with the result after which `count` more follow, while the next images are in progress.
        let (mut start, mut network) = (Instant::now(), detector.statistics().network);
        map_ordered(items, workers, detect, |results| {
            for (number, result) in (1..).zip(results) {
                result?;
                if number == warm_up {
                    (start, network) = (Instant::now(), detector.statistics().network);
                }
            }
            anyhow::Ok(())
        })?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Self {
            threads,
            batch,
            images_per_second: count as f64 / seconds,
            network_fraction: (detector.statistics().network - network).as_secs_f64() / seconds,
        })
    }
}

pub(super) fn table(measured: &[Throughput]) -> String {
    let rows = measured.iter().map(|Throughput { threads, batch, images_per_second: speed, network_fraction }| {
        let [threads, batch] = [threads, batch].map(usize::to_string);
        [
            threads,
            batch,
            format!("{speed:.2}"),
            format!("{:.1}", 1e3 / speed),
            format!("{:.1} %", 100.0 * network_fraction),
        ]
    });
    tabulate(["threads", "batch size", "images/s", "ms per image", "time in network"], rows)
}
