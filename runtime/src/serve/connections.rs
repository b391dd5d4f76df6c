//! Connections: accepting them, and closing those that are idle or too slow.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Maximum time without a request while another connection waits, so that those of health checks get through.
const IDLE_WHEN_FULL: Duration = Duration::from_secs(1);

/// Maximum bytes of the header of a request, and of what is read of a body at a time.
const MAX_BUFFER: usize = 1 << 16;

/// Limits of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// Maximum open connections; further ones wait until one closes, all but the first of them in the system's queue.
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
    /// The connection that waits for a slot.
    waiting: Mutex<Option<TcpStream>>,
    crowd: Arc<Crowd>,
    pub(super) connections: GracefulShutdown,
}

impl Acceptor {
    pub(super) fn new(app: Arc<AppState>, limits: ConnectionLimits) -> Self {
        let slots = Arc::new(Semaphore::new(limits.connections));
        let (waiting, crowd) = (Mutex::default(), Arc::default());
        Self { app, limits, slots, waiting, crowd, connections: GracefulShutdown::new() }
    }

    /// Accepts connections for ever.
    pub(super) async fn accept(&self, listener: &TcpListener) -> Infallible {
        let mut is_failing = false;
        loop {
            // One may be left from a call of this function that was dropped.
            if lock(&self.waiting).is_none() {
                match listener.accept().await {
                    Ok((stream, _)) => *lock(&self.waiting) = Some(stream),
                    Err(error) => {
                        if !std::mem::replace(&mut is_failing, true) {
                            progress::warn(format_args!("cannot accept connections: {error}; trying again"));
                        }
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                }
            }
            is_failing = false;
            if self.slots.available_permits() == 0 {
                self.crowd.ask();
            }
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                unreachable!("the semaphore is never closed")
            };
            self.crowd.waits.store(false, Relaxed);
            if let Some(stream) = lock(&self.waiting).take() {
                self.serve(stream, slot);
            }
        }
    }

    /// Accepts the connections that the system already has, then closes the listener: their clients may have sent requests.
    pub(super) fn accept_waiting(&self, listener: TcpListener) {
        // Not tokio's, which knows of new connections only after it has asked the system.
        let Ok(listener) = listener.into_std() else { return };
        let accept = || {
            let (stream, _) = listener.accept().ok()?;
            stream.set_nonblocking(true).ok()?;
            TcpStream::from_std(stream).ok()
        };
        while let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned()
            && let Some(stream) = lock(&self.waiting).take().or_else(accept)
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
                clock.set(Phase::Sending);
                response
            }
        });
        let io = TokioIo::new(Clocked { stream, clock: Arc::clone(&clock) });
        let mut http = http1::Builder::new();
        // The clock replaces hyper's time-out, which makes no difference between an idle connection and a slow header.
        http.timer(TokioTimer::new()).header_read_timeout(None::<Duration>).max_buf_size(MAX_BUFFER);
        let connection = self.connections.watch(http.serve_connection(io, service));
        let crowd = Arc::clone(&self.crowd);
        tokio::spawn(async move {
            tokio::select! {
                // An error of one client does not affect the others.
                _ = connection => {}
                () = clock.expire(limits, &crowd) => {}
            }
            drop(slot);
        });
    }
}

/// Whether a connection waits for one that is idle to give way.
#[derive(Default)]
struct Crowd {
    waits: AtomicBool,
    /// Wakes idle connections.
    asked: Notify,
}

impl Crowd {
    /// Asks one idle connection to give way.
    fn ask(&self) {
        self.waits.store(true, Relaxed);
        self.asked.notify_waiters();
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No byte of the first request has arrived.
    New,
    /// All responses have been sent.
    Idle,
    /// Bytes of a request's header have arrived.
    Header,
    /// A request is being answered, within its own time-outs.
    Request,
    /// A response is being sent, since its last bytes that were.
    Sending,
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
        *lock(&self.state) = (phase, Instant::now());
        self.changed.notify_one();
    }

    fn phase(&self) -> (Phase, Instant) {
        *lock(&self.state)
    }

