//! Connecting to the store, where the processes find each other, and its roster of them.

use std::env;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::launch::Launch;
use crate::shim::Shim;

/// Time between two attempts to connect.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long a process is given to accept a connection or to answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(2);

/// Connects to the store. Also returns the address under which the other ranks reach this one; `None`: that of this
/// machine's name.
pub(crate) fn store(launch: &Launch, timeout: Duration, deadline: Instant) -> Result<(Shim, Option<IpAddr>), Error> {
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
pub(crate) fn roster(shim: &Arc<Shim>, launch: &Launch, timeout: Duration, deadline: Instant) -> Result<(), Error> {
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

pub(crate) fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Runs `work` in a thread for at most `limit`. The store's client waits without limit for a server that is frozen.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (sender, result) = channel();
    thread::spawn(move || sender.send(work()));
    result.recv_timeout(limit).unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}
