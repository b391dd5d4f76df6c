//! The application: what the endpoints answer, apart from HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::body::Bytes;
use runtime::output::{Failure, outcome_json};
use runtime::protocol::{ImageResult, InferRequest, InferResponse, Parameters, RequestError};
use runtime::{CallOptions, CancelOnDrop, Cancellation};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::metrics::{Metrics, Stages};
use super::model_store::ModelStore;
use super::queue::{ImageJob, ImageReply};
use super::uploads::UploadMemory;
use super::version::ModelVersion;
use super::worker::request_error;

/// Limits of requests, and who may send which.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Maximum bytes of a body, also when it is decompressed.
    pub(super) max_bytes: u64,
    /// Time within which a request must have arrived.
    pub(super) read_timeout: Duration,
    /// Time within which a request must have been processed; `None` for any.
    pub(super) request_timeout: Option<Duration>,
    /// What clients must send as bearer token.
    pub(super) token: Option<String>,
    /// Whether models can be loaded and unloaded over HTTP.
    pub(super) model_control: bool,
}

/// State of the server, shared by all requests.
pub(super) struct AppState {
    pub(super) settings: Settings,
    pub(super) models: Arc<ModelStore>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) uploads: Arc<UploadMemory>,
    /// Whether the first models are open.
    pub(super) is_started: AtomicBool,
    /// Whether the server is to end.
    pub(super) is_draining: AtomicBool,
}

impl AppState {
    /// Whether the server is to get requests.
    pub(super) fn is_ready(&self) -> bool {
        self.is_started.load(Relaxed) && !self.is_draining.load(Relaxed) && self.models.is_ready()
    }

    /// Detects in images and waits for all results, which have the order of the images; `stages` become those of all.
    pub(super) async fn submit(
        &self,
        model: &ModelVersion,
        images: Vec<Bytes>,
        parameters: &Parameters,
        is_drawn: bool,
        stages: &mut Option<Stages>,
    ) -> Result<Vec<ImageReply>, RequestError> {
        let submitted = Instant::now();
        let limits = [parameters.timeout, self.settings.request_timeout];
        let limit = limits.into_iter().flatten().min();
        // A limit of centuries is none.
        let deadline = limit.and_then(|limit| submitted.checked_add(limit));
        let mut options = CallOptions::default();
        (options.rules, options.priority) = (parameters.rules(), parameters.priority);
        options.cancellation = Cancellation::at(deadline);
        // The client may leave.
        let _cancel = CancelOnDrop(options.cancellation.clone());
        let options = Arc::new(options);
        let pending = Arc::new(model.metrics.pending());
        let (jobs, replies): (Vec<_>, Vec<_>) = images
            .into_iter()
            .map(|image| {
                let (reply, receiver) = oneshot::channel();
                let (options, pending) = (Arc::clone(&options), Some(Arc::clone(&pending)));
                (ImageJob { image, options, is_drawn, submitted, reply, pending }, receiver)
            })
            .unzip();
        drop(pending);
        model.queue.submit(jobs)?;
        let over = || {
            let milliseconds = limit.unwrap_or_default().as_secs_f64() * 1e3;
            RequestError::unavailable(format!("the request was not finished within {milliseconds} ms"))
        };
        let stopped = || {
            let message = "the server stopped before the image was processed";
            RequestError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
        };
        let all = async {
            let mut results = Vec::with_capacity(replies.len());
            for reply in replies {
                // A worker drops images whose time is over.
                let reply = reply.await.map_err(|_| if deadline.is_some() { over() } else { stopped() })?;
                stages.get_or_insert_default().add(&reply.stages);
                results.push(reply);
            }
            Ok(results)
        };
        match deadline {
            None => all.await,
            Some(deadline) => timeout_at(deadline.into(), all).await.unwrap_or_else(|_| Err(over())),
        }
    }

    /// `POST /v2/models/M/infer`. Returns the response and the number of images that were detected in.
    pub(super) async fn infer(
        &self,
        model: &ModelVersion,
        request: InferRequest,
        stages: &mut Option<Stages>,
    ) -> Result<(InferResponse, usize), RequestError> {
        let InferRequest { id, images, outputs, parameters, .. } = request;
        let replies = self.submit(model, images, &parameters, false, stages).await?;
        let classes = &model.backend.spec().classes;
        let is_alone = replies.len() == 1;
        let mut detected = 0;
        let mut results = Vec::with_capacity(replies.len());
        for ImageReply { outcome, .. } in replies {
            match &outcome {
                Ok(_) => detected += 1,
                // One broken image among others has its error in its place; what concerns all of them is the request's.
                Err(failure) => match request_error(failure) {
                    error if is_alone || !matches!(failure, Failure::Image(_)) || error.status.is_server_error() => {
                        return Err(error);
                    }
                    _ => {}
                },
            }
            let json = outcome_json(&outcome, classes);
            let detections = outcome.map(|found| found.detections).unwrap_or_default();
            results.push(ImageResult { detections, json });
        }
        let description = &model.description;
        let names = [description.name.as_str(), description.version.as_str()];
        Ok((InferResponse::new(names, id.as_deref(), &outputs, &results), detected))
    }

    /// `GET /model`: what clients may know of a model beyond the protocol.
    pub(super) fn spec(&self, model: &ModelVersion) -> Value {
        let [provider, onnxruntime] = model.backend.provider();
        json!({
            "name": model.description.name,
            "version": model.description.version,
            "runtime": env!("CARGO_PKG_VERSION"),
            "onnxruntime": onnxruntime,
            "provider": provider,
            "spec": model.backend.spec(),
        })
    }
}
