//! The batcher: gathers the inputs of all callers into batches, and runs them on a thread per engine.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ndarray::{Array3, ArrayView3};

use crate::call::{Cancellation, Priority};
use crate::engine::{Engine, EngineError, Outputs};

/// What a batcher has run since it was made.
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
}

impl fmt::Debug for BatchObserver {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("BatchObserver")
    }
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

/// An input whose outputs are still to come.
#[derive(Debug)]
pub(crate) struct Pending<O = Outputs>(Receiver<Reply<O>>);

type Reply<O> = Result<Inference<O>, EngineError>;

impl<O> Pending<O> {
    /// Waits for the outputs.
    pub(crate) fn wait(self) -> Reply<O> {
        self.0.recv().unwrap_or(Err(EngineError::Stopped))
    }
}

/// What a thread of the batcher does with a batch of inputs `[3, H, W]` of one shape.
trait Run<O>: FnMut(&[ArrayView3<f32>]) -> Result<O, EngineError> + Send + 'static {}

impl<O, F: FnMut(&[ArrayView3<f32>]) -> Result<O, EngineError> + Send + 'static> Run<O> for F {}

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

/// Runs inputs of many threads in batches. Dropping it waits for the batches that are running.
#[derive(Debug)]
pub(crate) struct Batcher<O = Outputs> {
    queue: Arc<Queue<O>>,
    threads: Vec<JoinHandle<()>>,
}

impl Batcher {
    /// A thread for each engine.
    pub(crate) fn new(engines: Vec<Arc<Engine>>, options: BatchOptions) -> Self {
        let max_batch = options.max_batch;
        let run = |engine: Arc<Engine>| {
            // On a GPU, every new input shape costs as much as many runs.
            let padded = if engine.provider().is_nvidia() { max_batch.get() } else { 0 };
            move |inputs: &[ArrayView3<f32>]| {
                let _span = tracing::debug_span!("infer", images = inputs.len(), size = ?inputs[0].dim()).entered();
                engine.run_padded(inputs, padded)
            }
        };
        Self::start(engines.into_iter().map(run), options)
    }
}

impl<O: Send + Sync + 'static> Batcher<O> {
    /// A thread for each of `runs`.
    fn start(runs: impl IntoIterator<Item = impl Run<O>>, options: BatchOptions) -> Self {
        let queue = Arc::new(Queue { state: Mutex::default(), changed: Condvar::new(), options });
        let threads = runs.into_iter().enumerate().map(|(number, run)| {
            let worker = Worker::new(number, Arc::clone(&queue));
            thread::spawn(move || worker.work(run))
        });
        Self { threads: threads.collect(), queue }
    }

    /// Submits an input, `[3, H, W]`. Does not wait.
    pub(crate) fn submit(&self, pixels: Array3<f32>, priority: Priority, cancellation: Cancellation) -> Pending<O> {
        let (reply, receiver) = sync_channel(1);
        let mut state = self.queue.lock();
        // Without workers the reply is dropped, which `Pending::wait` reports.
        if state.workers > 0 {
            let position = state.waiting.partition_point(|job| job.priority <= priority);
            state.waiting.insert(position, Job { pixels, submitted: Instant::now(), priority, cancellation, reply });
            self.queue.changed.notify_all();
        }
        Pending(receiver)
    }

    /// Runs `inputs` as one batch on every engine in turn, on its own thread, and does not count them. They go before the
    /// waiting inputs.
    pub(crate) fn run_on_each(&self, inputs: &[Array3<f32>]) -> Result<(), EngineError> {
        for worker in 0..self.threads.len() {
            let (reply, receiver) = sync_channel(1);
            let mut state = self.queue.lock();
            if !self.threads[worker].is_finished() {
                state.trials.push(Trial { worker, inputs: inputs.to_vec(), reply });
                self.queue.changed.notify_all();
            }
            drop(state);
            receiver.recv().unwrap_or(Err(EngineError::Stopped))?;
        }
        Ok(())
    }

    pub(crate) fn statistics(&self) -> Statistics {
        self.queue.lock().statistics
    }
}

