//! Training with several processes: how this one joins them, and how they agree.
//!
//! Ranks stay together because each takes part in every collective of every step. So what stops one rank (a signal, an
//! image that cannot be read, a failure of libtorch) is exchanged by [`agree`] and stops all of them at the same place.

use std::env;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use process_group::ProcessGroup;
use rayon::ThreadPoolBuilder;
use runtime::machine;
use runtime::progress;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::TorchError;
use crate::progress::{counted, say};

/// Training with several processes.
#[derive(Args, Debug)]
pub(crate) struct GroupArgs {
    /// With torchrun, srun or mpirun: seconds that a process waits for the others before it gives up.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    group_timeout: u64,
}

impl GroupArgs {
    /// Joins the processes that a launcher has started, or the group of this process alone. Divides the cores of the
    /// machine among its processes. Only rank 0 prints progress.
    ///
    /// # Errors
    /// When the launcher's variables are invalid, and when the processes do not find each other.
    pub(crate) fn join(&self) -> anyhow::Result<Rc<ProcessGroup>> {
        let group = ProcessGroup::from_env(Duration::from_secs(self.group_timeout))?;
        if !group.is_first() {
            progress::silence();
        }
        if group.world_size() > 1 {
            let threads = (machine::cores() / group.local_world_size()).max(1);
            if !has_user_set_threads() {
                tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
            }
            // Fails if there is a pool already, which then stays.
            let _ = ThreadPoolBuilder::new().num_threads(threads).build_global();
            let threads = counted(tch::get_num_threads() as usize, "thread", "threads");
            say(format_args!("{} processes, {threads} each", group.world_size()));
        }
        Ok(Rc::new(group))
    }
}

/// Whether the user has set the number of OpenMP's threads. torchrun sets it to 1 unless it is set.
fn has_user_set_threads() -> bool {
    env::var("OMP_NUM_THREADS").is_ok_and(|value| value != "1" || env::var_os("TORCHELASTIC_RUN_ID").is_none())
}

/// Says in which rank an error occurred.
pub(crate) fn with_rank<T>(group: &ProcessGroup, result: anyhow::Result<T>) -> anyhow::Result<T> {
    if group.world_size() > 1 { result.with_context(|| format!("rank {}", group.rank())) } else { result }
}

/// Why this rank stops.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// A signal has stopped this rank or another one.
    #[error("interrupted")]
    Interrupted,
    /// Other ranks have failed.
    #[error("{0}")]
    Others(String),
    /// libtorch has failed in this rank.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// This rank has failed amid a collective operation of all ranks.
    #[error("{0}")]
    Amid(TorchError),
    /// The group cannot go on.
    #[error(transparent)]
    Group(#[from] process_group::Error),
}

impl Halt {
    /// Whether a signal has stopped this rank or another one.
    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

/// What this rank has, if every rank has something; else an error on every rank: its own, or why the others stop.
/// `numbers` become their sums over all ranks. `is_interrupted` tells whether an error comes from a signal.
pub(crate) fn agree<T, E: From<Halt>>(
    group: &ProcessGroup,
    own: Result<T, E>,
    is_interrupted: impl Fn(&E) -> bool,
    numbers: &mut [f64],
) -> Result<T, E> {
    let flags = match &own {
        Ok(_) => [0.0; 3],
        Err(error) if is_interrupted(error) => [1.0, 0.0, 0.0],
        Err(_) => [0.0, 1.0, group.rank() as f64],
    };
    let mut exchanged = [flags.as_slice(), &*numbers].concat();
    let summed = group.sum(&mut exchanged);
    let own = own?;
    summed.map_err(Halt::Group)?;
    let (flags, sums) = exchanged.split_at(flags.len());
    numbers.copy_from_slice(sums);
    match *flags {
        [_, 1.0, rank] => Err(Halt::Others(format!("rank {rank} has failed and says why")).into()),
        [_, failed, _] if failed > 0.0 => Err(Halt::Others(format!("{failed} ranks have failed and say why")).into()),
        [interrupted, ..] if interrupted > 0.0 => Err(Halt::Interrupted.into()),
        _ => Ok(own),
    }
}

/// What this rank has, if every rank has something; else an error on every rank, with the reason of the first that failed.
pub(crate) fn all<T>(group: &ProcessGroup, own: anyhow::Result<T>) -> anyhow::Result<T> {
    // A mark, because a message may be empty.
    let message = own.as_ref().err().map(|error| format!("!{error:#}")).unwrap_or_default();
    let messages = group.all_gather_bytes(message.as_bytes());
    let own = own?;
    for (rank, message) in messages?.iter().enumerate() {
        if let [b'!', message @ ..] = message.as_slice() {
            return Err(anyhow!("rank {rank} has failed: {}", String::from_utf8_lossy(message)));
        }
    }
    Ok(own)
}

/// What rank 0 makes, on all ranks.
pub(crate) fn from_first<T: Serialize + DeserializeOwned>(
    group: &ProcessGroup,
    make: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if group.world_size() == 1 {
        return make();
    }
    // Serialized before `all`, so that no rank waits for another one that cannot do it.
    let with_text = || make().and_then(|made| Ok((serde_json::to_vec(&made)?, made)));
    let made = all(group, if group.is_first() { with_text().map(Some) } else { Ok(None) })?;
    let (text, made) = made.unzip();
    let texts = group.all_gather_bytes(&text.unwrap_or_default())?;
    match made {
        Some(made) => Ok(made),
        None => Ok(serde_json::from_slice(&texts[0])?),
    }
}
