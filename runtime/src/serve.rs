//! `runtime serve`: detects objects in images sent over HTTP.

mod http;

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::http::StatusCode;
use models::ModelSpec;
use models::spec::Class;
use runtime::image_file::{self, DecodeError, Limits};
use runtime::output::{Failure, Found, outcome_json};
use runtime::progress::{self, say};
use runtime::{Detector, PixelBudget};
use serde::Serialize;

use crate::detector_args::{DetectorArgs, MAX_BATCH};
use crate::interrupt::Interrupt;
use crate::model_args::ModelArgs;
use crate::value_parsers::up_to;
use http::{AppState, ConnectionLimits, Reply, ReplySender, Request};

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

    /// Report only these classes, by name or id, separated by commas.
    #[arg(long, value_name = "NAMES", help_heading = "Thresholds")]
    classes: Option<Vec<String>>,

    /// Maximum images per run of the network; images of one input size share a run [default: the model's if fixed, else 1].
    #[arg(long, value_name = "N", value_parser = up_to(MAX_BATCH), help_heading = "Performance")]
    batch_size: Option<NonZeroUsize>,

    /// Microseconds for which an image waits for others to fill its batch.
    #[arg(long, value_name = "US", default_value_t = 0, help_heading = "Performance")]
    max_queue_delay: u64,

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
    #[arg(long, help_heading = "Server", value_name = "N", default_value = "512", value_parser = up_to(65_536))]
    max_connections: NonZeroUsize,

    /// Reject images with more pixels than this; together, the images in memory have no more either.
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
    let mut options = args.detector.options();
    (options.max_batch, options.rules.classes) = (args.batch_size, args.classes.clone());
    options.max_queue_delay = Duration::from_micros(args.max_queue_delay);
    let detector = args.detector.open(options)?;
    let interrupt = Interrupt::finish_first("finishing the requests in progress");
    let connections = ConnectionLimits {
        connections: args.max_connections.get(),
        header_timeout: Duration::from_secs(args.header_timeout),
    };
    let description = describe(&args.detector.model, &detector)?;
    let patience = Duration::from_secs(args.patience);
    let (state, requests) = AppState::new(args.requests, args.max_bytes, patience, description);
    let limits = Limits { pixels: args.max_pixels, bytes: args.max_bytes };
    let budget = PixelBudget::new(limits.pixels);
    let classes = &detector.spec().classes;
    let (images, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    say(format_args!("listening on http://{address}, detecting on {}", detector.engine().provider()));

    let served = thread::scope(|scope| {
        for _ in 0..args.detector.workers(&detector) {
            let requests = requests.clone();
            scope.spawn(|| {
                for Request { bytes, reply } in requests {
                    // A client that has disconnected waits for nothing.
                    if reply.is_closed() {
                        continue;
                    }
                    let detect = || detect(&bytes, &detector, &limits, &budget);
                    // A fault in one request is not to end the server; what it leaves inconsistent is dropped with it.
                    let outcome = catch_unwind(AssertUnwindSafe(detect)).unwrap_or_else(|_| {
                        Err(Failure::Missing("the server failed with a fault of its own".to_owned()))
                    });
                    images.fetch_add(1, Relaxed);
                    failed.fetch_add(u64::from(outcome.is_err()), Relaxed);
                    respond(reply, &outcome, classes);
                }
            });
        }
        http::serve(listener, state, connections, || interrupt.is_raised())
    });
    say(format_args!(
        "images: {}, failed: {}; {:.3} s in ONNX Runtime on {}",
        images.into_inner(),
        failed.into_inner(),
        detector.statistics().network.as_secs_f64(),
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

/// Detects in the image of a request.
fn detect(bytes: &[u8], detector: &Detector, limits: &Limits, budget: &PixelBudget) -> Result<Found, Failure> {
    let (image, _reserved) = image_file::decode_reserved(bytes, limits, budget)?;
    Ok(Found::detect(detector, &image)?)
}

/// Responds to a request.
fn respond(reply: ReplySender, outcome: &Result<Found, Failure>, classes: &[Class]) {
    let status = outcome.as_ref().map_or_else(status, |_| StatusCode::OK);
    if let (Err(failure), true) = (outcome, status.is_server_error()) {
        // Errors of the client are only in the response; errors of the server also go to its stderr.
        progress::error(format_args!("{failure}"));
    }
    // Fails if the client has disconnected.
    let _ = reply.send(Reply { status, body: outcome_json(outcome, classes) });
}

fn status(failure: &Failure) -> StatusCode {
    match failure {
        Failure::Image(DecodeError::Large { .. } | DecodeError::Long { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        Failure::Image(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Failure::Detector(_) | Failure::Missing(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
