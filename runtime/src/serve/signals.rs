//! The signals of a server: those that end it, and SIGHUP, which reloads.

use anyhow::{Context, Result};
use runtime::machine;
use tokio::signal::unix::{self, SignalKind};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Reload,
    End,
}

/// Signals from now on.
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    /// `None` if it stays ignored.
    hangup: Option<unix::Signal>,
    /// What SIGHUP asks for.
    on_hangup: Signal,
}

impl Signals {
    /// `reloads`: whether SIGHUP reloads. Otherwise it ends the server, unless the caller ignores it, as `nohup` does.
    pub(super) fn new(reloads: bool) -> Result<Self> {
        let watch = |kind| unix::signal(kind).context("cannot install the handler of Ctrl-C");
        let is_ignored = machine::ignores_signal(SignalKind::hangup().as_raw_value());
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: (reloads || !is_ignored).then(|| watch(SignalKind::hangup())).transpose()?,
            on_hangup: if reloads { Signal::Reload } else { Signal::End },
        })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> Signal {
        let Self { interrupt, terminate, hangup, on_hangup } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => Signal::End,
            _ = terminate.recv() => Signal::End,
            _ = hangup => *on_hangup,
        }
    }

    /// Waits for a signal that ends the server.
    pub(super) async fn end(&mut self) {
        while self.next().await != Signal::End {}
    }
}

/// Ends the process at once.
pub(super) fn exit_at_once(code: i32) -> ! {
    // ONNX Runtime's threads are still running, and destructors of C++ must not pull their memory from under them.
    signal_hook::low_level::exit(code)
}
