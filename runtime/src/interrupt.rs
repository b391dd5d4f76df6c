//! Ctrl-C and requests to terminate: the first ends the work in order, the second at once.

use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use runtime::progress::say;

/// What a shell reports of a program that Ctrl-C has ended.
const CODE: u8 = 130;

/// Whether the work is to end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    raised: Arc<AtomicBool>,
}

impl Interrupt {
    /// How often someone who waits for something else looks whether the work is to end.
    pub(crate) const GLANCE: Duration = Duration::from_millis(50);

    /// Watches from now on, once in a process. `consequence` says what will become of the work.
    pub(crate) fn watch(consequence: &'static str) -> Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&raised);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                process::exit(CODE.into());
            }
            say(format_args!("stopping: {consequence}; again to stop at once"));
        })
        .context("cannot watch for Ctrl-C")?;
        Ok(Self { raised })
    }

    /// Whether it is to end.
    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// How a program ends that was interrupted.
    pub(crate) fn exit_code() -> ExitCode {
        ExitCode::from(CODE)
    }
}
