//! A group of processes that add, copy and collect tensors.

use std::cell::Cell;
use std::env;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use crate::launch::{Launch, LaunchError};
use crate::shim::Shim;

/// Time between two attempts to connect, and between two looks at the store.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long a process is given to say that it still runs.
const ANSWER: Duration = Duration::from_secs(2);

/// Key of the store that a rank sets when a collective has failed, to ask the others whether they still run.
const ROLL_CALL: &str = "roll call";

/// Why processes cannot work together. `rank` is that of another process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launcher's variables are incomplete or invalid.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The store's port is in use.
    #[error(
        "cannot listen on port {port} for the other ranks: {reason}; another job, or another process with rank 0, uses it: \
         set MASTER_PORT to a free port in all processes"
    )]
    Port {
        /// The port.
        port: u16,
        /// The system's message.
        reason: String,
    },
    /// The store cannot be reached.
    #[error(
        "rank 0 does not answer at {address} within {} s: {reason}; check that it runs, MASTER_ADDR and MASTER_PORT",
        timeout.as_secs()
    )]
    Unreachable {
        /// Host and port.
        address: String,
        /// The time-out.
        timeout: Duration,
        /// The system's message.
        reason: String,
    },
    /// Two processes have the same rank.
    #[error(
        "{holder} is rank {rank} too; every process needs a RANK of its own, and every job a MASTER_PORT of its own"
    )]
    Duplicate {
        /// The rank.
        rank: usize,
        /// The other process.
        holder: String,
    },
    /// Two processes disagree about the number of processes.
    #[error("this process was started as one of {own} processes (WORLD_SIZE), but rank {rank} as one of {other}")]
    WorldSize {
        /// The number that this process knows.
        own: usize,
        /// The other process.
        rank: usize,
        /// The number that it knows.
        other: String,
    },
    /// A process has not come.
    #[error("rank {rank} of {world_size} did not join within {} s; check that it was started", timeout.as_secs())]
    Missing {
        /// The process.
        rank: usize,
        /// Number of processes.
        world_size: usize,
        /// The time-out.
        timeout: Duration,
    },
    /// A collective operation failed, because a rank has ended, or has not taken part within the time-out.
    #[error("{operation} failed: {}: {reason}", describe(absent))]
    Collective {
        /// What failed.
        operation: &'static str,
        /// The ranks that do not answer any more.
        absent: Vec<usize>,
        /// libtorch's message.
        reason: String,
    },
}

