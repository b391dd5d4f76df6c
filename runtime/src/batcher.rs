//! The batcher: gathers the inputs of all callers into batches, and runs them on a thread per engine.

mod queue;
mod worker;

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::call::{Cancellation, Priority};
use crate::engine::{Engine, EngineError, Input, Outputs};
pub use queue::{BatchObserver, Statistics};
pub(crate) use queue::{BatchOptions, Inference};
use queue::{Job, Queue, Reply, Trial};
use worker::{Run, Worker};

/// An input whose outputs are still to come.
#[derive(Debug)]
pub(crate) struct Pending<O = Outputs>(Receiver<Reply<O>>);

impl<O> Pending<O> {
    /// Waits for the outputs.
    pub(crate) fn wait(self) -> Reply<O> {
        self.0.recv().unwrap_or(Err(EngineError::Stopped))
    }
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
            move |inputs: &[&Input]| {
                let _span = tracing::debug_span!("infer", images = inputs.len(), size = ?inputs[0].size()).entered();
                engine.run_inputs(inputs, padded)
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

    /// Submits an input. Does not wait.
    pub(crate) fn submit(&self, input: Input<'static>, priority: Priority, cancellation: Cancellation) -> Pending<O> {
        let (reply, receiver) = sync_channel(1);
        let mut state = self.queue.lock();
        // Without workers the reply is dropped, which `Pending::wait` reports.
        if !state.workers.is_empty() {
            let position = state.waiting.partition_point(|job| job.priority <= priority);
            state.waiting.insert(position, Job { input, submitted: Instant::now(), priority, cancellation, reply });
            self.queue.changed.notify_all();
        }
        Pending(receiver)
    }

    /// Runs `inputs` as one batch on every engine in turn, on its own thread, and does not count them. They go before the
    /// waiting inputs.
    pub(crate) fn run_on_each(&self, inputs: &[Input<'static>]) -> Result<(), EngineError> {
        for worker in 0..self.threads.len() {
            let (reply, receiver) = sync_channel(1);
            let mut state = self.queue.lock();
            if state.workers.contains(&worker) {
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::Duration;

    use ndarray::Array3;

    use super::*;
    use crate::engine::Pixels;

    /// The first value of each input of the batch.
    type Values = Vec<f32>;

    const LONG: Duration = Duration::from_secs(100);

    fn input(value: f32, width: usize) -> Input<'static> {
        Array3::from_elem((3, 32, width), value).into()
    }

    fn values(inputs: &[&Input]) -> Values {
        let value = |input: &&Input| match &input.pixels {
            Pixels::Float(pixels) => pixels[[0, 0, 0]],
            Pixels::Bytes(_) => unreachable!("all inputs of these tests are floats"),
        };
        inputs.iter().map(value).collect()
    }

    /// A negative input is an error, NaN a panic.
    fn run(inputs: &[&Input]) -> Result<Values, EngineError> {
        let values = values(inputs);
        assert!(values.iter().all(|value| !value.is_nan()), "on purpose");
        if values.iter().any(|value| *value < 0.0) { Err(EngineError::OnlyCandidates) } else { Ok(values) }
    }

    fn batcher(runs: Vec<impl Run<Values>>, max_batch: usize, max_delay: Duration) -> Batcher<Values> {
        let options = BatchOptions { max_batch: max_batch.try_into().unwrap(), max_delay, observer: None };
        Batcher::start(runs, options)
    }

    fn submit(batcher: &Batcher<Values>, input: Input<'static>) -> Pending<Values> {
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
        let run = move |inputs: &[&Input]| {
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
        // Not even behind an input of another size.
        let early = submit(&full, input(5.0, 64));
        let pending = [submit(&full, input(6.0, 32)), submit(&full, input(7.0, 32))];
        assert_eq!(pending.map(|pending| value(pending.wait())), [6.0, 7.0]);
        drop(full);
        assert_eq!(value(early.wait()), 5.0);
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
        // Only the runs that succeeded, of single inputs.
        let Statistics { inputs, batches, .. } = batcher.statistics();
        assert_eq!((inputs, batches), (4, 4));
    }

    #[test]
    fn eight_threads_share_batches_and_none_starves() {
        let (max, threads, rounds) = (Arc::new(AtomicUsize::new(0)), 8u8, 50u8);
        let seen = Arc::clone(&max);
        let run = move |inputs: &[&Input]| {
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
        assert_eq!((inputs, max.load(SeqCst)), (400, 4));
        assert!(batches < 250, "{batches} batches of 400 inputs");
    }

    /// Blocks the engine in its first run until the returned barrier is passed a second time.
    fn gated() -> (impl Run<Values>, Arc<Barrier>) {
        let gate = Arc::new(Barrier::new(2));
        let (inner, mut is_first) = (Arc::clone(&gate), true);
        let run = move |inputs: &[&Input]| {
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
            move |inputs: &[&Input]| {
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
        let none = self::batcher(Vec::<fn(&[&Input]) -> _>::new(), 1, LONG);
        assert!(submit(&none, input(1.0, 32)).wait().is_err());
    }
}
