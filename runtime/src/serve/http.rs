//! HTTP's side: requests come in, wait for their turn, and are answered.

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

use crate::interrupt::Interrupt;

/// An image that is to be looked at.
pub(super) struct Request {
    /// Those of its file.
    pub(super) bytes: Vec<u8>,
    /// Where the answer goes.
    pub(super) asker: oneshot::Sender<Answer>,
}

/// What a request is answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// JSON.
    pub(super) body: String,
}

/// Where requests are taken.
pub(super) struct Desk {
    /// To those who look at the images; it has room for as many as there are places.
    requests: Sender<Request>,
    /// One for each request under way.
    places: Semaphore,
    place_count: u32,
    /// Most bytes of an image.
    most_bytes: u64,
    /// How long an image may take to come.
    patience: Duration,
    /// What the model is, as JSON.
    description: String,
}

/// What the last answers have to reach those who asked.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long to wait when the system gives no connection, as when this program has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What clients may take.
#[derive(Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// Open connections; more wait in the system's queue until one closes.
    pub(super) connections: usize,
    /// How long the head of a request may take, and how long a connection may be idle.
    pub(super) header_timeout: Duration,
}

/// Serves until it is over and what was under way is answered.
pub(super) fn serve(
    listener: TcpListener,
    desk: Desk,
    limits: ConnectionLimits,
    is_over: impl Fn() -> bool,
) -> io::Result<()> {
    // Requests only pass through here, for which one thread is enough.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let desk = Arc::new(desk);
        let connections = GracefulShutdown::new();
        let over = async {
            while !is_over() {
                sleep(Interrupt::GLANCE).await;
            }
        };
        tokio::select! {
            never = accept(&listener, router(Arc::clone(&desk)), limits, &connections) => match never {},
            () = over => {}
        }
        drop(listener);
        let answered = async {
            desk.until_empty().await;
            // Connections on which nothing was asked are not waited for.
            sleep(FAREWELL).await;
        };
        tokio::select! {
            () = connections.shutdown() => {}
            () = answered => {}
        }
        Ok(())
    })
}

/// Takes connections, as many at a time as there may be.
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
        // An answer is one small packet, which is not to wait for another.
        let _ = stream.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // Clients that break off harm nobody else.
            let _ = connection.await;
            drop(slot);
        });
    }
}

fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/detect", post(detect))
        .route(
            "/model",
            get(async |State(desk): State<Arc<Desk>>| json_response(StatusCode::OK, desk.description.clone())),
        )
        .route("/health", get("ok"))
        .method_not_allowed_fallback(async || error(StatusCode::METHOD_NOT_ALLOWED, ROUTES))
        .fallback(async || error(StatusCode::NOT_FOUND, ROUTES))
        .with_state(desk)
}

const ROUTES: &str = "there are POST /detect, GET /model and GET /health";

async fn detect(State(desk): State<Arc<Desk>>, headers: HeaderMap, mut body: Body) -> Response {
    let answer = desk.ask(&mut body).await;
    let early = matches!(answer.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::PAYLOAD_TOO_LARGE);
    // Who is still sending would not hear it; who expects it before sending would begin to send.
    if early && !headers.contains_key(header::EXPECT) {
        let _ = timeout(desk.patience, async { while let Some(Ok(_)) = next(&mut body).await {} }).await;
    }
    answer
}

impl Desk {
    /// A desk with so many places, and where what is asked there comes out.
    pub(super) fn new(
        place_count: u32,
        most_bytes: u64,
        patience: Duration,
        description: String,
    ) -> (Self, Receiver<Request>) {
        let (requests, asked) = bounded(place_count as usize);
        let places = Semaphore::new(place_count as usize);
        (Self { requests, places, place_count, most_bytes, patience, description }, asked)
    }

    /// Gets an image, and the answer to it.
    async fn ask(&self, body: &mut Body) -> Response {
        let Ok(_place) = self.places.try_acquire() else { return busy() };
        let bytes = match timeout(self.patience, self.receive(body)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(refused)) => return refused,
            Err(_) => {
                let reason = format!("the image has not come within {} s", self.patience.as_secs());
                return error(StatusCode::REQUEST_TIMEOUT, &reason);
            }
        };
        let (asker, answer) = oneshot::channel();
        // There may be no room when others have left without their answers.
        let Ok(()) = self.requests.try_send(Request { bytes, asker }) else { return busy() };
        match answer.await {
            Ok(Answer { status, body }) => json_response(status, body),
            Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the server has lost the image"),
        }
    }

    async fn receive(&self, body: &mut Body) -> Result<Vec<u8>, Response> {
        let long = || {
            let reason = format!("the file is longer than {} bytes", self.most_bytes);
            error(StatusCode::PAYLOAD_TOO_LARGE, &reason)
        };
        // As far as is known before they come.
        let expected = body.size_hint().lower();
        if expected > self.most_bytes {
            return Err(long());
        }
        let mut bytes = Vec::with_capacity(expected as usize);
        while let Some(part) = next(body).await {
            let part = part.map_err(|reason| error(StatusCode::BAD_REQUEST, &reason.to_string()))?;
            if (bytes.len() + part.len()) as u64 > self.most_bytes {
                return Err(long());
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    /// Waits until no request is under way; from then on, none is taken.
    async fn until_empty(&self) {
        if let Ok(places) = self.places.acquire_many(self.place_count).await {
            places.forget();
        }
    }
}

/// The next bytes of a body; none at its end.
async fn next(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
    // What is no bytes are trailers, which say nothing here.
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

fn busy() -> Response {
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "too many requests are under way; try again");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn error(status: StatusCode, reason: &str) -> Response {
    json_response(status, json!({ "error": reason }).to_string())
}

fn json_response(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
