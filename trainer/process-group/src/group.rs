//! A group of processes that add, copy and collect tensors.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::connect::{ANSWER, left_until, roster, store, within};
use crate::error::Error;
use crate::launch::Launch;
use crate::shim::Shim;

/// Time between two requests to the store.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Key of the store that a rank sets when a collective has failed, to ask the others whether they still run; `number` is how
/// many have failed before.
fn roll_call(number: u32) -> String {
    format!("roll call {number}")
}

/// Key of the store that a rank sets in answer to a roll call.
fn present(number: u32, rank: usize) -> String {
    format!("present {number} {rank}")
}

/// Processes that work together. All must call the same collective functions in the same order.
///
/// Every call ends within the time-out, or soon after it. After an error, the group is unusable.
#[derive(Debug)]
pub struct ProcessGroup {
    launch: Launch,
    /// Time spent in collective functions.
    spent: Cell<Duration>,
    /// Number of failed calls.
    failures: Cell<u32>,
    /// None for a process that was started without a launcher.
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    shim: Arc<Shim>,
    /// The thread that answers roll calls ends when this is dropped.
    stop: Option<Sender<()>>,
    /// Disconnected when that thread has ended.
    ended: Receiver<()>,
}

impl ProcessGroup {
    /// The group of a process that is alone. Its collective functions do nothing.
    pub fn alone() -> Self {
        let launch = Launch {
            rank: 0,
            world_size: 1,
            local_rank: 0,
            local_world_size: 1,
            master_addr: String::new(),
            master_port: 0,
            launcher_serves_store: false,
            restart_count: 0,
        };
        Self { launch, spent: Cell::default(), failures: Cell::default(), connection: None }
    }

    /// The group that a launcher has started; [`alone`](Self::alone) without a launcher. `timeout` is how long any rank
    /// waits for the others, now and in every collective.
    ///
    /// # Errors
    /// When the launcher's variables are invalid, and when the processes do not find each other.
    pub fn from_env(timeout: Duration) -> Result<Self, Error> {
        match Launch::from_env()? {
            Some(launch) => Self::connect(launch, timeout),
            None => Ok(Self::alone()),
        }
    }

    /// Connects to the other processes.
    ///
    /// # Errors
    /// When the processes do not find each other, or disagree about who they are.
    pub fn connect(launch: Launch, timeout: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + timeout;
        let (shim, interface) = store(&launch, timeout, deadline)?;
        let shim = Arc::new(shim);
        let result = roster(&shim, &launch, timeout, deadline);
        if result.is_err() && launch.rank == 0 && !launch.launcher_serves_store {
            // The store ends with this process. The others still have to read why.
            thread::sleep(ANSWER);
        }
        result?;
        let Launch { rank, world_size, .. } = launch;
        let opened = {
            let (shim, interface) = (shim.clone(), interface.map(|address| address.to_string()));
            within(timeout + ANSWER, move || shim.open(rank, world_size, interface.as_deref()))
        };
        let (stop, stopped) = channel();
        let (running, ended) = channel();
        let connection = Connection { shim: shim.clone(), stop: Some(stop), ended };
        let group = Self { launch, spent: Cell::default(), failures: Cell::default(), connection: Some(connection) };
        thread::spawn(move || answer_roll_calls(shim, rank, &stopped, running));
        opened.map_err(|reason| group.failure("connecting the ranks", reason))?;
        Ok(group)
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    /// Whether this is rank 0.
    pub fn is_first(&self) -> bool {
        self.launch.rank == 0
    }

    /// Number of processes.
    pub fn world_size(&self) -> usize {
        self.launch.world_size
    }

    /// Number of this process among those on its machine.
    pub fn local_rank(&self) -> usize {
        self.launch.local_rank
    }

    /// Number of processes on this machine.
    pub fn local_world_size(&self) -> usize {
        self.launch.local_world_size
    }

    /// Time that this process has spent in collective functions, waiting for other ranks included.
    pub fn communication_time(&self) -> Duration {
        self.spent.get()
    }

    /// Replaces a contiguous tensor by the sum of those of all ranks. All have the same shape and type. The result is the
    /// same on all ranks, to the bit.
    ///
    /// # Errors
    /// When a rank has ended, or does not take part within the time-out.
    pub fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), Error> {
        self.collective("adding tensors", |shim| shim.all_reduce_sum(tensor, true))
    }

