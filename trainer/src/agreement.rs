//! What all ranks must have in common before they train.

use anyhow::{anyhow, bail};
use process_group::ProcessGroup;

use crate::config::TrainConfig;
use crate::differences::{differences, is_within};
use crate::group::all;

/// The keys that may differ between machines: numbers of threads, memory, and paths. The data itself may not.
const OF_MACHINE: [&str; 4] = ["run.workers", "data.cache", "data.train", "data.validation"];

/// Checks that every rank has the configuration of rank 0.
///
/// # Errors
/// When one has another, with the key.
pub(crate) fn ensure_same_configuration(group: &ProcessGroup, config: &TrainConfig) -> anyhow::Result<()> {
    let text = all(group, serde_yaml::to_string(config).map_err(Into::into))?;
    let texts = group.all_gather_bytes(text.as_bytes())?;
    let compare = || {
        let first: TrainConfig = serde_yaml::from_slice(&texts[0])?;
        let keys = differences(&first, config)?;
        match keys.iter().find(|key| !is_within(key, &OF_MACHINE)) {
            Some(key) => bail!("`{key}` differs from rank 0; start all processes with the same configuration"),
            None => Ok(()),
        }
    };
    all(group, compare())
}

/// Checks that every rank has the training and the validation data of rank 0, by their checksums.
///
/// # Errors
/// When one has other data.
pub(crate) fn ensure_same_data(group: &ProcessGroup, [training, validation]: [u32; 2]) -> anyhow::Result<()> {
    let advice = "images, boxes or classes; give all processes the same data";
    ensure_same(group, training, &format!("the training data differs from that of rank 0: {advice}"))?;
    ensure_same(group, validation, &format!("the validation data differs from that of rank 0: {advice}"))
}

/// Checks that every rank has the checksum of rank 0.
///
/// # Errors
/// In ranks that have another, `message`; in the others, with that rank.
pub(crate) fn ensure_same(group: &ProcessGroup, checksum: u32, message: &str) -> anyhow::Result<()> {
    let checksums = group.all_gather_bytes(&checksum.to_le_bytes())?;
    all(group, if checksums[0] == checksum.to_le_bytes() { Ok(()) } else { Err(anyhow!("{message}")) })
}
