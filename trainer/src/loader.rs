//! The data loader: worker threads prepare batches ahead of the training loop; batches arrive in the order requested.

mod batch;
mod recipe;
mod sampler;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded};
use tch::Device;

use crate::augmentation::AugmentationConfig;

pub use batch::{Batch, BatchImages};
pub use recipe::Recipe;
pub(crate) use sampler::images_per_epoch;
pub use sampler::{BatchRequest, Sampler, aspect_groups, repeat_factors};

/// A batch to prepare.
struct Job {
    request: BatchRequest,
    augmentation: Arc<AugmentationConfig>,
    device: Device,
    /// Where the batch is sent to.
    reply: Sender<anyhow::Result<Batch>>,
}

/// Worker threads that prepare batches.
pub struct Loader {
    recipe: Arc<Recipe>,
    /// What the batches are for.
    device: Device,
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Maximum number of batches per worker that are prepared ahead.
    pub(crate) const BATCHES_PER_WORKER: usize = 2;

    /// Starts `workers` threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(recipe: Recipe, workers: usize) -> anyhow::Result<Self> {
        let recipe = Arc::new(recipe);
        let (jobs, queue) = bounded::<Job>(workers);
        let workers = (0..workers).map(|index| {
            let (recipe, queue): (_, Receiver<Job>) = (recipe.clone(), queue.clone());
            thread::Builder::new().name(format!("loader {index}")).spawn(move || {
                for Job { request, augmentation, device, reply } in queue {
                    let mut batch = recipe.prepare(&request, &augmentation);
                    if let (Ok(prepared), true) = (&mut batch, device.is_cuda())
                        && let Err(error) = prepared.pin(device)
                    {
                        batch = Err(anyhow!("cannot prepare a batch for the GPU: {error}; lower `run.workers`"));
                    }
                    // The receiver is gone if the run has ended early.
                    let _ = reply.send(batch);
                }
            })
        });
        let workers =
            workers.collect::<Result<_, _>>().context("cannot start the data loader's threads; lower `run.workers`")?;
        Ok(Self { recipe, device: Device::Cpu, jobs: Some(jobs), workers })
    }

    /// Prepares batches for this device instead of the CPU.
    pub fn for_device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// The data set, and how its images become batches.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The batches of `requests`, in the same order. At most two batches per worker are prepared ahead.
    pub fn batches(&self, requests: impl Iterator<Item = BatchRequest>) -> impl Iterator<Item = anyhow::Result<Batch>> {
        self.batches_with(self.recipe.augmentation.clone(), requests)
    }

    /// As [`Self::batches`], with another augmentation.
    pub fn batches_with(
        &self,
        augmentation: AugmentationConfig,
        requests: impl Iterator<Item = BatchRequest>,
    ) -> impl Iterator<Item = anyhow::Result<Batch>> {
        let augmentation = Arc::new(augmentation);
        let mut requests = requests.fuse();
        let mut pending = VecDeque::new();
        std::iter::from_fn(move || {
            while pending.len() < Self::BATCHES_PER_WORKER * self.workers.len()
                && let Some(request) = requests.next()
            {
                let (reply, batch) = bounded(1);
                let jobs = self.jobs.as_ref().expect("jobs are taken only when the loader is dropped");
                // If all threads have ended, sending fails and drops `reply`; then `recv` below returns an error.
                let (augmentation, device) = (augmentation.clone(), self.device);
                let _ = jobs.send(Job { request, augmentation, device, reply });
                pending.push_back(batch);
            }
            let batch: Receiver<anyhow::Result<Batch>> = pending.pop_front()?;
            Some(batch.recv().context("a data loader thread ended before its batch was ready").flatten())
        })
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