    /// Bytes have arrived.
    fn has_read(&self) {
        if matches!(self.phase().0, Phase::New | Phase::Idle) {
            self.set(Phase::Header);
        }
    }

    /// Bytes have been sent.
    fn has_written(&self) {
        let mut state = lock(&self.state);
        if state.0 == Phase::Sending {
            // `expire` looks again when the time that it knows is over.
            state.1 = Instant::now();
        }
    }

    /// All bytes that there are have been sent.
    fn has_flushed(&self) {
        if self.phase().0 == Phase::Sending {
            self.set(Phase::Idle);
        }
    }

    /// Waits until the connection has been too slow or idle, or is to give way to another.
    async fn expire(&self, limits: ConnectionLimits, crowd: &Crowd) {
        loop {
            let asked = crowd.asked.notified();
            let (phase, since) = self.phase();
            let gives_way = phase == Phase::Idle && crowd.waits.load(Relaxed);
            let deadline = match phase {
                Phase::New | Phase::Header => since + limits.header_timeout,
                Phase::Idle if gives_way => since + limits.idle_timeout.min(IDLE_WHEN_FULL),
                Phase::Idle | Phase::Sending => since + limits.idle_timeout,
                Phase::Request => {
                    self.changed.notified().await;
                    continue;
                }
            };
            tokio::select! {
                // One is enough.
                () = sleep_until(deadline) => if self.phase() == (phase, since)
                    && (!gives_way || crowd.waits.swap(false, Relaxed)) { return },
                () = self.changed.notified() => {}
                () = asked => {}
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
        // hyper flushes when it has written the whole response.
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.clock.has_flushed();
        Poll::Ready(Ok(()))
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

/// Ignores poisoning: no panic leaves these values inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use http_body_util::Full;
    use hyper::body::Bytes;
    use tokio::task::spawn_blocking;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const LIMITS: ConnectionLimits = ConnectionLimits { connections: 1, header_timeout: LONG, idle_timeout: LONG };

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// Which of these connections are closed within one and a half seconds.
    async fn closed([a, b, c]: [&Clock; 3], crowd: &Crowd) -> [bool; 3] {
        let expire = async |clock: &Clock| timeout(Duration::from_millis(1500), clock.expire(LIMITS, crowd)).await;
        let (a, b, c) = tokio::join!(expire(a), expire(b), expire(c));
        [a, b, c].map(|ended| ended.is_ok())
    }

    #[test]
    fn one_idle_connection_gives_way_while_another_waits_and_none_that_sends() {
        block_on(async {
            let (crowd, clocks) = (Crowd::default(), [(); 3].map(|()| Clock::new()));
            let clocks = clocks.each_ref();
            for (clock, phase) in clocks.iter().zip([Phase::Sending, Phase::Idle, Phase::Idle]) {
                clock.set(phase);
            }
            assert_eq!(closed(clocks, &crowd).await, [false; 3]);
            crowd.ask();
            let [sending, idle, also_idle] = closed(clocks, &crowd).await;
            assert!(!sending && idle != also_idle, "{idle} {also_idle}");
            assert!(!crowd.waits.load(Relaxed));
        });
    }

    #[test]
    fn a_connection_is_idle_when_the_client_has_its_response() {
        const LENGTH: usize = 64 << 20;
        block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let clock = Arc::new(Clock::new());
            let of_service = Arc::clone(&clock);
            let service = service_fn(move |_| {
                of_service.set(Phase::Sending);
                async { Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from(vec![0; LENGTH])))) }
            });
            let io = TokioIo::new(Clocked { stream, clock: Arc::clone(&clock) });
            tokio::spawn(http1::Builder::new().serve_connection(io, service));
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            sleep(Duration::from_millis(300)).await;
            assert_eq!(clock.phase().0, Phase::Sending);
            // The system keeps the last bytes.
            let read = spawn_blocking(move || client.read_exact(&mut vec![0; LENGTH]).map(|()| client));
            let _client = read.await.unwrap().unwrap();
            sleep(Duration::from_millis(300)).await;
            assert_eq!(clock.phase().0, Phase::Idle);
        });
    }
}
