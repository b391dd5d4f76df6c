//! Ctrl-C and termination signals: the first stops the program gracefully, the second at once.

use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use runtime::progress::say;

/// Exit code of a program stopped by Ctrl-C, as shells report it.
const EXIT_CODE: u8 = 130;

/// A flag that Ctrl-C and termination signals set.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    raised: Arc<AtomicBool>,
}

impl Interrupt {
    /// How often a thread that waits for something else checks the flag.
    pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(50);

    /// Installs the signal handlers. Call at most once per process. `consequence` is printed at the first signal and
    /// describes what happens to the work in progress.
    pub(crate) fn watch(consequence: &'static str) -> Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&raised);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                process::exit(EXIT_CODE.into());
            }
            say(format_args!("stopping: {consequence}; press Ctrl-C again to stop at once"));
        })
        .context("cannot install the handler of Ctrl-C")?;
        Ok(Self { raised })
    }

    /// Whether a signal has been received.
    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// The exit code of an interrupted program.
    pub(crate) fn exit_code() -> ExitCode {
        ExitCode::from(EXIT_CODE)
    }
}
