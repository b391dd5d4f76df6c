//! Throughput of the whole pipeline, in images per second.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow};
use runtime::output::Report;
use runtime::pipeline::{Content, Item, PipelineOptions, pipeline};
use runtime::{Detector, machine};
use serde::Serialize;

use super::tabulate;

/// Throughput with one number of threads and one batch size.
#[derive(Serialize)]
pub(super) struct Throughput {
    threads: usize,
    batch: usize,
    images_per_second: f64,
    /// Fraction of the time in which the network ran, warm-up included.
    network_fraction: f64,
}

impl Throughput {
    /// `threads` is the number that the detector was opened with; `None` for one per core.
    pub(super) fn measure(
        detector: &Detector,
        files: &[PathBuf],
        warm_up: usize,
        runs: usize,
        batch: usize,
        threads: Option<NonZeroUsize>,
    ) -> Result<Self> {
        // The same number of workers as `runtime detect`.
        let options = PipelineOptions { batch, ..PipelineOptions::of(detector) };
        // Whole batches; at least one to warm up and four to measure.
        let warm_up = warm_up.max(batch).next_multiple_of(batch);
        let count = runs.max(4 * batch).next_multiple_of(batch);
        let items = files.iter().cycle().take(warm_up + count);
        let items = items.map(|file| Item { file: file.clone(), frame: None, content: Content::File, tag: () });
        let start = Instant::now();
        // Warm-up and measurement share a pipeline, because a CUDA graph belongs to the thread that recorded it.
        let (inference, measured) = pipeline(
            detector,
            &options,
            items,
            |finished| finished.report,
            |reports| {
                let mut measurement_start = start;
                for (number, Report { file, outcome, .. }) in (1..).zip(reports) {
                    outcome.map_err(|reason| anyhow!("`{}`: {reason}", file.display()))?;
                    if number == warm_up {
                        measurement_start = Instant::now();
                    }
                }
                anyhow::Ok((start.elapsed(), measurement_start.elapsed()))
            },
        );
        let (total, measured) = measured?;
        Ok(Self {
            threads: threads.map_or_else(machine::cores, NonZeroUsize::get),
            batch,
            images_per_second: count as f64 / measured.as_secs_f64(),
            network_fraction: inference.as_secs_f64() / total.as_secs_f64(),
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
