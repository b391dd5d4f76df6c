//! Connections: accepting them, and closing those that are idle or too slow.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use runtime::progress;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};

use super::app::AppState;
use super::http::answer;

/// Pause after a failed accept, for instance because the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Maximum time without a request when all connections are taken, so that those of health checks get through.
const IDLE_WHEN_FULL: Duration = Duration::from_secs(1);

/// Maximum bytes of the header of a request, and of what is read of a body at a time.
const MAX_BUFFER: usize = 1 << 16;

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// Maximum open connections; further ones wait in the system's queue until one closes.
    pub(super) connections: usize,
    /// Time within which the header of a request must arrive after its first byte, or after the connection is there.
    pub(super) header_timeout: Duration,
    /// Maximum time without a request, and without progress in sending a response.
    pub(super) idle_timeout: Duration,
}

/// Accepts connections.
pub(super) struct Acceptor {
    app: Arc<AppState>,
    limits: ConnectionLimits,
    slots: Arc<Semaphore>,
    /// Wakes idle connections when all slots are taken.
    full: Arc<Notify>,
    pub(super) connections: GracefulShutdown,
}

impl Acceptor {
    pub(super) fn new(app: Arc<AppState>, limits: ConnectionLimits) -> Self {
        let slots = Arc::new(Semaphore::new(limits.connections));
        Self { app, limits, slots, full: Arc::default(), connections: GracefulShutdown::new() }
    }

    /// Accepts connections for ever.
    pub(super) async fn accept(&self, listener: &TcpListener) -> Infallible {
        let mut is_failing = false;
        loop {
            if self.slots.available_permits() == 0 {
                self.full.notify_waiters();
            }
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                unreachable!("the semaphore is never closed")
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    is_failing = false;
                    self.serve(stream, slot);
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        progress::warn(format_args!("cannot accept connections: {error}; trying again"));
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Accepts the connections that the system already has, then closes the listener: their clients may have sent requests.
    pub(super) fn accept_waiting(&self, listener: TcpListener) {
        // Not tokio's, which knows of new connections only after it has asked the system.
        let Ok(listener) = listener.into_std() else { return };
        while let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned()
            && let Ok((stream, _)) = listener.accept()
            && let Ok(()) = stream.set_nonblocking(true)
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            self.serve(stream, slot);
        }
    }

    fn serve(&self, stream: TcpStream, slot: OwnedSemaphorePermit) {
        // A response is one small packet, which must not wait for another.
        let _ = stream.set_nodelay(true);
        let clock = Arc::new(Clock::new());
        let (app, limits) = (Arc::clone(&self.app), self.limits);
        let of_service = Arc::clone(&clock);
        let service = service_fn(move |request| {
            let (app, clock) = (Arc::clone(&app), Arc::clone(&of_service));
            async move {
                clock.set(Phase::Request);
                let response = answer(app, request).await;
                clock.set(Phase::Idle);
                response
            }
        });
        let io = TokioIo::new(Clocked { stream, clock: Arc::clone(&clock) });
        let mut http = http1::Builder::new();
        // The clock replaces hyper's time-out, which makes no difference between an idle connection and a slow header.
        http.timer(TokioTimer::new()).header_read_timeout(None::<Duration>).max_buf_size(MAX_BUFFER);
        let connection = self.connections.watch(http.serve_connection(io, service));
        let (slots, full) = (Arc::clone(&self.slots), Arc::clone(&self.full));
        tokio::spawn(async move {
            tokio::select! {
                // An error of one client does not affect the others.
                _ = connection => {}
                () = clock.expire(limits, &slots, &full) => {}
            }
            drop(slot);
        });
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No byte of the first request has arrived.
    New,
    /// A response is being sent, or all have been sent.
    Idle,
    /// Bytes of a request's header have arrived.
    Header,
    /// A request is being answered, within its own time-outs.
    Request,
}

/// Since when a connection has been doing what it does.
struct Clock {
    state: Mutex<(Phase, Instant)>,
    changed: Notify,
}

impl Clock {
    fn new() -> Self {
        Self { state: Mutex::new((Phase::New, Instant::now())), changed: Notify::new() }
    }

    fn set(&self, phase: Phase) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (phase, Instant::now());
        self.changed.notify_one();
    }

    fn phase(&self) -> (Phase, Instant) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes have arrived.
    fn has_read(&self) {
        if matches!(self.phase().0, Phase::New | Phase::Idle) {
            self.set(Phase::Header);
        }
    }

    /// Bytes have been sent.
    fn has_written(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 == Phase::Idle {
            // `expire` looks again when the time that it knows is over.
            state.1 = Instant::now();
        }
    }

    /// Waits until the connection has been too slow, or idle when there is no slot for another.
    async fn expire(&self, limits: ConnectionLimits, slots: &Semaphore, full: &Notify) {
        loop {
            let filled = full.notified();
            let (phase, since) = self.phase();
            let deadline = match phase {
                Phase::New | Phase::Header => since + limits.header_timeout,
                Phase::Idle if slots.available_permits() == 0 => since + limits.idle_timeout.min(IDLE_WHEN_FULL),
                Phase::Idle => since + limits.idle_timeout,
                Phase::Request => {
                    self.changed.notified().await;
                    continue;
                }
            };
            tokio::select! {
                () = sleep_until(deadline) => if self.phase() == (phase, since) { return },
                () = self.changed.notified() => {}
                () = filled => {}
            }
        }
    }
}

/// A stream that sets its connection's clock.
struct Clocked {
    stream: TcpStream,
    clock: Arc<Clock>,
}

impl AsyncRead for Clocked {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.clock.has_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Clocked {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.clock.has_written();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        parts: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, parts))?;
        self.clock.has_written();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
