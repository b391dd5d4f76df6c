//! Images per second of the whole pipeline.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow};
use runtime::output::Report;
use runtime::pipeline::{Content, Item, PipelineOptions, pipeline};
use runtime::{Detector, machine};
use serde::Serialize;

use super::tabulate;

/// Images per second with so many threads and images at a time.
#[derive(Serialize)]
pub(super) struct Throughput {
    threads: usize,
    batch: usize,
    images_per_second: f64,
    /// Fraction of the time in which the network ran, warm-up included.
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
        // The workers of `detect`.
        let options = PipelineOptions { batch, ..PipelineOptions::of(detector) };
        // Whole batches, and at least a few.
        let warm_up = warm_up.max(batch).next_multiple_of(batch);
        let count = runs.max(4 * batch).next_multiple_of(batch);
        let items = files.iter().cycle().take(warm_up + count);
        let items = items.map(|file| Item { file: file.clone(), frame: None, content: Content::File, tag: () });
        let start = Instant::now();
        // In one go with the warm-up, because a CUDA graph belongs to the thread that recorded it.
        let (inference, measured) = pipeline(
            detector,
            &options,
            items,
            |finished| finished.report,
            |reports| {
                let mut warm = start;
                for (number, Report { file, outcome, .. }) in (1..).zip(reports) {
                    outcome.map_err(|reason| anyhow!("`{}`: {reason}", file.display()))?;
                    if number == warm_up {
                        warm = Instant::now();
                    }
                }
                anyhow::Ok((start.elapsed(), warm.elapsed()))
            },
        );
        let (all, measured) = measured?;
        Ok(Self {
            threads: threads.map_or_else(machine::cores, NonZeroUsize::get),
            batch,
            images_per_second: count as f64 / measured.as_secs_f64(),
            in_network: inference.as_secs_f64() / all.as_secs_f64(),
        })
    }
}

pub(super) fn table(measured: &[Throughput]) -> String {
    let rows = measured.iter().map(|Throughput { threads, batch, images_per_second: speed, in_network }| {
        let [threads, batch] = [threads, batch].map(usize::to_string);
        [threads, batch, format!("{speed:.2}"), format!("{:.1}", 1e3 / speed), format!("{:.1} %", 100.0 * in_network)]
    });
    tabulate(["threads", "at a time", "images/s", "ms per image", "of it in the network"], rows)
}
