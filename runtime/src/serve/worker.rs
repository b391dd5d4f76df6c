//! The workers of a model: each takes an image from the queue, decodes it, detects and replies.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use hyper::StatusCode;
use hyper::body::Bytes;
use runtime::image_file::{self, DecodeError, Limits};
use runtime::output::{Failure, Found};
use runtime::protocol::RequestError;
use runtime::{DetectorError, EngineError, PixelBudget, draw, progress};

use super::backend::Backend;
use super::metrics::{ModelMetrics, Stages};
use super::queue::{ImageJob, ImageReply, Queue};

/// What all workers of a model share.
pub(super) struct Worker {
    pub(super) queue: Arc<Queue>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) metrics: Arc<ModelMetrics>,
    pub(super) limits: Limits,
    /// Shared by all models.
    pub(super) budget: PixelBudget,
}

impl Worker {
    /// Works until the queue is closed.
    pub(super) fn work(&self) {
        while let Some(mut job) = self.queue.next() {
            let mut stages = Stages { queue: job.submitted.elapsed(), ..Stages::default() };
            // A fault in one image is not to end the server; what it leaves inconsistent is dropped with it.
            let image = std::mem::take(&mut job.image);
            let result = catch_unwind(AssertUnwindSafe(|| self.process(image, &job, &mut stages)));
            let (outcome, drawn) = match result.unwrap_or_else(|_| Err(Failure::Missing(FAULT.to_owned()))) {
                Ok((found, drawn)) => (Ok(found), drawn),
                Err(failure) => (Err(failure), None),
            };
            match &outcome {
                Err(Failure::Image(error)) => self.metrics.count_refused(error),
                // Errors of the server also go to its stderr; errors of the client are only in the response.
                Err(failure) if request_error(failure).status == StatusCode::INTERNAL_SERVER_ERROR => {
                    progress::error(format_args!("{failure}"));
                }
                _ => {}
            }
            // Fails if the client has left.
            let _ = job.reply.send(ImageReply { outcome, drawn, stages });
        }
    }

    fn process(&self, file: Bytes, job: &ImageJob, stages: &mut Stages) -> Result<(Found, Option<Vec<u8>>), Failure> {
        let started = Instant::now();
        let decoded = image_file::decode_reserved(&file, &self.limits, &self.budget);
        stages.decode = started.elapsed();
        // Frees the memory of the upload.
        drop(file);
        let (mut image, _reserved) = decoded?;
        self.metrics.count_decoded(stages.decode);
        let (detections, timing) = self.backend.detect(&image, &job.options)?;
        stages.queue += timing.queue;
        (stages.prepare, stages.network, stages.postprocess) = (timing.prepare, timing.network, timing.postprocess);
        let (width, height) = image.dimensions();
        let drawn = job.is_drawn.then(|| {
            let time = Instant::now();
            draw::draw(&mut image, &detections, &self.backend.spec().classes);
            let jpeg = image_file::to_jpeg(&image);
            stages.postprocess += time.elapsed();
            jpeg.map_err(|error| Failure::Image(DecodeError::Decoder(error.into())))
        });
        Ok((Found { width, height, detections }, drawn.transpose()?))
    }
}

const FAULT: &str = "the server failed with a fault of its own; please report this together with the image";

/// The response to a request whose only image failed.
pub(super) fn request_error(failure: &Failure) -> RequestError {
    match failure {
        Failure::Image(DecodeError::Large { .. } | DecodeError::Long { .. }) => RequestError::too_large(failure),
        Failure::Image(_) | Failure::Detector(DetectorError::Image(_) | DetectorError::Rule(_)) => {
            RequestError::bad(failure)
        }
        Failure::Detector(DetectorError::Engine(EngineError::Canceled)) => RequestError::unavailable(failure),
        Failure::Detector(_) | Failure::Missing(_) => RequestError::new(StatusCode::INTERNAL_SERVER_ERROR, failure),
    }
}
