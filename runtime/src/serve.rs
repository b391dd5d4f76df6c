//! `runtime serve`: detects objects in images sent over HTTP.

mod http;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::http::StatusCode;
use models::ModelSpec;
use models::spec::Class;
use runtime::Detector;
use runtime::image_file::{DecodeError, Limits};
use runtime::output::{Failure, outcome_json};
use runtime::pipeline::{Content, Finished, Item, pipeline};
use runtime::progress::{self, say};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::detector_args::DetectorArgs;
use crate::interrupt::Interrupt;
use crate::model_args::ModelArgs;
use crate::up_to;
use http::{Answer, ConnectionLimits, Desk, Request};

/// Detect objects in images sent over HTTP.
///
/// `POST /detect` takes an image file as the body and returns the JSON that `detect` writes, without `file`:
/// `curl --data-binary @street.jpg http://127.0.0.1:8080/detect`. `GET /model` describes the model, `GET /health` returns `ok`.
///
/// Simultaneous requests share batches (--batch-size). Errors are JSON `{"error": ..}` with a status: 408 request too slow,
/// 413 too large, 422 not an image, 503 too many requests, try again. Ctrl-C and SIGTERM finish the requests in progress.
/// There is no TLS and no authentication: put a reverse proxy in front before you expose it.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Address and port to listen on; port 0 chooses a free one.
    #[arg(long, help_heading = "Server", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: String,

    #[command(flatten)]
    detector: DetectorArgs,

    /// Maximum number of requests in progress, those arriving and waiting included; further ones get 503.
    #[arg(long, help_heading = "Server", value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    requests: u32,

    /// Seconds within which a request must have arrived completely.
    #[arg(long, help_heading = "Server", value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,

    /// Seconds after which a connection is closed that is idle or has not sent a request's header.
    #[arg(long, help_heading = "Server", value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    header_timeout: u64,

    /// Maximum number of open connections; further ones wait until one closes.
    #[arg(long, help_heading = "Server", value_name = "N", default_value_t = 512, value_parser = up_to(65_536))]
    max_connections: usize,

    /// Reject images with more pixels than this.
    #[arg(long, help_heading = "Server", value_name = "N", default_value_t = 1 << 26)]
    max_pixels: u64,

    /// Reject requests with more bytes than this; requests in progress may take this many bytes each.
    #[arg(long, help_heading = "Server", value_name = "N", default_value_t = 1 << 25)]
    max_bytes: u64,
}

/// Serves until Ctrl-C or a termination signal, then prints a summary on stderr.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let (listener, address) = listen(&args.listen).map_err(|error| {
        anyhow!("cannot listen on `{}`: {error}; choose another with --listen ADDRESS:PORT", args.listen)
    })?;
    let detector = args.detector.open()?;
    let limits = Limits { pixels: args.max_pixels, bytes: args.max_bytes };
    let options = args.detector.pipeline(&detector, limits)?;
    let interrupt = Interrupt::watch("finishing the requests in progress")?;
    let broken = AtomicBool::new(false);
    let is_over = || interrupt.is_raised() || broken.load(Ordering::SeqCst);
    let patience = Duration::from_secs(args.patience);
    let description = describe(&args.detector.model, &detector)?;
    let connections = ConnectionLimits {
        connections: args.max_connections,
        header_timeout: Duration::from_secs(args.header_timeout),
    };
    let (desk, requests) = Desk::new(args.requests, args.max_bytes, patience, description);
    let items = requests.into_iter().filter_map(item);
    let classes = &detector.spec().classes;
    say(format_args!("listening on http://{address}, detecting on {}", detector.engine().provider()));

    let (served, inference, tally) = thread::scope(|scope| {
        let server = scope.spawn(|| http::serve(listener, desk, connections, is_over));
        let (inference, tally) = pipeline(
            &detector,
            &options,
            items,
            |finished| answer(finished, classes),
            |answered| {
                let tally = answered.fold(Tally::default(), Tally::add);
                // After a panic, requests would get no response.
                broken.store(true, Ordering::SeqCst);
                tally
            },
        );
        let served = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (served, inference, tally)
    });
    say(format_args!(
        "images: {}, failed: {}; {:.3} s in ONNX Runtime on {}",
        tally.images,
        tally.failed,
        inference.as_secs_f64(),
        detector.engine().provider(),
    ));
    served.context("the server stopped")
}

/// A listening socket, and its address.
fn listen(address: &str) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The response to `GET /model`.
#[derive(Serialize)]
struct Description<'a> {
    model: PathBuf,
    runtime: &'static str,
    onnxruntime: &'static str,
    provider: String,
    /// The spec of the file, with the rules applied.
    spec: &'a ModelSpec,
}

fn describe(model: &ModelArgs, detector: &Detector) -> Result<String> {
    let engine = detector.engine();
    let description = Description {
        model: model.path().to_owned(),
        runtime: env!("CARGO_PKG_VERSION"),
        onnxruntime: &engine.library().version,
        provider: engine.provider().to_string(),
        spec: detector.spec(),
    };
    Ok(serde_json::to_string(&description)?)
}

/// Sends the response to a waiting request.
type Asker = oneshot::Sender<Answer>;

/// The image of a request; `None` if its client has disconnected.
fn item(Request { bytes, asker }: Request) -> Option<Item<Asker>> {
    let content = Content::Bytes(bytes);
    (!asker.is_closed()).then(|| Item { file: PathBuf::new(), frame: None, content, tag: asker })
}

/// Responds to a request, and returns the status.
fn answer(finished: Finished<Asker>, classes: &[Class]) -> StatusCode {
    let outcome = finished.report.outcome;
    let status = outcome.as_ref().map_or_else(status, |_| StatusCode::OK);
    if let (Err(failure), true) = (&outcome, status.is_server_error()) {
        // Errors of the client are only in the response; errors of the server also go to its stderr.
        progress::error(format_args!("{failure}"));
    }
    // Fails if the client has disconnected.
    let _ = finished.tag.send(Answer { status, body: outcome_json(&outcome, classes) });
    status
}

fn status(failure: &Failure) -> StatusCode {
    match failure {
        Failure::Image(DecodeError::Large { .. } | DecodeError::Long { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        Failure::Image(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Failure::Detector(_) | Failure::Missing(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Counts of a run.
#[derive(Default)]
struct Tally {
    images: u64,
    failed: u64,
}

impl Tally {
    fn add(self, status: StatusCode) -> Self {
        Self { images: self.images + 1, failed: self.failed + u64::from(status != StatusCode::OK) }
    }
}
