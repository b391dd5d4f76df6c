//! Pictures per second of the whole pipeline.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use runtime::pipeline::{Content, Item, PipelineOptions, pipeline};
use runtime::{Detector, machine};
use serde::Serialize;

use super::tabulate;

/// Pictures per second with so many threads and pictures at a time.
#[derive(Serialize)]
pub(super) struct Throughput {
    threads: usize,
    batch: usize,
    pictures_per_second: f64,
    /// Of the time, the share in which the network ran.
    in_network: f64,
}

impl Throughput {
    /// `threads` are those that the detector was opened with; one per core if absent.
    pub(super) fn measure(
        detector: &Detector,
        files: &[PathBuf],
        warm_up: usize,
        runs: usize,
        batch: usize,
        threads: Option<NonZeroUsize>,
    ) -> Result<Self> {
        let options = PipelineOptions { batch, ..PipelineOptions::default() };
        // Whole batches, and at least a few.
        let count = runs.max(4 * batch).next_multiple_of(batch);
        go_through(detector, &options, files, warm_up.max(batch))?;
        let started = Instant::now();
        let inference = go_through(detector, &options, files, count)?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Self {
            threads: threads.map_or_else(machine::cores, NonZeroUsize::get),
            batch,
            pictures_per_second: count as f64 / seconds,
            in_network: inference.as_secs_f64() / seconds,
        })
    }
}

/// Sends so many pictures through, and gives the time that the network ran.
fn go_through(detector: &Detector, options: &PipelineOptions, files: &[PathBuf], count: usize) -> Result<Duration> {
    let items = files.iter().cycle().take(count);
    let items = items.map(|file| Item { file: file.clone(), frame: None, content: Content::File, tag: () });
    let (inference, failed) = pipeline(
        detector,
        options,
        items,
        |finished| finished.report,
        |mut reports| reports.find_map(|report| report.outcome.err().map(|reason| (report.file, reason))),
    );
    match failed {
        Some((file, reason)) => Err(anyhow!("`{}`: {reason}", file.display())),
        None => Ok(inference),
    }
}

pub(super) fn table(measured: &[Throughput]) -> String {
    let rows = measured.iter().map(|Throughput { threads, batch, pictures_per_second: speed, in_network }| {
        let [threads, batch] = [threads, batch].map(usize::to_string);
        [threads, batch, format!("{speed:.2}"), format!("{:.1}", 1e3 / speed), format!("{:.1} %", 100.0 * in_network)]
    });
    tabulate(["threads", "at a time", "pictures/s", "ms per picture", "of it in the network"], rows)
}
