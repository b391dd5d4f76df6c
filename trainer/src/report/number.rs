//! Numbers of a report.

/// A number with five significant digits, which take less room than all.
pub(super) fn short(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}
