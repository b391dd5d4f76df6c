//! The second stage: views are gathered into batches of one size, and the network runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::Job;
use crate::{Detector, DetectorError, Outputs};

/// What the network said about a batch.
pub(super) struct Run<T> {
    /// The batch, in the order of the outputs.
    pub(super) jobs: Vec<Job<T>>,
    /// The outputs, or why there are none.
    pub(super) outputs: Result<Outputs, Arc<DetectorError>>,
}

/// Runs the network on all jobs, as many at a time as `batch` says. Returns the time that took.
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

/// Jobs that have come and not run.
struct Waiting<J> {
    /// In the order of their coming.
    jobs: VecDeque<J>,
    batch: usize,
}

/// What must be alike in a batch.
trait Alike {
    fn size(&self) -> [usize; 2];
}

impl<T> Alike for Job<T> {
    fn size(&self) -> [usize; 2] {
        self.view.size()
    }
}

impl<J: Alike> Waiting<J> {
    /// The next batch: the first that is full, otherwise, when nothing more is ready, what has waited longest and what is like
    /// it. Waits only when there is nothing; none when nothing will come.
    fn next(&mut self, incoming: &Receiver<J>) -> Option<Vec<J>> {
        if self.jobs.is_empty() {
            self.jobs.push_back(incoming.recv().ok()?);
        }
        // Many sizes must not pile up.
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

    /// The size of which there are enough.
    fn full(&self) -> Option<[usize; 2]> {
        let count = |size| self.jobs.iter().filter(|job| job.size() == size).count();
        self.jobs.iter().map(Alike::size).find(|size| count(*size) >= self.batch)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    /// A size, and a number to tell jobs apart.
    impl Alike for (usize, u32) {
        fn size(&self) -> [usize; 2] {
            [self.0, 32]
        }
    }

    /// The batches that jobs of these sizes make when all are there at once.
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
    fn one_at_a_time_is_in_order() {
        assert_eq!(batches(&[32, 64, 32], 1), [[0], [1], [2]]);
    }

    #[test]
    fn what_is_alike_runs_together_and_what_is_left_runs_at_last() {
        assert_eq!(batches(&[32, 64, 32, 32, 64], 3), [vec![0, 2, 3], vec![1, 4]]);
        assert_eq!(batches(&[32, 64, 96], 2), [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn many_sizes_do_not_pile_up() {
        // Four wait at most: the fifth, which would make the first's batch full, has not been looked at.
        assert_eq!(batches(&[1, 2, 3, 4, 1], 2)[0], [0]);
    }

    #[test]
    fn no_jobs_make_no_batch() {
        assert!(batches(&[], 4).is_empty());
    }
}
