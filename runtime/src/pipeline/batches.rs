//! The second stage: groups views of the same size into batches, and runs the network.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::Job;
use crate::{Detector, DetectorError, Outputs};

/// A batch with its outputs.
pub(super) struct Run<T> {
    /// The views of the batch, in the order of the outputs.
    pub(super) jobs: Vec<Job<T>>,
    /// The outputs, or the error of the run.
    pub(super) outputs: Result<Outputs, Arc<DetectorError>>,
}

/// Runs the network on all jobs, at most `batch` per run. Returns the time spent in the network.
pub(super) fn infer<T>(detector: &Detector, batch: usize, jobs: &Receiver<Job<T>>, runs: &Sender<Run<T>>) -> Duration {
    let mut inference = Duration::ZERO;
    let mut waiting = Waiting { jobs: VecDeque::new(), batch };
    while let Some(jobs) = waiting.next(jobs) {
        let views: Vec<_> = jobs.iter().map(|job| &job.view).collect();
        let started = Instant::now();
        let outputs = detector.run_batch(&views, batch).map_err(Arc::new);
        inference += started.elapsed();
        if runs.send(Run { jobs, outputs }).is_err() {
            break;
        }
    }
    inference
}

/// Jobs that have been received and not run.
struct Waiting<J> {
    /// In the order received.
    jobs: VecDeque<J>,
    batch: usize,
}

/// The input size, which must be equal within a batch.
trait Alike {
    fn size(&self) -> [usize; 2];
}

impl<T> Alike for Job<T> {
    fn size(&self) -> [usize; 2] {
        self.view.size()
    }
}

impl<J: Alike> Waiting<J> {
    /// The next batch: the first full batch of one size; if there is none and no more jobs are ready, the oldest job
    /// and the others of its size. Blocks only if there are no jobs; `None` when all jobs are done.
    fn next(&mut self, incoming: &Receiver<J>) -> Option<Vec<J>> {
        if self.jobs.is_empty() {
            self.jobs.push_back(incoming.recv().ok()?);
        }
        // Limits the number of waiting jobs if they have many sizes.
        while self.full().is_none() && self.jobs.len() < 2 * self.batch {
            match incoming.try_recv() {
                Ok(job) => self.jobs.push_back(job),
                Err(_) => break,
            }
        }
        let size = self.full().or_else(|| self.jobs.front().map(Alike::size))?;
        let mut taken = Vec::with_capacity(self.batch);
        let mut at = 0;
        while taken.len() < self.batch && at < self.jobs.len() {
            if self.jobs[at].size() == size {
                taken.extend(self.jobs.remove(at));
            } else {
                at += 1;
            }
        }
        Some(taken)
    }

    /// The first size with enough jobs for a full batch.
    fn full(&self) -> Option<[usize; 2]> {
        let count = |size| self.jobs.iter().filter(|job| job.size() == size).count();
        self.jobs.iter().map(Alike::size).find(|size| count(*size) >= self.batch)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    /// A size, and a number to identify the job.
    impl Alike for (usize, u32) {
        fn size(&self) -> [usize; 2] {
            [self.0, 32]
        }
    }

    /// The batches of jobs of these sizes, all ready at once.
    fn batches(sizes: &[usize], batch: usize) -> Vec<Vec<u32>> {
        let (sender, incoming) = unbounded();
        for (number, size) in (0..).zip(sizes) {
            sender.send((*size, number)).unwrap();
        }
        drop(sender);
        let mut waiting = Waiting { jobs: VecDeque::new(), batch };
        std::iter::from_fn(|| waiting.next(&incoming))
            .map(|jobs| jobs.into_iter().map(|(_, number)| number).collect())
            .collect()
    }

    #[test]
    fn batch_size_one_keeps_the_order() {
        assert_eq!(batches(&[32, 64, 32], 1), [[0], [1], [2]]);
    }

    #[test]
    fn jobs_of_one_size_share_a_batch_and_incomplete_batches_run_last() {
        assert_eq!(batches(&[32, 64, 32, 32, 64], 3), [vec![0, 2, 3], vec![1, 4]]);
        assert_eq!(batches(&[32, 64, 96], 2), [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn the_number_of_waiting_jobs_is_limited() {
        // At most four jobs wait: the fifth, which would complete the first batch, is not received yet.
        assert_eq!(batches(&[1, 2, 3, 4, 1], 2)[0], [0]);
    }

    #[test]
    fn no_jobs_give_no_batches() {
        assert!(batches(&[], 4).is_empty());
    }
}
