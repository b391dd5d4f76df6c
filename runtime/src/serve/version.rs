//! A version of a model that serves: its backend, queue and workers.

use std::sync::Arc;
use std::thread;

use runtime::protocol::ModelDescription;

use super::backend::Backend;
use super::metrics::ModelMetrics;
use super::queue::Queue;
use super::worker::Worker;

/// Number of failed runs of the network in a row after which a model is not ready: a GPU that has failed once usually fails
/// until the process starts again, while other failures are single ones.
pub(super) const MAX_FAILURES_IN_A_ROW: u64 = 3;

/// A version of a model that serves. When it is dropped, its workers finish the images in the queue and end.
pub(super) struct ModelVersion {
    pub(super) description: ModelDescription,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) queue: Arc<Queue>,
    pub(super) metrics: Arc<ModelMetrics>,
}

impl ModelVersion {
    /// Starts this number of workers.
    pub(super) fn start(description: ModelDescription, worker: Worker, workers: usize) -> Self {
        let (backend, queue) = (Arc::clone(&worker.backend), Arc::clone(&worker.queue));
        let metrics = Arc::clone(&worker.metrics);
        let worker = Arc::new(worker);
        for _ in 0..workers {
            let worker = Arc::clone(&worker);
            thread::spawn(move || worker.work());
        }
        Self { description, backend, queue, metrics }
    }

    /// Whether its engine works.
    pub(super) fn is_ready(&self) -> bool {
        self.backend.failures_in_a_row() < MAX_FAILURES_IN_A_ROW
    }
}

impl Drop for ModelVersion {
    fn drop(&mut self) {
        self.queue.close();
    }
}