impl<O> Drop for Batcher<O> {
    fn drop(&mut self) {
        self.queue.lock().is_closed = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of a thread has been reported to the callers.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Queue<O> {
    state: Mutex<State<O>>,
    /// Notified about new jobs and trials, and when the queue is closed.
    changed: Condvar,
    options: BatchOptions,
}

#[derive(Debug)]
struct State<O> {
    /// By priority, then in the order of submission.
    waiting: VecDeque<Job<O>>,
    trials: Vec<Trial>,
    is_closed: bool,
    /// Number of workers that are alive.
    workers: usize,
    statistics: Statistics,
}

impl<O> Default for State<O> {
    fn default() -> Self {
        let (waiting, trials) = (VecDeque::new(), Vec::new());
        Self { waiting, trials, is_closed: false, workers: 0, statistics: Statistics::default() }
    }
}

/// An input of the network.
#[derive(Debug)]
struct Job<O> {
    pixels: Array3<f32>,
    submitted: Instant,
    priority: Priority,
    cancellation: Cancellation,
    reply: SyncSender<Reply<O>>,
}

/// A batch for one engine.
#[derive(Debug)]
struct Trial {
    /// Number of the engine's worker.
    worker: usize,
    inputs: Vec<Array3<f32>>,
    reply: SyncSender<Result<(), EngineError>>,
}

/// What a worker is to do next.
enum Next<O> {
    Batch(Vec<Job<O>>),
    Trial(Trial),
}

impl<O> Job<O> {
    fn send(&self, reply: Reply<O>) {
        // Fails if the caller has gone.
        let _ = self.reply.send(reply);
    }
}

impl<O> Queue<O> {
    /// Ignores poisoning: no panic leaves the state inconsistent.
    fn lock(&self) -> MutexGuard<'_, State<O>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next batch of this worker: the first job and the next ones of its shape. As every batch contains the
    /// first job, no job waits for ever, unless there are always jobs of a higher priority. `None` when the queue is closed
    /// and empty.
    fn next(&self, worker: usize) -> Option<Next<O>> {
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
            let shape = first.pixels.dim();
            let is_alike = |job: &&Job<O>| job.pixels.dim() == shape;
            let is_full = state.waiting.iter().filter(is_alike).take(max_batch.get()).count() == max_batch.get();
            let delay = max_delay.saturating_sub(first.submitted.elapsed());
            if is_full || state.is_closed || delay.is_zero() {
                return Some(Next::Batch(state.take(shape, max_batch.get())));
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

    /// Removes the first jobs of this shape, at most `count`.
    fn take(&mut self, shape: (usize, usize, usize), count: usize) -> Vec<Job<O>> {
        let mut taken = Vec::new();
        let mut index = 0;
        while taken.len() < count && index < self.waiting.len() {
            if self.waiting[index].pixels.dim() == shape {
                taken.extend(self.waiting.remove(index));
            } else {
                index += 1;
            }
        }
        taken
    }
}

/// A thread of the batcher. When the last one ends, also by a panic, waiting and later jobs fail instead of waiting for
/// ever.
struct Worker<O> {
    number: usize,
    queue: Arc<Queue<O>>,
}

impl<O> Worker<O> {
    fn new(number: usize, queue: Arc<Queue<O>>) -> Self {
        queue.lock().workers += 1;
        Self { number, queue }
    }

    fn work(self, mut run: impl Run<O>) {
        while let Some(next) = self.queue.next(self.number) {
            let jobs = match next {
                Next::Batch(jobs) => jobs,
                Next::Trial(Trial { inputs, reply, .. }) => {
                    let inputs: Vec<_> = inputs.iter().map(|input| input.view()).collect();
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
        let inputs: Vec<_> = jobs.iter().map(|job| job.pixels.view()).collect();
        let started = Instant::now();
        let outputs = self.call(run, &inputs);
        let network = started.elapsed();
        let mut state = self.queue.lock();
        state.statistics.inputs += jobs.len() as u64;
        state.statistics.batches += 1;
        state.statistics.network += network;
        drop(state);
        let outputs = Arc::new(outputs?);
        if let Some(BatchObserver(observe)) = &self.queue.options.observer {
            observe(jobs.len(), network);
        }
        for (row, job) in jobs.iter().enumerate() {
            let queued = started.duration_since(job.submitted);
            job.send(Ok(Inference { outputs: Arc::clone(&outputs), row, queued, network }));
        }
        Ok(())
    }

    /// Calls `run` and counts its failures in a row. A panic is an error.
    fn call(&self, run: &mut impl Run<O>, inputs: &[ArrayView3<f32>]) -> Result<O, EngineError> {
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
        state.workers -= 1;
        state.trials.retain(|trial| trial.worker != self.number);
        if state.workers == 0 {
            state.waiting.clear();
            state.statistics.failures_in_a_row = u64::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// The first value of each input of the batch.
    type Values = Vec<f32>;

    const LONG: Duration = Duration::from_secs(100);

    fn input(value: f32, width: usize) -> Array3<f32> {
        Array3::from_elem((3, 32, width), value)
    }

    fn values(inputs: &[ArrayView3<f32>]) -> Values {
        inputs.iter().map(|input| input[[0, 0, 0]]).collect()
    }

    /// A negative input is an error, NaN a panic.
    fn run(inputs: &[ArrayView3<f32>]) -> Result<Values, EngineError> {
        let values = values(inputs);
        assert!(values.iter().all(|value| !value.is_nan()), "on purpose");
        if values.iter().any(|value| *value < 0.0) { Err(EngineError::OnlyCandidates) } else { Ok(values) }
    }

    fn batcher(runs: Vec<impl Run<Values>>, max_batch: usize, max_delay: Duration) -> Batcher<Values> {
        let options = BatchOptions { max_batch: max_batch.try_into().unwrap(), max_delay, observer: None };
        Batcher::start(runs, options)
    }

    fn submit(batcher: &Batcher<Values>, input: Array3<f32>) -> Pending<Values> {
        batcher.submit(input, Priority::Normal, Cancellation::default())
    }

    fn value(reply: Reply<Values>) -> f32 {
        reply.map(|inference| inference.outputs[inference.row]).unwrap()
    }

    #[test]
    fn batches_contain_the_oldest_input_and_others_of_its_shape() {
        // The first batch waits until all inputs are there.
        let (started, go) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let gates = (Arc::clone(&started), Arc::clone(&go));
        let mut is_first = true;
        let run = move |inputs: &[ArrayView3<f32>]| {
            if std::mem::take(&mut is_first) {
                gates.0.wait();
                gates.1.wait();
            }
            run(inputs)
        };
        let batcher = batcher(vec![run], 3, Duration::ZERO);
        let first = submit(&batcher, input(0.0, 32));
        started.wait();
        let widths = [32, 64, 32, 64, 32, 32, 96];
        let pending: Vec<_> = (1u8..).zip(widths).map(|(n, width)| submit(&batcher, input(n.into(), width))).collect();
        go.wait();
        assert_eq!(value(first.wait()), 0.0);
        let mut batches = Vec::new();
        for (number, pending) in (1u8..).zip(pending) {
            let inference = pending.wait().unwrap();
            assert_eq!(inference.outputs[inference.row], f32::from(number));
            assert!(inference.queued > Duration::ZERO);
            batches.push(inference.outputs.to_vec());
        }
        let [odd, even, last, alone] = [vec![1.0, 3.0, 5.0], vec![2.0, 4.0], vec![6.0], vec![7.0]];
        assert_eq!(batches, [&odd, &even, &odd, &even, &odd, &last, &alone].map(Clone::clone));
        let statistics = batcher.statistics();
        assert_eq!((statistics.inputs, statistics.batches), (8, 5));
    }

    #[test]
    fn a_full_batch_does_not_wait_and_a_smaller_one_waits_for_the_delay() {
        let full = batcher(vec![run], 2, LONG);
        let pending = [submit(&full, input(1.0, 32)), submit(&full, input(2.0, 32))];
        assert_eq!(pending.map(|pending| value(pending.wait())), [1.0, 2.0]);
        assert_eq!(full.statistics().batches, 1);
        let single = batcher(vec![run], 1, LONG);
        assert_eq!(value(submit(&single, input(3.0, 32)).wait()), 3.0);
        let delayed = batcher(vec![run], 2, Duration::from_millis(30));
        let inference = submit(&delayed, input(4.0, 32)).wait().unwrap();
        assert!(inference.queued >= Duration::from_millis(30));
    }

    #[test]
    fn an_error_or_panic_of_one_input_harms_no_other() {
        let batcher = batcher(vec![run], 3, LONG);
        for bad in [-1.0, f32::NAN] {
            let pending = [1.0, bad, 2.0].map(|value| submit(&batcher, input(value, 32)));
            let [first, failed, last] = pending.map(Pending::wait);
            assert_eq!([value(first), value(last)], [1.0, 2.0]);
            match failed.unwrap_err() {
                EngineError::Panicked { reason } => assert!(bad.is_nan() && reason == "on purpose", "{reason}"),
                error => assert!(bad < 0.0 && matches!(error, EngineError::OnlyCandidates), "{error}"),
            }
        }
    }

    #[test]
    fn eight_threads_share_batches_and_none_starves() {
        let (largest, threads, rounds) = (Arc::new(AtomicUsize::new(0)), 8u8, 50u8);
        let seen = Arc::clone(&largest);
        let run = move |inputs: &[ArrayView3<f32>]| {
            seen.fetch_max(inputs.len(), SeqCst);
            thread::sleep(Duration::from_millis(1));
            run(inputs)
        };
        let batcher = batcher(vec![run.clone(), run], 4, Duration::ZERO);
        thread::scope(|scope| {
            for thread in 0..threads {
                let batcher = &batcher;
                scope.spawn(move || {
                    for round in 0..rounds {
                        // One thread's inputs are always of another shape than the others'.
                        let width = if thread == 0 { 64 } else { 32 };
                        let number = f32::from(thread) * 100.0 + f32::from(round);
                        let inference = submit(batcher, input(number, width)).wait().unwrap();
                        assert_eq!(inference.outputs[inference.row], number);
                        // An input waits for at most two batches of every shape.
                        assert!(inference.queued < Duration::from_secs(5), "{:?}", inference.queued);
                    }
                });
            }
        });
        let Statistics { inputs, batches, .. } = batcher.statistics();
        assert_eq!((inputs, largest.load(SeqCst)), (400, 4));
        assert!(batches < 250, "{batches} batches of 400 inputs");
    }

    /// Blocks the engine in its first run until the returned barrier is passed a second time.
    fn gated() -> (impl Run<Values>, Arc<Barrier>) {
        let gate = Arc::new(Barrier::new(2));
        let (inner, mut is_first) = (Arc::clone(&gate), true);
        let run = move |inputs: &[ArrayView3<f32>]| {
            if std::mem::take(&mut is_first) {
                inner.wait();
                inner.wait();
            }
            run(inputs)
        };
        (run, gate)
    }

    #[test]
    fn inputs_of_high_priority_go_first_and_canceled_ones_never_run() {
        let (run, gate) = gated();
        let batcher = batcher(vec![run], 2, Duration::ZERO);
        let first = submit(&batcher, input(0.0, 32));
        gate.wait();
        let canceled = Cancellation::default();
        let submit = |value, priority, cancellation| batcher.submit(input(value, 32), priority, cancellation);
        let pending = [
            submit(1.0, Priority::Normal, Cancellation::default()),
            submit(2.0, Priority::Normal, canceled.clone()),
            submit(3.0, Priority::High, Cancellation::default()),
            submit(4.0, Priority::High, Cancellation::at(Some(Instant::now()))),
            submit(5.0, Priority::High, Cancellation::default()),
        ];
        canceled.cancel();
        gate.wait();
        assert_eq!(value(first.wait()), 0.0);
        let batches = pending.map(|pending| pending.wait().map(|inference| inference.outputs.to_vec()));
        let [one, two, three, four, five] = batches;
        assert_eq!([three.unwrap(), five.unwrap()], [vec![3.0, 5.0], vec![3.0, 5.0]]);
        assert_eq!(one.unwrap(), [1.0]);
        assert!(matches!((two, four), (Err(EngineError::Canceled), Err(EngineError::Canceled))));
        assert_eq!(batcher.statistics().inputs, 4);
    }

    #[test]
    fn failures_in_a_row_are_counted_and_end_with_a_success() {
        let batcher = batcher(vec![run], 1, Duration::ZERO);
        let failures = || batcher.statistics().failures_in_a_row;
        for expected in 1..=3 {
            assert!(submit(&batcher, input(if expected == 2 { f32::NAN } else { -1.0 }, 32)).wait().is_err());
            assert_eq!(failures(), expected);
        }
        assert!(batcher.run_on_each(&[input(-1.0, 32)]).is_err());
        assert_eq!(failures(), 4);
        batcher.run_on_each(&[input(1.0, 32)]).unwrap();
        assert_eq!(failures(), 0);
    }

    #[test]
    fn a_trial_runs_once_on_every_engine_and_only_other_runs_are_observed() {
        let runs = Arc::new(Mutex::new(Vec::new()));
        let engine = |number: usize| {
            let runs = Arc::clone(&runs);
            move |inputs: &[ArrayView3<f32>]| {
                runs.lock().unwrap().push((number, inputs.len()));
                run(inputs)
            }
        };
        let observed = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&observed);
        let observer = BatchObserver::new(move |inputs, _| seen.lock().unwrap().push(inputs));
        let max_batch = 4.try_into().unwrap();
        let options = BatchOptions { max_batch, max_delay: Duration::ZERO, observer: Some(observer) };
        let batcher = Batcher::start([engine(0), engine(1)], options);
        batcher.run_on_each(&[input(1.0, 32), input(2.0, 32)]).unwrap();
        assert_eq!(*runs.lock().unwrap(), [(0, 2), (1, 2)]);
        assert_eq!(batcher.statistics(), Statistics::default());
        assert_eq!(value(submit(&batcher, input(3.0, 32)).wait()), 3.0);
        assert_eq!(*observed.lock().unwrap(), [1]);
    }

    #[test]
    fn inputs_of_an_engine_that_has_ended_are_errors() {
        let batcher = batcher(vec![run], 1, Duration::ZERO);
        batcher.queue.lock().is_closed = true;
        batcher.queue.changed.notify_all();
        while !batcher.threads[0].is_finished() {
            thread::yield_now();
        }
        let error = submit(&batcher, input(1.0, 32)).wait().unwrap_err();
        assert!(matches!(error, EngineError::Stopped), "{error}");
        // No engine at all.
        let none = self::batcher(Vec::<fn(&[ArrayView3<f32>]) -> _>::new(), 1, LONG);
        assert!(submit(&none, input(1.0, 32)).wait().is_err());
    }
}
