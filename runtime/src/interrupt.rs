//! Ctrl-C and termination signals of a program: they end it at once, without leaving temporary files, or let it finish the
//! work in progress first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::machine;
use crate::progress::say;

/// Exit code of a program stopped by Ctrl-C, as shells report it.
pub const EXIT_CODE: u8 = 130;

static STATE: Mutex<State> = Mutex::new(State { first: None, repetition: Duration::ZERO, folders: Vec::new() });

struct State {
    /// What the next signal does instead of ending the program, and what is printed then.
    first: Option<(Interrupt, &'static str)>,
    /// Signals within this time after the first are ignored.
    repetition: Duration,
    /// Folders to delete before the program ends.
    folders: Vec<PathBuf>,
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Handles Ctrl-C, SIGTERM and SIGHUP from now on. Signals that the caller has ignored, as `nohup` does with SIGHUP, stay
/// ignored. Call at most once per process.
///
/// # Errors
/// When the handler cannot be installed.
pub fn watch() -> io::Result<()> {
    let watched = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !machine::ignores_signal(*signal));
    let mut signals = Signals::new(watched)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot install the handler of Ctrl-C: {error}")))?;
    thread::spawn(move || {
        let mut ignored_until = None;
        for _ in signals.forever() {
            let (first, repetition) = {
                let mut state = state();
                (state.first.take(), state.repetition)
            };
            if let Some((interrupt, consequence)) = first {
                ignored_until = Some(Instant::now() + repetition);
                announce(consequence);
                interrupt.raise();
            } else if ignored_until.is_none_or(|until| until <= Instant::now()) {
                exit();
            }
        }
    });
    Ok(())
}

/// Says what the first signal does. Nobody may be reading stderr, and that must not delay this signal or the next one.
fn announce(consequence: &'static str) {
    let (said, was_said) = bounded::<()>(0);
    thread::spawn(move || {
        say(format_args!("stopping: {consequence}; press Ctrl-C again to stop at once"));
        drop(said);
    });
    let _ = was_said.recv_timeout(Duration::from_millis(200));
}

/// Deletes a folder, too, when a signal ends the program.
pub fn delete_at_exit(folder: &Path) {
    state().folders.push(folder.to_owned());
}

fn exit() -> ! {
    models::remove_partial_files();
    for folder in &state().folders {
        delete(folder);
    }
    // Threads of C++ libraries are still running, and destructors must not pull their memory from under them.
    signal_hook::low_level::exit(EXIT_CODE.into())
}

/// Deletes a folder to which the program may still add files. What cannot be deleted stays.
fn delete(folder: &Path) {
    for _ in 0..20 {
        if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Tells whether a signal has been received. Clones share it.
#[derive(Clone, Debug)]
pub struct Interrupt {
    /// Dropped by the signal.
    sender: Arc<Mutex<Option<Sender<()>>>>,
    /// Disconnected by the signal.
    receiver: Receiver<()>,
}

impl Default for Interrupt {
    /// One that no signal raises.
    fn default() -> Self {
        let (sender, receiver) = bounded(0);
        Self { sender: Arc::new(Mutex::new(Some(sender))), receiver }
    }
}

impl Interrupt {
    /// Lets the program finish its work in progress at the first signal; the second ends it. `consequence` says what
    /// happens to that work. Call at most once per process.
    pub fn finish_first(consequence: &'static str) -> Self {
        let interrupt = Self::default();
        state().first = Some((interrupt.clone(), consequence));
        interrupt
    }

    /// Ignores signals within this time after the first, since launchers and schedulers may send it twice.
    pub fn ignoring_repetition(self, time: Duration) -> Self {
        state().repetition = time;
        self
    }

    /// Does what the signal does. Returns whether it was done before.
    pub fn raise(&self) -> bool {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take().is_none()
    }

    /// Whether a signal has been received.
    pub fn is_raised(&self) -> bool {
        self.receiver.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// A channel that the signal disconnects.
    pub fn channel(&self) -> &Receiver<()> {
        &self.receiver
    }
}