    /// Like [`all_reduce_sum`](Self::all_reduce_sum), but on a GPU only the GPU waits for the others. Their failure is then an
    /// error of the next `all_reduce_sum`, so the sum must not be used before that.
    ///
    /// # Errors
    /// In CPU memory, like `all_reduce_sum`.
    pub fn queue_all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), Error> {
        self.collective("adding tensors", |shim| shim.all_reduce_sum(tensor, false))
    }

    /// Like [`all_reduce_sum`](Self::all_reduce_sum), as an operation that autograd differentiates: the backward pass adds
    /// the gradients of all ranks. The group must exist until then.
    ///
    /// # Errors
    /// When a rank has ended, or does not take part within the time-out.
    pub fn differentiable_sum(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        let mut total = tensor.shallow_clone();
        self.collective("adding tensors", |shim| {
            total = shim.differentiable_sum(tensor)?;
            Ok(())
        })?;
        Ok(total)
    }

    /// Replaces each number by its sum over all ranks. All have as many numbers.
    ///
    /// # Errors
    /// When a rank has ended, or does not take part within the time-out.
    pub fn sum(&self, numbers: &mut [f64]) -> Result<(), Error> {
        let mut tensor = Tensor::from_slice(numbers);
        self.all_reduce_sum(&mut tensor)?;
        tensor.copy_data(numbers, numbers.len());
        Ok(())
    }

    /// Replaces a contiguous tensor by that of rank `root`. All have the same shape and type.
    ///
    /// # Errors
    /// When a rank has ended, or does not take part within the time-out.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), Error> {
        self.collective("copying a tensor", |shim| shim.broadcast(tensor, root))
    }

    /// The tensors of all ranks, `[world_size, ...]`. All have the same shape and type.
    ///
    /// # Errors
    /// When a rank has ended, or does not take part within the time-out.
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        let world_size = self.launch.world_size as i64;
        let shape = [&[world_size], tensor.size().as_slice()].concat();
        let mut one = tensor.reshape(-1).contiguous();
        if self.connection.is_none() {
            return Ok(one.view(shape.as_slice()));
        }
        let mut all = Tensor::empty([world_size * one.size()[0]], (one.kind(), one.device()));
        self.collective("collecting tensors", |shim| shim.all_gather(&mut all, &mut one))?;
        Ok(all.view(shape.as_slice()))
    }

    /// The bytes of all ranks, by rank. They may have different lengths.
    ///
    /// # Errors
    /// When a rank has ended, or does not take part within the time-out.
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        if self.connection.is_none() {
            return Ok(vec![bytes.to_vec()]);
        }
        let lengths = self.all_gather(&Tensor::from_slice(&[bytes.len() as i64]))?;
        let lengths: Vec<_> =
            (0..).take(self.world_size()).map(|rank| lengths.int64_value(&[rank, 0]) as usize).collect();
        // At least one byte, because there are no empty tensors to collect.
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = bytes.to_vec();
        padded.resize(longest, 0);
        let all = self.all_gather(&Tensor::from_slice(&padded))?;
        let mut values = vec![0; longest * lengths.len()];
        let count = values.len();
        all.copy_data(&mut values, count);
        Ok(values.chunks(longest).zip(lengths).map(|(chunk, length)| chunk[..length].to_vec()).collect())
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// When a rank has ended, or does not come within the time-out.
    pub fn barrier(&self) -> Result<(), Error> {
        self.collective("waiting for all ranks", Shim::barrier)
    }

    /// Does nothing in a process that is alone.
    fn collective(&self, operation: &'static str, call: impl FnOnce(&Shim) -> Result<(), String>) -> Result<(), Error> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let start = Instant::now();
        let result = call(&connection.shim);
        self.spent.set(self.spent.get() + start.elapsed());
        result.map_err(|reason| self.failure(operation, reason))
    }

    fn failure(&self, operation: &'static str, reason: String) -> Error {
        let absent = self.absent();
        if self.is_first() && !self.launch.launcher_serves_store {
            // The store ends with this process, and others, whose time was over a little later, may still be asking it.
            thread::sleep(ANSWER / 2);
        }
        Error::Collective { operation, absent, reason }
    }

    /// The other ranks that do not answer a roll call.
    fn absent(&self) -> Vec<usize> {
        let Some(Connection { shim, .. }) = &self.connection else { return Vec::new() };
        let (shim, rank, world_size) = (shim.clone(), self.launch.rank, self.launch.world_size);
        let number = self.failures.replace(self.failures.get() + 1);
        let call = move || {
            // This thread answers too, because it keeps the store's connection busy.
            shim.set(&present(number, rank), "")?;
            shim.set(&roll_call(number), "")?;
            let deadline = Instant::now() + ANSWER;
            // When the time is over, one more look at those that have answered while this thread waited for others.
            let answers = |other: &usize| {
                let key = present(number, *other);
                shim.get(&key, left_until(deadline)).is_ok() || shim.has(&key).is_ok_and(|has| has)
            };
            let absent: Vec<_> = (0..world_size).filter(|other| *other != rank && !answers(other)).collect();
            // Nobody answers where the store has ended.
            shim.has(&roll_call(number)).map(|_| absent)
        };
        within(2 * ANSWER, call).unwrap_or_else(|_| vec![0])
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Lets the thread end before the process does, unless the store keeps it waiting.
        self.stop = None;
        let _ = self.ended.recv_timeout(ANSWER);
    }
}

/// Answers roll calls until `stopped` is disconnected. Ends also if the store does, and then drops `_running`.
fn answer_roll_calls(shim: Arc<Shim>, rank: usize, stopped: &Receiver<()>, running: Sender<()>) {
    answer(&shim, rank, stopped);
    // In this order, so that the process does not end while this thread frees the shim.
    drop(shim);
    drop(running);
}

fn answer(shim: &Shim, rank: usize, stopped: &Receiver<()>) {
    let mut number = 0;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(POLL_INTERVAL) {
        match shim.has(&roll_call(number)) {
            Ok(false) => {}
            Ok(true) => {
                let _ = shim.set(&present(number, rank), "");
                number += 1;
            }
            Err(_) => return,
        }
    }
}
