//! Ctrl-C and termination signals: the first stops a run and saves it, a later one stops at once.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::progress::say;

/// Exit code of a program stopped by Ctrl-C, as shells report it.
pub const EXIT_CODE: u8 = 130;

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

/// A flag that Ctrl-C, SIGTERM and SIGHUP set.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Installs the signal handlers. Must be called at most once per process.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let handled = interrupt.clone();
        let mut first = None;
        ctrlc::set_handler(move || {
            if handled.raise() {
                if first.is_some_and(|first: Instant| first.elapsed() > REPETITION) {
                    process::exit(EXIT_CODE.into());
                }
                return;
            }
            first = Some(Instant::now());
            say(format_args!(
                "stopping and saving; press Ctrl-C again to stop at once and lose the steps since the last save"
            ));
        })
        .context("cannot watch for Ctrl-C")?;
        Ok(interrupt)
    }

    /// Sets the flag. Returns whether it was set before.
    pub fn raise(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether a signal has been received.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
