//! A thread that runs batches.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::sync::Arc;
use std::time::Instant;

use super::queue::{Inference, Job, Next, Queue, Trial};
use crate::engine::{EngineError, Input};

/// What a thread of the batcher does with a batch of inputs of one size.
pub(super) trait Run<O>: FnMut(&[&Input]) -> Result<O, EngineError> + Send + 'static {}

impl<O, F: FnMut(&[&Input]) -> Result<O, EngineError> + Send + 'static> Run<O> for F {}

/// A thread of the batcher. When the last one ends, also by a panic, waiting and later jobs fail instead of waiting for
/// ever.
pub(super) struct Worker<O> {
    number: usize,
    queue: Arc<Queue<O>>,
}

impl<O> Worker<O> {
    pub(super) fn new(number: usize, queue: Arc<Queue<O>>) -> Self {
        queue.lock().workers.insert(number);
        Self { number, queue }
    }

    pub(super) fn work(self, mut run: impl Run<O>) {
        while let Some(next) = self.queue.next(self.number) {
            let jobs = match next {
                Next::Batch(jobs) => jobs,
                Next::Trial(Trial { inputs, reply, .. }) => {
                    let inputs: Vec<_> = inputs.iter().collect();
                    // Fails if the caller has gone.
                    let _ = reply.send(self.call(&mut run, &inputs).map(drop));
                    continue;
                }
            };
            let Err(error) = self.run(&mut run, &jobs) else { continue };
            if let [job] = &jobs[..] {
                job.send(Err(error));
                continue;
            }
            // Only the input that fails is to fail, not those that happen to share its batch.
            tracing::warn!("running the {} inputs of a failed batch one by one: {error}", jobs.len());
            for job in &jobs {
                if let Err(error) = self.run(&mut run, slice::from_ref(job)) {
                    job.send(Err(error));
                }
            }
        }
    }

    /// Runs a batch and sends the replies, unless it fails.
    fn run(&self, run: &mut impl Run<O>, jobs: &[Job<O>]) -> Result<(), EngineError> {
        let inputs: Vec<_> = jobs.iter().map(|job| &job.input).collect();
        let started = Instant::now();
        let outputs = self.call(run, &inputs);
        let network = started.elapsed();
        let outputs = Arc::new(outputs?);
        let mut state = self.queue.lock();
        state.statistics.inputs += jobs.len() as u64;
        state.statistics.batches += 1;
        state.statistics.network += network;
        drop(state);
        if let Some(observer) = &self.queue.options.observer {
            observer.observe(jobs.len(), network);
        }
        for (row, job) in jobs.iter().enumerate() {
            let queued = started.duration_since(job.submitted);
            job.send(Ok(Inference { outputs: Arc::clone(&outputs), row, queued, network }));
        }
        Ok(())
    }

    /// Calls `run` and counts its failures in a row. A panic is an error.
    fn call(&self, run: &mut impl Run<O>, inputs: &[&Input]) -> Result<O, EngineError> {
        // An engine is usable after a panic: ONNX Runtime does not unwind, and buffers are filled anew for every run.
        let outputs = catch_unwind(AssertUnwindSafe(|| run(inputs)));
        let outputs = outputs.unwrap_or_else(|panic| Err(EngineError::panicked(panic.as_ref())));
        let failures = &mut self.queue.lock().statistics.failures_in_a_row;
        *failures = if outputs.is_ok() { 0 } else { *failures + 1 };
        outputs
    }
}

impl<O> Drop for Worker<O> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.workers.remove(&self.number);
        state.trials.retain(|trial| trial.worker != self.number);
        if state.workers.is_empty() {
            state.waiting.clear();
            state.statistics.failures_in_a_row = u64::MAX;
        }
    }
}
