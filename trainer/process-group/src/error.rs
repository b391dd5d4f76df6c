//! Why processes cannot work together.

use std::time::Duration;

use crate::launch::LaunchError;

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
