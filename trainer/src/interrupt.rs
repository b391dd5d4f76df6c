//! Ctrl-C and termination signals: the first stops a run and saves it, a later one stops at once.

use std::time::Duration;

pub use runtime::interrupt::{EXIT_CODE, Interrupt};

/// Launchers and schedulers may send a signal twice. A second one is ignored until this time after the first.
const REPETITION: Duration = Duration::from_secs(1);

/// A signal has stopped a run, which is saved.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; saved after step {steps}; to resume: {command}")]
pub struct Interrupted {
    /// Number of the run's finished steps.
    pub(crate) steps: u64,
    /// The command that resumes the run.
    pub(crate) command: String,
}

/// Installs the signal handlers. Must be called at most once per process.
///
/// # Errors
/// When the handlers cannot be installed.
pub(crate) fn watch() -> anyhow::Result<Interrupt> {
    runtime::interrupt::watch()?;
    let consequence = "saving the run, without which the steps since the last save are lost";
    Ok(Interrupt::finish_first(consequence).ignoring_repetition(REPETITION))
}
