//! Ctrl-C and termination signals: they end the program at once, without leaving temporary files, or let it finish the work
//! in progress first.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use runtime::machine;
use runtime::progress::say;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Exit code of a program stopped by Ctrl-C, as shells report it.
const EXIT_CODE: u8 = 130;

static STATE: Mutex<State> = Mutex::new(State { first: None, folders: Vec::new() });

struct State {
    /// What the next signal does instead of ending the program.
    first: Option<First>,
    /// Folders to delete before the program ends.
    folders: Vec<PathBuf>,
}

struct First {
    /// Printed at the signal.
    consequence: &'static str,
    /// Dropped at the signal.
    sender: Sender<()>,
}

/// Tells whether a signal has been received.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    /// Disconnected by the signal.
    receiver: Receiver<()>,
}

/// Handles Ctrl-C and termination signals from now on. Signals that the caller has ignored, as `nohup` does with SIGHUP,
/// stay ignored.
pub(crate) fn watch() -> Result<()> {
    let watched = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !machine::ignores_signal(*signal));
    let mut signals = Signals::new(watched).context("cannot install the handler of Ctrl-C")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            let first = state().first.take();
            match first {
                Some(First { consequence, sender }) => {
                    say(format_args!("stopping: {consequence}; press Ctrl-C again to stop at once"));
                    drop(sender);
                }
                None => exit(),
            }
        }
    });
    Ok(())
}

/// Deletes a folder, too, when a signal ends the program.
pub(crate) fn delete_at_exit(folder: PathBuf) {
    state().folders.push(folder);
}

/// The exit code of an interrupted program.
pub(crate) fn exit_code() -> ExitCode {
    ExitCode::from(EXIT_CODE)
}

fn exit() -> ! {
    models::remove_partial_files();
    for folder in &state().folders {
        // What cannot be deleted stays.
        let _ = fs::remove_dir_all(folder);
    }
    // ONNX Runtime's threads are still running, and destructors of C++ must not pull its memory from under them.
    signal_hook::low_level::exit(EXIT_CODE.into())
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupt {
    /// Lets the program finish its work in progress at the first signal; the second ends it. `consequence` says what
    /// happens to that work. Call at most once per process.
    pub(crate) fn finish_first(consequence: &'static str) -> Self {
        let (sender, receiver) = bounded(0);
        state().first = Some(First { consequence, sender });
        Self { receiver }
    }

    /// Whether a signal has been received.
    pub(crate) fn is_raised(&self) -> bool {
        self.receiver.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// A channel that a signal disconnects.
    pub(crate) fn channel(&self) -> &Receiver<()> {
        &self.receiver
    }
}
