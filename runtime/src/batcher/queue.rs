//! The inputs that wait for the network, and what a batcher has run.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::call::{Cancellation, Priority};
use crate::engine::{EngineError, Input, Outputs};

/// What a batcher has run since it was made; runs that failed only count in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Inputs of the network: one for each view of an image.
    pub inputs: u64,
    /// Runs of the network.
    pub batches: u64,
    /// Time in ONNX Runtime, summed over all engines.
    pub network: Duration,
    /// Number of runs that have failed since the last successful one; `u64::MAX` when the engines have stopped.
    pub failures_in_a_row: u64,
}

/// Is told about every run of the network that succeeds.
#[derive(Clone)]
pub struct BatchObserver(Arc<Observe>);

type Observe = dyn Fn(usize, Duration) + Send + Sync;

impl BatchObserver {
    /// Calls `observe` with the number of inputs and the time of a run, on the thread of its engine.
    pub fn new(observe: impl Fn(usize, Duration) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observe))
    }

    pub(super) fn observe(&self, inputs: usize, time: Duration) {
        (self.0)(inputs, time);
    }
}

impl fmt::Debug for BatchObserver {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("BatchObserver")
    }
}

/// How a batcher gathers inputs.
#[derive(Clone, Debug)]
pub(crate) struct BatchOptions {
    /// Maximum number of inputs per batch.
    pub(crate) max_batch: NonZeroUsize,
    /// A smaller batch starts this long after its first input was submitted.
    pub(crate) max_delay: Duration,
    /// Is told about the runs.
    pub(crate) observer: Option<BatchObserver>,
}

/// The outputs for one input.
#[derive(Debug)]
pub(crate) struct Inference<O = Outputs> {
    /// Outputs of the batch that the input was in.
    pub(crate) outputs: Arc<O>,
    /// Index of the input in the batch.
    pub(crate) row: usize,
    /// Time from the submission until the batch started.
    pub(crate) queued: Duration,
    /// Time that the batch took.
    pub(crate) network: Duration,
}

pub(super) type Reply<O> = Result<Inference<O>, EngineError>;

#[derive(Debug)]
pub(super) struct Queue<O> {
    pub(super) state: Mutex<State<O>>,
    /// Notified about new jobs and trials, and when the queue is closed.
    pub(super) changed: Condvar,
    pub(super) options: BatchOptions,
}

#[derive(Debug)]
pub(super) struct State<O> {
    /// By priority, then in the order of submission.
    pub(super) waiting: VecDeque<Job<O>>,
    pub(super) trials: Vec<Trial>,
    pub(super) is_closed: bool,
    /// Numbers of the workers that are alive.
    pub(super) workers: BTreeSet<usize>,
    pub(super) statistics: Statistics,
}

impl<O> Default for State<O> {
    fn default() -> Self {
        let (waiting, trials, workers) = (VecDeque::new(), Vec::new(), BTreeSet::new());
        Self { waiting, trials, is_closed: false, workers, statistics: Statistics::default() }
    }
}

/// An input of the network.
#[derive(Debug)]
pub(super) struct Job<O> {
    pub(super) input: Input<'static>,
    pub(super) submitted: Instant,
    pub(super) priority: Priority,
    pub(super) cancellation: Cancellation,
    pub(super) reply: SyncSender<Reply<O>>,
}

/// A batch that one engine runs to warm up, or to find out whether it works.
#[derive(Debug)]
pub(super) struct Trial {
    /// Number of the engine's worker.
    pub(super) worker: usize,
    pub(super) inputs: Vec<Input<'static>>,
    pub(super) reply: SyncSender<Result<(), EngineError>>,
}

/// What a worker is to do next.
pub(super) enum Next<O> {
    Batch(Vec<Job<O>>),
    Trial(Trial),
}

impl<O> Job<O> {
    pub(super) fn send(&self, reply: Reply<O>) {
        // Fails if the caller has gone.
        let _ = self.reply.send(reply);
    }
}

impl<O> Queue<O> {
    /// Ignores poisoning: no panic leaves the state inconsistent.
    pub(super) fn lock(&self) -> MutexGuard<'_, State<O>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next batch of this worker: the first job and the next ones of its size, once it has waited for the
    /// maximum delay, before that any full batch. So no job waits for ever, unless there are always jobs of a higher priority.
    /// `None` when the queue is closed and empty.
    pub(super) fn next(&self, worker: usize) -> Option<Next<O>> {
        let BatchOptions { max_batch, max_delay, .. } = self.options;
        let mut state = self.lock();
        loop {
            if let Some(position) = state.trials.iter().position(|trial| trial.worker == worker) {
                return Some(Next::Trial(state.trials.swap_remove(position)));
            }
            state.drop_canceled();
            let Some(first) = state.waiting.front() else {
                if state.is_closed {
                    return None;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let delay = max_delay.saturating_sub(first.submitted.elapsed());
            let due = (state.is_closed || delay.is_zero()).then(|| first.input.size());
            if let Some(size) = due.or_else(|| state.full_size(max_batch.get())) {
                return Some(Next::Batch(state.take(size, max_batch.get())));
            }
            let waited = self.changed.wait_timeout(state, delay);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<O> State<O> {
    /// Removes the jobs that nobody waits for.
    fn drop_canceled(&mut self) {
        self.waiting.retain(|job| {
            let is_canceled = job.cancellation.is_canceled();
            if is_canceled {
                job.send(Err(EngineError::Canceled));
            }
            !is_canceled
        });
    }

    /// The first size of which this many jobs wait.
    fn full_size(&self, count: usize) -> Option<[usize; 2]> {
        let mut counts = HashMap::new();
        self.waiting.iter().map(|job| job.input.size()).find(|size| {
            let waiting = counts.entry(*size).or_insert(0);
            *waiting += 1;
            *waiting == count
        })
    }

    /// Removes the first jobs of this size, at most `count`.
    fn take(&mut self, size: [usize; 2], count: usize) -> Vec<Job<O>> {
        let mut taken = Vec::new();
        let mut index = 0;
        while taken.len() < count && index < self.waiting.len() {
            if self.waiting[index].input.size() == size {
                taken.extend(self.waiting.remove(index));
            } else {
                index += 1;
            }
        }
        taken
    }
}