fn describe(absent: &[usize]) -> String {
    match absent {
        [] => "all ranks still run".to_owned(),
        [rank] => format!("rank {rank} has ended or does not respond"),
        ranks => format!(
            "the ranks {} have ended or do not respond",
            ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Processes that work together. All must call the same collective functions in the same order.
///
/// Every call ends within the time-out, or soon after it. After an error, the group is unusable.
#[derive(Debug)]
pub struct ProcessGroup {
    launch: Launch,
    /// Time spent in collective functions.
    spent: Cell<Duration>,
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
        Self { launch, spent: Cell::default(), connection: None }
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
        let group = Self { launch, spent: Cell::default(), connection: Some(connection) };
        thread::spawn(move || answer_roll_calls(&shim, rank, &stopped, running));
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
        self.collective("adding tensors", |shim| shim.all_reduce_sum(tensor))
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
        let all = self.all_gather(&Tensor::from_slice(&padded).to_kind(Kind::Uint8))?;
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
        Error::Collective { operation, absent: self.absent(), reason }
    }

    /// The other ranks that do not answer a roll call.
    fn absent(&self) -> Vec<usize> {
        let Some(Connection { shim, .. }) = &self.connection else { return Vec::new() };
        let (shim, rank, world_size) = (shim.clone(), self.launch.rank, self.launch.world_size);
        let roll_call = move || {
            // This thread answers too, because it keeps the store's connection busy.
            shim.set(&present(rank), "")?;
            shim.set(ROLL_CALL, "")?;
            let deadline = Instant::now() + ANSWER;
            let answers = |other: &usize| shim.get(&present(*other), left_until(deadline)).is_ok();
            let absent: Vec<_> = (0..world_size).filter(|other| *other != rank && !answers(other)).collect();
            // Nobody answers where the store has ended.
            shim.has(ROLL_CALL).map(|_| absent)
        };
        within(2 * ANSWER, roll_call).unwrap_or_else(|_| vec![0])
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Lets the thread end before the process does, unless the store keeps it waiting.
        self.stop = None;
        let _ = self.ended.recv_timeout(ANSWER);
    }
}

/// Key of the store that a rank sets in answer to a roll call.
fn present(rank: usize) -> String {
    format!("present {rank}")
}

/// Answers the first roll call, unless `stopped` is disconnected before. Ends also if the store does, and then drops
/// `_running`.
fn answer_roll_calls(shim: &Shim, rank: usize, stopped: &Receiver<()>, _running: Sender<()>) {
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(POLL_INTERVAL) {
        match shim.has(ROLL_CALL) {
            Ok(false) => {}
            Ok(true) => {
                let _ = shim.set(&present(rank), "");
                return;
            }
            Err(_) => return,
        }
    }
}

/// Connects to the store. Also returns the address under which the other ranks reach this one; `None`: that of this
/// machine's name.
fn store(launch: &Launch, timeout: Duration, deadline: Instant) -> Result<(Shim, Option<IpAddr>), Error> {
    let Launch { master_addr, master_port: port, .. } = launch;
    let unreachable = |reason: String| Error::Unreachable { address: format!("{master_addr}:{port}"), timeout, reason };
    let (address, own, listener) = if launch.rank == 0 && !launch.launcher_serves_store {
        let address = resolve(master_addr, *port).map_err(unreachable)?.ip();
        let listener = listen(address, *port)?;
        // It may be that of a service or a gateway.
        let own = UdpSocket::bind((address, 0)).is_ok().then_some(address);
        (address, own, Some(listener.into_raw_fd()))
    } else {
        let stream = reach(master_addr, *port, deadline).map_err(unreachable)?;
        let address = stream.peer_addr().map_err(|error| unreachable(error.to_string()))?.ip();
        (address, stream.local_addr().ok().map(|own| own.ip()), None)
    };
    // A group that was restarted meets the keys of the one before.
    let (host, port, prefix) = (address.to_string(), *port, format!("restart {}", launch.restart_count));
    let connect = move || Shim::connect(&host, port, listener, timeout, &prefix);
    let shim = within(timeout + ANSWER, connect).map_err(unreachable)?;
    // The name of this machine may lead to an address that only this machine knows.
    let is_one_machine = launch.local_world_size == launch.world_size
        || master_addr == "localhost"
        || master_addr.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    let is_set_by_user = env::var_os("GLOO_SOCKET_IFNAME").is_some();
    Ok((shim, own.filter(|own| !is_set_by_user && (is_one_machine || !own.is_loopback()))))
}

fn listen(address: IpAddr, port: u16) -> Result<TcpListener, Error> {
    // On all interfaces, because the address may be that of a service or a gateway.
    let listener = match address.is_loopback() {
        true => TcpListener::bind((address, port)),
        false => TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))),
    };
    listener.map_err(|error| Error::Port { port, reason: error.to_string() })
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let mut addresses = (host, port).to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "the name has no address".to_owned())
}

/// A connection to a server, once it accepts one.
fn reach(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, String> {
    loop {
        let connect = |address: SocketAddr| {
            let connected = TcpStream::connect_timeout(&address, left_until(deadline).min(ANSWER));
            connected.map_err(|error| error.to_string())
        };
        match resolve(host, port).and_then(connect) {
            Err(_) if Instant::now() + POLL_INTERVAL < deadline => thread::sleep(POLL_INTERVAL),
            result => return result,
        }
    }
}

/// Checks that every rank is taken once, and that all know the same number of processes.
fn roster(shim: &Arc<Shim>, launch: &Launch, timeout: Duration, deadline: Instant) -> Result<(), Error> {
    let Launch { rank, world_size, .. } = *launch;
    let key = |rank: usize| format!("rank {rank}");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let entry = format!("{world_size} process {} on {}", std::process::id(), host.trim());
    let lost = |reason| Error::Collective { operation: "joining the group", absent: vec![0], reason };
    let claimed = {
        let (shim, entry) = (shim.clone(), entry.clone());
        within(left_until(deadline) + ANSWER, move || shim.claim(&key(rank), &entry)).map_err(lost)?
    };
    if claimed != entry {
        let holder = claimed.split_once(' ').map_or(String::new(), |(_, holder)| holder.to_owned());
        return Err(Error::Duplicate { rank, holder });
    }
    for other in 0..world_size {
        let shim = shim.clone();
        let get = move || shim.get(&key(other), left_until(deadline));
        let missing = |_| Error::Missing { rank: other, world_size, timeout };
        let entry = within(left_until(deadline) + ANSWER, get).map_err(missing)?;
        let size = entry.split(' ').next().unwrap_or_default();
        if size != world_size.to_string() {
            return Err(Error::WorldSize { own: world_size, rank: other, other: size.to_owned() });
        }
    }
    Ok(())
}

fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Runs `work` in a thread for at most `limit`. The store's client waits without limit for a server that is frozen.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (sender, result) = channel();
    thread::spawn(move || sender.send(work()));
    result.recv_timeout(limit).unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}
