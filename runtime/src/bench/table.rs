//! Tables and times of the measurements.

use std::time::{Duration, Instant};

use runtime::output::aligned;

/// A time in milliseconds.
pub(super) fn milliseconds(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// Runs `work` and returns the time taken, in milliseconds, and its result.
pub(super) fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let started = Instant::now();
    let result = work();
    (milliseconds(started.elapsed()), result)
}

/// An aligned text table with a header row.
pub(super) fn tabulate<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    aligned([head.map(str::to_owned)].into_iter().chain(rows).map(Vec::from))
}
