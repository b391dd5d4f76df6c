//! The HTTP server: receives requests, queues them and responds.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use crossbeam_channel::{Receiver, Sender, bounded};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

/// An image to process.
pub(super) struct Request {
    /// The bytes of the image file.
    pub(super) bytes: Vec<u8>,
    /// Sends the response.
    pub(super) reply: ReplySender,
}

/// Sends the response to a waiting request.
pub(super) type ReplySender = oneshot::Sender<Reply>;

/// The response to a request.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// JSON.
    pub(super) body: String,
}

/// State of the server, shared by all requests.
pub(super) struct AppState {
    /// Queue to the workers; its capacity is `max_requests`.
    requests: Sender<Request>,
    /// A permit for each request in progress.
    permits: Semaphore,
    /// Maximum requests in progress.
    max_requests: u32,
    /// Maximum bytes of an image.
    max_bytes: u64,
    /// Time within which an image must have arrived.
    patience: Duration,
    /// The response to `GET /model`, as JSON.
    description: String,
}

/// Time for the last responses to reach their clients.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// How often `is_over` is called.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Pause after a failed accept, for instance because the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of connections.
#[derive(Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// Maximum open connections; further ones wait in the system's queue until one closes.
    pub(super) connections: usize,
    /// Time within which the header of a request must arrive; also the maximum idle time of a connection.
    pub(super) header_timeout: Duration,
}

/// Serves until `is_over`, then finishes the requests in progress.
pub(super) fn serve(
    listener: TcpListener,
    state: AppState,
    limits: ConnectionLimits,
    is_over: impl Fn() -> bool,
) -> io::Result<()> {
    // One thread is enough, since it only transfers requests and responses.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let state = Arc::new(state);
        let connections = GracefulShutdown::new();
        let over = async {
            while !is_over() {
                sleep(POLL_INTERVAL).await;
            }
        };
        tokio::select! {
            never = accept(&listener, router(Arc::clone(&state)), limits, &connections) => match never {},
            () = over => {}
        }
        drop(listener);
        let answered = async {
            state.until_empty().await;
            // Idle connections are not waited for.
            sleep(SHUTDOWN_GRACE).await;
        };
        tokio::select! {
            () = connections.shutdown() => {}
            () = answered => {}
        }
        Ok(())
    })
}

/// Accepts connections, up to the limit.
async fn accept(
    listener: &tokio::net::TcpListener,
    router: Router,
    limits: ConnectionLimits,
    connections: &GracefulShutdown,
) -> Infallible {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    let slots = Arc::new(Semaphore::new(limits.connections));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // A response is one small packet, which must not wait for another.
        let _ = stream.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // An error of one client does not affect the others.
            let _ = connection.await;
            drop(slot);
        });
    }
}

fn router(state: Arc<AppState>) -> Router {
    Router::new()
        .route("/detect", post(detect))
        .route(
            "/model",
            get(async |State(state): State<Arc<AppState>>| json_response(StatusCode::OK, state.description.clone())),
        )
        .route("/health", get("ok"))
        .method_not_allowed_fallback(async || error(StatusCode::METHOD_NOT_ALLOWED, ROUTES))
        .fallback(async || error(StatusCode::NOT_FOUND, ROUTES))
        .with_state(state)
}

const ROUTES: &str = "expected POST /detect, GET /model or GET /health";

async fn detect(State(state): State<Arc<AppState>>, headers: HeaderMap, mut body: Body) -> Response {
    let response = state.submit(&mut body).await;
    let early = matches!(response.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::PAYLOAD_TOO_LARGE);
    // Clients that are still sending would miss the response, so the body is read to its end. Clients with `Expect`
    // have not started to send.
    if early && !headers.contains_key(header::EXPECT) {
        let _ = timeout(state.patience, async { while let Some(Ok(_)) = next(&mut body).await {} }).await;
    }
    response
}

impl AppState {
    /// The state for at most `max_requests` requests in progress, and the receiver of their images.
    pub(super) fn new(
        max_requests: u32,
        max_bytes: u64,
        patience: Duration,
        description: String,
    ) -> (Self, Receiver<Request>) {
        let (requests, receiver) = bounded(max_requests as usize);
        let permits = Semaphore::new(max_requests as usize);
        (Self { requests, permits, max_requests, max_bytes, patience, description }, receiver)
    }

    /// Receives an image and returns the response.
    async fn submit(&self, body: &mut Body) -> Response {
        let Ok(_permit) = self.permits.try_acquire() else { return busy() };
        let bytes = match timeout(self.patience, self.receive(body)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(refused)) => return refused,
            Err(_) => {
                let reason = format!("the image did not arrive within {} s", self.patience.as_secs());
                return error(StatusCode::REQUEST_TIMEOUT, &reason);
            }
        };
        let (reply, response) = oneshot::channel();
        // The queue may be full of images whose clients have disconnected.
        let Ok(()) = self.requests.try_send(Request { bytes, reply }) else { return busy() };
        match response.await {
            Ok(Reply { status, body }) => json_response(status, body),
            Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the server stopped before the image was processed"),
        }
    }

    async fn receive(&self, body: &mut Body) -> Result<Vec<u8>, Response> {
        let long = || {
            let reason = format!("the file is larger than the limit of {} bytes", self.max_bytes);
            error(StatusCode::PAYLOAD_TOO_LARGE, &reason)
        };
        // The declared length; 0 if unknown.
        let expected = body.size_hint().lower();
        if expected > self.max_bytes {
            return Err(long());
        }
        let mut bytes = Vec::with_capacity(expected as usize);
        while let Some(part) = next(body).await {
            let part = part.map_err(|reason| error(StatusCode::BAD_REQUEST, &reason.to_string()))?;
            if (bytes.len() + part.len()) as u64 > self.max_bytes {
                return Err(long());
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    /// Waits until no request is in progress; further requests are rejected.
    async fn until_empty(&self) {
        if let Ok(permits) = self.permits.acquire_many(self.max_requests).await {
            permits.forget();
        }
    }
}

/// The next bytes of a body; `None` at its end.
async fn next(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
    // Frames without data are trailers, which are ignored.
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

fn busy() -> Response {
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "too many requests in progress; try again");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn error(status: StatusCode, reason: &str) -> Response {
    json_response(status, json!({ "error": reason }).to_string())
}

fn json_response(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
